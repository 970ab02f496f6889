"""torch's flex attention: the reference's numbers and text, or one line; on a GPU its gradients too."""

import pytest
import torch
from models.decoder_grid import VARIANTS, make_model, tokens
from transformers import StaticCache


# fp32: sums in another order, on logits of order 10
TOLERANCE = {"atol": 2e-5, "rtol": 1e-5}
# fp32 on a GPU: its exponentials are a few ulp off, gradients of order 1
GPU = {"atol": 1e-4, "rtol": 1e-3}

WITH_SINKS = [name for name, options in VARIANTS.items() if options.get("attention_sinks")]
GREEDY = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}


def padded() -> dict:
    """Rows of 6 and 10 tokens, padded on the left."""
    short, long = tokens(B=1, T=6), tokens(B=1, T=10, seed=1)
    ids = torch.cat([torch.cat([torch.zeros(1, 4, dtype=torch.long), short], dim=1), long])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def packed() -> dict:
    """Documents of 9 and 4 tokens in each row."""
    return {"input_ids": tokens(T=13), "position_ids": torch.cat([torch.arange(9), torch.arange(4)]).expand(2, -1)}


def both(name: str, device: str = "cpu", **sizes) -> list:
    return [make_model(a, **{**sizes, **VARIANTS[name]}).to(device) for a in ("eager", "flex_attention")]


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in WITH_SINKS])
@torch.no_grad()
def test_same_as_eager(name):
    eager, flex = both(name)
    batch = padded()
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(flex(**batch).logits[real], eager(**batch).logits[real], **TOLERANCE)
    torch.testing.assert_close(flex(**packed()).logits, eager(**packed()).logits, **TOLERANCE)
    expected = eager.generate(**batch, use_cache=False, **GREEDY)
    caches = [{"use_cache": False}, {}]
    if "longrope" not in name and "dynamic" not in name:
        caches.append({"prefill_chunk_size": 3})
    for cache in caches:
        assert torch.equal(flex.generate(**batch, **cache, **GREEDY), expected), cache


@pytest.mark.parametrize("heads", [1, 4])
@torch.no_grad()
def test_ready_masks(heads):
    """transformers' wrapper would add True to the score as the number 1, of the first head's mask."""
    eager, flex = both("llama")
    mask = torch.ones(13, 13, dtype=torch.bool).tril().expand(2, heads, 13, 13).clone()
    mask[0, :, 5:, 1] = mask[0, heads - 1, 4:, 2] = False
    mask[1, :, 7] = False  # a query that sees nothing
    expected, got = (model(tokens(), attention_mask=mask, use_cache=False).logits for model in (eager, flex))
    torch.testing.assert_close(got, expected, **TOLERANCE)


def refused(call, **inputs) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the message is compared as text
        call(**inputs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_training_on_a_cpu_is_refused():
    _, flex = both("llama")
    message = "attn_implementation='flex_attention' has no backward on a CPU; train with sdpa, hfx_tiled or eager"
    assert message in refused(flex.train(), input_ids=tokens(), labels=tokens())
    assert message in refused(flex.eval(), input_ids=tokens())
    flex.requires_grad_(False)
    flex(tokens())


@pytest.mark.parametrize("name", WITH_SINKS)
@torch.no_grad()
def test_sinks_on_a_cpu_are_refused(name):
    message = refused(both(name)[1], input_ids=tokens())
    assert message == (
        "attn_implementation='flex_attention' does not support attention_sinks=True on a CPU; choose hfx_tiled or eager"
    )


@torch.no_grad()
def test_a_static_cache_is_refused():
    """Its length grows in place, and the mask that refers to it is asked afterwards."""
    _, flex = both("llama")
    message = (
        "past_key_values: attn_implementation='flex_attention' does not support a static cache; use the default one"
    )
    assert message in refused(flex, input_ids=tokens(), past_key_values=StaticCache(flex.config, max_cache_len=20))
    assert message in refused(flex.generate, **padded(), cache_implementation="static", **GREEDY)


@torch.no_grad()
def test_additive_masks_are_refused():
    _, flex = both("llama")
    message = "attention_mask: float32, attn_implementation='flex_attention' takes no additive masks; give a bool one"
    assert message in refused(flex, input_ids=tokens(), attention_mask=torch.zeros(2, 1, 13, 13))


@torch.no_grad()
def test_what_was_compiled_before_stays_compiled():
    """Uncompiled inside of the call only."""
    compiled = torch.compile(lambda x: torch.sin(x) if torch.compiler.is_compiling() else x * 0, backend="eager")
    ones = torch.ones(3)
    both("llama")[1](tokens())
    assert torch.equal(compiled(ones), torch.sin(ones))


@pytest.mark.gpu
@pytest.mark.parametrize("name", VARIANTS)
def test_on_a_gpu(name):
    """Trains, and goes on from a cache; with biases and sinks too."""
    torch._dynamo.reset()  # beyond its limit of recompilations torch would take another implementation
    batch = {key: tensor.cuda() for key, tensor in padded().items()}
    results, texts = [], []
    models = both(name, "cuda", hidden_size=64)  # heads of 16 numbers, the least that it takes there
    if VARIANTS[name].get("attention_type") == "latent":  # these have heads of a size of their own
        message = (
            "attn_implementation='flex_attention' does not support heads of 8 numbers on a GPU, at least 16 are needed"
        )
        assert message in refused(models[1], **batch)
        return
    for model in models:
        texts.append(model.generate(**batch, **GREEDY))
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model.train()(**batch, labels=labels).loss
        loss.backward()
        results.append({"loss": loss.detach()} | {n: p.grad for n, p in model.named_parameters()})
    assert torch.equal(*texts)
    for part, expected in results[0].items():
        torch.testing.assert_close(results[1][part], expected, **GPU, msg=lambda m, n=part: f"{n}: {m}")
