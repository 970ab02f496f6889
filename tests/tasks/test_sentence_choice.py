"""The oracle's labels by ROUGE of the library, and the choice of sentences by their scores."""

import itertools
import random

import pytest
from rouge_score import rouge_scorer, tokenizers

from hf_ext.tasks.sentence_choice import choose_sentences, ngram_f1, oracle_sentences


WORDS = ["the", "a", "cat", "dog", "sat", "on", "mat", "ran", "far", "home", "in", "rain", "and", "sun", "came"]
SCORER = rouge_scorer.RougeScorer(["rouge1", "rouge2"])
# two ways to sum the same few fractions, fp64
TOLERANCE = 1e-12


def library_score(sentences: list[str], chosen, references: list[str]) -> float:
    """ROUGE-1 + ROUGE-2 of the chosen sentences, of the best reference, as rouge_score computes them."""
    text = " ".join(sentences[i] for i in sorted(chosen))
    return max(sum(s.fmeasure for s in SCORER.score(reference, text).values()) for reference in references)


def random_texts(seed: int, count: int, longest: int = 8) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=generator.randint(2, longest))) for _ in range(count)]


@pytest.mark.parametrize("seed", range(10))
def test_f1_is_the_library_s(seed):
    one, other = random_texts(seed, 2)
    score = SCORER.score(other, one)
    for n, name in ((1, "rouge1"), (2, "rouge2")):
        assert ngram_f1(one.split(), other.split(), n) == pytest.approx(score[name].fmeasure, abs=TOLERANCE)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("most", [None, 1, 2])
def test_the_oracle_takes_the_best_step_until_none_helps(seed, most):
    sentences, references = random_texts(seed, 6), random_texts(100 + seed, 2, 14)
    chosen: list[int] = []
    while most is None or len(chosen) < most:
        before = library_score(sentences, chosen, references) if chosen else 0.0
        steps = {i: library_score(sentences, [*chosen, i], references) for i in range(6) if i not in chosen}
        if not steps or max(steps.values()) <= before + TOLERANCE:
            break
        chosen.append(min(steps, key=lambda i: (-round(steps[i], 9), i)))
    split = tokenizers.DefaultTokenizer().tokenize
    found = oracle_sentences([split(s) for s in sentences], [split(r) for r in references], most)
    assert found == sorted(chosen)
    if most == 1 and found:
        every = [library_score(sentences, [i], references) for i in range(6)]
        assert library_score(sentences, found, references) == pytest.approx(max(every), abs=TOLERANCE)


def test_the_oracle_of_nothing_in_common_is_empty():
    assert oracle_sentences([["x"], []], [["y", "z"]]) == []
    assert oracle_sentences([], [["y"]]) == []


def test_choice():
    sentences = [s.split() for s in ("a b c d", "x b c d", "e f g", "h i")]
    scores = [0.9, 0.8, 0.4, 0.6]
    assert choose_sentences(scores, sentences, most=2) == [0, 3]
    assert choose_sentences(scores, sentences, most=2, block_trigrams=False) == [0, 1]
    assert choose_sentences(scores, sentences, most=None, threshold=0.5) == [0, 3]
    assert choose_sentences(scores, sentences, most=None, threshold=0.95) == [0]  # never nothing
    assert choose_sentences(scores[:1], sentences, most=3) == [0]  # the others weren't read
    assert choose_sentences([], [], most=3) == []


@pytest.mark.parametrize("seed", range(5))
def test_chosen_sentences_share_no_trigram(seed):
    sentences = [text.split() for text in random_texts(seed, 12, 6)]
    generator = random.Random(seed)
    chosen = choose_sentences([generator.random() for _ in sentences], sentences, most=None)
    for one, other in itertools.combinations(chosen, 2):
        trigrams = [
            {tuple(words[i : i + 3]) for i in range(len(words) - 2)} for words in (sentences[one], sentences[other])
        ]
        assert not trigrams[0] & trigrams[1]
