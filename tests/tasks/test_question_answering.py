"""Questions to windows and back: characters, answers over windows against a search window by window, no answer, refusals."""

import json
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForQuestionAnswering

from hf_ext import HfxDecoderConfig, HfxEncoderConfig, HfxEncoderDecoderConfig
from hf_ext.data import RowArguments, train_tokenizer
from hf_ext.tasks import question_answering as task
from hf_ext.tasks.question_answering import AnswerArguments


TEXTS = [
    "The Rhine rises in the Alps, 1,233 km from the sea.  It passes Köln, “the old town”, and Rotterdam.\n\n"
    "Ships need 5½ days.",
    "A short text about 😀 and ½ of Ähren.",
]
QUESTIONS = ["How long do ships need?", "What is it about?", "Which town?"]
CONFIGS = {"encoder": HfxEncoderConfig, "decoder": HfxDecoderConfig, "encoder_decoder": HfxEncoderDecoderConfig}
# logits of windows in one batch and one by one, fp32
TOLERANCE = 1e-5


def answer(text: str, given: str | None) -> dict:
    return {"text": [given], "answer_start": [text.index(given)]} if given else {"text": [], "answer_start": []}


def some_rows() -> Dataset:
    asked = [
        (QUESTIONS[0], TEXTS[0], "5½ days"),
        (QUESTIONS[1], TEXTS[1], "½"),
        (QUESTIONS[2], TEXTS[0], "Köln"),
        (QUESTIONS[2], TEXTS[1], None),
    ]
    return Dataset.from_list(
        [{"id": str(n), "question": q, "context": t, "answers": answer(t, a)} for n, (q, t, a) in enumerate(asked)]
    )


@pytest.fixture(scope="module")
def tokenizer():
    texts = [*TEXTS, *QUESTIONS] * 3
    return train_tokenizer(texts, vocab_size=330, model_max_length=64, **task.SPECIAL_TOKENS)


def a_model(tokenizer, family: str = "encoder", **fields):
    torch.manual_seed(0)
    config = CONFIGS[family](
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,  # answers that differ
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **fields,
    )
    return AutoModelForQuestionAnswering.from_config(config).eval()


@pytest.mark.parametrize(("max_length", "stride"), [(64, None), (40, 0), (36, 12)])
def test_windows_hold_every_answer_s_characters(tokenizer, max_length, stride):
    rows, asked = some_rows(), AnswerArguments(max_length=max_length, stride=stride, null_answers=True)
    windows = task.cut_into_windows(rows, tokenizer, a_model(tokenizer).config, asked, "train")
    seen = {number: set() for number in range(len(rows))}
    for window in windows:
        row = rows[window["row"]]
        assert len(window["input_ids"]) <= max_length
        assert tokenizer.decode(window["input_ids"]).startswith(f"<|cls|>{row['question']}<|endoftext|>")
        for begin, end in zip(window["begins"], window["ends"], strict=True):
            assert (begin < 0) == (end < 0)
            seen[window["row"]] |= set(range(begin, end))
        first, last = window["start_positions"], window["end_positions"]
        if first == window["null"]:
            assert last == first == 0
        else:
            assert row["context"][window["begins"][first] : window["ends"][last]] == row["answers"]["text"][0]
    found = {w["row"] for w in windows if w["start_positions"]}
    assert found == ({0, 1, 2} if stride != 0 else found)
    for number, text in enumerate(rows["context"]):  # no visible character is in none of the windows
        assert seen[number] == {place for place, character in enumerate(text) if not character.isspace()}


def test_windows_share_the_stride(tokenizer):
    asked = AnswerArguments(max_length=36, stride=12, null_answers=True)
    windows = task.cut_into_windows(some_rows(), tokenizer, a_model(tokenizer).config, asked, "train")
    pair = [w for w in windows if w["row"] == 0][:2]
    texts = [np.array(w["input_ids"])[np.array(w["input_ids"]).tolist().index(0) + 1 : -1] for w in pair]
    assert texts[0][-12:].tolist() == texts[1][:12].tolist()


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("null_answers", [False, True])
def test_answers_are_the_best_of_all_windows(tokenizer, family, null_answers):
    rows = some_rows()
    model = a_model(tokenizer, family)
    asked = {"max_length": 36, "stride": 8, "max_answer_length": 5, "n_best": 4, "null_answers": null_answers}
    windows = task.cut_into_windows(rows, tokenizer, model.config, AnswerArguments(**asked), "test")
    for number, row in enumerate(rows):
        candidates, nulls = {}, []
        own = [w for w in windows if w["row"] == number]
        for window in own:
            with torch.no_grad():
                output = model(input_ids=torch.tensor([window["input_ids"]]))
            start, end = output.start_logits[0].tolist(), output.end_logits[0].tolist()
            null = len(start) - 1 if family == "decoder" else 0
            nulls.append(start[null] + end[null])
            for first in range(len(start)):
                for last in range(first, min(first + 5, len(start))):
                    if window["begins"][first] >= 0 and window["ends"][last] >= 0:
                        span = (window["begins"][first], window["ends"][last])
                        candidates[span] = max(candidates.get(span, -math.inf), start[first] + end[last])
        best = sorted(candidates.items(), key=lambda item: -item[1])[:4]
        found = task.find_answers(model, tokenizer, row["question"], row["context"], batch_size=2, **asked)
        assert [(s.start, s.end) for s in found.spans] == [span for span, _ in best]
        assert [s.score for s in found.spans] == pytest.approx([s for _, s in best], abs=TOLERANCE)
        scores = [s for _, s in best] + ([min(nulls)] if null_answers else [])
        shares = np.exp(scores) / np.exp(scores).sum()
        assert [s.probability for s in found.spans] == pytest.approx(shares[:4].tolist(), abs=TOLERANCE)
        says_none = null_answers and min(nulls) > best[0][1]
        assert found.text == ("" if says_none else row["context"][slice(*best[0][0])])


