"""Words, tokens and windows: every word is learnt once where the model sees most around it, and read back as it was."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from seqeval.metrics.sequence_labeling import get_entities
from transformers import AutoTokenizer, EvalPrediction, TokenClassificationPipeline

from hf_ext.data import train_tokenizer
from hf_ext.models import HfxEncoderConfig, HfxEncoderForTokenClassification
from hf_ext.tasks import token_classification as task
from hf_ext.tasks.tagging_rules import dialogue_entities, python_code
from hf_ext.tasks.tokenizer_section import TokenizerArguments


TOKENS = ["Ada", "Okafor", "sings", "in", "San", "Juan", ",", "near", "Oslo", "."]
TAGS = ["B-PERSON", "I-PERSON", "O", "O", "B-PLACE", "I-PLACE", "O", "O", "B-PLACE", "O"]
TEXT = " ".join(TOKENS)


def make_rows(copies: int = 1) -> Dataset:
    given = Dataset.from_dict({"tokens": [TOKENS * copies], "tags": [TAGS * copies]})
    return task.tagged_texts(given, task.TaggingArguments(), "train")


def make_tokenizer(kind: str = "byte_level_bpe", vocab_size: int = 290):
    special_tokens = task.special_tokens(TokenizerArguments(kind=kind))
    return train_tokenizer([TEXT] * 3, kind=kind, vocab_size=vocab_size, model_max_length=64, **special_tokens)


def read(rows, tokenizer, **options):
    labels = task.read_labels(rows)
    return labels, task.windows(rows, tokenizer, labels, task.TaggingArguments(**options), 64, "train")


def perfect_scores(windows: Dataset, labels: task.TagLabels) -> np.ndarray:
    """Logits by which each labelled token gets its label; others get a wrong one."""
    longest = max(map(len, windows["labels"]))
    scores = np.zeros((len(windows), longest, len(labels.names)), dtype=np.float32)
    for row, learnt in enumerate(windows["labels"]):
        for place, label in enumerate(learnt):
            scores[row, place, label if label >= 0 else 1] = 9
    return scores


def test_words_and_text_are_the_same_tokens_and_stay_so_when_saved(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        by_text = one(TEXT, return_offsets_mapping=True)
        by_words = one(TOKENS, is_split_into_words=True)
        assert by_text["input_ids"] == by_words["input_ids"]
        # the library's words and ours are the same, too
        starts = [sum(len(token) + 1 for token in TOKENS[:word]) for word in range(len(TOKENS))]
        for (start, end), word in zip(by_text["offset_mapping"], by_words.word_ids(), strict=True):
            if word is not None:
                assert starts[word] <= start < end <= starts[word] + len(TOKENS[word])


@pytest.mark.parametrize("kind", ["byte_level_bpe", "characters"])
@pytest.mark.parametrize("label_pieces", ["all", "first"])
def test_labels_are_on_the_words(kind, label_pieces):
    rows, tokenizer = make_rows(), make_tokenizer(kind)
    labels, windows = read(rows, tokenizer, label_pieces=label_pieces)
    assert labels.names == ["O", "B-PERSON", "I-PERSON", "B-PLACE", "I-PLACE"]
    (window,) = list(windows)
    # by the library's own count of words, as far as it has one: characters are words by themselves there
    text = tokenizer(TEXT, return_offsets_mapping=True)
    expected, before = [], None
    for (start, end), special in zip(
        text["offset_mapping"], tokenizer(TEXT, return_special_tokens_mask=True)["special_tokens_mask"], strict=True
    ):
        word = len(TEXT[: start + 1].split(" ")) - 1
        is_space = TEXT[start:end] == " "
        if special:
            expected.append(-100)
        elif is_space:
            tag = TAGS[word + 0] if word < len(TAGS) else "O"
            expected.append((labels.names.index(tag) if tag[0] == "I" else 0) if label_pieces == "all" else -100)
        elif word != before:
            expected.append(labels.names.index(TAGS[word]))
            before = word
        else:
            inside = TAGS[word] if TAGS[word] == "O" else "I" + TAGS[word][1:]
            expected.append(labels.names.index(inside) if label_pieces == "all" else -100)
    assert window["labels"] == expected
    assert [word for word in window["heads"] if word >= 0] == list(range(len(TOKENS)))


@pytest.mark.parametrize("label_pieces", ["all", "first"])
@pytest.mark.parametrize(("max_length", "stride"), [(12, 4), (9, 0), (20, None)])
def test_long_texts_are_read_whole(label_pieces, max_length, stride, caplog):
    rows, tokenizer = make_rows(copies=5), make_tokenizer(vocab_size=270)
    labels, windows = read(rows, tokenizer, label_pieces=label_pieces, max_length=max_length, stride=stride)
    assert "1 of 1 texts of train are longer and read in windows" in caplog.text
    assert all(len(ids) <= max_length for ids in windows["input_ids"])
    heads = [word for window in windows["heads"] for word in window if word >= 0]
    assert sorted(heads) == list(range(5 * len(TOKENS)))  # each word once
    # what is scored is what was learnt
    scores = perfect_scores(windows, labels)
    result = task.metrics(windows, rows, labels)(EvalPrediction(scores, None))
    assert result["f1"] == result["accuracy"] == result["f1_PLACE"] == 1
    (line,) = task.predictions(scores, windows, rows, labels)
    assert [{k: v for k, v in entity.items() if k != "score"} for entity in line["entities"]] == line["true"]
    assert line["true"][:2] == [
        {"type": "PERSON", "text": "Ada Okafor", "start": 0, "end": 10},
        {"type": "PLACE", "text": "San Juan", "start": 20, "end": 28},
    ]


def test_a_word_belongs_to_the_window_that_shows_most_around_it():
    rows, tokenizer = make_rows(copies=3), make_tokenizer("characters", 60)
    _, windows = read(rows, tokenizer, max_length=42, stride=20)  # 40 characters, 20 further each
    starts = [20 * number for number in range(len(windows))]
    last = len(windows) - 1
    for index, window in enumerate(windows):
        for place, word in enumerate(window["heads"]):
            if word < 0:
                continue
            at = rows[0]["words"][word][0]
            assert at == starts[index] + place - 1

            def room(number, at=at):
                start = starts[number]
                inside = start <= at < start + 40
                return inside * min(at - start if number else 99, start + 39 - at if number < last else 99)

            assert room(index) == max(room(number) for number in range(len(windows)))


def test_a_wrong_prediction_is_counted_as_seqeval_counts():
    rows, tokenizer = make_rows(), make_tokenizer()
    labels, windows = read(rows, tokenizer)
    scores = perfect_scores(windows, labels)
    place = windows[0]["heads"].index(8)  # Oslo
    scores[0, place] = 0
    scores[0, place, labels.names.index("B-PERSON")] = 5
    result = task.metrics(windows, rows, labels)(EvalPrediction(scores, None))
    assert (result["precision"], result["recall"]) == (2 / 3, 2 / 3)
    assert result["accuracy"] == 9 / 10
    assert result["f1_PERSON"] == pytest.approx(2 / 3)  # one of two that were found, one of one that is
    line = task.predictions(scores, windows, rows, labels)[0]["entities"][-1]
    assert (line["type"], line["text"]) == ("PERSON", "Oslo")
    assert line["score"] == pytest.approx(np.exp(5) / (np.exp(5) + 4), abs=1e-6)


@pytest.mark.parametrize("label_pieces", ["all", "first"])
def test_the_pipeline_gives_the_same_entities(label_pieces):
    rows, tokenizer = make_rows(), make_tokenizer()
    labels, windows = read(rows, tokenizer, label_pieces=label_pieces)
    config = HfxEncoderConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, **labels.head
    )
    model = HfxEncoderForTokenClassification(config).eval()
    scores = perfect_scores(windows, labels)

    model.forward = lambda **inputs: {"logits": torch.tensor(scores)}
    arguments = task.TaggingArguments(label_pieces=label_pieces)
    strategy = task.usage(arguments).split('strategy="')[1].split('"')[0]
    tagger = TokenClassificationPipeline(model=model, tokenizer=tokenizer)
    found = tagger(TEXT, aggregation_strategy=strategy)
    spans = [(entity["entity_group"], entity["start"], entity["end"]) for entity in found]
    (line,) = task.predictions(scores, windows, rows, labels)
    assert spans == [(entity["type"], entity["start"], entity["end"]) for entity in line["entities"]]


def test_spans_and_rules_become_words_with_tags():
    spans = [{"start": 0, "end": 10, "label": "PERSON"}, {"start": 20, "end": 28, "label": "PLACE"}]
    given = Dataset.from_dict({"text": [TEXT.replace(" ,", ",")], "spans": [spans]})
    (row,) = task.tagged_texts(given, task.TaggingArguments(), "train")
    assert [row["text"][a:b] for a, b in row["words"]] == TOKENS
    assert row["tags"] == [*TAGS[:8], "O", "O"]
    arguments = task.TaggingArguments(rule="python_code")
    (row,) = task.tagged_texts(Dataset.from_dict({"text": ["import os.path\n", "no python"]}), arguments, "train")
    assert row["tags"] == ["O", "B-MODULE", "I-MODULE", "I-MODULE"]


def test_bioes_is_read_and_becomes_iob2():
    tags = ["B-A", "I-A", "E-A", "S-B", "O", "S-A", "B-A", "E-A"]
    given = Dataset.from_dict({"tokens": [list("abcdefgh")], "tags": [tags]})
    (row,) = task.tagged_texts(given, task.TaggingArguments(scheme="BIOES"), "train")
    assert row["tags"] == ["B-A", "I-A", "I-A", "B-B", "O", "B-A", "B-A", "I-A"]
    ends = [(kind, first, end - 1) for first, end, kind in task.entities_of(row["tags"])]
    assert ends == get_entities(row["tags"]) == get_entities(tags)


def test_entities_are_those_of_seqeval_whatever_the_tags():
    rng = np.random.default_rng(0)
    names = ["O", "B-A", "I-A", "B-B", "I-B"]
    for _ in range(300):
        tags = [names[i] for i in rng.integers(0, 5, 12)]
        ends = [(kind, first, end - 1) for first, end, kind in task.entities_of(tags)]
        assert ends == get_entities(tags), tags


def test_numbers_are_named():
    given = Dataset.from_dict({"tokens": [["Oslo", "."]], "tags": [[1, 0]]})
    arguments = task.TaggingArguments(tag_names=["O", "B-PLACE"])
    assert task.tagged_texts(given, arguments, "train")[0]["tags"] == ["B-PLACE", "O"]
    with pytest.raises(ValueError, match="is a number; say what they mean"):
        task.tagged_texts(given, task.TaggingArguments(), "train")


@pytest.mark.parametrize(
    ("tags", "scheme", "message"),
    [
        (["O", "I-A"], "IOB2", "'I-A' after 'O' in row 0 of train: not IOB2; an entity begins with B-A"),
        (["B-A", "I-B"], "IOB2", "'I-B' after 'B-A'"),
        (["A", "O"], "IOB2", "'A' in row 0 of train must be O or one of B, I"),
        (["B-", "O"], "IOB2", "'B-' in row 0 of train must be O"),
        (["S-A", "O"], "IOB2", "'S-A' in row 0 of train must be O or one of B, I with"),
        (["B-A", "O"], "BIOES", "'O' after 'B-A' in row 0 of train: not BIOES; end the entity with E"),
        (["O", "B-A"], "BIOES", "the end after 'B-A'"),
        (["S-A", "E-A"], "BIOES", "'E-A' after 'S-A'"),
        (["B-A"], "IOB2", "tags: 1 for 2 tokens in row 0 of train"),
        ([1, 2], "IOB2", "is a number"),
    ],
)
def test_malformed_tags(tags, scheme, message):
    rows = Dataset.from_dict({"tokens": [["a", "b"]], "tags": [tags]})
    with pytest.raises(ValueError, match=message):
        task.tagged_texts(rows, task.TaggingArguments(scheme=scheme), "train")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"tokens": [["a"]], "labels": [["O"]]}, "must have tokens and tags, or text and spans, and has neither"),
        ({"tokens": [["a", " "]], "tags": [["O", "O"]]}, "row 0 of train has an empty token"),
        ({"text": ["Oslo"], "spans": [[{"start": 0, "end": 2, "label": "A"}]]}, "must begin and end where a word does"),
        ({"text": [" "], "spans": [[{"start": 0, "end": 1, "label": "A"}]]}, "row 0 of train is empty"),
        (
            {"text": ["a b"], "spans": [[{"start": 0, "end": 3, "label": "A"}, {"start": 2, "end": 3, "label": "B"}]]},
            "lies over the one before",
        ),
    ],
)
def test_rows_that_cannot_be_meant(columns, message):
    with pytest.raises(ValueError, match=message):
        task.tagged_texts(Dataset.from_dict(columns), task.TaggingArguments(), "train")


def test_settings_that_cannot_be_meant():
    for options, message in (
        ({"rule": "python"}, "tagging.rule"),
        ({"rule": "python_code", "scheme": "BIOES"}, "has no effect with tagging.rule"),
        ({"max_length": 3}, "must be at least 4"),
        ({"stride": -1}, "must not be negative"),
    ):
        with pytest.raises(ValueError, match=message):
            task.TaggingArguments(**options)
    with pytest.raises(ValueError, match="stride=10: must be below 10"):
        task.TaggingArguments(max_length=12, stride=10).window(64, make_tokenizer())
    rows = Dataset.from_dict({"tokens": [["a"]], "tags": [["O"]]})
    with pytest.raises(ValueError, match="no text of train has an entity"):
        task.read_labels(task.tagged_texts(rows, task.TaggingArguments(), "train"))


def entities(passages) -> list[tuple[str, str]]:
    return [(kind, p.text[p.words[a][0] : p.words[b - 1][1]]) for p in passages for a, b, kind in p.entities]


def test_the_rule_for_python():
    source = '''import os.path as p, sys
from ..a.b import c
class A(b.C, metaclass=M):
    """text"""
    @x.y.setter
    async def f(self, é, *args, k=1, **kw) -> int:
        try:
            raise X.Err("é")
        except (ValueError, q.KeyE) as e:
            raise e from None
'''
    assert entities(python_code(source)) == [
        ("MODULE", "os . path"),
        ("MODULE", "sys"),
        ("MODULE", "a . b"),
        ("CLASS", "A"),
        ("BASE", "b . C"),
        ("KEYWORD", "metaclass"),
        ("DECORATOR", "x . y . setter"),
        ("FUNCTION", "f"),
        *(("PARAMETER", name) for name in ("self", "é", "args", "k", "kw")),
        ("EXCEPTION", "X . Err"),
        ("EXCEPTION", "ValueError"),
        ("EXCEPTION", "q . KeyE"),
    ]
    assert list(python_code("no python at all")) == []


def test_the_rule_for_dialogues():
    text = (
        "#Person1#: Mr. Dawson, I'll pay $ 1,200 or twenty five dollars at 3:30 p.m. on Monday, at 5 o'clock.\n"
        "#Person2#: One hundred and two of them, no one, 45% today.\nYes."
    )
    assert entities(dialogue_entities(text)) == [
        ("PERSON", "Mr. Dawson"),
        ("MONEY", "$ 1,200"),
        ("MONEY", "twenty five dollars"),
        ("TIME", "3:30 p.m."),
        ("DATE", "Monday"),
        ("TIME", "5 o'clock"),
        ("NUMBER", "One hundred and two"),
        ("PERCENT", "45%"),
        ("DATE", "today"),
    ]
