"""Text classification: labels of every form, what the model is trained on, what is predicted and refused."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import EvalPrediction

from hf_ext.data import train_tokenizer
from hf_ext.tasks import text_classification as task


TEXTS = ["good film", "bad film", "a train", "good train"]


def labelled(labels, **kwargs):
    return Dataset.from_dict({"text": TEXTS, "label": labels}, **kwargs)


def read(labels, **asked):
    return task.read_labels(labelled(labels), task.ClassificationArguments(**asked))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 9, vocab_size=300, model_max_length=32, **task.SPECIAL_TOKENS)


def test_the_labels_say_what_the_problem_is():
    words = read(["pos", "neg", "neg", "pos"])
    assert (words.problem_type, words.names) == ("single_label_classification", ["neg", "pos"])
    assert words.encode("pos", "train") == 1
    assert words.head["label2id"] == {"neg": 0, "pos": 1}
    numbers = read([10, 9, 2, 10])
    assert numbers.names == ["2", "9", "10"]  # as numbers, not as texts
    named = read([0, 1, 1, 0], label_names={"1": "yes", "0": "no"})
    assert (named.names, named.encode(0, "train")) == (["yes", "no"], 1)
    several = read([["a", "b"], [], ["c"], ["a"]])
    assert several.problem_type == "multi_label_classification"
    assert several.encode(["c", "a"], "train") == [1.0, 0.0, 1.0]
    stars = read([1.0, 2.5, 3.0, 4.0])
    assert (stars.problem_type, stars.encode("2.5", "test"), len(stars.head["id2label"])) == ("regression", 2.5, 1)
    whole = read([1, 2, 3, 4], problem_type="regression")
    assert whole.encode(3, "train") == 3.0
    known = labelled([0, 1, 0, 1]).cast_column("label", ClassLabel(names=["no", "yes"]))
    assert task.read_labels(known, task.ClassificationArguments()).names == ["no", "yes"]


def test_rows_become_what_the_model_takes(tokenizer):
    labels = read([0, 1, 1, 0])
    rows = labelled([0, 1, 1, 0]).add_column("text_pair", ["x"] * 4)
    encoded = task.tokenize(rows, tokenizer, labels, 6, "train")
    assert encoded["labels"] == [0, 1, 1, 0]
    assert max(map(len, encoded["input_ids"])) <= 6
    assert encoded[0]["input_ids"] == tokenizer("good film", "x", truncation=True, max_length=6)["input_ids"]
    batch = task.collator(tokenizer)([encoded[i] for i in range(4)])
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["labels"].tolist() == [0, 1, 1, 0]


def test_words_are_cut_anew_in_training(tokenizer):
    rows = labelled([0, 1, 1, 0]).add_column("text_pair", ["a good film"] * 4)
    encoded = task.tokenize(rows, tokenizer, read([0, 1, 1, 0]), 32, "train")
    row = {**encoded[0], "token_type_ids": [0] * 4 + [1] * (len(encoded[0]["input_ids"]) - 4)}
    asked = task.ClassificationArguments(bpe_dropout=0.9)
    torch.manual_seed(0)
    batch = task.collator(tokenizer, asked, 32)([row] * 2)
    for tokens, mask, types in zip(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"], strict=True):
        real = tokens[mask.bool()]
        assert len(real) > len(row["input_ids"])
        assert tokenizer.decode(real) == tokenizer.decode(row["input_ids"])
        assert tokenizer.decode(tokens[types.bool() & mask.bool()]) == tokenizer.decode(row["input_ids"][4:])
    # none becomes longer than the model reads
    batch = task.collator(tokenizer, asked, len(row["input_ids"]))([row])
    assert batch["input_ids"].tolist() == [row["input_ids"]]
    with pytest.raises(ValueError, match=r"classification.bpe_dropout=1.0: must be at least 0 and below 1"):
        task.ClassificationArguments(bpe_dropout=1.0)
    with pytest.raises(ValueError, match=r"classification.r_drop=-1: must not be negative"):
        task.ClassificationArguments(r_drop=-1)


def test_tokens_are_left_out_in_training(tokenizer):
    row = {"input_ids": tokenizer("good film " * 100)["input_ids"], "labels": 1}
    row["attention_mask"] = [1] * len(row["input_ids"])
    torch.manual_seed(0)
    batch = task.collator(tokenizer, task.ClassificationArguments(token_dropout=0.3))([row])
    kept = batch["input_ids"].shape[1] / len(row["input_ids"])
    assert kept == pytest.approx(0.7, abs=0.1)
    assert batch["input_ids"][0, 0] == row["input_ids"][0]
    assert batch["input_ids"][0, -1] == row["input_ids"][-1]


def test_metrics_are_scikit_learns():
    rng = np.random.default_rng(0)
    for classes, average in ((2, "binary"), (4, "macro")):
        labels = task.Labels("single_label_classification", list("abcd"[:classes]), list("abcd"[:classes]))
        scores, truth = rng.normal(size=(50, classes)), rng.integers(0, classes, 50)
        got = task.metrics(labels, 0.5)(EvalPrediction(scores, truth))
        assert got["accuracy"] == pytest.approx(accuracy_score(truth, scores.argmax(-1)))
        assert got["f1"] == pytest.approx(f1_score(truth, scores.argmax(-1), average=average))
        assert got["matthews_correlation"] == pytest.approx(matthews_corrcoef(truth, scores.argmax(-1)))
    several = task.Labels("multi_label_classification", list("abc"), list("abc"))
    scores, truth = rng.normal(size=(50, 3)), rng.integers(0, 2, (50, 3)).astype(float)
    got = task.metrics(several, 0.7)(EvalPrediction(scores, truth))
    given = 1 / (1 + np.exp(-scores)) >= 0.7
    assert got["f1_micro"] == pytest.approx(f1_score(truth, given, average="micro"))
    number = task.Labels("regression", [], [])
    scores, truth = rng.normal(size=(50, 1)), rng.normal(size=50)
    got = task.metrics(number, 0.5)(EvalPrediction(scores, truth))
    assert got["mse"] == pytest.approx(((scores[:, 0] - truth) ** 2).mean())


def test_predictions_say_what_and_how_sure():
    rows = labelled([0, 1, 1, 0])
    two = task.predictions(np.array([[0.0, np.log(3)]] * 4), rows, read([0, 1, 1, 0]), 0.5)
    assert two[0] == {"text": "good film", "label": 0, "prediction": "1", "scores": {"0": 0.25, "1": 0.75}}
    several = task.Labels("multi_label_classification", ["a", "b"], ["a", "b"])
    line = task.predictions(np.array([[2.0, -2.0]] * 4), rows, several, 0.5)[0]
    assert line["prediction"] == ["a"]
    number = task.predictions(np.array([[2.5]] * 4), rows, task.Labels("regression", [], []), 0.5)[0]
    assert number["prediction"] == 2.5


@pytest.mark.parametrize(
    ("labels", "asked", "message"),
    [
        ([0, 0, 0, 0], {}, "all of train have the label '0'"),
        ([0, 1, None, 0], {}, "row 2 of train has none"),
        ([0, 1, 2, 0], {"label_names": {"0": "a", "1": "b"}}, "the data has '2' too, which isn't named"),
        ([0, 1, 1, 0], {"problem_type": "multi_label_classification"}, "several labels at once are lists"),
        ([["a"], ["b"], [], []], {"problem_type": "single_label_classification"}, "several labels at once are lists"),
    ],
    ids=str,
)
def test_labels_that_cant_be_meant(labels, asked, message):
    with pytest.raises(ValueError, match=message):
        read(labels, **asked)


def test_rows_that_cant_be_meant(tokenizer):
    labels = read([0, 1, 1, 0])
    with pytest.raises(ValueError, match="'5' in validation is not among the classes 0, 1"):
        task.tokenize(labelled([0, 1, 5, 0]), tokenizer, labels, 8, "validation")
    blank = Dataset.from_dict({"text": ["a", " "], "label": [0, 1]})
    with pytest.raises(ValueError, match="row 1 of train is empty"):
        task.tokenize(blank, tokenizer, labels, 8, "train")
    with pytest.raises(ValueError, match="'many' in test is no number"):
        task.Labels("regression", [], []).encode("many", "test")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"problem_type": "regresion"}, "did you mean 'regression'"),
        ({"problem_type": "regression", "label_names": {"0": "a"}}, "a number has no names"),
        ({"max_length": 1}, "must be at least 2"),
        ({"threshold": 1.0}, "must be between 0 and 1"),
    ],
)
def test_sections_that_cant_be_meant(asked, message):
    with pytest.raises(ValueError, match=message):
        task.ClassificationArguments(**asked)
