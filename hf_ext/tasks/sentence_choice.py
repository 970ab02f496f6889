"""Which sentences of a text make its summary: the labels that training takes, and the choice by scores.

Labels: the sentences that greedily raise ROUGE-1 + ROUGE-2 against a reference, one by one, until none does; Nallapati
et al. 2017, arXiv 1611.04230, "Extractive Training". Choice: the best scored, none that shares a run of three words with
one chosen before (trigram blocking); Paulus et al. 2017, arXiv 1705.04304, sec. 2.5.
"""

from collections import Counter
from collections.abc import Sequence


def ngram_f1(words: Sequence[str], reference: Sequence[str], n: int) -> float:
    """ROUGE-n: F1 of the runs of n words that both share, each as often as the rarer of the two has it; 0 to 1."""
    here, there = (_ngrams(text, n) for text in (words, reference))
    return _f1(here, there)


def _ngrams(words: Sequence[str], n: int) -> Counter:
    return Counter(zip(*(words[start:] for start in range(n)), strict=False))


def _f1(here: Counter, there: Counter) -> float:
    total = here.total() + there.total()
    return 2 * (here & there).total() / total if total else 0.0


def oracle_sentences(
    sentences: Sequence[Sequence[str]], references: Sequence[Sequence[str]], most: int | None = None
) -> list[int]:
    """Indices, ascending, of the sentences that are greedily the nearest to the best of the references.

    Args:
        sentences, references: words of each. most: sentences at most; default: until no other one helps.

    Returns:
        At least none: a text that shares no word with the references has none.
    """
    wanted = [[_ngrams(reference, n) for n in (1, 2)] for reference in references]
    chosen, best = [], 0.0
    while most is None or len(chosen) < most:
        scored = []
        for candidate in range(len(sentences)):
            if candidate in chosen:
                continue
            words = [word for index in sorted([*chosen, candidate]) for word in sentences[index]]
            here = [_ngrams(words, n) for n in (1, 2)]
            gain = max(sum(_f1(h, t) for h, t in zip(here, there, strict=True)) for there in wanted)
            scored.append((gain, -candidate))
        if not scored or max(scored)[0] <= best:
            break
        best, first = max(scored)
        chosen.append(-first)
    return sorted(chosen)


def choose_sentences(
    scores: Sequence[float],
    sentences: Sequence[Sequence[str]],
    *,
    most: int | None,
    threshold: float | None = None,
    block_trigrams: bool = True,
) -> list[int]:
    """Indices, ascending, of the sentences with the best scores, the earlier of equals; the best one is always chosen.

    Args:
        scores: one a sentence; a text may have more sentences, which then weren't read. sentences: words of each.
        most: sentences at most. threshold: score from which one is chosen.
    """
    chosen, seen = [], set()
    for index in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        if most is not None and len(chosen) == most:
            break
        if chosen and threshold is not None and scores[index] < threshold:
            break
        trigrams = set(_ngrams(sentences[index], 3))
        if block_trigrams and chosen and trigrams & seen:
            continue
        chosen.append(index)
        seen |= trigrams
    return sorted(chosen)
