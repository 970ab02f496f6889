"""The encoder-decoders that the model tests run over: small, and with weights large enough that attention is far from
uniform. Variants are the decoder's where they apply, and what only this family has."""

import pytest
import torch
from models import decoder_grid
from models.variants import ENCODER_DECODER_VARIANTS as VARIANTS

from hf_ext.models import HfxEncoderDecoderConfig, HfxEncoderDecoderForConditionalGeneration


ATTENTIONS = decoder_grid.ATTENTIONS

SIZES = {**decoder_grid.SIZES, "encoder_layers": 3}

attentions_for = decoder_grid.attentions_for


def one_attention_each() -> list:
    """Parameters (options, attention): all cases with `make test-full`; else one attention a variant, in turn."""
    params = []
    for i, (name, options) in enumerate(VARIANTS.items()):
        able = attentions_for(options)
        for attention in able:
            marks = [] if attention == able[i % len(able)] else [pytest.mark.full]
            params.append(pytest.param(options, attention, id=f"{name} ({attention})", marks=marks))
    return params


def make_config(**options) -> HfxEncoderDecoderConfig:
    return HfxEncoderDecoderConfig(**{**SIZES, **options})


def make_model(
    attention: str | None = None,
    seed: int = 0,
    model_class: type = HfxEncoderDecoderForConditionalGeneration,
    **options,
):
    """A model in eval mode. The same seed gives the same weights whatever the attention."""
    torch.manual_seed(seed)
    config = make_config(**options)
    config._attn_implementation = attention
    model = model_class(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("sinks"):  # zero at the start, where a forgotten one could not be told from a small one
            torch.nn.init.normal_(parameter, std=2.0)
        if name.endswith("value_mix"):
            torch.nn.init.uniform_(parameter, 0.3, 1.0)
        if "lambda_" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def tokens(B: int = 2, T: int = 13, seed: int = 0) -> torch.Tensor:
    """(B, T) ids without the special ones, in the vocabularies of both sides."""
    return torch.randint(3, 61, (B, T), generator=torch.Generator().manual_seed(seed))


def length_dependent(options: dict) -> bool:
    """Whether rotary frequencies depend on the length; the trained one is 8 in the grid."""
    return (options.get("rope_parameters") or {}).get("rope_type") in ("dynamic", "longrope")
