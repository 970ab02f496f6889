"""ROUGE: by hand, and against the rouge_score library."""

import random

import pytest
from rouge_score import rouge_scorer

from hf_ext.metrics import compute
from hf_ext.metrics.rouge import ROUGE_TYPES
from hf_ext.metrics.texts import unicode_words


WORDS = ["the", "cats", "cat", "sat", "running", "runs", "on", "a", "mat", "quickly", "dogs", "\n"]


def test_by_hand():
    scores = compute("rouge", ["the cat sat on the mat"], ["the cat lay on the mat today"])
    assert scores["rouge1"] == pytest.approx(2 * 5 / (6 + 7))  # the, cat, on, the, mat
    assert scores["rouge2"] == pytest.approx(2 * 3 / (5 + 6))  # the cat, on the, the mat
    assert scores["rougeL"] == pytest.approx(2 * 5 / (6 + 7))
    lines = compute("rouge", ["a b\nc d"], ["c d\na b"])
    assert lines["rougeL"] == 0.5  # "a b" or "c d" alone
    assert lines["rougeLsum"] == 1.0  # sentence by sentence


@pytest.mark.parametrize("use_stemmer", [False, True])
def test_the_same_as_the_library(use_stemmer):
    rng = random.Random(0)
    references = [[" ".join(rng.choices(WORDS, k=12)) for _ in range(rng.randint(1, 3))] for _ in range(40)]
    predictions = [" ".join(rng.choices(WORDS, k=9)) for _ in references]
    scorer = rouge_scorer.RougeScorer(ROUGE_TYPES, use_stemmer=use_stemmer)
    theirs = [scorer.score_multi(texts, text) for texts, text in zip(references, predictions, strict=True)]
    ours = compute("rouge", predictions, references, use_stemmer=use_stemmer)
    for name in ROUGE_TYPES:
        assert ours[name] == pytest.approx(sum(score[name].fmeasure for score in theirs) / 40)


def test_the_best_reference_counts_for_each_score():
    one, other = "a b c d", "d c b a e"
    scores = compute("rouge", ["a b c d e"], [[one, other]])
    assert scores["rouge1"] == 1.0  # of the second
    assert scores["rouge2"] == pytest.approx(2 * 3 / (4 + 3))  # of the first


def test_letters_of_other_languages():
    assert compute("rouge", ["Mädchen"], ["Madchen"], tokenizer="unicode")["rouge1"] == 0.0
    # rouge_score's own words: "m", "dchen" against "m", "dchen"
    assert compute("rouge", ["Mädchen"], ["Müdchen"])["rouge1"] == 1.0
    assert compute("rouge", ["Mädchen"], ["Müdchen"], tokenizer="unicode")["rouge1"] == 0.0
    assert compute("rouge", ["кошка"], ["кошка"])["rouge1"] == 0.0
    assert compute("rouge", ["кошка"], ["кошка"], tokenizer="unicode")["rouge1"] == 1.0


def test_words_of_any_script():
    assert unicode_words("Die Straße, 3-mal: GRÜN!") == ["die", "straße", "3", "mal", "grün"]
    assert unicode_words("e\u0301te\u0301") == ["été"]
    assert unicode_words("हिन्दी भाषा") == ["हिन्दी", "भाषा"]
    assert unicode_words("我们two人") == ["我", "们", "two", "人"]
    assert unicode_words("snake_case") == ["snake", "case"]


def test_both_tokenizers_agree_on_plain_english():
    texts = ["the cat sat.", "Two dogs, 3 men"]
    others = ["the dog sat!", "two Dogs and 3"]
    assert compute("rouge", texts, others) == compute("rouge", texts, others, tokenizer="unicode")


def test_nothing_written_is_zero():
    assert compute("rouge", [""], ["a b"]) == dict.fromkeys(ROUGE_TYPES, 0.0)
