"""Rows that lie group by group, each group times a matrix of its own: the product inside a mixture of experts.

    out[r] = x[r] W_g^T   for the rows r of group g, offsets[g - 1] <= r < offsets[g]

M rows, G groups, K columns in, N columns out. Where a group ends is data, not shape: as one operator the product keeps
graphs whole under `torch.compile` and `torch.export`, and costs M * K * N whatever the sizes of the groups.
"""

import torch

from hf_ext.ops.kernel_choice import takes_triton
from hf_ext.ops.matrix_product import add_outer_product, linear


# torch's own grouped product reads rows that begin at multiples of so many bytes
ROW_ALIGNMENT = 16


def grouped_matmul(x: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """(M, N): each row of `x` times its group's matrix, transposed.

    Args:
        x: (M, K) floating, rows in the order of their groups.
        weight: (G, N, K), of the dtype of `x`.
        offsets: (G,) integer, row after each group's last one; grows, ends with M. Empty groups are allowed.

    Under autocast both are cast to its dtype first, as torch's own products do.
    """
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    return torch.ops.hf_ext.grouped_matmul(x, weight, offsets)


@torch.library.custom_op("hf_ext::grouped_matmul", mutates_args=())
def _forward(x: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    if _device_has_kernel(x, weight):
        return torch.nn.functional.grouped_mm(x, weight.mT, offs=offsets.int())
    if takes_triton(x, weight):
        from hf_ext.ops.triton.triton_grouped_matmul import grouped_product

        return grouped_product(x, weight.mT, offsets)
    out = x.new_empty(x.shape[0], weight.shape[1])
    with torch.no_grad():
        for group, start, stop in _groups(offsets):
            out[start:stop] = linear(x[start:stop], weight[group])
    return out


@torch.library.custom_op("hf_ext::grouped_matmul_backward", mutates_args=())
def _backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    if _device_has_kernel(x, weight):
        x_grad = torch.nn.functional.grouped_mm(grad, weight, offs=offsets.int())
        return x_grad, torch.nn.functional.grouped_mm(grad.mT, x, offs=offsets.int())
    if takes_triton(grad, x, weight):
        from hf_ext.ops.triton.triton_grouped_matmul import grouped_outer_product, grouped_product

        return grouped_product(grad, weight, offsets), grouped_outer_product(grad, x, offsets)
    x_grad, weight_grad = torch.empty_like(x), torch.zeros_like(weight)
    with torch.no_grad():
        for group, start, stop in _groups(offsets):
            x_grad[start:stop] = linear(grad[start:stop], weight[group].mT)
            add_outer_product(weight_grad[group], grad[start:stop], x[start:stop])
    return x_grad, weight_grad


@_forward.register_fake
def _(x, weight, offsets):
    return x.new_empty(x.shape[0], weight.shape[1])


@_backward.register_fake
def _(grad, x, weight, offsets):
    return torch.empty_like(x), torch.empty_like(weight)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, grad):
    x, weight, offsets = ctx.saved_tensors
    return *torch.ops.hf_ext.grouped_matmul_backward(grad.contiguous(), x, weight, offsets), None


_forward.register_autograd(_differentiate, setup_context=_setup_context)


def _device_has_kernel(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """torch's own grouped product wants bf16, rows of a multiple of 16 bytes and an accelerator; elsewhere it is this file's
    loop, with a copy, or Triton's kernel where that was chosen."""
    if x.device.type != "cuda" or x.dtype != torch.bfloat16 or torch.cuda.get_device_capability(x.device) < (9, 0):
        return False
    return all(size * x.itemsize % ROW_ALIGNMENT == 0 for size in weight.shape[1:])


def _groups(offsets: torch.Tensor) -> list[tuple[int, int, int]]:
    """Index, start and stop of each group that has rows."""
    stops = offsets.tolist()
    starts = [0, *stops[:-1]]
    return [(g, start, stop) for g, (start, stop) in enumerate(zip(starts, stops, strict=True)) if stop > start]
