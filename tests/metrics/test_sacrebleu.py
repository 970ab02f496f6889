"""BLEU and chrF: by hand, and against the sacrebleu library."""

import math
import random

import pytest
import sacrebleu

from hf_ext.metrics import compute


WORDS = ["Ein", "Hund", "läuft", "über", "den", "Strand", ",", "and", "two", "men", "talk", "."]


def corpus(seed: int) -> tuple[list[str], list[list[str]]]:
    rng = random.Random(seed)
    references = [[" ".join(rng.choices(WORDS, k=9)) for _ in range(3)] for _ in range(50)]
    predictions = [
        " ".join(rng.choice([word, word, rng.choice(WORDS)]) for word in row[0].split()) for row in references
    ]
    return predictions, references


def test_bleu_by_hand():
    scores = compute("sacrebleu", ["the the cat sat down there"], [["the cat sat down"]])
    # clipped: "the" counts once; pairs: the cat, cat sat, sat down; threes: 2; fours: 1
    assert scores["precision_1"] == pytest.approx(100 * 4 / 6)
    assert scores["bleu"] == pytest.approx(100 * math.exp(sum(map(math.log, (4 / 6, 3 / 5, 2 / 4, 1 / 3))) / 4))
    assert scores["brevity_penalty"] == 1.0
    short = compute("sacrebleu", ["the cat sat down"], ["the cat sat down here"])
    assert short["bleu"] == pytest.approx(100 * math.exp(1 - 5 / 4))
    assert (short["prediction_length"], short["reference_length"]) == (4, 5)


@pytest.mark.parametrize("options", [{}, {"tokenize": "char"}, {"tokenize": "intl"}, {"lowercase": True}])
def test_bleu_is_the_library_s(options):
    predictions, references = corpus(0)
    streams = [list(stream) for stream in zip(*references, strict=True)]
    theirs = sacrebleu.metrics.BLEU(**options)
    ours = compute("sacrebleu", predictions, references, **options)
    assert ours["bleu"] == pytest.approx(theirs.corpus_score(predictions, streams).score)
    assert ours["signature"] == str(theirs.get_signature())
    assert "nrefs:3" in ours["signature"]
    one = [texts[0] for texts in references]
    theirs = sacrebleu.corpus_bleu(predictions, [one], **options).score
    assert compute("sacrebleu", predictions, one, **options)["bleu"] == pytest.approx(theirs)


def test_smoothing_is_the_library_s():
    for method in ("exp", "floor", "add-k", "none"):
        theirs = sacrebleu.corpus_bleu(["a b c"], [["a b d"]], smooth_method=method).score
        assert compute("sacrebleu", ["a b c"], ["a b d"], smooth_method=method)["bleu"] == pytest.approx(theirs)


def test_as_many_references_as_there_are():
    predictions = ["a cat sat on the mat", "two men talk today"]
    uneven = compute("sacrebleu", predictions, [["a dog", "a cat sat on the mat"], ["two men talk today"]])
    assert uneven["bleu"] == pytest.approx(100)
    assert "nrefs:var" in uneven["signature"]
    assert compute("chrf", predictions, [["a dog", "a cat sat on the mat"], ["two men talk today"]])["chrf"] == 100


def test_case_counts_unless_said_otherwise():
    assert compute("sacrebleu", ["A Dog Runs Fast"], ["a dog runs fast"])["bleu"] < 50
    assert compute("sacrebleu", ["A Dog Runs Fast"], ["a dog runs fast"], lowercase=True)["bleu"] == pytest.approx(100)


def test_chrf_by_hand():
    # "abc" against "abd", n up to 3: of 3, 2 and 1 n-grams 2, 1 and 0 are shared; precision and recall are equal
    assert compute("chrf", ["abc"], ["abd"])["chrf"] == pytest.approx(100 * (2 / 3 + 1 / 2 + 0) / 3)


def test_chrf_is_the_library_s():
    predictions, references = corpus(1)
    streams = [list(stream) for stream in zip(*references, strict=True)]
    scores = compute("chrf", predictions, references)
    for name, word_order in (("chrf", 0), ("chrf++", 2)):
        theirs = sacrebleu.metrics.CHRF(word_order=word_order)
        assert scores[name] == pytest.approx(theirs.corpus_score(predictions, streams).score)
        assert scores[f"{name}_signature"] == str(theirs.get_signature())
    assert scores["chrf"] != scores["chrf++"]


def test_empty_predictions_are_zero():
    assert compute("sacrebleu", [""], ["a b"])["bleu"] == 0.0
    assert compute("chrf", [""], ["a b"])["chrf"] == 0.0