def test_thresholds_and_the_metric_agree(tokenizer):
    rows, model = some_rows(), a_model(tokenizer)
    for threshold in (0.0, 0.3, 1.0):
        asked = AnswerArguments(max_length=40, stride=8, null_answers=True, no_answer_threshold=threshold)
        windows = task.cut_into_windows(rows, tokenizer, model.config, asked, "test")
        inputs = task.collator(tokenizer)([dict(w) for w in task.model_inputs(windows)])
        with torch.no_grad():
            output = model(**inputs)
        answers = task.read_answers((output.start_logits.numpy(), output.end_logits.numpy()), windows, rows, asked)
        texts = [answer.text for answer in answers]
        right = [text == "".join(row["answers"]["text"]) for text, row in zip(texts, rows, strict=True)]
        assert task.scores(answers, rows, asked)["exact_match"] == pytest.approx(100 * sum(right) / len(right))
        assert all(text == "" for text in texts) or threshold > 0
        assert threshold < 1 or all(texts)
        for line, listed in zip(
            task.predictions(answers, rows, asked), task.n_best_lists(answers, rows, asked), strict=True
        ):
            assert line["id"] == listed["id"]
            assert sum(entry["probability"] for entry in listed["answers"]) == pytest.approx(1, abs=1e-4)
            assert sorted((e["probability"] for e in listed["answers"]), reverse=True) == [
                e["probability"] for e in listed["answers"]
            ]
            json.dumps([line, listed])


def test_tokenizers_of_language_models_are_given_a_pair(tmp_path):
    plain = train_tokenizer([*TEXTS, *QUESTIONS] * 3, vocab_size=330, model_max_length=64)
    assert plain("a", "b").sequence_ids() == [0, 1]
    given = task.with_pair_template(plain)
    given.save_pretrained(tmp_path)
    again = type(given).from_pretrained(tmp_path)
    assert again("a", "b").sequence_ids() == [0, None, 1, None]
    assert again("a").input_ids == plain("a").input_ids
    model = a_model(again, "decoder")
    found = task.find_answers(model, again, "Which town?", TEXTS[0], max_length=30, stride=4)
    assert found.text == TEXTS[0][found.start : found.end] != ""


def test_all_of_xquad_comes_back(real_data, tokenizer):
    file = real_data / "xquad" / "xquad.de.json"
    if not file.is_file():
        pytest.skip(f"no data set at hand: {file.name} is not in {file.parent}")
    data = RowArguments(data_files=str(file), json_field="data", group_column="title", validation_fraction=0.5)
    rows = task.load_questions(data, null_answers=False)
    assert sum(map(len, rows.values())) == 1190
    config = HfxEncoderConfig(vocab_size=len(tokenizer), max_position_embeddings=1024)
    asked = AnswerArguments(max_length=500, stride=120)
    windows = task.cut_into_windows(rows["validation"], tokenizer, config, asked, "validation")
    assert len(windows) > len(rows["validation"])
    exact, held = [], set()
    for window in windows:
        row = rows["validation"][window["row"]]
        first, last = window["start_positions"], window["end_positions"]
        if first:
            held.add(window["row"])
            exact.append(
                row["context"][window["begins"][first] : window["ends"][last]] == row["answers"]["text"][0].strip()
            )
    assert len(held) == len(rows["validation"])  # no answer has as many tokens as windows share
    assert sum(exact) > 0.8 * len(exact)  # others end within a token of this tokenizer, which hardly has any words


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_length": 3}, "question_answering.max_length=3: must be at least 8"),
        ({"stride": -1}, "question_answering.stride=-1: must not be negative"),
        ({"n_best": 0}, "question_answering.n_best=0: must be at least 1"),
        ({"max_answer_length": 0}, "question_answering.max_answer_length=0: must be at least 1"),
        ({"no_answer_threshold": 0.3}, "no_answer_threshold=0.3: has no effect without null_answers"),
        ({"no_answer_threshold": 2.0, "null_answers": True}, "no_answer_threshold=2.0: must be from 0 to 1"),
        ({"language": "eng"}, "question_answering.language='eng': must be one of .*; did you mean 'en'"),
    ],
)
def test_options_that_can_t_be_meant(fields, message):
    with pytest.raises(ValueError, match=message) as caught:
        AnswerArguments(**fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": " "}, "question: row 1 of train has none"),
        ({"context": None}, "context: row 1 of train has none"),
        ({"answers": {"text": [], "answer_start": []}}, "answers: row 1 of train has none; set .*null_answers: true"),
        ({"answers": ["a"]}, r"answers: row 1 of train has \['a'\]; must be"),
        ({"answers": {"text": ["Köln"], "answer_start": [3]}}, "answers: 'Köln' is not at character 3 .* but ' Rhi'"),
        ({"answers": {"text": [" "], "answer_start": [3]}}, "answers: ' ' is not at character 3"),
    ],
)
def test_rows_that_can_t_be_learnt(change, message):
    row = {"question": "Which?", "context": TEXTS[0], "answers": answer(TEXTS[0], "Köln"), **change}
    with pytest.raises(ValueError, match=message):
        task.check_question(row, "row 1 of train", null_answers=False)


def test_a_question_without_room_for_its_text(tokenizer):
    rows, config = some_rows(), a_model(tokenizer).config
    with pytest.raises(ValueError, match=r"max_length=20: the question in row 0 of train has .* tokens"):
        task.cut_into_windows(rows, tokenizer, config, AnswerArguments(max_length=20, stride=12), "train")
