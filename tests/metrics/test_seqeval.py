"""Entities: by hand, and against the seqeval library."""

import random
import warnings

import pytest
import seqeval.metrics
from seqeval.scheme import BILOU, IOB2, IOBES, IOE2

from hf_ext.metrics import compute


def test_by_hand():
    references = [["B-PER", "I-PER", "O", "B-LOC"], ["B-ORG", "O", "B-PER", "O"]]
    predictions = [["B-PER", "I-PER", "O", "B-ORG"], ["B-ORG", "I-ORG", "B-PER", "O"]]
    # right: both PER. Predicted: 2 PER, 2 ORG; there: 2 PER, 1 LOC, 1 ORG.
    scores = compute("seqeval", predictions, references, per_type=True)
    assert (scores["precision"], scores["recall"], scores["f1"]) == (0.5, 0.5, 0.5)
    assert scores["accuracy"] == 6 / 8
    assert scores["per_type"] == {
        "LOC": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "number": 1},
        "ORG": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "number": 1},
        "PER": {"precision": 1.0, "recall": 1.0, "f1": 1.0, "number": 2},
    }


@pytest.mark.parametrize(
    ("scheme", "prefixes", "theirs"),
    [
        (None, "BI", None),
        (None, "BIES", None),
        ("IOB2", "BI", IOB2),
        ("BIOES", "BIES", IOBES),
        ("IOBES", "BIES", IOBES),
        ("IOE2", "IE", IOE2),
        ("BILOU", "BILU", BILOU),
    ],
)
def test_the_same_as_the_library(scheme, prefixes, theirs):
    rng = random.Random(0)
    tags = ["O"] + [f"{prefix}-{name}" for prefix in prefixes for name in ("PER", "LOC")]
    references = [rng.choices(tags, k=rng.randint(1, 12)) for _ in range(200)]
    predictions = [[rng.choice([tag, tag, tag, rng.choice(tags)]) for tag in row] for row in references]
    scores = compute("seqeval", predictions, references, scheme=scheme, per_type=True)
    options = {} if theirs is None else {"mode": "strict", "scheme": theirs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("precision", "recall", "f1"):
            score = getattr(seqeval.metrics, f"{name}_score")
            assert scores[name] == pytest.approx(score(references, predictions, **options))
        report = seqeval.metrics.classification_report(references, predictions, output_dict=True, **options)
    assert scores["accuracy"] == pytest.approx(seqeval.metrics.accuracy_score(references, predictions))
    for name, row in scores["per_type"].items():
        assert row["f1"] == pytest.approx(report[name]["f1-score"])
        assert row["number"] == report[name]["support"]


def test_the_scheme_decides_what_is_an_entity():
    tags = [["O", "I-PER", "I-PER", "B-LOC", "I-ORG"]]
    assert compute("seqeval", tags, tags, per_type=True)["per_type"].keys() == {"PER", "LOC", "ORG"}
    assert compute("seqeval", tags, tags, scheme="IOB2", per_type=True)["per_type"].keys() == {"LOC"}
    assert compute("seqeval", [["B-A", "E-A"]], [["B-A", "E-A"]], scheme="BIOES")["f1"] == 1.0
    assert compute("seqeval", [["B-A", "I-A"]], [["B-A", "I-A"]], scheme="BIOES")["f1"] == 0.0


@pytest.mark.parametrize("scheme", [None, "IOB2"])
def test_no_entity_anywhere_is_zero_without_a_warning(scheme, recwarn):
    scores = compute("seqeval", [["O", "O"], []], [["O", "O"], []], scheme=scheme, per_type=True)
    assert scores == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "accuracy": 1.0, "per_type": {}}
    assert not [warning for warning in recwarn if "seqeval" in str(warning.filename)]


def test_an_entity_does_not_reach_into_the_next_sentence():
    references = [["O", "B-PER"], ["I-PER", "O"]]
    assert compute("seqeval", references, references, per_type=True)["per_type"]["PER"]["number"] == 2
