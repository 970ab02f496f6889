"""RMSNorm and LayerNorm in Triton, with the residual added on the way in; the twins of the layers in `layers/norms.py`.

N rows of d. A program takes a row. Backward keeps one number a row for each statistic; what rows add to the gradients of
weight and bias is summed by a fixed number of programs, each over its own rows, and then over programs: the same bits in
every run.
"""

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable


PROGRAMS_PER_MULTIPROCESSOR = 4  # of backward
LARGEST_ROW = 65536


@triton.jit
def norm_kernel(
    x,
    residual,
    weight,
    bias,
    output,
    total,
    means,
    scales,
    x_step,
    residual_step,
    d,
    eps,
    offset,
    CENTERED: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BIAS: tl.constexpr,
    D: tl.constexpr,
):
    """output = (offset + weight) * (h - mean) * scale + bias of h = x + residual, which goes to `total`. Grid: (N,)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, D)
    mask = columns < d
    h = tl.load(x + row * x_step + columns, mask=mask, other=0.0).to(tl.float32)
    if RESIDUAL:
        h += tl.load(residual + row * residual_step + columns, mask=mask, other=0.0).to(tl.float32)
        rounded = h.to(total.dtype.element_ty)
        tl.store(total + row * d + columns, rounded, mask=mask)
        h = rounded.to(tl.float32)
    if CENTERED:
        mean = tl.sum(h, 0) / d
        tl.store(means + row, mean)
        h = tl.where(mask, h - mean, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(h * h, 0) / d + eps)
    tl.store(scales + row, scale)
    factor = tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32) + offset
    result = h * scale * factor
    if BIAS:
        result += tl.load(bias + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(output + row * d + columns, result.to(output.dtype.element_ty), mask=mask)


@triton.jit
def norm_gradient_kernel(
    h,
    output_grad,
    total_grad,
    weight,
    means,
    scales,
    x_grad,
    weight_parts,
    bias_parts,
    h_step,
    num_rows,
    d,
    offset,
    CENTERED: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BIAS: tl.constexpr,
    D: tl.constexpr,
):
    """With n = (h - mean) * scale and g = dy * (offset + weight): dx = scale * (g - mean(g) - n * mean(g * n)), without
    mean(g) where nothing is centered. Grid: (programs,); weight_parts, bias_parts: fp32 (programs, d)."""
    program = tl.program_id(0)
    columns = tl.arange(0, D)
    mask = columns < d
    factor = tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32) + offset
    weight_sum = tl.zeros([D], dtype=tl.float32)
    bias_sum = tl.zeros([D], dtype=tl.float32)
    for index in range(program, num_rows, tl.num_programs(0)):
        row = tl.cast(index, tl.int64)
        normalized = tl.load(h + row * h_step + columns, mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(output_grad + row * d + columns, mask=mask, other=0.0).to(tl.float32)
        scale = tl.load(scales + row)
        if CENTERED:
            normalized = tl.where(mask, normalized - tl.load(means + row), 0.0)
        normalized = normalized * scale
        weight_sum += grad * normalized
        if BIAS:
            bias_sum += grad
        scaled = tl.where(mask, grad * factor, 0.0)
        result = scaled - normalized * (tl.sum(scaled * normalized, 0) / d)
        if CENTERED:
            result -= tl.sum(scaled, 0) / d
        result = result * scale
        if RESIDUAL:
            result += tl.load(total_grad + row * d + columns, mask=mask, other=0.0).to(tl.float32)
        tl.store(x_grad + row * d + columns, result.to(x_grad.dtype.element_ty), mask=mask)
    tl.store(weight_parts + program.to(tl.int64) * d + columns, weight_sum, mask=mask)
    if BIAS:
        tl.store(bias_parts + program.to(tl.int64) * d + columns, bias_sum, mask=mask)


def triton_rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    eps: float = 1e-6,
    unit_offset: bool = False,
    residual: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """weight * x / sqrt(mean(x²) + eps) over the last dim, all of it in fp32; (1 + weight) with `unit_offset`.

    Args:
        x: (..., d), d up to 65,536. residual: as x: added to it first, and the sum is returned too.

    Returns:
        (..., d) in the dtype of x; with a residual the norm of the sum, and the sum.
    """
    return _norm(x, residual, weight, None, eps, float(unit_offset), False)


def triton_layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    eps: float = 1e-5,
    residual: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """weight * (x - mean) / sqrt(variance + eps) + bias over the last dim, in fp32. Args as in `triton_rms_norm`."""
    return _norm(x, residual, weight, bias, eps, 0.0, True)


def _norm(x, residual, weight, bias, eps, offset, centered):
    if x.shape[-1] > LARGEST_ROW:
        raise ValueError(f"x: rows of {x.shape[-1]}, the Triton norms take up to {LARGEST_ROW}; use the layers' own")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"residual: shape {tuple(residual.shape)} must be that of x, {tuple(x.shape)}")
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None and parameter.shape != x.shape[-1:]:
            raise ValueError(f"{name}: shape {tuple(parameter.shape)} must be ({x.shape[-1]},), a number a column of x")
    weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
    rows = [None if t is None else t.reshape(-1, t.shape[-1]) for t in (x, residual)]
    rows = [t if t is None or t.stride(-1) == 1 else t.contiguous() for t in rows]
    output, total = _TritonNorm.apply(*rows, weight, bias, eps, offset, centered)
    return output.view(x.shape) if residual is None else (output.view(x.shape), total.view(x.shape))


class _TritonNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, weight, bias, eps, offset, centered):
        N, d = x.shape
        output = torch.empty((N, d), dtype=x.dtype, device=x.device)
        total = x if residual is None else torch.empty_like(output)
        scales = torch.empty(N, dtype=torch.float32, device=x.device)
        means = torch.empty_like(scales) if centered else None
        ctx.D = triton.next_power_of_2(d)
        ctx.warps = max(1, min(16, ctx.D // 256))
        if N:
            with torch.cuda.device_of(x):  # where Triton launches
                norm_kernel[(N,)](
                    x, residual, weight, bias, output, total, means, scales,
                    x.stride(0), 0 if residual is None else residual.stride(0), d, eps, offset,
                    CENTERED=centered, RESIDUAL=residual is not None, BIAS=bias is not None, D=ctx.D, num_warps=ctx.warps,
                )  # fmt: skip
        ctx.save_for_backward(total, weight, bias, means, scales)
        ctx.offset, ctx.centered, ctx.adds = offset, centered, residual is not None
        if not ctx.adds:
            return output, None
        return output, total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, total_grad):
        total, weight, bias, means, scales = ctx.saved_tensors
        N, d = total.shape
        x_grad = torch.empty((N, d), dtype=total.dtype, device=total.device)
        programs = max(1, min(N, PROGRAMS_PER_MULTIPROCESSOR * _num_multiprocessors(total.device)))
        weight_parts = torch.zeros(programs, d, dtype=torch.float32, device=total.device)
        bias_parts = None if bias is None else torch.zeros_like(weight_parts)
        if N:
            with torch.cuda.device_of(total):
                norm_gradient_kernel[(programs,)](
                    total, grad.contiguous(), total_grad.contiguous() if ctx.adds else None, weight, means, scales,
                    x_grad, weight_parts, bias_parts, total.stride(0), N, d, ctx.offset,
                    CENTERED=ctx.centered, RESIDUAL=ctx.adds, BIAS=bias is not None, D=ctx.D, num_warps=ctx.warps,
                )  # fmt: skip
        bias_grad = None if bias is None else bias_parts.sum(dim=0).to(bias.dtype)
        weight_grad = weight_parts.sum(dim=0).to(weight.dtype)
        return x_grad, x_grad if ctx.adds else None, weight_grad, bias_grad, None, None, None


def _num_multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
