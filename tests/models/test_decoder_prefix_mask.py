"""Prefix language models: the prefix sees itself in both directions, the rest what came before; by masks made by hand."""

import pytest
import torch
from models.decoder_grid import ATTENTIONS, VARIANTS, attentions_for, make_model, tokens
from models.grid import LOGITS, LOSS, assert_same, gradients
from transformers import DynamicCache


WINDOW = {"sliding_window": 4}
OPTIONS = {
    "plain": {},
    "sliding": WINDOW,
    "learned positions": {"position_embedding_type": "learned"},
    "ALiBi, sliding": {"position_embedding_type": "alibi", **WINDOW},
    "softcap, sinks": {"attn_logit_softcapping": 2.0, "attention_sinks": True},
    "latent": VARIANTS["latent, queries too, interleaved"],
    "further tokens": {"num_nextn_predict_layers": 2},
    "experts": VARIANTS["mixture of experts"],
}
PREFIX = torch.tensor([6, 0])  # tokens of each row
T = 13

over_options = pytest.mark.parametrize("name", OPTIONS)


def prefix_mask(columns: int = T) -> torch.Tensor:
    return torch.arange(columns) < PREFIX[:, None]


def labels() -> torch.Tensor:
    """What comes after the prefix."""
    return tokens(T=T).masked_fill(prefix_mask(), -100)


def ready_mask(prefix: torch.Tensor, window: int | None, real: torch.Tensor | None = None) -> torch.Tensor:
    """(B, 1, T, T) bool, by hand."""
    n = prefix.shape[1]
    distance = torch.arange(n)[:, None] - torch.arange(n)
    visible = (distance >= 0) | (prefix[:, :, None] & prefix[:, None])
    if window is not None:
        visible = visible & (distance.abs() < window)
    return (visible if real is None else visible & real[:, None].bool())[:, None]


@over_options
def test_against_masks_made_by_hand(name):
    options, ids = OPTIONS[name], tokens(T=T)
    results = []
    mask = ready_mask(prefix_mask(), options.get("sliding_window"))
    for attention in ("eager", *attentions_for(options)):
        model = make_model(attention, **options).train()
        given = {"attention_mask": mask} if not results else {"prefix_mask": prefix_mask()}
        out = model(ids, labels=labels(), skip_logits=False, **given)
        out.loss.backward()
        results.append((out.logits.detach(), out.loss.detach(), gradients(model)))
    expected = results.pop(0)
    causal = make_model("eager", **options)(ids).logits
    assert (causal[0, :3] - expected[0][0, :3]).abs().max() > 0.1
    torch.testing.assert_close(causal[1], expected[0][1], **LOGITS)  # nothing before it is nothing new
    for logits, loss, grads in results:
        torch.testing.assert_close(logits, expected[0], **LOGITS)
        torch.testing.assert_close(loss, expected[1], **LOSS)
        assert_same(grads, expected[2])


@pytest.mark.parametrize("attention", [*ATTENTIONS, "flex_attention"])
@pytest.mark.parametrize("options", [{}, WINDOW], ids=str)
@torch.no_grad()
def test_padded(attention, options):
    """On either side, alone as in a batch."""
    model, n = make_model(attention, **options), 9
    ids, prefix = tokens(B=1, T=n, seed=1), torch.arange(n)[None] < 5
    mask = ready_mask(prefix, options.get("sliding_window"))
    expected = make_model("eager", **options)(ids, attention_mask=mask).logits[0]
    torch.testing.assert_close(model(ids, prefix_mask=prefix).logits[0], expected, **LOGITS)
    torch.testing.assert_close(model(ids, prefix_mask=prefix[:, :5]).logits[0], expected, **LOGITS)  # the rest is none
    for side, real in (("right", slice(0, n)), ("left", slice(4, 13))):
        pad = (0, 4) if side == "right" else (4, 0)
        batch = {
            "input_ids": torch.cat([torch.nn.functional.pad(ids, pad), tokens(B=1, T=13)]),
            "attention_mask": torch.cat([torch.nn.functional.pad(torch.ones_like(ids), pad), torch.ones(1, 13).long()]),
            "prefix_mask": torch.cat([torch.nn.functional.pad(prefix, pad), torch.ones(1, 13).bool()]),
        }
        torch.testing.assert_close(model(**batch).logits[0, real], expected, **LOGITS)
        # a prefix that names the padding too, as a prompt's mask of ones does
        batch["prefix_mask"][0, : real.start] = True
        torch.testing.assert_close(model(**batch).logits[0, real], expected, **LOGITS)


@pytest.mark.parametrize("attention", [*ATTENTIONS, "flex_attention"])
@pytest.mark.parametrize("options", [{}, WINDOW], ids=str)
@torch.no_grad()
def test_packed(attention, options):
    """The prefixes of two documents in a row don't see each other."""
    model = make_model(attention, **options)
    documents = [tokens(B=1, T=n, seed=n) for n in (7, 6)]
    prefixes = [torch.arange(7)[None] < 4, torch.arange(6)[None] < 3]
    expected = torch.cat(
        [model(ids, prefix_mask=prefix).logits for ids, prefix in zip(documents, prefixes, strict=True)], dim=1
    )
    got = model(
        torch.cat(documents, dim=1),
        prefix_mask=torch.cat(prefixes, dim=1),
        position_ids=torch.cat([torch.arange(7), torch.arange(6)])[None],
    )
    torch.testing.assert_close(got.logits, expected, **LOGITS)


