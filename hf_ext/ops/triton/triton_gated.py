"""activation(gate) * up in one Triton kernel, and its gradient in another; the twin of `gated` in `layers/feed_forward.py`.

SwiGLU and GeGLU, Shazeer 2020, arXiv 2002.05202. Computed in fp32; for the backward pass gate and up alone are kept.
"""

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable


ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu")
ELEMENTS = 1024  # of a program


@triton.jit
def _activate(x, ACTIVATION: tl.constexpr):
    """activation(x) and its derivative, fp32. 0 silu, 1 gelu, 2 its tanh approximation, 3 relu."""
    if ACTIVATION == 0:
        sigmoid = tl.sigmoid(x)
        value = x * sigmoid
        slope = sigmoid * (1.0 + x * (1.0 - sigmoid))
    elif ACTIVATION == 1:
        share = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        value = x * share
        slope = share + x * tl.exp(-0.5 * x * x) * 0.3989422804014327
    elif ACTIVATION == 2:
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        tanh = 2.0 * tl.sigmoid(2.0 * inner) - 1.0
        value = 0.5 * x * (1.0 + tanh)
        inner_slope = 0.7978845608028654 * (1.0 + 0.134145 * x * x)
        slope = 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * inner_slope
    else:
        value = tl.maximum(x, 0.0)
        slope = tl.where(x > 0, 1.0, 0.0)
    return value, slope


@triton.jit
def gated_kernel(
    gate, up, output, gate_step, up_step, output_step, num_columns, ACTIVATION: tl.constexpr, COLUMNS: tl.constexpr
):
    """Grid: (rows, blocks of columns)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = columns < num_columns
    g = tl.load(gate + row * gate_step + columns, mask=mask, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_step + columns, mask=mask, other=0.0).to(tl.float32)
    value, _ = _activate(g, ACTIVATION)
    tl.store(output + row * output_step + columns, (value * u).to(output.dtype.element_ty), mask=mask)


@triton.jit
def gated_gradient_kernel(
    gate,
    up,
    output_grad,
    gate_grad,
    up_grad,
    gate_step,
    up_step,
    grad_step,
    gate_grad_step,
    up_grad_step,
    num_columns,
    ACTIVATION: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Grid: (rows, blocks of columns)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = columns < num_columns
    g = tl.load(gate + row * gate_step + columns, mask=mask, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_step + columns, mask=mask, other=0.0).to(tl.float32)
    grad = tl.load(output_grad + row * grad_step + columns, mask=mask, other=0.0).to(tl.float32)
    value, slope = _activate(g, ACTIVATION)
    dtype = gate_grad.dtype.element_ty
    tl.store(gate_grad + row * gate_grad_step + columns, (grad * u * slope).to(dtype), mask=mask)
    tl.store(up_grad + row * up_grad_step + columns, (grad * value).to(dtype), mask=mask)


def triton_gated(activation: str, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """activation(gate) * up.

    Args:
        activation: one of `ACTIVATIONS`. gate, up: (..., I) of one dtype; halves of one matrix are read where they lie.

    Raises:
        ValueError: gate and up differ in shape.
    """
    shape = gate.shape
    if up.shape != shape:
        raise ValueError(f"up: shape {tuple(up.shape)} must be that of gate, {tuple(shape)}")
    gate, up = (_rows(x) for x in (gate, up))
    return _TritonGated.apply(ACTIVATIONS.index(activation), gate, up).view(shape)


def _rows(x: torch.Tensor) -> torch.Tensor:
    """(..., I) -> (N, I) with the last dim contiguous; a view where that can be."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(-1) == 1 else x.contiguous()


class _TritonGated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, activation: int, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.activation = activation
        ctx.save_for_backward(gate, up)
        output = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
        if output.numel():
            N, columns = gate.shape
            block = min(ELEMENTS, triton.next_power_of_2(columns))
            with torch.cuda.device_of(gate):  # where Triton launches
                gated_kernel[(N, triton.cdiv(columns, block))](
                    gate, up, output, gate.stride(0), up.stride(0), output.stride(0), columns,
                    ACTIVATION=activation, COLUMNS=block,
                )  # fmt: skip
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor):
        gate, up = ctx.saved_tensors
        grad = _rows(grad)
        gate_grad, up_grad = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (gate, up))
        if grad.numel():
            N, columns = gate.shape
            block = min(ELEMENTS, triton.next_power_of_2(columns))
            with torch.cuda.device_of(gate):
                gated_gradient_kernel[(N, triton.cdiv(columns, block))](
                    gate, up, grad, gate_grad, up_grad, gate.stride(0), up.stride(0), grad.stride(0), gate_grad.stride(0),
                    up_grad.stride(0), columns, ACTIVATION=ctx.activation, COLUMNS=block,
                )  # fmt: skip
        return None, gate_grad, up_grad
