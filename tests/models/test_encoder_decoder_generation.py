"""One number whichever way: cached, uncached, static cache, padded, packed; greedy, sampling, beam."""

import pytest
import torch
from models.encoder_decoder_grid import (
    VARIANTS,
    attentions_for,
    length_dependent,
    make_model,
    one_attention_each,
    tokens,
)
from transformers import DynamicCache, EncoderDecoderCache, StaticCache


# fp32: two or three layers of sums in another order, on logits of order 10; differential attention subtracts maps
TOLERANCE = {"atol": 5e-5, "rtol": 1e-5}

over_cases = pytest.mark.parametrize(("options", "attention"), one_attention_each())
over_variants = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)

GREEDY = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None}
STATIC = {"cache_implementation": "static", "disable_compile": True}


def padded(side: str):
    """A source alone (7 tokens), another (11), and a batch of both with its mask."""
    short, long = tokens(B=1, T=7), tokens(B=1, T=11, seed=1)
    zeros = torch.zeros(1, 4, dtype=torch.long)
    row = torch.cat([zeros, short] if side == "left" else [short, zeros], dim=1)
    batch = torch.cat([row, long])
    return short, long, batch, (batch != 0).long()


@over_cases
@torch.no_grad()
def test_cached_equals_uncached_equals_static(options, attention):
    model, source = make_model(attention, **options), tokens(T=9)
    ids = tokens(T=8 if length_dependent(options) else 12, seed=1)  # beyond the trained length see the test below
    encoded = model.get_encoder()(source)
    expected = model(source, decoder_input_ids=ids).logits
    whole = make_model(
        attention, **{**options, "layer_types": None, "sliding_window": None, "encoder_layer_types": None}
    )
    caches = {
        "dynamic": EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache()),
        "static": EncoderDecoderCache(
            StaticCache(config=model.config, max_cache_len=16), StaticCache(config=whole.config, max_cache_len=9)
        ),
    }
    for name, cache in caches.items():
        steps = [slice(0, 4), slice(4, 5), slice(5, 7), *(slice(t, t + 1) for t in range(7, ids.shape[1]))]
        got = [
            model(encoder_outputs=encoded, decoder_input_ids=ids[:, s], past_key_values=cache, use_cache=True).logits
            for s in steps
        ]
        torch.testing.assert_close(torch.cat(got, dim=1), expected, **TOLERANCE, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("side", ["left", "right"])
@over_cases
@torch.no_grad()
def test_padding_changes_nothing(options, attention, side):
    model = make_model(attention, **options)
    short, long, batch, mask = padded(side)
    ids = tokens(T=6, seed=2)
    zeros = torch.zeros(1, 3, dtype=torch.long)
    row = torch.cat([zeros, ids[:1]] if side == "left" else [ids[:1], zeros], dim=1)
    other = tokens(B=1, T=9, seed=3)
    written = torch.cat([row, other])
    for use_cache in (False, True):  # with a cache the decoder's padding is computed, else left out
        logits = model(
            batch,
            attention_mask=mask,
            decoder_input_ids=written,
            decoder_attention_mask=(written != 0).long(),
            use_cache=use_cache,
        ).logits
        assert torch.isfinite(logits).all()
        mine = logits[:1, 3:] if side == "left" else logits[:1, :6]
        torch.testing.assert_close(mine, model(short, decoder_input_ids=ids[:1]).logits, **TOLERANCE)
        torch.testing.assert_close(logits[1:], model(long, decoder_input_ids=other).logits, **TOLERANCE)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_is_left_out_or_not(side):
    _, _, batch, mask = padded(side)
    ids = tokens(T=6, seed=2)
    results = []
    for padding_free in (True, False):
        model = make_model(padding_free=padding_free)
        out = model(batch, attention_mask=mask, decoder_input_ids=ids)
        results.append(out.logits)
        assert (out.encoder_last_hidden_state[mask == 0] == 0).all() == padding_free
    torch.testing.assert_close(results[0], results[1], **TOLERANCE)


@over_cases
@torch.no_grad()
def test_packed_rows_keep_documents_apart(options, attention):
    model = make_model(attention, **options)
    sources = [tokens(B=1, T=n, seed=n) for n in (5, 8, 3)]
    texts = [tokens(B=1, T=n, seed=10 + n) for n in (7, 4, 6)]
    got = model(
        torch.cat(sources, dim=1),
        position_ids=torch.cat([torch.arange(s.shape[1]) for s in sources])[None],
        decoder_input_ids=torch.cat(texts, dim=1),
        decoder_position_ids=torch.cat([torch.arange(t.shape[1]) for t in texts])[None],
    ).logits
    expected = [model(s, decoder_input_ids=t).logits for s, t in zip(sources, texts, strict=True)]
    torch.testing.assert_close(got, torch.cat(expected, dim=1), **TOLERANCE)


@pytest.mark.parametrize("side", ["left", "right"])
@over_variants
def test_generate_batched_equals_single_equals_uncached_equals_static(options, side):
    model = make_model(**options)
    short, long, batch, mask = padded(side)
    for beams in (1, 3):
        kwargs = GREEDY | {"num_beams": beams}
        batched = model.generate(batch, attention_mask=mask, **kwargs)
        assert torch.equal(model.generate(batch, attention_mask=mask, use_cache=False, **kwargs), batched)
        assert torch.equal(model.generate(batch, attention_mask=mask, **STATIC, **kwargs), batched)
        for row, source in ((0, short), (1, long)):
            assert torch.equal(model.generate(source, **kwargs)[0], batched[row])


@pytest.mark.parametrize(
    "kwargs",
    [
        {"do_sample": True, "temperature": 0.8, "top_k": 20},
        {"do_sample": True, "top_p": 0.9, "num_return_sequences": 2},
        {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 2.0},
        {"num_beams": 2, "do_sample": True},
    ],
    ids=["top-k", "top-p", "beam", "beam sample"],
)
def test_sampling_and_beam_don_t_see_the_cache(kwargs):
    results = []
    for attention in attentions_for({}):
        for options in ({"use_cache": True}, {"use_cache": False}, STATIC):
            torch.manual_seed(7)
            model = make_model(attention, num_key_value_heads=2)
            results.append(model.generate(tokens(), max_new_tokens=9, eos_token_id=None, **options, **kwargs))
    assert results[0].shape[1] == 10
    for result in results[1:]:
        assert torch.equal(result, results[0])


@pytest.mark.parametrize("cache", [{}, {"use_cache": False}, STATIC], ids=str)
@pytest.mark.parametrize(
    "name", ["rope", "BART: learned positions", "relative bias, sliding and global", "2017: post-norm, sinusoidal"]
)
def test_going_on_from_a_prompt(name, cache):
    """decoder_input_ids, padded on the left."""
    model, source = make_model(**VARIANTS[name]), tokens(B=2, T=9)
    start = model.config.decoder_start_token_id
    prompts = [torch.cat([torch.tensor([[start]]), tokens(B=1, T=n, seed=n)], dim=1) for n in (2, 5)]
    pad = torch.zeros(1, 3, dtype=torch.long)
    batch = torch.cat([torch.cat([pad, prompts[0]], dim=1), prompts[1]])
    mask = (torch.arange(6) >= torch.tensor([[3], [0]])).long()
    got = model.generate(source, decoder_input_ids=batch, decoder_attention_mask=mask, **cache, **GREEDY)
    offset = got.shape[1] - 16  # transformers may put the start token before prompts that begin with padding
    for row, prompt in enumerate(prompts):
        single = model.generate(source[row : row + 1], decoder_input_ids=prompt, **GREEDY)
        assert torch.equal(single[0, -10:], got[row, 6 + offset :])


def test_encoder_outputs_stand_in_for_their_input():
    model = make_model()
    _, _, batch, mask = padded("left")
    expected = model.generate(batch, attention_mask=mask, **GREEDY)
    encoded = model.get_encoder()(batch, attention_mask=mask)
    assert torch.equal(model.generate(encoder_outputs=encoded, attention_mask=mask, **GREEDY), expected)
    embeds = model.get_input_embeddings()(batch)
    assert torch.equal(model.generate(inputs_embeds=embeds, attention_mask=mask, **GREEDY), expected)
    with torch.no_grad():
        ids = tokens(T=4)
        whole = model(batch, attention_mask=mask, decoder_input_ids=ids).logits
        for given in (encoded, encoded.to_tuple()):
            again = model(encoder_outputs=given, attention_mask=mask, decoder_input_ids=ids).logits
            assert torch.equal(again, whole)


@pytest.mark.parametrize("draft", ["assistant", "lookup"])
def test_drafted_tokens_give_the_same_text(draft):
    model, source = make_model(), tokens(B=1, T=9)
    expected = model.generate(source, **GREEDY)
    options = {"assistant_model": make_model(seed=1)} if draft == "assistant" else {"prompt_lookup_num_tokens": 2}
    assert torch.equal(model.generate(source, **options, **GREEDY), expected)


@torch.no_grad()
def test_what_was_attended_to_is_returned_by_stack():
    model, source = make_model("eager"), tokens(T=9)
    ids = tokens(T=5, seed=1)
    out = model(source, decoder_input_ids=ids, output_attentions=True, output_hidden_states=True)
    assert [a.shape for a in out.encoder_attentions] == [(2, 4, 9, 9)] * 3
    assert [a.shape for a in out.decoder_attentions] == [(2, 4, 5, 5)] * 2
    assert [a.shape for a in out.cross_attentions] == [(2, 4, 5, 9)] * 2
    assert [len(out.encoder_hidden_states), len(out.decoder_hidden_states)] == [4, 3]
    assert torch.equal(out.encoder_hidden_states[-1], out.encoder_last_hidden_state)
    for weights in (*out.encoder_attentions, *out.decoder_attentions, *out.cross_attentions):
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    text = model.generate(source, output_attentions=True, return_dict_in_generate=True, **GREEDY)
    assert text.cross_attentions[-1][0].shape == (2, 4, 1, 9)


def test_encoder_for_no_other_modality():
    model = make_model()
    assert model.get_encoder() is model.model.encoder
    assert model.get_decoder() is model.model.decoder
    assert model.get_encoder(modality="image") is not model.model.encoder


@pytest.mark.parametrize(
    ("cache", "message"),
    [
        (lambda config: DynamicCache(config=config), "DynamicCache must be an EncoderDecoderCache"),
        (
            lambda config: EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config)),
            "sliding layers, which would cut the encoder's keys",
        ),
    ],
    ids=["no EncoderDecoderCache", "sliding"],
)
def test_cache_that_can_t_hold_the_source_is_refused(cache, message):
    model = make_model(sliding_window=4)
    with pytest.raises(ValueError, match=message):
        model(tokens(), decoder_input_ids=tokens(), past_key_values=cache(model.config))


