"""`hfx_triton` as an attention implementation: models give the numbers that they give with `eager`, or it is refused."""

import pytest
import torch
from models.decoder_grid import VARIANTS, make_model, tokens
from models.grid import ALL_FAMILIES
from ops.triton.attention_cases import DEVICE
from transformers import AutoModelForCausalLM

from hf_ext.models.attention_report import attention_report
from hf_ext.ops.backends import BACKENDS, triton_attention_forward, triton_mask, triton_missing
from hf_ext.ops.kernel_choice import kernels, takes_triton
from hf_ext.ops.key_intervals import KeyIntervals


# fp32: the same sums in another order, through two layers
LOGITS = {"atol": 5e-5, "rtol": 5e-5}
GRADIENT = {"atol": 1e-4, "rtol": 1e-3}

DECODERS = (
    "grouped, QK-norm by head",
    "local and global, softcaps, unit offset norms, scaled embeddings",
    "attention sinks, sliding window",
    "ALiBi, norm after the embeddings",
    "differential",
    "latent, sliding and global, sinks, gated",
)


def both(family: str = "decoder", head: str = "text", **options):
    models = [ALL_FAMILIES[family].make(head, attention, **options).to(DEVICE) for attention in ("eager", "hfx_triton")]
    assert models[1].config._attn_implementation == "hfx_triton"
    return models


def padded_batch(side: str) -> dict[str, torch.Tensor]:
    ids = tokens(B=2, T=11).to(DEVICE)
    mask = torch.ones_like(ids)
    mask[0, slice(0, 4) if side == "left" else slice(7, None)] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.full if i % 2 == 0 else []) for i, name in enumerate(DECODERS)]
)
def test_decoders_forward_and_backward(name):
    results = []
    for model in both(**VARIANTS[name]):
        batch = padded_batch("left")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        output = model.train()(**batch, labels=labels)
        output.loss.backward()
        real = output.logits[batch["attention_mask"].bool()] if output.logits is not None else output.loss
        results.append((real, [p.grad for p in model.parameters()]))
    torch.testing.assert_close(results[1][0], results[0][0], **LOGITS)
    for got, expected in zip(results[1][1], results[0][1], strict=True):
        torch.testing.assert_close(got, expected, **GRADIENT)


@pytest.mark.parametrize(
    ("family", "head"), [pytest.param("encoder", "text", marks=pytest.mark.full), ("encoder-decoder", "text")]
)
def test_both_directions_and_cross_attention(family, head):
    results = []
    for model in both(family, head):
        batch = padded_batch("right")
        if family == "encoder-decoder":
            batch["decoder_input_ids"] = tokens(B=2, T=5, seed=1).to(DEVICE)
        with torch.no_grad():
            logits = model(**batch).logits
        results.append(logits if family == "encoder-decoder" else logits[batch["attention_mask"].bool()])
    torch.testing.assert_close(results[1], results[0], **LOGITS)


def test_packed_documents():
    ids = tokens(B=1, T=11).to(DEVICE)
    positions = torch.tensor([[*range(5), *range(6)]], device=DEVICE)
    results = [model(ids, position_ids=positions).logits for model in both()]
    torch.testing.assert_close(results[1], results[0], **LOGITS)


@pytest.mark.parametrize("cache", [pytest.param(None, marks=pytest.mark.full), "static"])
def test_generated_tokens_are_the_same(cache):
    generated = []
    for model in both(num_key_value_heads=2):
        generated.append(
            model.generate(
                **padded_batch("left"),
                max_new_tokens=4,
                do_sample=False,
                cache_implementation=cache,
                disable_compile=True,
                pad_token_id=0,
            )
        )
    assert torch.equal(*generated)


def test_documents_by_their_starts():
    """transformers' collator of flattened batches gives them beside the row."""
    query, key, value = (
        torch.randn(1, 2, 9, 16, generator=torch.Generator().manual_seed(i)).to(DEVICE) for i in range(3)
    )
    starts = torch.tensor([0, 4, 9], dtype=torch.int32, device=DEVICE)
    module = torch.nn.Module()
    output, _ = triton_attention_forward(module, query, key, value, None, cu_seq_lens_q=starts, cu_seq_lens_k=starts)
    for start, stop in ((0, 4), (4, 9)):
        part, _ = triton_attention_forward(module, *(x[:, :, start:stop] for x in (query, key, value)), None)
        torch.testing.assert_close(output[:, start:stop], part, **LOGITS)


