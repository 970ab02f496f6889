"""Rows with one or several summaries, ROUGE by the library, sentences before the encoder, and refusals."""

import json

import pytest
import torch
from datasets import Dataset
from rouge_score import rouge_scorer
from transformers import AutoModelForTokenClassification

from hf_ext import HfxDecoderConfig, HfxEncoderConfig, HfxEncoderDecoderConfig
from hf_ext.data import RowArguments, train_tokenizer
from hf_ext.tasks import extractive_summarization as extractive
from hf_ext.tasks import summarization
from hf_ext.tasks.extractive_summarization import ExtractionArguments
from hf_ext.tasks.summarization import ReferenceArguments, SummaryArguments


DIALOGUE = (
    "Ana: Is the bicycle ready?\nBen: Not yet, come on Friday.\nAna: Then I walk.\nBen: Take my umbrella, it rains."
)
# logits of a batch and of a text by itself, fp32; sums of fractions, fp64
TOLERANCE = 1e-5


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def files(tmp_path) -> dict:
    train = [{"dialogue": f"{n} {DIALOGUE}", "summary": f"Summary {n}."} for n in range(20)]
    test = [{"dialogue": DIALOGUE, "summary1": "One.", "summary2": "Two.", "topic": "x"}]
    return {"train": write(tmp_path / "train.jsonl", train), "test": write(tmp_path / "test.jsonl", test)}


def test_splits_may_have_other_columns(tmp_path):
    data = RowArguments(
        data_files=files(tmp_path), test_split="test", columns={"document": "dialogue"}, validation_fraction=0.3
    )
    asked = ReferenceArguments(summary_columns=["summary", "summary1", "summary2"])
    rows = summarization.load_documents_with_summaries(data, asked)
    assert {len(references) for references in rows["train"]["references"]} == {1}
    assert rows["test"]["references"][0] == ["One.", "Two."]
    assert rows["test"].column_names == ["document", "references"]
    with pytest.raises(
        ValueError, match=r"summary_columns=\['sum'\]: none is among the columns \['dialogue', 'summary'"
    ):
        summarization.load_documents_with_summaries(data, ReferenceArguments(summary_columns=["sum"]))
    write(tmp_path / "test.jsonl", [{"dialogue": "a", "summary": " ", "topic": "x"}])
    with pytest.raises(ValueError, match="references: row 0 of test has none"):
        summarization.load_documents_with_summaries(data, asked)


def test_rouge_takes_the_best_reference_and_sentences_by_line():
    references = ["The cat sat. It purred loudly.", "A dog ran home."]
    written = "It purred. The cat sat there."
    rows = Dataset.from_list([{"references": references}])
    found = summarization.score(rows, ReferenceArguments())([f" {written}\n"])
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"])
    lines = [text.replace(". ", ".\n") for text in (*references, written)]
    for name in ("rouge1", "rouge2", "rougeL", "rougeLsum"):
        best = max(scorer.score(reference, lines[2])[name].fmeasure for reference in lines[:2])
        assert found[name] == pytest.approx(best, abs=TOLERANCE)
    assert found["rougeLsum"] > found["rougeL"]  # sentences are matched whatever their order
    assert found["words"] == 6


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([DIALOGUE] * 4, vocab_size=330, model_max_length=64, **extractive.SPECIAL_TOKENS)


def a_model(tokenizer, **fields):
    torch.manual_seed(0)
    config = HfxEncoderConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        type_vocab_size=2,
        initializer_range=0.5,
        **extractive.HEAD,
        **fields,
    )
    return AutoModelForTokenClassification.from_config(config).eval()


def test_every_sentence_is_wrapped_and_labelled_at_its_first_token(tokenizer):
    asked, lines = ExtractionArguments(unit="lines"), DIALOGUE.split("\n")
    documents = Dataset.from_list([{"document": DIALOGUE, "references": ["Come on Friday.", "Take an umbrella."]}])
    for where, oracle in (("train", [0, 1, 0, 0]), ("test", [0, 1, 0, 0])):
        rows = extractive.split_documents(documents, asked, where)
        assert rows[0]["labels"] == oracle
    inputs = extractive.tokenize(rows, tokenizer, a_model(tokenizer).config, asked, "test")[0]
    decoded = tokenizer.decode(inputs["input_ids"])
    assert decoded == "".join(f"<|cls|>{line}<|endoftext|>" for line in lines)
    places = [place for place, label in enumerate(inputs["labels"]) if label != -100]
    assert [inputs["labels"][place] for place in places] == rows[0]["labels"]
    assert all(inputs["input_ids"][place] == tokenizer.cls_token_id for place in places)
    segments = torch.tensor(inputs["token_type_ids"])
    assert segments[places].tolist() == [0, 1, 0, 1]
    # whole sentences only, and a first one that is too long alone is cut
    for length in range(4, len(inputs["input_ids"])):
        encoded, found = extractive.encode_sentences(lines, tokenizer, length, True)
        assert len(encoded["input_ids"]) <= length
        assert found == places[: len(found)] != []
        assert encoded["input_ids"][-1] == tokenizer.sep_token_id
    fitting = extractive.encode_sentences(lines, tokenizer, len(inputs["input_ids"]) - 1, True)[1]
    assert len(fitting) == 3


