"""x W^T + b on the CPU by the faster of the two libraries that torch carries.

torch multiplies fp32 matrices with MKL. For one row that is a routine on one thread, for a few rows it is slower yet, and
on processors that are not Intel's MKL does not use AVX-512. oneDNN, which torch has for bf16 and for convolutions, has
none of this. N rows, I inputs, O outputs.

Both give a few rows half of what memory could (`docs/generation.md` has the table): they are made for large matrices, of
which every number is used many times. Of x W^T for one row every number of W is used once, and a plain loop over W, which
`torch.compile` writes for a sum, reads it at the rate of memory. A compiled graph without gradients therefore gets few rows
as sums, and more of them as oneDNN's product, which the compiler itself takes for constant weights only.
"""

import os
import platform
import re

import torch
from torch.nn import functional as F


# operators are registered once a process, and the Hub's copy of this file has another name
NAMESPACE = re.sub(r"\W", "_", __name__)

# Multiplications below which F.linear is faster: oneDNN takes about 20 microseconds to begin with. A single row waits for
# memory, not for arithmetic, and counts as four.
MIN_MULTIPLICATIONS = 2**20
ROWS_OF_A_VECTOR = 4

# Rows of which a compiled sum is faster than either library.
ROWS_AS_SUMS = 4

# Elements of an outer product that are computed before they are added to a sum: 8 MB in fp32.
ADDED_AT_ONCE = 2**21

# oneDNN, and torch's layer above it, each keep what they made for the last 1,024 shapes, megabytes each: gigabytes where
# every batch has another number of tokens. They read these when the first product is made; what is set already stays.
SHAPES_KEPT = 128
for _name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_name, str(SHAPES_KEPT))

# measured on x86 only; elsewhere torch has other libraries behind F.linear
HAS_ONEDNN = (
    platform.machine() in ("x86_64", "AMD64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`torch.nn.functional.linear`, the same to rounding, differentiable as often as that.

    Args:
        x: (..., I). weight: (O, I), of any strides. bias: (O,).

    Returns:
        (..., O).
    """
    if torch.compiler.is_compiling():
        return _compiled(x, weight, bias)
    if not _takes_onednn(x, weight, bias):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and (
        x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    ):
        return _Linear.apply(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _compiled(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`linear` as a compiler should see it: where nobody differentiates on the CPU in another form than F.linear."""
    if (
        torch.is_grad_enabled()
        or torch.compiler.is_exporting()  # a file for any machine
        or x.device.type != "cpu"
        or x.dtype != weight.dtype
        or torch.is_autocast_enabled("cpu")
        or x.numel() == 0
    ):
        return F.linear(x, weight, bias)
    rows = x.numel() // x.shape[-1]
    if rows <= ROWS_AS_SUMS:
        return _sums(x, weight, bias)
    takes_onednn = HAS_ONEDNN and x.dtype == torch.float32 and weight.is_contiguous()
    if takes_onednn and rows * weight.numel() >= MIN_MULTIPLICATIONS:
        return onednn_linear(x, weight, bias)
    return F.linear(x, weight, bias)


def _sums(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x W^T + b as a sum of products, of which a compiler makes one loop over the rows of W."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    rows = x.reshape(-1, x.shape[-1]).to(dtype)
    sums = (weight.to(dtype)[:, None] * rows).sum(dim=-1).T  # the products (O, N, I) never exist
    sums = sums if bias is None else sums + bias
    return sums.to(x.dtype).reshape(*x.shape[:-1], weight.shape[0])


# An operator, which a compiler leaves as it is.
@torch.library.custom_op(f"{NAMESPACE}::onednn_linear", mutates_args=(), device_types="cpu")
def onednn_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """oneDNN's (..., O) of fp32 (..., I) and (O, I), not differentiable."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@onednn_linear.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.no_grad()
def add_outer_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """total += a^T b, in place: (O, I) += (N, O)^T (N, I). Memory beside it is bounded."""
    if not _takes_onednn(a, b):
        total.addmm_(a.T, b)
        return
    columns = max(1, ADDED_AT_ONCE // b.shape[1])
    for part, rows in zip(a.split(columns, dim=1), total.split(columns), strict=True):
        rows.add_(linear(part.T, b.T))


def outer_product_bytes(rows: int, a_columns: int, b_columns: int) -> int:
    """Bytes that `add_outer_product` takes of fp32 factors on the CPU: a part's copy, for oneDNN, and its product."""
    if not HAS_ONEDNN:
        return 0
    columns = min(a_columns, max(1, ADDED_AT_ONCE // b_columns))
    return 4 * columns * (rows + b_columns)


class _Linear(torch.autograd.Function):
    """The product and its gradients, which are products again: `linear` all over, so they have gradients too."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        wants_x, wants_weight, _ = ctx.needs_input_grad
        # under an adapter most weights are frozen, and what went into them isn't needed again
        ctx.save_for_backward(x if wants_weight else None, weight if wants_x else None)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)  # (N, O)
        return (
            linear(grad, weight.T) if wants_x else None,
            _outer_product(rows, x.flatten(0, -2)) if wants_weight else None,
            rows.sum(dim=0) if wants_bias else None,
        )


def _outer_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a^T b: (N, O), (N, I) -> (O, I). oneDNN copies its first factor where it is transposed: let that be the smaller."""
    return linear(a.T, b.T) if a.shape[1] <= b.shape[1] else linear(b.T, a.T).T


def _takes_onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> bool:
    """Large plain fp32 tensors on a CPU whose products nobody traces, transforms, counts or casts."""
    tensors = (x, weight) if bias is None else (x, weight, bias)
    return (
        not torch.compiler.is_compiling()  # first: it can't look at what follows
        and HAS_ONEDNN
        and weight.numel() * max(ROWS_OF_A_VECTOR, x.numel() // weight.shape[-1]) >= MIN_MULTIPLICATIONS
        and all(
            type(t) in (torch.Tensor, torch.nn.Parameter) and t.dtype == torch.float32 and t.device.type == "cpu"
            for t in tensors
        )
        and x.numel() > 0
        and (weight.is_contiguous() or weight.T.is_contiguous())  # of other strides oneDNN has its slow reference only
        and x.ndim > 1
        and torch._C._get_mkldnn_enabled()
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()  # FlopCounterMode and its like know F.linear only
    )
