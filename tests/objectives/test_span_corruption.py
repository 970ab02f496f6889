from collections import Counter
from itertools import pairwise

import pytest
import torch
from objectives.packed_text import EOS, PAD, SENTINELS, VOCAB_SIZE, equal_batches, make_document, make_documents, pack
from objectives.paired_text import IDS, START, read_packed, read_plain

from hf_ext.objectives import SpanCorruptionCollator
from hf_ext.objectives.span_corruption import count_noise


# five standard deviations of a count
SIGMAS = 5


def _collator(**settings) -> SpanCorruptionCollator:
    return SpanCorruptionCollator(**{**IDS, "sentinel_token_ids": SENTINELS, **settings})


def _restore(source: list[int], target: list[int], final_sentinel: bool = True) -> tuple[list[int], list[list[int]]]:
    """The document, and the spans that were hidden."""
    assert target[-1] == EOS
    spans: list[list[int]] = []
    for token in target[:-1]:
        if token in SENTINELS:
            assert token == SENTINELS[len(spans)]
            spans.append([])
        else:
            spans[-1].append(token)
    if final_sentinel:
        assert spans.pop() == []
    assert [token for token in source if token in SENTINELS] == SENTINELS[: len(spans)]
    document = []
    for token in source:
        document += spans[SENTINELS.index(token)] if token in SENTINELS else [token]
    return document, spans


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("settings", [{}, {"noise_density": 0.5, "mean_span_length": 8}, {"final_sentinel": False}])
def test_every_document_comes_back(seed, settings):
    documents = make_documents(seed)
    collator = _collator(seed=seed, **settings)
    plain = read_plain(collator([{"input_ids": document} for document in documents]))
    packed = read_packed(collator([pack(documents[:4], num_padding=3), pack(documents[4:])]))
    assert [len(row) for row in packed] == [4, len(documents) - 4]
    density, mean = settings.get("noise_density", 0.15), settings.get("mean_span_length", 3)
    for pairs in (plain, packed[0] + packed[1]):
        for document, (source, target) in zip(documents, pairs, strict=True):
            restored, spans = _restore(source, target, settings.get("final_sentinel", True))
            assert restored == document
            length = len(document) - (document[-1] == EOS)
            # the paper's numbers, in Python's own arithmetic
            num_noise = 0 if length < 2 else min(max(round(length * density), 1), length - 1)
            num_spans = 0 if length < 2 else min(max(round(num_noise / mean), 1), length - num_noise)
            assert sum(map(len, spans)) == num_noise
            assert len(spans) == num_spans
            assert all(spans)
            # spans don't touch, or two sentinels would stand side by side
            assert not any(a in SENTINELS and b in SENTINELS for a, b in pairwise(source))


def test_the_example():
    rows = [{"input_ids": [*range(50, 60), EOS]}]
    batch = _collator(seed=0, noise_density=0.3, mean_span_length=1.5)(rows)
    source, target = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    assert len(source) == 10 - 3 + 2 + 1
    assert len(target) == 3 + 3 + 1
    assert target[0] == SENTINELS[0]
    assert target[-2:] == [SENTINELS[2], EOS]


def test_numbers_of_noise():
    lengths = torch.tensor([0, 1, 2, 3, 10, 100, 512])
    assert [values.tolist() for values in count_noise(lengths, 0.15, 3.0)] == [
        [0, 0, 1, 1, 2, 15, 77],
        [0, 0, 1, 1, 1, 5, 26],
    ]
    num_noise, num_spans = count_noise(lengths, 0.9, 1.0)
    assert (num_spans <= lengths - num_noise).all()


def test_spans_lie_anywhere():
    n = 4000
    rows = [{"input_ids": [*range(50, 60), EOS]}] * n  # one span of 2 tokens has 9 places
    batch = _collator(seed=0)(rows)
    counts = Counter((batch["input_ids"] == SENTINELS[0]).long().argmax(-1).tolist())
    assert sorted(counts) == list(range(9))
    assert all(abs(count - n / 9) < SIGMAS * (n * 8 / 81) ** 0.5 for count in counts.values())