def test_a_trained_model_is_asked_as_it_was_evaluated(tokenizer):
    asked = ExtractionArguments(unit="lines", num_sentences=2)
    documents = Dataset.from_list(
        [{"document": text, "references": ["Come on Friday."]} for text in (DIALOGUE, "A: Hi.\nB: Bye.")]
    )
    rows, model = extractive.split_documents(documents, asked, "test"), a_model(tokenizer)
    inputs = extractive.tokenize(rows, tokenizer, model.config, asked, "test")
    with torch.no_grad():
        batch = extractive.collator(tokenizer)([dict(row) for row in inputs])
        output = model(**batch)
    logits = extractive.summary_logits((output.logits,), None).numpy()
    scores = extractive.sentence_scores(logits, inputs)
    for number, row in enumerate(inputs):
        with torch.no_grad():
            ids = {name: torch.tensor([row[name]]) for name in ("input_ids", "token_type_ids")}
            shares = model(**ids).logits[0].softmax(-1)[:, 1]
        alone = [float(shares[p]) for p, label in enumerate(row["labels"]) if label != -100]
        assert scores[number] == pytest.approx(alone, abs=TOLERANCE)
        best = sorted(sorted(range(len(alone)), key=lambda i: -alone[i])[:2])
        lines = documents[number]["document"].split("\n")
        found = extractive.extract_summary(
            model, tokenizer, documents[number]["document"], unit="lines", num_sentences=2, block_trigrams=False
        )
        assert found == [lines[i] for i in best]
    line = extractive.predictions(scores, rows, asked)[0]
    assert line["prediction"] == "\n".join(line["sentences"][i] for i in line["chosen"])
    assert len(line["scores"]) == len(line["sentences"]) == 4


def test_baselines_stand_beside(tokenizer):
    asked = ExtractionArguments(unit="lines")
    documents = Dataset.from_list([{"document": DIALOGUE, "references": ["Take my umbrella, it rains."]}])
    beside = extractive.baselines(extractive.split_documents(documents, asked, "test"), asked)
    scorer = rouge_scorer.RougeScorer(["rouge1"])
    for name, text in (("lead3", DIALOGUE.rsplit("\n", 1)[0]), ("oracle", DIALOGUE.rsplit("\n", 1)[1])):
        expected = scorer.score("Take my umbrella, it rains.", text)["rouge1"].fmeasure
        assert beside[f"{name}_rouge1"] == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (SummaryArguments, {"max_target_length": 1}, "summarization.max_target_length=1: must be at least 2"),
        (SummaryArguments, {"prompt": "Sum up:"}, "summarization.prompt='Sum up:': must have {document} once"),
        (SummaryArguments, {"summary_columns": []}, r"summary_columns=\[\]: name one at least"),
        (SummaryArguments, {"rouge_tokenizer": "words"}, "rouge_tokenizer='words': must be one of"),
        (ReferenceArguments, {"rouge_tokenizer": "unicode", "use_stemmer": True}, "use_stemmer=True: has no effect on"),
        (ExtractionArguments, {"unit": "line"}, "summarization.unit='line': must be one of .*; did you mean 'lines'"),
        (ExtractionArguments, {"num_sentences": 0}, "summarization.num_sentences=0: must be at least 1"),
        (ExtractionArguments, {"num_sentences": None}, "num_sentences, threshold: neither is given"),
        (ExtractionArguments, {"threshold": 1.0}, "summarization.threshold=1.0: must be between 0 and 1"),
    ],
)
def test_options_that_can_t_be_meant(kind, fields, message):
    with pytest.raises(ValueError, match=message) as caught:
        kind(**fields)
    assert "\n" not in str(caught.value)


def test_models_and_tokenizers_that_can_t_do_it(tokenizer):
    extractive.check_model(HfxEncoderConfig())
    for config in (HfxDecoderConfig(), HfxEncoderDecoderConfig()):
        with pytest.raises(ValueError, match="the token before a sentence must see it; use an encoder"):
            extractive.check_model(config)
    extractive.check_tokenizer(tokenizer)
    with pytest.raises(ValueError, match="it has no cls_token"):
        extractive.check_tokenizer(train_tokenizer([DIALOGUE], vocab_size=300, model_max_length=64))
