"""The decoder's part of `grid.py`, for tests of what only a decoder has."""

import pytest
from models.grid import ATTENTIONS, FAMILIES, SIZES, attentions_for, tokens

from hf_ext.models import HfxDecoderConfig, HfxDecoderForCausalLM


__all__ = [
    "ATTENTIONS",
    "CASES",
    "SIZES",
    "VARIANTS",
    "attentions_for",
    "make_config",
    "make_model",
    "one_attention_each",
    "tokens",
]
DECODER = FAMILIES["decoder"]
VARIANTS = DECODER.variants
CASES = {f"{name} ({a})": (options, a) for name, options in VARIANTS.items() for a in attentions_for(options)}


def one_attention_each(cases: dict) -> list:
    """Parameters (options, attention): all `cases` with `make test-full`; else one attention a variant, in turn."""
    plain = {
        f"{name} ({able[i % len(able)]})"
        for i, (name, able) in enumerate((name, attentions_for(options)) for name, options in VARIANTS.items())
    }
    return [
        pytest.param(*case, id=name, marks=[] if name in plain else [pytest.mark.full]) for name, case in cases.items()
    ]


def make_config(**options) -> HfxDecoderConfig:
    return DECODER.make_config(**options)


def make_model(attention: str | None = None, seed: int = 0, **options) -> HfxDecoderForCausalLM:
    """A language model in eval mode. The same seed gives the same weights whatever the attention."""
    return DECODER.make("text", attention, seed, **options)