def test_span_lengths():
    rows = [{"input_ids": make_document(201, torch.Generator().manual_seed(0))}] * 200
    lengths = []
    for source, target in read_plain(_collator(seed=0)(rows)):
        lengths += map(len, _restore(source, target)[1])
    # 30 noise tokens in 10 spans, every sum of 10 positive integers equally likely: P(length = 1) = 9 / 29
    assert sum(lengths) == 200 * 30
    assert len(lengths) == 200 * 10
    assert abs(lengths.count(1) - len(lengths) * 9 / 29) < SIGMAS * (len(lengths) * 9 / 29 * 20 / 29) ** 0.5


def test_even_rows_have_no_padding():
    row = pack(
        [make_document(20, torch.Generator().manual_seed(0)), make_document(30, torch.Generator().manual_seed(1))]
    )
    batch = _collator(seed=0)([row, row])
    assert all(len(pairs) == 2 for pairs in read_packed(batch))
    assert (batch["labels"] != -100).all()
    assert (batch["input_ids"] != PAD).all()


def test_a_row_of_padding_alone_among_packed_rows():
    rows = [pack([make_document(20, torch.Generator().manual_seed(0))]), pack([], num_padding=20)]
    batch = _collator(seed=0)(rows)
    assert [len(pairs) for pairs in read_packed(batch)] == [1, 0]
    assert (batch["decoder_input_ids"][0, 0] == START).all()


def test_a_seed_gives_the_same_sequence():
    rows = [pack(make_documents(0))]
    one, other = _collator(seed=3), _collator(seed=3)
    first, second = one(rows), one(rows)
    assert equal_batches(first, other(rows))
    assert equal_batches(second, other(rows))
    assert not equal_batches(first, second)


def test_labels_of_packing_are_not_read():
    row = pack(make_documents(0))
    labelled = {**row, "labels": [-100] * len(row["input_ids"])}
    assert equal_batches(_collator(seed=0)([row]), _collator(seed=0)([labelled]))


def test_more_spans_than_sentinels_are_refused():
    rows = [{"input_ids": [50, 51]}, {"input_ids": make_document(201, torch.Generator().manual_seed(0))}]
    message = "sentinel_token_ids: 10 given, but a document of 200 tokens needs 11"
    with pytest.raises(ValueError, match=message) as caught:
        _collator(sentinel_token_ids=SENTINELS[:10])(rows)
    assert "\n" not in str(caught.value)
    _collator(sentinel_token_ids=SENTINELS[:10], final_sentinel=False)(rows)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise_density": 0.0}, "noise_density: 0.0 must be above 0"),
        ({"noise_density": 1.0}, "noise_density: 1.0 must be"),
        ({"mean_span_length": 0.5}, "mean_span_length: 0.5 must be at least 1"),
        ({"sentinel_token_ids": [10, 10]}, "sentinel_token_ids, eos_token_id: .* has an id twice"),
        ({"sentinel_token_ids": [10, VOCAB_SIZE]}, "sentinel_token_ids: 400 is outside"),
        ({"sentinel_token_ids": [PAD]}, "pad_token_id: 0 is a sentinel too"),
        ({"eos_token_id": -1}, "eos_token_id: -1 is outside"),
        ({"decoder_start_token_id": VOCAB_SIZE}, "decoder_start_token_id: 400 is outside"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        _collator(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"input_ids": [50, SENTINELS[3]]}], "input_ids: 36 in row 0 at position 1 is among sentinel_token_ids"),
        ([{"input_ids": [50, 51]}, {"input_ids": [PAD, PAD]}], "input_ids: row 1 is nothing but pad_token_id 0"),
        ([pack([], num_padding=3)], "input_ids: all rows are nothing but padding"),
        ([{"input_ids": [50, 51], "position_ids": [0, 2]}], "position_ids: 2 in row 0 at position 1"),
    ],
)
def test_bad_rows_are_refused(rows, message):
    with pytest.raises(ValueError, match=message) as caught:
        _collator()(rows)
    assert "\n" not in str(caught.value)