def test_cache_of_another_source_is_refused():
    model = make_model()
    cache = model(tokens(T=9), decoder_input_ids=tokens(T=3)).past_key_values
    with pytest.raises(ValueError, match="holds 9 of the encoder's keys, encoder_outputs 8"):
        model(tokens(T=8), decoder_input_ids=tokens(T=1), past_key_values=cache)


def packed(**changes) -> dict:
    inputs = {
        "input_ids": tokens(B=1, T=8),
        "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]]),
        "decoder_input_ids": tokens(B=1, T=5),
        "decoder_position_ids": torch.tensor([[0, 1, 0, 1, 2]]),
    }
    return {k: v for k, v in {**inputs, **changes}.items() if v is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position_ids": None}, "position_ids: missing"),
        ({"decoder_position_ids": None}, "decoder_position_ids: missing"),
        ({"decoder_position_ids": torch.tensor([[0, 1, 0, 0, 1]])}, "row 0 holds 3 documents and position_ids 2"),
        ({"attention_mask": torch.ones(1, 8, dtype=torch.long)}, "attention_mask: given with several documents"),
        ({"decoder_attention_mask": torch.ones(1, 5, dtype=torch.long)}, "decoder_attention_mask: given with several"),
        ({"cu_seq_lens_q": torch.tensor([0, 3, 8])}, "cu_seq_lens_q: there are two sequences"),
    ],
    ids=["no source positions", "no text positions", "another count", "mask", "decoder mask", "lengths"],
)
def test_packed_rows_that_would_leak_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_model()(**packed(**changes))
    make_model()(**packed())


def test_what_flash_attention_can_t_keep_apart_is_refused():
    """Its package isn't needed to know."""
    from hf_ext.models.encoder_decoder.decoder_inputs import check_flash_cross_mask, check_packed_pairs

    inputs, flash = packed(), "flash_attention_2"
    positions = {name: inputs[name] for name in ("position_ids", "decoder_position_ids")}
    masks = {"attention_mask": None, "decoder_attention_mask": None}
    check_packed_pairs(positions, masks, {}, "sdpa")
    with pytest.raises(ValueError, match="can't keep apart in cross-attention"):
        check_packed_pairs(positions, masks, {}, flash)
    check_flash_cross_mask(flash, None)
    check_flash_cross_mask("sdpa", torch.ones(1, 1, 5, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match="can't leave out the source's padding"):
        check_flash_cross_mask(flash, torch.tensor([[1, 1, 0]]))
