"""Continuous batching: requests of different lengths in one flat row over a paged cache, the same tokens as `generate`."""

import pytest
import torch
from models.decoder_grid import VARIANTS, make_model, tokens
from transformers import ContinuousBatchingConfig, GenerationConfig


LENGTHS = (6, 19, 3, 11)
NEW_TOKENS = 9
# pages smaller than the prompts; and a batch smaller than one of them, which goes in by parts
SIZES = {"whole prompts": 64, "prompts in parts": 16}

REFUSED = {
    "dynamic": "rope_type='dynamic', whose frequencies change with the length; use generate",
    "longrope": "rope_type='longrope', whose frequencies change with the length; use generate",
    "ALiBi, norm after the embeddings": "position_embedding_type='alibi'; use generate",
    "relative bias, sliding and global": "position_embedding_type='relative'; use generate",
    "differential, ALiBi, gated, sliding": "position_embedding_type='alibi'; use generate",
    "differential": "attention_type='differential', whose values are of two heads",
}
# the short form; `make test-full` runs all
SHORT = (
    "grouped, QK-norm by head",
    "rotary by layer type, none in the global layers, two parallel norms",
    "attention sinks, sliding window",
    "learned positions",
)
BEYOND_SDPA = {"attention_sinks", "attn_logit_softcapping"}


def prompts() -> list[list[int]]:
    """The last two begin alike, so that they share pages."""
    shared = tokens(B=1, T=8, seed=9)[0].tolist()
    rows = [tokens(B=1, T=T, seed=T)[0].tolist() for T in LENGTHS]
    return [*rows, [*shared, 7, 8], [*shared, 9]]


def generate_batch(model, max_batch_tokens: int) -> list[list[int]]:
    outputs = model.generate_batch(
        prompts(),
        generation_config=GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=-1, pad_token_id=0),
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=4,
            num_blocks=64,
            max_batch_tokens=max_batch_tokens,
            use_cuda_graph=False,
            use_async_batching=False,
        ),
    )
    assert [output.error for output in outputs.values()] == [None] * len(prompts())
    return [output.generated_tokens for output in outputs.values()]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in SHORT else [pytest.mark.full]) for name in VARIANTS if name not in REFUSED],
)
def test_same_tokens_as_generate(name, attention):
    options = VARIANTS[name]
    if "attn_logit_softcapping" in options or (attention == "sdpa" and BEYOND_SDPA & options.keys()):
        pytest.skip("refused, see test_attention_checks.py")
    model = make_model(attention, **options)
    expected = [
        model.generate(torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None)[
            0, len(prompt) :
        ].tolist()
        for prompt in prompts()
    ]
    for how, size in SIZES.items():
        assert generate_batch(model, size) == expected, how
    assert model.config._attn_implementation == attention  # paged|eager only while it ran


@pytest.mark.parametrize(("name", "message"), REFUSED.items())
def test_what_a_paged_cache_can_not_hold_is_refused(name, message):
    with pytest.raises(ValueError, match=f"generate_batch: continuous batching does not support {message}"):
        generate_batch(make_model("sdpa", **VARIANTS[name]), 64)


@pytest.mark.parametrize(
    ("attention", "options", "message"),
    [
        ("hfx_tiled", {}, "hfx_tiled is not supported for continuous batching. Use 'paged|eager', 'sdpa'"),
        ("eager", {"attn_logit_softcapping": 2.0}, "'paged|eager' does not support attn_logit_softcapping=2.0"),
    ],
)
def test_attentions_that_can_not_are_refused(attention, options, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the message is compared as text
        generate_batch(make_model(attention, **options), 64)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_paged_cache_is_not_ignored():
    """By ours, which would attend to the new tokens only."""
    for attention in ("hfx_tiled", "eager"):
        with pytest.raises(ValueError, match=f"'{attention}' does not support cache"):
            make_model(attention)(tokens(), cache=object())