@pytest.mark.parametrize("attention", [*ATTENTIONS, "flex_attention"])
@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "softcap, sinks"])
@torch.no_grad()
def test_cached_generation(name, attention):
    """The prompt is the prefix: a loop without a cache = generate, alone and in a batch padded on the left."""
    options = OPTIONS[name]
    model = make_model(attention, **options)
    prompts = [tokens(B=1, T=n, seed=n) for n in (8, 5)]
    greedy = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    expected = []
    for prompt in prompts:
        ids = prompt
        for _ in range(5):
            prefix = torch.arange(ids.shape[1])[None] < prompt.shape[1]
            ids = torch.cat([ids, model(ids, prefix_mask=prefix, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
        expected.append(ids[0, prompt.shape[1] :])
        ones = torch.ones_like(prompt).bool()
        for cache in ({}, {"use_cache": False}):
            assert torch.equal(model.generate(prompt, prefix_mask=ones, **cache, **greedy), ids), cache
    batch = torch.cat([prompts[0], torch.nn.functional.pad(prompts[1], (3, 0))])
    mask = (batch != 0).long()
    got = model.generate(batch, attention_mask=mask, prefix_mask=mask.bool(), **greedy)
    assert torch.equal(got[:, 8:], torch.stack(expected))


@pytest.mark.parametrize("options", [{}, WINDOW], ids=str)
@torch.no_grad()
def test_what_comes_after_a_cached_prefix(options):
    model, ids = make_model("sdpa", **options), tokens(B=1)
    prefix = torch.arange(13)[None] < 6
    expected = model(ids, prefix_mask=prefix).logits
    for first in (6, 8):
        cache = DynamicCache(config=model.config)
        logits = [model(ids[:, :first], prefix_mask=prefix[:, :first], past_key_values=cache).logits]
        logits.append(model(ids[:, first:], prefix_mask=prefix, past_key_values=cache).logits)
        torch.testing.assert_close(torch.cat(logits, dim=1), expected, **LOGITS)


@pytest.mark.parametrize("checkpointed", [{"use_reentrant": False}, {"use_reentrant": True}], ids=str)
def test_checkpointed(checkpointed):
    results, ids = [], tokens(T=T)
    for enable in (False, True):
        model = make_model("hfx_tiled").train()
        if enable:
            model.gradient_checkpointing_enable(checkpointed)
        model(ids, labels=labels(), prefix_mask=prefix_mask()).loss.backward()
        results.append(gradients(model))
    assert_same(*results)


def refused(call) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the message is compared as text
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@torch.no_grad()
def test_a_prefix_that_begins_in_the_cache_is_refused():
    model, ids, prefix = make_model("sdpa"), tokens(B=1), torch.arange(13)[None] < 6
    cache = model(ids[:, :4], prefix_mask=prefix[:, :4]).past_key_values
    message = "prefix_mask: row 0 has a prefix that begins in the cache, whose 4 tokens haven't seen the rest of it"
    assert message in refused(lambda: model(ids[:, 4:], prefix_mask=prefix, past_key_values=cache))


def test_labels_that_the_prefix_sees_are_refused():
    model = make_model()
    message = "labels: row 0, token 3 is to be predicted by one that sees it, both are in the prefix; use -100"
    seen = labels()
    seen[0, 3] = 5
    assert message in refused(lambda: model(tokens(), labels=seen, prefix_mask=prefix_mask()))
    assert message in refused(lambda: model(tokens(), labels=seen, prefix_mask=prefix_mask()[:, :6]))
    shifted = torch.nn.functional.pad(seen[:, 1:], (0, 1), value=-100)
    assert message in refused(lambda: model(tokens(), shift_labels=shifted, prefix_mask=prefix_mask()))


@pytest.mark.parametrize(
    ("prefix", "further", "message"),
    [
        (torch.ones(2, 14).bool(), {}, r"prefix_mask: shape (2, 14) must be (2, 13)"),
        (torch.ones(3, 13).bool(), {}, r"prefix_mask: shape (3, 13) must be (2, 13)"),
        (torch.ones(13).bool(), {}, r"prefix_mask: shape (13,) must be (2, 13)"),
        (torch.ones(2, 1, 13, 13).bool(), {}, r"prefix_mask: shape (2, 1, 13, 13) must be (2, 13)"),
        (
            prefix_mask(),
            {"attention_mask": torch.ones(2, 1, 13, 13).bool()},
            "prefix_mask: given with a mask that is ready",
        ),
    ],
)
def test_nonsense(prefix, further, message):
    assert message in refused(lambda: make_model()(tokens(), prefix_mask=prefix, **further))


@torch.no_grad()
def test_static_cache_is_refused():
    prompt = tokens(B=1)
    call = lambda: make_model("sdpa").generate(  # noqa: E731
        prompt, prefix_mask=torch.ones_like(prompt).bool(), max_new_tokens=3, cache_implementation="static"
    )
    assert "prefix_mask: given with a mask that is ready" in refused(call)


def test_flash_attention_is_refused():
    """Whose kernels take no such mask; none is here, the name is enough."""
    model = make_model("eager")
    model.config._attn_implementation_internal = "flash_attention_2"
    message = "prefix_mask: attn_implementation='flash_attention_2' knows no such mask; choose eager, sdpa"
    assert message in refused(lambda: model(tokens(), prefix_mask=prefix_mask()))
