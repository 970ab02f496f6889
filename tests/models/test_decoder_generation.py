"""One number whichever way: cached, uncached, static cache, padded, continued; greedy, sampling, beam."""

import pytest
import torch
from models.decoder_grid import ATTENTIONS, CASES, VARIANTS, attentions_for, make_model, tokens
from transformers import DynamicCache, StaticCache


# fp32: two layers of sums in another order, on logits of order 10
TOLERANCE = {"atol": 2e-5, "rtol": 1e-5}

LENGTH_DEPENDENT = ("dynamic", "longrope")  # trained length 8 in the grid
over_variants = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
over_cases = pytest.mark.parametrize(("options", "attention"), CASES.values(), ids=CASES)
over_attentions = pytest.mark.parametrize("attention", ATTENTIONS)


def depends_on_length(options) -> bool:
    return (options.get("rope_parameters") or {}).get("rope_type") in LENGTH_DEPENDENT


def step_by_step(model, ids, cache, prefill=5, **kwargs):
    """Logits of the last token of each prefix from `prefill` on, through the cache."""
    logits = [model(ids[:, :prefill], past_key_values=cache, use_cache=True, **kwargs).logits[:, -1]]
    for t in range(prefill, ids.shape[1]):
        logits.append(model(ids[:, t : t + 1], past_key_values=cache, use_cache=True).logits[:, -1])
    return torch.stack(logits, dim=1)


@over_cases
@torch.no_grad()
def test_cached_equals_uncached_equals_static(options, attention):
    # up to the trained length where frequencies depend on it: beyond, see test_cache_at_other_frequencies
    model, ids = make_model(attention, **options), tokens(T=8 if depends_on_length(options) else 13)
    expected = torch.stack([model(ids[:, :t]).logits[:, -1] for t in range(5, ids.shape[1] + 1)], dim=1)
    dynamic = step_by_step(model, ids, DynamicCache(config=model.config))
    static = step_by_step(model, ids, StaticCache(config=model.config, max_cache_len=24))
    torch.testing.assert_close(dynamic, expected, **TOLERANCE)
    torch.testing.assert_close(static, expected, **TOLERANCE)


@over_attentions
@torch.no_grad()
def test_mask_as_long_as_the_static_cache(attention):
    model, ids = make_model(attention), tokens()
    mask = (torch.arange(20) < 13).long().expand(2, 20).clone()
    mask[0, :3] = 0
    cache = StaticCache(config=model.config, max_cache_len=20)
    got = model(ids, past_key_values=cache, attention_mask=mask).logits
    torch.testing.assert_close(got[1:], model(ids[1:]).logits, **TOLERANCE)
    torch.testing.assert_close(got[:1, 3:], model(ids[:1, 3:]).logits, **TOLERANCE)


def test_generate_from_embeddings():
    model, ids = make_model(), tokens(T=6)
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    expected = model.generate(ids, **options)[:, 6:]
    assert torch.equal(model.generate(inputs_embeds=model.get_input_embeddings()(ids), **options), expected)


@over_cases
@torch.no_grad()
def test_going_on_from_a_cache(options, attention):
    model, ids = make_model(attention, **options), tokens(T=8 if depends_on_length(options) else 17)
    cache = DynamicCache(config=model.config)
    model(ids[:, :6], past_key_values=cache)
    got = model(ids[:, 6:], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(got, model(ids).logits[:, 6:], **TOLERANCE)


@pytest.mark.parametrize("rule", LENGTH_DEPENDENT)
def test_cache_at_other_frequencies_is_refused_and_generate_starts_over(rule):
    model, ids = make_model(**VARIANTS[rule]), tokens(T=12)
    cache = DynamicCache(config=model.config)
    model(ids[:, :6], past_key_values=cache)
    with pytest.raises(ValueError, match=f"past_key_values: 6 tokens were cached at other frequencies.*{rule}"):
        model(ids[:, 6:], past_key_values=cache)
    # prompts that cross the trained length while generating, padded so that they cross at different steps
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[0, :3] = 0
    kwargs = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None}
    expected = model.generate(ids[:, :6], attention_mask=mask, use_cache=False, **kwargs)
    assert torch.equal(model.generate(ids[:, :6], attention_mask=mask, **kwargs), expected)
    static = {"cache_implementation": "static", "disable_compile": True}
    assert torch.equal(model.generate(ids[:, :6], attention_mask=mask, **static, **kwargs), expected)
    assert torch.equal(model.generate(ids[:1, 3:6], **kwargs)[0, 3:], expected[0, 6:])


@over_cases
@torch.no_grad()
def test_left_padding_changes_nothing(options, attention):
    model, ids = make_model(attention, **options), tokens(B=1, T=11)
    other = tokens(B=1, T=15, seed=1)
    padded = torch.cat([torch.cat([torch.zeros(1, 4, dtype=torch.long), ids], dim=1), other])
    mask = torch.ones_like(padded)
    mask[0, :4] = 0
    logits = model(padded, attention_mask=mask).logits
    torch.testing.assert_close(logits[:1, 4:], model(ids).logits, **TOLERANCE)
    torch.testing.assert_close(logits[1:], model(other).logits, **TOLERANCE)
    assert torch.isfinite(logits).all()


@over_variants
def test_generate_batched_equals_single_equals_uncached(options):
    model, short, long = make_model(**options), tokens(B=1, T=6), tokens(B=1, T=10, seed=1)
    batch = torch.cat([torch.cat([torch.zeros(1, 4, dtype=torch.long), short], dim=1), long])
    mask = (torch.arange(10) >= torch.tensor([[4], [0]])).long()
    kwargs = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    batched = model.generate(batch, attention_mask=mask, **kwargs)
    for row, prompt in ((0, short), (1, long)):
        single = model.generate(prompt, **kwargs)
        assert torch.equal(batched[row, -12:], single[0, -12:])
        assert torch.equal(model.generate(prompt, use_cache=False, **kwargs), single)
        static = model.generate(prompt, cache_implementation="static", disable_compile=True, **kwargs)
        assert torch.equal(static, single)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize(
    "kwargs",
    [
        {"do_sample": True, "temperature": 0.8, "top_k": 20},
        {"do_sample": True, "top_p": 0.9, "num_return_sequences": 2},
        {"num_beams": 3, "do_sample": False},
        {"num_beams": 2, "do_sample": True},
    ],
    ids=["top-k", "top-p", "beam", "beam sample"],
)
def test_sampling_and_beam_don_t_see_the_cache(attention, kwargs):
    model, ids = make_model(attention, num_key_value_heads=2), tokens(B=2, T=7)
    results = []
    for use_cache in (True, False):
        torch.manual_seed(7)
        results.append(model.generate(ids, max_new_tokens=9, use_cache=use_cache, eos_token_id=None, **kwargs))
    assert torch.equal(*results)
    assert results[0].shape[1] == 16


@over_attentions
@torch.no_grad()
def test_packed_rows_keep_documents_apart(attention):
    for name, options in VARIANTS.items():
        if attention not in attentions_for(options):
            continue
        model, a, b = make_model(attention, **options), tokens(B=1, T=9), tokens(B=1, T=12, seed=1)
        positions = torch.cat([torch.arange(9), torch.arange(12)])[None]
        packed = model(torch.cat([a, b], dim=1), position_ids=positions).logits
        expected = torch.cat([model(a).logits, model(b).logits], dim=1)
        torch.testing.assert_close(packed, expected, **TOLERANCE, msg=lambda m, n=name: f"{n}: {m}")