def test_mask_is_none_where_causality_says_it_all():
    options = {"q_length": 5, "kv_length": 5, "mask_function": lambda b, h, q, k: k <= q}
    assert triton_mask(2, **options) is None
    padding = torch.ones(2, 5, dtype=torch.bool)
    padding[0, :2] = False
    mask = triton_mask(2, **options, attention_mask=padding)
    assert isinstance(mask, KeyIntervals)
    assert mask.starts[0].tolist() == [0, 0, 2, 2, 2]
    assert mask.stops[0].tolist() == [0, 0, 3, 4, 5]


def test_relative_positions_are_refused_by_name():
    with pytest.raises(ValueError, match="does not support position_embedding_type='relative'; choose sdpa, hfx_tiled"):
        make_model("hfx_triton", position_embedding_type="relative")


@pytest.mark.skipif(DEVICE == "cuda", reason="there is a CUDA device")
def test_without_a_gpu_it_says_why(monkeypatch):
    model = make_model("eager")
    monkeypatch.delenv("TRITON_INTERPRET")
    assert triton_missing() == BACKENDS["hfx_triton"].missing() == "no CUDA device here"
    with pytest.raises(ValueError, match="'hfx_triton': no CUDA device here; choose sdpa or hfx_tiled"):
        model.set_attn_implementation("hfx_triton")
    assert attention_report(model).others["hfx_triton"] == "no CUDA device here"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("llama", marks=pytest.mark.full),
        pytest.param("sandwich, GeGLU, QK-norm by projection, softcap, tied", marks=pytest.mark.full),
        "mixture of experts",
    ],
)
def test_models_give_the_same_by_triton_and_by_torch(name):
    """Norms, rotary, gated activations, experts and the loss."""
    results = []
    for choice in ("torch", "triton"):
        model = make_model("eager", **VARIANTS[name]).to(DEVICE).train()
        ids = tokens(B=2, T=9).to(DEVICE)
        with kernels(choice):
            loss = model(ids, labels=ids).loss
            loss.backward()
        results.append((loss.detach(), [p.grad for p in model.parameters()]))
    torch.testing.assert_close(results[1][0], results[0][0], **LOGITS)
    for got, expected in zip(results[1][1], results[0][1], strict=True):
        torch.testing.assert_close(got, expected, **GRADIENT)


def test_kernels_are_chosen_by_name(monkeypatch):
    """Nothing but a name takes them: they have not been measured on a GPU."""
    x = torch.zeros(2, 3, device=DEVICE)
    monkeypatch.delenv("HF_EXT_KERNELS", raising=False)
    assert not takes_triton(x)
    with kernels("torch"):
        assert not takes_triton(x)
        with kernels("triton"):
            assert takes_triton(x, None, x)
            assert not takes_triton(x, x.double())
            assert not takes_triton(x.to("meta"))
    monkeypatch.setenv("HF_EXT_KERNELS", "triton")
    assert takes_triton(x)
    for name in ("auto", "fast"):
        with pytest.raises(ValueError, match=f"HF_EXT_KERNELS='{name}': must be one of torch, triton"), kernels(name):
            pass


def test_models_take_the_torch_twins_unless_told(monkeypatch):
    """A Triton kernel that is launched fails here: norms, rotary, gated activations, experts and the loss call none."""
    monkeypatch.delenv("HF_EXT_KERNELS", raising=False)
    monkeypatch.setattr("triton.runtime.jit.KernelInterface.__getitem__", launched)
    model = make_model("sdpa", **VARIANTS["mixture of experts"]).to(DEVICE).train()
    assert model.config._attn_implementation == "sdpa"
    ids = tokens(B=2, T=9).to(DEVICE)
    model(ids, labels=ids).loss.backward()
    with kernels("triton"), pytest.raises(AssertionError, match="a Triton kernel was launched"):
        model(ids, labels=ids)


def launched(*args):
    raise AssertionError("a Triton kernel was launched")


@pytest.mark.skipif(DEVICE == "cuda", reason="there is a CUDA device")
def test_kernels_that_were_chosen_and_cannot_run_are_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    with (
        kernels("triton"),
        pytest.raises(ValueError, match="HF_EXT_KERNELS='triton': no CUDA device here; choose torch"),
    ):
        takes_triton(torch.zeros(2))


@pytest.mark.parametrize("asked", [None, "sdpa", "eager"])
def test_no_other_name_leads_to_triton_attention(asked):
    """Neither a default nor what takes the place of an sdpa that can't compute a model."""
    for options in ({}, VARIANTS["attention sinks, sliding window"]):
        config = make_model("eager", **options).config
        config._attn_implementation_internal = None
        if asked == "sdpa" and options:
            continue  # refused: sdpa has no sinks
        model = AutoModelForCausalLM.from_config(config, attn_implementation=asked)
        assert model.config._attn_implementation != "hfx_triton"
