"""Ways to decode: drafted tokens, chunked prompts and every cache give the text that is computed without any of them."""

import pytest
import torch
from models.decoder_grid import (
    ATTENTIONS,
    CASES,
    VARIANTS,
    attentions_for,
    make_model,
    one_attention_each,
    tokens,
)
from transformers import cache_utils
from transformers.cache_utils import QuantoQuantizedLayer

from hf_ext.models import HfxDecoderForCausalLM


NEW_TOKENS = 8
GREEDY = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None}
STATIC = {"cache_implementation": "static", "disable_compile": True}
# small groups, and few new tokens kept as they are, so that a short text is quantized again and again
QUANTIZED = {
    "cache_implementation": "quantized",
    "cache_config": {"backend": "quanto", "nbits": 4, "q_group_size": 4, "residual_length": 3},
}
# 4 bits are 16 levels over the span of a group: what comes out is far from exact, and still the same function
CORRELATION = 0.97

# trained on 8 tokens in the grid; beyond, their frequencies change with every token or once, see
# tests/models/test_checked_generation.py for what they refuse
LENGTH_DEPENDENT = ("dynamic", "longrope")
# longer than every window in the grid, and so is the cache that the prompt fills
PROMPT = 13


over_cases = pytest.mark.parametrize(("options", "attention"), one_attention_each(CASES))
over_exact_cases = pytest.mark.parametrize(
    ("options", "attention"),
    one_attention_each({name: case for name, case in CASES.items() if not name.startswith(LENGTH_DEPENDENT)}),
)


def prompts() -> dict:
    """Rows of 9 and 13 tokens, padded on the left."""
    short, long = tokens(B=1, T=PROMPT - 4), tokens(B=1, T=PROMPT, seed=1)
    ids = torch.cat([torch.cat([torch.zeros(1, 4, dtype=torch.long), short], dim=1), long])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def drafter(attention: str, options: dict) -> HfxDecoderForCausalLM:
    """The model with its weights a little off: it drafts some tokens right and some wrong."""
    model = make_model(attention, **options)
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model


@over_cases
def test_caches_and_chunks_of_a_padded_batch(options, attention):
    model, batch = make_model(attention, **options), prompts()
    expected = model.generate(**batch, use_cache=False, **GREEDY)
    assert torch.equal(model.generate(**batch, **GREEDY), expected)
    assert torch.equal(model.generate(**batch, **STATIC, **GREEDY), expected)
    if (options.get("rope_parameters") or {}).get("rope_type") in LENGTH_DEPENDENT:
        return
    for chunk in (3, 7):  # less than the padding of a row: its first chunk holds no token
        assert torch.equal(model.generate(**batch, prefill_chunk_size=chunk, **GREEDY), expected)
        assert torch.equal(model.generate(**batch, prefill_chunk_size=chunk, **STATIC, **GREEDY), expected)


