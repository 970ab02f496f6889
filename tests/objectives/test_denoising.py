import math
from collections import Counter
from itertools import chain, pairwise

import pytest
import torch
from objectives.packed_text import BOS, EOS, MASK, VOCAB_SIZE, equal_batches, make_document, make_documents, pack
from objectives.paired_text import IDS, read_packed, read_plain

from hf_ext.objectives import DenoisingCollator


STOP = 8  # ends a sentence
OFF = {"infill_probability": 0.0}
# five standard deviations of a count
SIGMAS = 5


def _collator(**settings) -> DenoisingCollator:
    return DenoisingCollator(**{**IDS, "mask_token_id": MASK, **settings})


def _damaged(seed: int, **settings) -> list[tuple[list[int], list[int]]]:
    """Each document as it was, and as the encoder reads it; plain and packed rows, targets checked."""
    documents = make_documents(seed)
    collator = _collator(seed=seed, **settings)
    plain = read_plain(collator([{"input_ids": document} for document in documents]))
    packed = read_packed(collator([pack(documents[:4], num_padding=3), pack(documents[4:])]))
    pairs = plain + packed[0] + packed[1]
    for document, (source, target) in zip(documents * 2, pairs, strict=True):
        assert target == document
        assert source
        assert (source[-1] == EOS) == (document[-1] == EOS)
    return [(target, source) for source, target in pairs]


def _is_in_order(some: list[int], document: list[int]) -> bool:
    rest = iter(document)
    return all(token in rest for token in some)


@pytest.mark.parametrize("seed", range(10))
class TestEachDamage:
    def test_deletion(self, seed):
        for document, source in _damaged(seed, **OFF, delete_probability=0.4):
            assert _is_in_order(source, document)

    def test_everything_deleted_but_one(self, seed):
        for document, source in _damaged(seed, **OFF, delete_probability=1.0):
            assert source == document[: int(document != [EOS])] + [EOS] * (document[-1] == EOS)

    def test_masking(self, seed):
        for document, source in _damaged(seed, **OFF, mask_probability=0.4):
            assert len(source) == len(document)
            assert all(read in (token, MASK) for token, read in zip(document, source, strict=True))

    def test_infilling(self, seed):
        for document, source in _damaged(seed):
            kept = [token for token in source if token != MASK]
            assert _is_in_order(kept, document)
            # between two kept tokens that weren't neighbours there is a mask
            places = [document.index(token) for token in kept]
            read = [document.index(token) if token != MASK else None for token in source]
            for left, right in pairwise(places):
                if right > left + 1:
                    assert None in read[read.index(left) : read.index(right)]

    def test_rotation(self, seed):
        for document, source in _damaged(seed, **OFF, rotate_documents=True):
            end = len(document) - (document[-1] == EOS)
            turns = [document[turn:end] + document[:turn] + document[end:] for turn in range(max(end, 1))]
            assert source in turns

    def test_all_at_once(self, seed):
        damages = {
            "rotate_documents": True,
            "delete_probability": 0.2,
            "mask_probability": 0.2,
            "infill_probability": 0.2,
        }
        for document, source in _damaged(seed, **damages, sentence_end_token_ids=[50, 60, 70, 80, 90, 100]):
            kept = [token for token in source if token != MASK]
            assert set(kept) <= set(document)
            assert len(set(kept)) == len(kept)


