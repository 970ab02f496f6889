"""What a kernel repository of ours offers as functions: every hot path, by Triton, without a choice to be made first."""

import torch
from torch.autograd.function import once_differentiable

from hf_ext.ops.cross_entropy import linear_cross_entropy as chunked_linear_cross_entropy
from hf_ext.ops.kernel_choice import kernels
from hf_ext.ops.triton.packed_attention import flash_attn_func, flash_attn_varlen_func
from hf_ext.ops.triton.triton_attention import triton_attention as flash_attention
from hf_ext.ops.triton.triton_gated import triton_gated as gated_activation
from hf_ext.ops.triton.triton_grouped_matmul import grouped_outer_product, grouped_product
from hf_ext.ops.triton.triton_norms import triton_layer_norm as layer_norm
from hf_ext.ops.triton.triton_norms import triton_rms_norm as rms_norm
from hf_ext.ops.triton.triton_rotary import triton_rotary as rotary


__all__ = [
    "flash_attention",
    "flash_attn_func",
    "flash_attn_varlen_func",
    "gated_activation",
    "grouped_matmul",
    "layer_norm",
    "linear_cross_entropy",
    "rms_norm",
    "rotary",
]


def linear_cross_entropy(
    hidden_states: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, **options
) -> torch.Tensor:
    """The loss of a linear layer's logits, which never exist whole: (..., d), (V, d), (...) -> 0-d, fp32.

    Args:
        options: bias, ignore_index, label_smoothing, z_loss_weight, num_items_in_batch, softcap, chunk_size, as in
            `cross_entropy.py`.
    """
    with kernels("triton"):  # gradients are computed with the loss, so that backward has nothing left to choose
        return chunked_linear_cross_entropy(hidden_states, weight, labels, **options)


def grouped_matmul(x: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Each row of x (M, K) times its group's matrix, transposed: weight (G, N, K) -> (M, N).

    Args:
        x, weight: of one dtype, fp32, fp16 or bf16. offsets: (G,) integer, row after each group's last one; ends with M.
    """
    return _GroupedMatmul.apply(x, weight, offsets)


class _GroupedMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, offsets):
        ctx.save_for_backward(x, weight, offsets)
        return grouped_product(x, weight.mT, offsets)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, offsets = ctx.saved_tensors
        wants_x, wants_weight, _ = ctx.needs_input_grad
        return (
            grouped_product(grad, weight, offsets) if wants_x else None,
            grouped_outer_product(grad, x, offsets) if wants_weight else None,
            None,
        )