@over_exact_cases
def test_drafted_tokens(options, attention):
    model, ids = make_model(attention, **options), tokens(B=1, T=PROMPT)
    ids[:, -3:] = ids[:, 1:4]  # for the lookup to find
    expected = model.generate(ids, use_cache=False, **GREEDY)
    calls, forward = [], model.forward
    model.forward = lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs)
    # the model itself drafts what it will accept; one a little off also what it won't
    assert torch.equal(model.generate(ids, assistant_model=make_model(attention, **options), **GREEDY), expected)
    assert len(calls) < NEW_TOKENS
    for drafting in (
        {"assistant_model": drafter(attention, options)},
        {"prompt_lookup_num_tokens": 3},
        {"assistant_early_exit": 1},
        {"assistant_model": drafter(attention, options), "prefill_chunk_size": 5},
    ):
        assert torch.equal(model.generate(ids, **drafting, **GREEDY), expected)
    assert model.config.num_hidden_layers == 2


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_drafter_whose_frequencies_change(attention):
    """It starts over as `generate` does, and only what it proposes depends on it."""
    model, ids = make_model(attention), tokens(B=1, T=6)
    expected = model.generate(ids, use_cache=False, **GREEDY)
    for rule in LENGTH_DEPENDENT:
        other = make_model(attention, **VARIANTS[rule])
        assert torch.equal(model.generate(ids, assistant_model=other, **GREEDY), expected)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize(
    "sampling",
    [{"do_sample": True, "top_k": 20}, {"num_beams": 3, "do_sample": False}, {"num_beams": 2, "do_sample": True}],
    ids=["sample", "beam", "beam sample"],
)
def test_sampling_and_beam_over_every_cache(attention, sampling):
    for name in ("sliding window, reordered norm, biases", "latent, queries too, interleaved", "learned positions"):
        model, batch, texts = make_model(attention, **VARIANTS[name]), prompts(), []
        for cache in ({"use_cache": False}, {}, STATIC, {"prefill_chunk_size": 5}):
            torch.manual_seed(7)
            texts.append(model.generate(**batch, **{**GREEDY, **sampling, **cache}))
        assert all(torch.equal(text, texts[0]) for text in texts), name


@pytest.fixture(scope="module")
def _quanto():
    pytest.importorskip("optimum.quanto")


QUANTIZABLE = [name for name, options in VARIANTS.items() if "sliding_window" not in options]


@pytest.mark.usefixtures("_quanto")
@pytest.mark.parametrize("name", QUANTIZABLE)
def test_a_quantized_cache_that_rounds_nothing_is_exact(name, monkeypatch):
    """The way through it: with the identity in the quantizer's place."""
    monkeypatch.setattr(QuantoQuantizedLayer, "_quantize", lambda self, states, axis: states)
    monkeypatch.setattr(QuantoQuantizedLayer, "_dequantize", lambda self, states: states)
    model, batch = make_model(attentions_for(VARIANTS[name])[-1], **VARIANTS[name]), prompts()
    expected = model.generate(**batch, use_cache=False, **GREEDY)
    assert torch.equal(model.generate(**batch, **QUANTIZED, **GREEDY), expected)


@pytest.mark.usefixtures("_quanto")
@pytest.mark.parametrize("name", ["llama", "ALiBi, norm after the embeddings", "latent, queries too, interleaved"])
@torch.no_grad()
def test_a_quantized_cache(name):
    model, ids = make_model("sdpa", **VARIANTS[name]), tokens(T=8)
    out = model.generate(ids, **QUANTIZED, **GREEDY, output_logits=True, return_dict_in_generate=True)
    assert isinstance(out.past_key_values, cache_utils.QuantizedCache)
    got = torch.stack(out.logits[1:], dim=1)
    expected = model(out.sequences[:, :-1]).logits[:, -got.shape[1] :]
    assert (got - expected).abs().max() > 1e-3  # it did round
    assert torch.corrcoef(torch.stack([got.flatten(), expected.flatten()]))[0, 1] > CORRELATION


@pytest.mark.usefixtures("_quanto")
@pytest.mark.parametrize(
    ("options", "cache_config", "message"),
    [
        ({"sliding_window": 4}, {}, "only supported for models with only full attention layers"),
        ({}, {"backend": "hqq"}, "You need to install `HQQ`"),
        ({}, {"nbits": 8}, "`nbits` for `quanto` backend has to be one of"),
    ],
    ids=["sliding", "not installed", "bits"],
)
def test_a_quantized_cache_that_can_t_be_is_refused(options, cache_config, message, monkeypatch):
    """By transformers, in a line; here lest it begins to take another cache instead."""
    monkeypatch.setattr(cache_utils, "is_hqq_available", lambda: False)
    config = {**QUANTIZED["cache_config"], **cache_config}
    with pytest.raises((ValueError, ImportError), match=message):
        make_model(**options).generate(tokens(), **{**QUANTIZED, "cache_config": config}, **GREEDY)
