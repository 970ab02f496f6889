"""Liger's kernels in a model of ours: what `use_liger_kernel=True` in the Trainer does.

Each layer that Liger computes alike gets its kernel, instance by instance; every other one stays ours, and so does every
model that is not trained so. Which those are is told in one line.
"""

from collections import Counter
from types import MethodType

import torch
from torch import nn
from transformers.utils import logging

from hf_ext.layers.feed_forward import GatedActivation
from hf_ext.layers.kernel_repositories import KERNEL_NAMES
from hf_ext.layers.liger_layers import GELU_TANH, SILU, LigerFunctions, liger_layers
from hf_ext.layers.norms import LayerNorm
from hf_ext.layers.rope import Rotation
from hf_ext.models.language_modeling_head import LanguageModelingHead
from hf_ext.ops.cross_entropy import linear_cross_entropy
from hf_ext.ops.kernel_choice import kernels_reach, triton_missing


logger = logging.get_logger(__name__)


def apply_liger_kernels(
    rope: bool = True,
    cross_entropy: bool = False,
    fused_linear_cross_entropy: bool = True,
    rms_norm: bool = True,
    layer_norm: bool = True,
    swiglu: bool = True,
    geglu: bool = True,
    model: nn.Module | None = None,
) -> None:
    """Puts Liger's kernels into `model`; the arguments have the names that Liger gives them (`liger_kernel_config`).

    Raises:
        ValueError: no model, `cross_entropy`, or Triton can't run here.
    """
    if model is None:
        raise ValueError("liger_kernel: our models take its kernels once they are made; use use_liger_kernel=True")
    if cross_entropy:
        raise ValueError(
            "liger_kernel_config: cross_entropy=True is a loss of whole logits, which our models never hold in training; "
            "leave it out, fused_linear_cross_entropy takes its place"
        )
    missing = triton_missing()
    if missing is not None:
        raise ValueError(f"use_liger_kernel=True: {missing}; set it to False")

    layers = liger_layers(_functions())
    taken, kept = Counter(), Counter()
    for module in model.modules():
        name = KERNEL_NAMES.get(type(module))
        if name is None:
            continue
        label = _label(module)
        wanted = {
            "HfxRMSNorm": rms_norm,
            "HfxUnitOffsetRMSNorm": rms_norm,
            "HfxLayerNorm": layer_norm,
            "HfxRotation": rope,
            "HfxGatedActivation": swiglu if getattr(module, "name", None) in SILU else geglu,
        }[name]
        if wanted and _is_computed(module):
            module.forward = MethodType(layers[name].forward, module)
            taken[label] += 1
        else:
            kept[label] += 1
    if isinstance(model, LanguageModelingHead):
        if fused_linear_cross_entropy:
            model.linear_cross_entropy = liger_linear_cross_entropy
        (taken if fused_linear_cross_entropy else kept)["linear cross-entropy"] += 1
    logger.info(f"{type(model).__name__}: Liger computes {_told(taken)}; ours stay {_told(kept)}")


def liger_linear_cross_entropy(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss_weight: float = 0.0,
    num_items_in_batch: int | torch.Tensor | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """`linear_cross_entropy` by Liger: the weight's gradient is summed over chunks in fp32, as ours is."""
    if not kernels_reach(hidden_states, weight, bias) or hidden_states.numel() == 0:
        return linear_cross_entropy(
            hidden_states,
            weight,
            labels,
            bias=bias,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            z_loss_weight=z_loss_weight,
            num_items_in_batch=num_items_in_batch,
            softcap=softcap,
        )
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    labels = labels.flatten().to(hidden_states.device, torch.int64)
    total = liger_fused_linear_cross_entropy(
        hidden_states.flatten(0, -2),
        weight,
        labels,
        bias=bias,
        ignore_index=ignore_index,
        lse_square_scale=z_loss_weight,
        label_smoothing=label_smoothing,
        reduction="sum",
        softcap=softcap,
        accum_dtype=torch.float32,
    )
    if num_items_in_batch is None:
        return total / (labels != ignore_index).sum()
    if isinstance(num_items_in_batch, torch.Tensor):
        num_items_in_batch = num_items_in_batch.to(total.device)
    return total / num_items_in_batch


def _functions() -> LigerFunctions:
    from liger_kernel.ops.geglu import LigerGELUMulFunction
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction
    from liger_kernel.ops.rope import LigerRopeFunction
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    return LigerFunctions(
        rms_norm=LigerRMSNormFunction,
        layer_norm=LigerLayerNormFunction,
        silu_mul=LigerSiLUMulFunction,
        gelu_mul=LigerGELUMulFunction,
        rope=LigerRopeFunction,
    )


def _is_computed(module: nn.Module) -> bool:
    """Whether Liger computes the layer with its options; the rest is seen at the call (`liger_layers.py`)."""
    if isinstance(module, LayerNorm):
        return module.bias is not None
    if isinstance(module, GatedActivation):
        return module.name in SILU + GELU_TANH
    return not (isinstance(module, Rotation) and module.interleaved)


def _label(module: nn.Module) -> str:
    if isinstance(module, GatedActivation):
        return f"{type(module).__name__}({module.name})"
    return type(module).__name__


def _told(counts: Counter) -> str:
    return ", ".join(f"{count} {label}" for label, count in sorted(counts.items())) or "none"
