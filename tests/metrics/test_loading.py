"""Every metric: by name and by path, without a network, in batches, in any order, in two processes."""

import doctest
import math
import pickle
import random
import socket
import subprocess
import sys

import evaluate
import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_ext.metrics import METRICS, compute, load_metric
from hf_ext.metrics.loading import metric_file


# Sums of a few hundred floats in another order, and exp(log 100): rounding alone.
ROUNDING = 1e-9
WORDS = ["the", "a", "hund", "läuft", "über", "den", "strand", "und", "two", "men", "talk", "in", "red", "."]


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(4, 12)))


def rows_of(rng: random.Random, metric: str, count: int = 40) -> tuple[list, list | None]:
    """`count` random examples that `metric` takes."""

    def many(make):
        return [make() for _ in range(count)]

    if metric in ("perplexity", "bits_per_byte"):
        texts = many(lambda: sentence(rng))
        likelihoods = [[-rng.expovariate(0.5) for _ in text.split()] for text in texts]
        return likelihoods, texts if metric == "bits_per_byte" else None
    if metric in ("distinct_n", "repetition"):
        return many(lambda: sentence(rng)), None
    if metric in ("sacrebleu", "chrf", "rouge", "squad"):
        references = many(lambda: [sentence(rng) for _ in range(rng.randint(1, 3))])
        predictions = [rng.choice(texts) if rng.random() < 0.5 else sentence(rng) for texts in references]
        return predictions, references
    if metric == "answer_accuracy":
        return many(lambda: f"so #### {rng.randint(0, 3)} m"), many(lambda: f"#### {rng.randint(0, 3)}")
    if metric == "regression":
        return many(rng.random), many(rng.random)
    if metric == "multilabel_classification":
        return many(lambda: [rng.random() for _ in range(4)]), many(lambda: [rng.randint(0, 1) for _ in range(4)])
    if metric == "seqeval":
        references = many(lambda: rng.choices(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"], k=rng.randint(1, 9)))
        return [[rng.choice([tag, tag, "O", "B-PER"]) for tag in row] for row in references], references
    return many(lambda: rng.randint(0, 1)), many(lambda: rng.randint(0, 1))


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert value == (pytest.approx(other[key], rel=ROUNDING) if isinstance(value, float) else other[key]), key


def inputs(predictions, references) -> dict:
    return {"predictions": predictions} | ({} if references is None else {"references": references})


@pytest.mark.parametrize("name", METRICS)
def test_examples_of_the_description(name):
    metric = load_metric(name)
    assert metric.name == name
    assert len(metric.description) > 60
    assert metric.citation.startswith("@")
    test = doctest.DocTestParser().get_doctest(metric.inputs_description, {}, name, name, 0)
    assert test.examples
    failed = doctest.DocTestRunner(verbose=False).run(test).failed
    assert not failed, f"the output above differs from {name}'s description"
    assert "Examples:" in metric.compute.__doc__


@pytest.mark.parametrize("name", METRICS)
def test_evaluate_load_of_the_file_without_a_network(name, monkeypatch, tmp_path):
    asked = []

    def refuse(*args, **kwargs):
        asked.append(args)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path))
    monkeypatch.setattr("evaluate.loading.init_dynamic_modules", _modules_in(tmp_path, monkeypatch))
    predictions, references = rows_of(random.Random(0), name)
    loaded = evaluate.load(metric_file(name))
    assert type(loaded).__name__ == type(load_metric(name)).__name__
    assert loaded.name == name
    assert_same(loaded.compute(**inputs(predictions, references)), compute(name, predictions, references))
    assert not asked


def _modules_in(folder, monkeypatch):
    """evaluate's copies of the files in `folder`, under a package name that no other test has."""
    from evaluate.loading import init_dynamic_modules

    package = f"metrics_of_{folder.name}"
    monkeypatch.syspath_prepend(str(folder / "modules"))
    return lambda *args, **kwargs: init_dynamic_modules(package, str(folder / "modules"))


@pytest.mark.parametrize("name", METRICS)
def test_batches_and_order_do_not_matter(name):
    rng = random.Random(1)
    predictions, references = rows_of(rng, name)
    expected = compute(name, predictions, references)

    metric = load_metric(name)
    for begin, end in ((0, 1), (1, 17), (17, 40)):
        metric.add_batch(**inputs(predictions[begin:end], references and references[begin:end]))
    assert_same(metric.compute(), expected)
    assert_same(metric.compute(**inputs(predictions, references)), expected)  # nothing is left of the last time

    for prediction, reference in zip(predictions, references or [None] * 40, strict=True):
        metric.add(prediction=prediction, reference=reference)
    assert_same(metric.compute(), expected)

    order = rng.sample(range(40), 40)
    shuffled = [predictions[i] for i in order], references and [references[i] for i in order]
    assert_same(compute(name, *shuffled), expected)