def test_sentences_are_permuted_whole():
    sentences = [[50, 51, STOP], [60, STOP], [70, 71, 72, STOP], [80]]
    row = {"input_ids": [BOS, *chain(*sentences), EOS]}
    n = 4800
    pairs = read_plain(_collator(**OFF, seed=0, bos_token_id=BOS, sentence_end_token_ids=[STOP])([row] * n))
    orders = Counter(tuple(token // 10 for token in source if token != STOP and token % 10 == 0) for source, _ in pairs)
    for source, _ in pairs:
        assert (source[0], source[-1]) == (BOS, EOS)
        assert all("".join(map(chr, sentence)) in "".join(map(chr, source)) for sentence in sentences)
        assert sorted(source) == sorted(row["input_ids"])
    assert len(orders) == math.factorial(4)
    assert all(abs(count - n / 24) < SIGMAS * (n / 24) ** 0.5 for count in orders.values())


def test_rotation_is_uniform():
    n = 2000
    pairs = read_plain(_collator(**OFF, seed=0, rotate_documents=True)([{"input_ids": [*range(50, 55), EOS]}] * n))
    counts = Counter(source[0] for source, _ in pairs)
    assert set(counts) == set(range(50, 55))
    assert all(abs(count - n / 5) < SIGMAS * (n * 4 / 25) ** 0.5 for count in counts.values())


def test_shares_of_deleted_and_masked_tokens():
    rows = [{"input_ids": make_document(201, torch.Generator().manual_seed(0))}] * 200
    num_tokens = 200 * 200
    for settings, count in (
        ({"delete_probability": 0.3}, lambda source: 201 - len(source)),
        ({"mask_probability": 0.3}, lambda source: source.count(MASK)),
    ):
        total = sum(count(source) for source, _ in read_plain(_collator(**OFF, seed=0, **settings)(rows)))
        assert abs(total - 0.3 * num_tokens) < SIGMAS * (num_tokens * 0.21) ** 0.5


@pytest.mark.parametrize("poisson_lambda", [3.0, 0.7])
def test_infilling_spends_its_budget_on_poisson_spans(poisson_lambda):
    length, n = 333, 300
    rows = [{"input_ids": make_document(length + 1, torch.Generator().manual_seed(0))}] * n
    hidden, masks = [], []
    for source, _ in read_plain(_collator(seed=0, poisson_lambda=poisson_lambda)(rows)):
        masks.append(source.count(MASK))
        hidden.append(length + 1 - (len(source) - masks[-1]))
    assert set(hidden) == {99, 100}  # 99.9: up or down at random
    assert 99.85 - SIGMAS * 0.3 / n**0.5 < sum(hidden) / n < 99.95 + SIGMAS * 0.3 / n**0.5
    # as many draws as it takes to reach the budget: their mean number is (budget + overshoot) / lambda, and the overshoot
    # of a span over its end is less than (lambda + 1) / 2 + 1
    mean = sum(masks) / n
    deviation = (99.9 / poisson_lambda**2) ** 0.5 / n**0.5
    low, high = (99.9 / poisson_lambda, (99.9 + (poisson_lambda + 1) / 2 + 1) / poisson_lambda)
    assert low - SIGMAS * deviation < mean < high + SIGMAS * deviation


@pytest.mark.parametrize("poisson_lambda", [3.0, 0.7])
def test_span_lengths_are_poisson(poisson_lambda):
    n = 20_000
    collator = _collator(seed=0, poisson_lambda=poisson_lambda)
    spans = collator._draw_spans(n)
    lengths, num_spans = collator._with_empty_spans(spans, torch.tensor([n // 2, n - n // 2]))
    assert int(num_spans.sum()) == len(lengths)
    counts = torch.bincount(lengths, minlength=8).tolist()
    for length in range(8):
        share = math.exp(-poisson_lambda) * poisson_lambda**length / math.factorial(length)
        assert abs(counts[length] - share * len(lengths)) < SIGMAS * (share * len(lengths)) ** 0.5 + 1


def test_empty_spans_may_come_last():
    one = torch.ones(1000, dtype=torch.long)
    lengths, num_spans = _collator(seed=0, poisson_lambda=0.7)._with_empty_spans(one, one)
    assert (lengths[num_spans.cumsum(0) - 1] == 0).any()


def test_empty_spans_put_masks_in():
    pairs = read_plain(_collator(seed=0, poisson_lambda=0.1)([{"input_ids": [*range(50, 60), EOS]}] * 50))
    # 3 tokens are hidden, one by one mostly, and of ten draws nine are empty
    assert sum(len(source) for source, _ in pairs) > 50 * 20


def test_a_seed_gives_the_same_sequence():
    rows = [pack(make_documents(0))]
    one, other = _collator(seed=3), _collator(seed=3)
    first, second = one(rows), one(rows)
    assert equal_batches(first, other(rows))
    assert equal_batches(second, other(rows))
    assert not equal_batches(first, second)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"infill_probability": 0.0}, "delete_probability, mask_probability, .* all are off"),
        ({"infill_probability": 1.1}, "infill_probability: 1.1 must be from 0 to 1"),
        ({"delete_probability": -0.1}, "delete_probability: -0.1"),
        ({"mask_probability": 2}, "mask_probability: 2 must"),
        ({"poisson_lambda": 0.0}, "poisson_lambda: 0.0 must be above 0"),
        ({"mask_token_id": VOCAB_SIZE}, "mask_token_id: 400 is outside"),
        ({"bos_token_id": -1}, "bos_token_id: -1 is outside"),
        ({"sentence_end_token_ids": [STOP, VOCAB_SIZE]}, "sentence_end_token_ids: 400 is outside"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        _collator(**settings)
    assert "\n" not in str(caught.value)
