"""The report says what runs: as the profiler sees it, as the refusals have it, and why."""

import re

import pytest
import torch
from models.decoder_grid import VARIANTS, attentions_for, make_model, tokens
from torch.profiler import ProfilerActivity, profile
from transformers import (
    AutoModel,
    BertConfig,
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    T5Config,
    modeling_flash_attention_utils,
    modeling_utils,
)

from hf_ext.models.attention_report import attention_report
from hf_ext.models.pretrained_model import asked_options
from hf_ext.ops.attention_support import UNSUPPORTED, refusal


# torch's operator -> the report's name
KERNELS = {
    "aten::_scaled_dot_product_attention_math": "math",
    "aten::_scaled_dot_product_flash_attention": "flash",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "flash",
    "aten::_scaled_dot_product_efficient_attention": "efficient",
    "aten::_scaled_dot_product_cudnn_attention": "cuDNN",
}
SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
T5_SIZES = {"vocab_size": 97, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
FOREIGN = {
    "llama": (LlamaConfig, {**SMALL, "num_key_value_heads": 2}),
    "mistral": (MistralConfig, {**SMALL, "num_key_value_heads": 2, "sliding_window": 7}),
    "bert": (BertConfig, SMALL),
    "gpt2": (
        GPT2Config,
        {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 1},
    ),
    "t5": (T5Config, T5_SIZES),
}
SDPA_VARIANTS = {name: options for name, options in VARIANTS.items() if "sdpa" in attentions_for(options)}


def seen(model, **inputs) -> list[tuple[str, bool]]:
    """For each call of scaled_dot_product_attention in order: the kernel that ran, and whether it was given a mask."""
    masks, original = [], torch.nn.functional.scaled_dot_product_attention

    def recording(*args, attn_mask=None, **kwargs):
        masks.append(attn_mask is not None)
        return original(*args, attn_mask=attn_mask, **kwargs)

    torch.nn.functional.scaled_dot_product_attention = recording
    try:
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            model(**inputs)
    finally:
        torch.nn.functional.scaled_dot_product_attention = original
    events = sorted((e for e in profiler.events() if e.name in KERNELS), key=lambda e: e.time_range.start)
    return list(zip([KERNELS[e.name] for e in events], masks, strict=True))


def told(report) -> list[tuple[str, bool]]:
    kernels = [re.fullmatch(r"torch's (\S+) kernel", row.runs).group(1) for row in report.layers]
    return list(zip(kernels, [row.why for row in report.layers], strict=True))


def assert_told_is_seen(model, padded: bool, encoder_decoder: bool = False, device="cpu") -> None:
    ids = tokens().to(device)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0 if padded else 1
    inputs = {"input_ids": ids, "attention_mask": mask, **({"decoder_input_ids": ids} if encoder_decoder else {})}
    rows = told(attention_report(model, num_tokens=ids.shape[1], padded=padded))
    calls = seen(model, **inputs)
    assert sorted(kernel for kernel, _ in rows) == sorted(kernel for kernel, _ in calls)
    for (kernel, why), (ran, masked) in zip(rows, calls, strict=True):
        assert encoder_decoder or kernel == ran  # its modules don't run in the order in which they are listed
        if kernel in ("flash", "cuDNN") and not encoder_decoder:
            assert masked == (not why.startswith("no mask")), why


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("options", SDPA_VARIANTS.values(), ids=SDPA_VARIANTS)
def test_the_kernel_is_the_one_that_runs(options, padded):
    model = make_model("sdpa", **options)
    assert_told_is_seen(model, padded)
    with torch.no_grad():
        assert_told_is_seen(model, padded)
    assert_told_is_seen(make_model("sdpa", **{**options, "attention_dropout": 0.1}).train(), padded)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", SDPA_VARIANTS.values(), ids=SDPA_VARIANTS)
def test_the_kernel_is_the_one_that_runs_on_a_gpu(options, dtype):
    for dropout in (0.0, 0.1):
        model = make_model("sdpa", **{**options, "attention_dropout": dropout}).to("cuda", dtype)
        for padded in (False, True):
            assert_told_is_seen(model.train(), padded, device="cuda")
            with torch.no_grad():
                assert_told_is_seen(model.eval(), padded, device="cuda")


@pytest.mark.parametrize(("config_class", "options"), FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("padded", [False, True])
def test_transformers_own_models(config_class, options, padded):
    model = AutoModel.from_config(config_class(**options), attn_implementation="sdpa")
    for training in (False, True):
        assert_told_is_seen(model.train(training), padded, encoder_decoder=config_class is T5Config)


def test_reasons_of_the_slow_kernel():
    def why(**options):
        return {row.why for row in attention_report(make_model("sdpa", **options).train()).layers}

    assert why(attention_dropout=0.1) == {"dropout of 0.1 in training"}
    relative = {"position_embedding_type": "relative"}
    assert why(**relative) == {"the bias in the mask needs a gradient"}
    both = "dropout of 0.1 in training and the bias in the mask needs a gradient"
    assert why(**relative, attention_dropout=0.1) == {both}
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert why() == {"torch has no better one enabled on this device"}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_report_and_refusal_agree(options, monkeypatch):
    model = make_model("eager", **options)
    others = attention_report(model).others
    for name, reason in others.items():
        refused = refusal(name, asked_options(model.config))
        if refused is not None:
            assert reason == refused
            with pytest.raises(ValueError, match=re.escape(refused)):
                model.set_attn_implementation(name)
        elif reason is None:  # it can be taken: take it
            model.set_attn_implementation(name)
            assert model.config._attn_implementation == name
            torch.testing.assert_close(
                model(tokens()).logits, make_model("eager", **options)(tokens()).logits, atol=1e-4, rtol=1e-4
            )  # as in the tests of the implementations themselves: fp32 sums in another order
            model.set_attn_implementation("eager")
        elif name.startswith("flash"):
            # after an import that failed, transformers takes the same one for loaded
            monkeypatch.setattr(modeling_flash_attention_utils, "_loaded_implementation", None)
            with pytest.raises((ImportError, ValueError)):
                model.set_attn_implementation(name)


def test_kernels_of_the_hub_are_refused_like_the_packages(monkeypatch):
    """transformers takes a Hub kernel, or one in a missing package's place, without asking the model."""
    monkeypatch.setattr(modeling_utils, "lazy_import_flash_attention", lambda *args, **kwargs: None)
    monkeypatch.setattr(modeling_utils, "is_kernels_available", lambda: True)
    sinks, alibi = {"attention_sinks": True}, {"position_embedding_type": "alibi"}
    for options, written in ((sinks, "attention_sinks=True"), (alibi, "position_embedding_type='alibi'")):
        model = make_model("eager", **options)
        for name in ("flash_attention_2", "kernels-community/flash-attn2", "someone/flash-anything@v1"):
            with pytest.raises(ValueError, match=f"attn_implementation='{name}' does not support {written}; choose "):
                model.set_attn_implementation(name)
            assert model.config._attn_implementation == "eager"
    model = make_model("eager", **sinks)
    with pytest.raises(ValueError, match="could not be loaded"):  # it could compute them: there is no network
        model.set_attn_implementation("kernels-community/vllm-flash-attn3@main")


def test_the_table_names_what_transformers_knows():
    assert {name for name in UNSUPPORTED if "/" not in name} == {
        "eager",
        *modeling_utils.ALL_ATTENTION_FUNCTIONS.valid_keys(),
    }


def test_flex_attention_on_cpu_is_for_inference():
    model = make_model("eager")
    assert "no backward" in attention_report(model).others["flex_attention"]
    with torch.no_grad():
        assert attention_report(model).others["flex_attention"] is None
        sinks = make_model("eager", attention_sinks=True)
        assert attention_report(sinks).others["flex_attention"] == "on CPU it does not support attention_sinks=True"


def test_what_is_said_of_flex_attention_holds():
    model = make_model("eager", attention_dropout=0.1)
    with torch.no_grad():
        expected = model(tokens()).logits
        model.set_attn_implementation("flex_attention")
        torch.testing.assert_close(model(tokens()).logits, expected, atol=1e-4, rtol=1e-4)  # fp32, other order
    with pytest.raises(Exception, match=r"backward|requires_grad"):
        model(tokens()).logits.sum().backward()
    with pytest.raises(ValueError, match="dropout"), torch.no_grad():
        model.train()(tokens())


def test_printed():
    model = make_model("hfx_tiled", sliding_window=4, layer_types=["sliding_attention", "full_attention"])
    printed = str(attention_report(model, num_tokens=13, padded=True)).splitlines()
    assert printed[0] == "HfxDecoderForCausalLM on cpu, float32, eval, gradients, rows of 13 tokens, padded"
    assert [re.split(r"\s{2,}", line) for line in printed[2:5]] == [
        ["layers", "type", "implementation", "runs", "why"],
        [
            "0",
            "sliding_attention",
            "hfx_tiled",
            "tiles of 256 x 256, own backward",
            "mask as a rule: padding, window of 4",
        ],
        ["1", "full_attention", "hfx_tiled", "tiles of 256 x 256, own backward", "mask as a rule: padding"],
    ]
    assert re.split(r"\s{2,}", printed[6]) == ["eager", "could be taken"]
    assert str(attention_report(make_model("eager"))).splitlines()[3].startswith("0-1  ")


def test_a_compiled_model():
    compiled = torch.compile(make_model("hfx_tiled"))  # nothing is compiled before its first call
    assert {row.runs for row in attention_report(compiled).layers} == {"one tile of the whole row, own backward"}


def test_nonsense():
    bloom = AutoModel.from_config(BloomConfig(vocab_size=97, hidden_size=32, n_layer=1, n_head=4))
    with pytest.raises(ValueError, match="model: BloomModel has no attention that takes an attn_implementation"):
        attention_report(bloom)
    with pytest.raises(ValueError, match="num_tokens=1: must be at least 2"):
        attention_report(make_model(), num_tokens=1)