# The scores that may be below 0 or above 1 (100 where that is the scale); counts and signatures aside.
UNBOUNDED = {"mse", "mae", "r2", "perplexity", "loss", "bits_per_byte", "bits_per_character"}
CORRELATIONS = {"pearson", "spearman", "matthews_correlation"}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", METRICS)
def test_scores_are_finite_and_within_their_bounds(name, seed):
    best = 100 if name in ("chrf", "sacrebleu", "squad") else 1
    for key, value in compute(name, *rows_of(random.Random(seed), name, count=3)).items():
        assert type(value) in (float, int, str), key  # of Python, so that JSON takes them
        if isinstance(value, float):
            assert math.isfinite(value), key
            assert key in UNBOUNDED or (-1 if key in CORRELATIONS else 0) <= value <= best + ROUNDING, key


PERFECT = {
    "accuracy": "accuracy",
    "answer_accuracy": "answer_accuracy",
    "chrf": "chrf",
    "f1": "f1",
    "precision": "precision",
    "recall": "recall",
    "matthews_correlation": "matthews_correlation",
    "regression": "spearman",
    "rouge": "rougeL",
    "sacrebleu": "bleu",
    "seqeval": "f1",
    "squad": "f1",
}


@pytest.mark.parametrize("name", sorted(PERFECT))
def test_right_predictions_have_the_highest_score(name):
    _, references = rows_of(random.Random(3), name)
    if name == "seqeval":
        references.append(["B-PER"])
    predictions = [texts[-1] for texts in references] if isinstance(references[0], list) else references
    predictions = references if name == "seqeval" else predictions
    best = 100 if name in ("chrf", "sacrebleu", "squad") else 1
    assert compute(name, predictions, references)[PERFECT[name]] == pytest.approx(best)


def test_arrays_tensors_and_columns_are_lists():
    labels = [1, 0, 1, 1]
    column = Dataset.from_dict({"label": labels})["label"]
    for form in (np.array(labels), torch.tensor(labels), tuple(labels), column, [np.int64(x) for x in labels]):
        assert compute("accuracy", form, [1, 1, 1, 1]) == {"accuracy": 0.75}
    logits = torch.tensor([[0.25, 0.75]], dtype=torch.bfloat16)
    assert compute("multilabel_classification", logits, torch.tensor([[0, 1]]))["subset_accuracy"] == 1.0


def test_nothing_is_written(monkeypatch, tmp_path):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "not" / "there"))
    assert compute("accuracy", [1], [1]) == {"accuracy": 1.0}
    assert not list(tmp_path.iterdir())
    load_metric("accuracy", keep_in_memory=False).compute(predictions=[1], references=[1])
    assert list(tmp_path.iterdir())


def test_two_metrics_at_once_do_not_mix(tmp_path):
    first, second = (load_metric("accuracy", keep_in_memory=False, cache_dir=str(tmp_path)) for _ in range(2))
    assert first.experiment_id != second.experiment_id  # else one waits for the other's lock
    first.add_batch(predictions=[1, 1], references=[1, 1])
    second.add_batch(predictions=[0, 0], references=[1, 1])
    assert first.compute() == {"accuracy": 1.0}
    assert second.compute() == {"accuracy": 0.0}


def test_evaluate_combines_them():
    both = evaluate.combine([load_metric("accuracy"), load_metric("f1")])
    assert both.compute(predictions=[1, 0, 1], references=[1, 0, 0]) == {"accuracy": 2 / 3, "f1": 2 / 3}


def test_a_metric_can_be_sent_to_another_process():
    metric = pickle.loads(pickle.dumps(load_metric("f1").__class__))()
    assert metric.compute(predictions=[1], references=[1]) == {"f1": 1.0}


RANK = """
import sys
from hf_ext.metrics import load_metric
rank, folder = int(sys.argv[1]), sys.argv[2]
metric = load_metric("f1", num_process=2, process_id=rank, experiment_id="run", cache_dir=folder)
metric.add_batch(predictions=[[1, 0], [1, 1]][rank], references=[[1, 1], [1, 0]][rank])
print(metric.compute())
"""


@pytest.mark.heavy
def test_two_ranks_give_the_score_of_all_examples(tmp_path):
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    first, second = (rank.communicate(timeout=120)[0].strip() for rank in ranks)
    assert first == str(compute("f1", [1, 0, 1, 1], [1, 1, 1, 0]))
    assert second == "None"


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"^name: no metric 'acuracy'; did you mean 'accuracy'\? There are accuracy, "):
        load_metric("acuracy")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    monkeypatch.delitem(sys.modules, "hf_ext.metrics.rouge", raising=False)
    with pytest.raises(
        ImportError, match=r"^name: rouge needs the package rouge_score; pip install 'hf_ext\[train\]'$"
    ):
        load_metric("rouge")
