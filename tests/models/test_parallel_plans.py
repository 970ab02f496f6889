"""The tensor-parallel plan names what there is to split, and only what may be split."""

import re

import pytest
import torch
from models.decoder_grid import SIZES, VARIANTS, make_model, tokens

from hf_ext.models import (
    HfxEncoderDecoderConfig,
    HfxEncoderDecoderForConditionalGeneration,
    HfxEncoderDecoderModel,
    HfxEncoderForMaskedLM,
    HfxEncoderModel,
)


def entry_of(plan: dict[str, str], name: str) -> str | None:
    """The entry for a parameter, as transformers reads patterns."""
    module = re.sub(r"\.\d+\.", ".*.", name.rsplit(".", 1)[0])
    return plan.get(module)


@pytest.mark.parametrize("name", VARIANTS)
def test_each_entry_is_there(name):
    model = make_model("eager", **VARIANTS[name])
    there = {*dict(model.model.named_modules()), *dict(model.model.named_parameters())}  # experts' are named themselves
    there = {re.sub(r"\.\d+(\.|$)", r".*\1", name) for name in there}
    plan = model.config.base_model_tp_plan
    assert set(plan) <= there
    assert set(model.config.base_model_ep_plan or {}) <= there
    assert bool(model.config.base_model_ep_plan) == bool(model.config.num_experts)
    assert {f"model.{entry}" for entry in plan} <= set(model.tp_plan)


@pytest.mark.parametrize(
    "model_class",
    [HfxEncoderModel, HfxEncoderForMaskedLM, HfxEncoderDecoderModel, HfxEncoderDecoderForConditionalGeneration],
)
@pytest.mark.parametrize("options", [{}, {"qk_norm": "projection"}, {"mlp_type": "plain"}], ids=str)
def test_each_entry_of_other_families_is_there(model_class, options):
    sizes = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = model_class(model_class.config_class(**sizes, **options))
    modules = {re.sub(r"\.\d+\.", ".*.", module) for module, _ in model.named_modules()}
    assert set(model.tp_plan) <= modules
    # of every stack
    stacks = {entry.split("layers")[0] for entry in model.tp_plan if "layers" in entry}
    assert len(stacks) == (2 if model.config.is_encoder_decoder else 1)


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_two_devices_by_hand(name):
    """Each half holds its rows of the colwise matrices and its columns of the rowwise ones; the halves add up."""
    options = VARIANTS[name]
    model = make_model("eager", **options)
    plan, config = model.config.base_model_tp_plan, model.config
    if config.num_key_value_heads == 1:
        plan = {entry: kind for entry, kind in plan.items() if "self_attn" not in entry}  # no two halves of one head
    layer = model.model.layers[0]
    seen = []
    parts = [getattr(layer, part) for part in ("self_attn", "mlp") if any(f".{part}." in entry for entry in plan)]
    hooks = [
        part.register_forward_hook(
            lambda module, args, kwargs, output: seen.append((module, args, kwargs, output)), with_kwargs=True
        )
        for part in parts
    ]
    model(tokens(), use_cache=False)
    for hook in hooks:
        hook.remove()
    for module, args, kwargs, output in seen:
        whole = {n: p.clone() for n, p in module.named_parameters()}
        part = "self_attn" if module is layer.self_attn else "mlp"
        total = 0
        for device in (0, 1):
            for n, p in module.named_parameters():
                kind = plan.get(f"layers.*.{part}.{n}", plan.get(f"layers.*.{part}.{n.rsplit('.', 1)[0]}"))
                half = whole[n]
                if kind == "colwise":
                    half = half.chunk(2, dim=max(0, half.ndim - 2))[device]
                elif kind == "packed_colwise":  # gates and what they gate lie one above the other
                    half = torch.cat([both.chunk(2, dim=-2)[device] for both in half.chunk(2, dim=-2)], dim=-2)
                elif kind == "rowwise" and half.ndim > 1:
                    half = half.chunk(2, dim=-1)[device]
                elif kind == "rowwise" and device:
                    half = torch.zeros_like(half)  # a bias is added once
                p.data = half
            result = module(*args, **{**kwargs, "first_values": []} if "first_values" in kwargs else kwargs)
            total = total + (result[0] if isinstance(result, tuple) else result)
        torch.testing.assert_close(total, output[0] if isinstance(output, tuple) else output)


@pytest.mark.parametrize("make", [make_model, lambda: HfxEncoderDecoderModel(HfxEncoderDecoderConfig(**SIZES))])
def test_an_entry_more_can_be_set(make):
    """As transformers 5.17 does for tied embeddings, in the configuration's own initialisation."""
    config = make().config
    config.base_model_tp_plan = {**config.base_model_tp_plan, "embed_tokens": "embedding_rowwise"}
    assert config.base_model_tp_plan["embed_tokens"] == "embedding_rowwise"
    config.qk_norm = "projection"  # what follows from the fields still does
    assert not [entry for entry in config.base_model_tp_plan if "q_proj" in entry]
    assert "base_model_tp_plan" not in config.to_dict()
