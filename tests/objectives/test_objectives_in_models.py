"""Objectives in the models that they are for: what a packed row is asked is what each of its documents is asked alone."""

import pytest
import torch

from hf_ext.models import (
    HfxDecoderConfig,
    HfxDecoderForCausalLM,
    HfxEncoderConfig,
    HfxEncoderDecoderConfig,
    HfxEncoderDecoderForConditionalGeneration,
    HfxEncoderForMaskedLM,
)
from hf_ext.objectives import (
    CausalCollator,
    DenoisingCollator,
    FillInTheMiddleCollator,
    MaskedCollator,
    MixtureOfDenoisersCollator,
    PrefixLMCollator,
    SpanCorruptionCollator,
)


# fp32: sums of some hundred tokens' losses, of order 1000, in another order
LOSS = {"rtol": 1e-5}
GRADIENT = {"atol": 1e-5, "rtol": 1e-4}  # against the largest of all

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.25,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
IDS = {"vocab_size": 97, "pad_token_id": 0}
PAIRS = {**IDS, "eos_token_id": 1, "decoder_start_token_id": 0}
SENTINELS = list(range(70, 90))
MODES = {"R": 90, "X": 91, "S": 92}
DECODER = (HfxDecoderForCausalLM, HfxDecoderConfig)
ENCODER = (HfxEncoderForMaskedLM, HfxEncoderConfig)
BOTH = (HfxEncoderDecoderForConditionalGeneration, HfxEncoderDecoderConfig)

CASES = {
    "causal": (DECODER, CausalCollator, IDS),
    "prefix": (DECODER, PrefixLMCollator, IDS),
    "fill in the middle": (
        DECODER,
        FillInTheMiddleCollator,
        {**IDS, "prefix_token_id": 2, "middle_token_id": 3, "suffix_token_id": 4, "eos_token_id": 1, "fim_rate": 0.9},
    ),
    "masked": (ENCODER, MaskedCollator, {**IDS, "mask_token_id": 2, "special_token_ids": (0, 1, 2)}),
    "span corruption": (BOTH, SpanCorruptionCollator, {**PAIRS, "sentinel_token_ids": SENTINELS}),
    "UL2": (BOTH, MixtureOfDenoisersCollator, {**PAIRS, "sentinel_token_ids": SENTINELS, "mode_token_ids": MODES}),
    "UL2, decoder": (
        DECODER,
        MixtureOfDenoisersCollator,
        {**PAIRS, "sentinel_token_ids": SENTINELS, "mode_token_ids": MODES, "architecture": "decoder"},
    ),
    "denoising": (BOTH, DenoisingCollator, {**PAIRS, "mask_token_id": 2, "sentence_end_token_ids": (7, 8)}),
}


def packed_rows() -> list[dict]:
    """Rows of three documents and some padding, of 50 tokens."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for lengths in ((14, 9, 21), (30, 6, 11), (5, 17, 28)):
        documents = [[*torch.randint(5, 70, (n - 1,), generator=generator).tolist(), 1] for n in lengths]
        padding = 50 - sum(lengths)
        row = {"input_ids": [token for document in documents for token in document] + [0] * padding}
        row["position_ids"] = [position for n in (*lengths, padding) for position in range(n)]
        rows.append(row)
    return rows


def documents_of(position_ids: torch.Tensor) -> list[slice]:
    """Where each segment of a row lies."""
    starts = (position_ids == 0).nonzero().flatten().tolist()
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(position_ids)], strict=True)]


def alone(batch: dict) -> list[dict]:
    """Each document of a packed batch as a batch of its own, without positions; those that are asked nothing left out."""
    found = []
    for row in range(batch["input_ids"].shape[0]):
        own = documents_of(batch["position_ids"][row])
        other = documents_of(batch["decoder_position_ids"][row]) if "decoder_position_ids" in batch else own
        assert len(own) == len(other)
        for source, target in zip(own, other, strict=True):
            document = {
                name: value[row : row + 1, source if name in ("input_ids", "prefix_mask") else target]
                for name, value in batch.items()
                if not name.endswith("position_ids")
            }
            if (document["labels"] != -100).any():
                found.append(document)
    return found


@pytest.mark.parametrize("attention", ["eager", "sdpa", "hfx_tiled"])
@pytest.mark.parametrize("case", CASES)
def test_packed_equals_each_document_alone(case, attention):
    (model_class, config_class), collator, options = CASES[case]
    torch.manual_seed(0)
    config = config_class(**SIZES, attn_implementation=attention)
    model = model_class(config).train()
    torch.manual_seed(1)
    batch = collator(**options)(packed_rows())
    assert "attention_mask" not in batch
    packed = model(**batch, num_items_in_batch=1).loss
    packed.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    total = 0.0
    documents = alone(batch)
    assert len(documents) >= 5
    for document in documents:
        loss = model(**document, num_items_in_batch=1).loss
        loss.backward()
        total += loss.item()
    torch.testing.assert_close(packed.item(), total, atol=0.0, **LOSS)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 1
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad / largest, expected[name] / largest, **GRADIENT, msg=lambda m, n=name: f"{n}: {m}"
        )
