"""Attention implementations that are not ours: what they can't compute is refused by name, in one line."""

from types import SimpleNamespace

import pytest
import torch
from models.decoder_grid import make_config, make_model, tokens
from transformers import modeling_flash_attention_utils
from transformers.integrations import hub_kernels
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_ext.models import HfxDecoderForCausalLM


KERNEL = "kernels-community/flash-attn2"
BIASED = {"position_embedding_type": "alibi"}


def load_kernel(monkeypatch, varlen) -> None:
    """Lets `KERNEL` be a kernel of this one function, for one test."""
    monkeypatch.setattr(hub_kernels, "get_kernel", lambda *_, **__: SimpleNamespace(flash_attn_varlen_func=varlen))
    monkeypatch.setattr(modeling_flash_attention_utils, "_loaded_implementation", None)
    for interface in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
        monkeypatch.setitem(interface._global_mapping, KERNEL, None)


def refused(make) -> str:
    with pytest.raises((ValueError, ImportError)) as caught:
        make()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("attention", "options", "message"),
    [
        (
            "sdpa",
            {"attn_logit_softcapping": 2.0},
            "attn_logit_softcapping=2.0; choose hfx_tiled, flex_attention or eager",
        ),
        ("sdpa", {"attention_sinks": True}, "attention_sinks=True; choose hfx_tiled"),
        ("paged|eager", {"attn_logit_softcapping": 2.0}, "attn_logit_softcapping=2.0"),
        ("paged|eager", BIASED, "position_embedding_type='alibi'; choose sdpa, hfx_tiled"),
        ("flash_attention_2", BIASED, "position_embedding_type='alibi'"),
        ("flash_attention_3", {"position_embedding_type": "relative"}, "position_embedding_type='relative'"),
        (KERNEL, BIASED, "position_embedding_type='alibi'"),
    ],
)
def test_options_that_would_be_ignored_are_refused(attention, options, message):
    for make in (
        lambda: make_model(attention, **options),
        lambda: make_model("eager", **options).set_attn_implementation(attention),
    ):
        assert f"attn_implementation={attention!r} does not support {message}" in refused(make)


def without_options(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal):
    """As flash attention, but for the arguments that not every version takes."""


def with_options(q, k, v, cu_seqlens_q, cu_seqlens_k, dropout_p=0.0, window_size=(-1, -1), softcap=0.0, s_aux=None):
    """Takes them all."""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attn_logit_softcapping": 2.0}, "attn_logit_softcapping=2.0, its function takes no softcap"),
        ({"sliding_window": 4}, "sliding_window=4, its function takes no window_size"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1, its function takes no dropout_p"),
    ],
    ids=str,
)
def test_options_that_a_flash_kernel_does_not_take_are_refused(options, message, monkeypatch):
    load_kernel(monkeypatch, without_options)
    assert f"attn_implementation='{KERNEL}' does not support {message}" in refused(
        lambda: make_model(KERNEL, **options)
    )
    load_kernel(monkeypatch, with_options)
    assert make_model(KERNEL, **options).config._attn_implementation == KERNEL


@pytest.mark.parametrize("attention", ["flash_attention_2", "flash_attention_3", KERNEL, "someone/flash-attn"])
def test_packages_and_kernels_that_are_not_there(attention, monkeypatch):
    """Asked twice: transformers takes a kernel that failed to load for loaded."""
    if attention in ALL_ATTENTION_FUNCTIONS.valid_keys() and torch.cuda.is_available():
        pytest.skip("this one is installed here")
    monkeypatch.setattr(modeling_flash_attention_utils, "_loaded_implementation", None)
    model = make_model("eager")
    expected = model(tokens()).logits
    for _ in range(2):
        message = refused(lambda: model.set_attn_implementation(attention))
        assert any(why in message for why in ("installed", "not available", "could not be loaded"))
    assert torch.equal(model(tokens()).logits, expected)


def test_a_name_that_is_none_is_refused_when_the_model_is_made():
    config = make_config()
    config._attn_implementation = "paged|eagre"
    assert "eagre" in refused(lambda: HfxDecoderForCausalLM(config))


def test_paged_attention_without_its_cache_is_refused():
    """transformers 5.5 would let each token see those after it."""
    assert "attn_implementation='paged|eager': called without a paged cache" in refused(
        lambda: make_model("paged|eager")(tokens())
    )
