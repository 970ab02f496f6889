"""Pairs in rows: none lost, none torn, none beside another's target; and the model sees each alone."""

import random

import pytest
import torch

from hf_ext.data import pack_pairs
from hf_ext.models import HfxEncoderDecoderConfig, HfxEncoderDecoderForConditionalGeneration
from hf_ext.objectives import SequenceToSequenceCollator


def make_pairs(count: int, longest: int = 20, seed: int = 0) -> list[dict]:
    rng = random.Random(seed)
    return [
        {side: [rng.randrange(3, 97) for _ in range(rng.randint(1, longest))] for side in ("input_ids", "labels")}
        for _ in range(count)
    ]


def unpack(row: dict) -> list[dict]:
    sides = {}
    for tokens, positions in (("input_ids", "position_ids"), ("labels", "decoder_position_ids")):
        starts = [i for i, position in enumerate(row[positions]) if position == 0]
        sides[tokens] = [row[tokens][a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]
    assert len(sides["input_ids"]) == len(sides["labels"])
    return [dict(zip(sides, pair, strict=True)) for pair in zip(*sides.values(), strict=True)]


@pytest.mark.parametrize("seed", range(5))
def test_every_pair_once_and_within_the_room(seed):
    pairs = make_pairs(333, seed=seed)
    rows = list(pack_pairs(pairs, source_length=40, target_length=30, buffer_size=100))
    assert all(len(row["input_ids"]) <= 40 and len(row["labels"]) <= 30 for row in rows)
    found = [pair for row in rows for pair in unpack(row)]
    key = str
    assert sorted(found, key=key) == sorted(pairs, key=key)
    # of the fuller side little is free
    filled = sum(len(row["labels"]) for row in rows) / (30 * len(rows))
    assert filled > 0.9


def test_the_open_rows_are_few_and_the_order_is_kept():
    pairs = [{"input_ids": [i + 3], "labels": [i + 3] * 2} for i in range(90)]
    rows = list(pack_pairs(pairs, source_length=8, target_length=8))
    assert [len(unpack(row)) for row in rows] == [4] * 22 + [2]
    assert [pair["input_ids"][0] for row in rows for pair in unpack(row)] == [i + 3 for i in range(90)]


@pytest.mark.parametrize(
    ("pair", "options", "message"),
    [
        ({}, {"source_length": 0}, "source_length: 0 must be at least 1"),
        ({}, {"buffer_size": 0}, "buffer_size: 0 must be at least 1"),
        ({"input_ids": [1] * 9}, {}, "input_ids: of 9 tokens in pair 1 is longer than source_length 8"),
        ({"labels": [1] * 9}, {}, "labels: of 9 tokens in pair 1 is longer than target_length 8"),
        ({"labels": []}, {}, "labels: of 0 tokens in pair 1 is empty"),
    ],
)
def test_nonsense(pair, options, message):
    good = {"input_ids": [3], "labels": [4]}
    with pytest.raises(ValueError, match=message):
        list(pack_pairs([good, good | pair], **{"source_length": 8, "target_length": 8, **options}))


def test_the_model_is_asked_the_same_of_packed_and_of_padded_pairs():
    torch.manual_seed(0)
    config = HfxEncoderDecoderConfig(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.25,
        pad_token_id=0,
    )
    model = HfxEncoderDecoderForConditionalGeneration(config).train()
    collator = SequenceToSequenceCollator(vocab_size=97, pad_token_id=0, decoder_start_token_id=0)
    pairs = make_pairs(24, longest=12)
    losses = []
    for rows in (pairs, list(pack_pairs(pairs, source_length=30, target_length=30))):
        batch = collator(rows)
        assert ("attention_mask" in batch) == (rows is pairs)
        loss = model(**batch, num_items_in_batch=1).loss
        loss.backward()
        losses.append(torch.cat([loss.detach()[None], *(p.grad.flatten() for p in model.parameters())]))
        model.zero_grad()
    torch.testing.assert_close(losses[1], losses[0], atol=1e-3, rtol=1e-4)  # sums over 150 tokens, of order 1000
