"""Rows that lie group by group, each group times a matrix of its own, in Triton; the twin of `ops/grouped_matmul.py`.

M rows, G groups, K columns in, N columns out. Which group a tile of rows belongs to is counted on the device, from where
the groups end: nothing waits for it, and a tile never holds rows of two groups.
"""

import torch
import triton
import triton.language as tl

from hf_ext.ops.triton.attention_tiles import added_product, is_interpreted


ROWS, COLUMNS, DEPTH = 64, 128, 32  # of a tile, and columns in that are multiplied at a time


@triton.jit
def grouped_product_kernel(
    x,
    weight,
    offsets,
    output,
    x_step,
    weight_group,
    weight_in,
    weight_out,
    num_groups,
    columns_in,
    columns_out,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """output[r] = x[r] @ W_g, W_g (columns_in, columns_out) by strides. Grid: (tiles of rows, tiles of columns), with
    M / ROWS + G tiles of rows: as many as any sizes of the groups can need."""
    tile = tl.program_id(0)
    start = tile * 0
    first = tile * 0
    stop = tile * 0
    group = tile * 0
    passed = tile * 0  # tiles of the groups before
    for g in range(num_groups):
        end = tl.load(offsets + g).to(tl.int32)
        tiles = tl.cdiv(end - start, ROWS)
        mine = (tile >= passed) & (tile < passed + tiles)
        group = tl.where(mine, g, group)
        first = tl.where(mine, start + (tile - passed) * ROWS, first)
        stop = tl.where(mine, end, stop)
        passed += tiles
        start = end
    if tile < passed:
        rows = first + tl.arange(0, ROWS)
        columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        in_rows, in_columns = rows < stop, columns < columns_out
        matrix = weight + group.to(tl.int64) * weight_group
        accumulator = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
        for depth in range(0, columns_in, DEPTH):
            inner = depth + tl.arange(0, DEPTH)
            there = inner < columns_in
            a = tl.load(
                x + rows.to(tl.int64)[:, None] * x_step + inner[None, :],
                mask=in_rows[:, None] & there[None, :],
                other=0.0,
            )
            b = tl.load(
                matrix + inner.to(tl.int64)[:, None] * weight_in + columns.to(tl.int64)[None, :] * weight_out,
                mask=there[:, None] & in_columns[None, :],
                other=0.0,
            )
            accumulator = added_product(a, b, accumulator, PRECISION, UPCAST)
        tl.store(
            output + rows.to(tl.int64)[:, None] * columns_out + columns[None, :],
            accumulator.to(output.dtype.element_ty),
            mask=in_rows[:, None] & in_columns[None, :],
        )


@triton.jit
def grouped_outer_kernel(
    grad,
    x,
    offsets,
    weight_grad,
    grad_step,
    x_step,
    columns_out,
    columns_in,
    ROWS: tl.constexpr,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """weight_grad[g] (N, K) = grad_g^T @ x_g over the group's rows. Grid: (G, tiles of N, tiles of K)."""
    group = tl.program_id(0)
    start = tl.load(offsets + group - 1, mask=group > 0, other=0).to(tl.int32)
    stop = tl.load(offsets + group).to(tl.int32)
    outs = tl.program_id(1) * OUT + tl.arange(0, OUT)
    ins = tl.program_id(2) * IN + tl.arange(0, IN)
    in_out, in_in = outs < columns_out, ins < columns_in
    accumulator = tl.zeros([OUT, IN], dtype=tl.float32)
    for first in range(start, stop, ROWS):
        rows = first + tl.arange(0, ROWS)
        there = rows < stop
        a = tl.load(
            grad + rows.to(tl.int64)[None, :] * grad_step + outs[:, None],
            mask=there[None, :] & in_out[:, None],
            other=0.0,
        )
        b = tl.load(
            x + rows.to(tl.int64)[:, None] * x_step + ins[None, :], mask=there[:, None] & in_in[None, :], other=0.0
        )
        accumulator = added_product(a, b, accumulator, PRECISION, UPCAST)
    target = weight_grad + group.to(tl.int64) * columns_out * columns_in
    tl.store(
        target + outs.to(tl.int64)[:, None] * columns_in + ins[None, :],
        accumulator.to(weight_grad.dtype.element_ty),
        mask=in_out[:, None] & in_in[None, :],
    )


def grouped_product(x: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """(M, columns out): row r times the matrix of its group, x[r] @ weight[g].

    Args:
        x: (M, columns in), fp32, fp16 or bf16. weight: (G, columns in, columns out), of any strides. offsets: (G,) integer,
            row after each group's last one.
    """
    x, offsets = x if x.stride(-1) == 1 else x.contiguous(), offsets.contiguous()
    M, (G, columns_in, columns_out) = x.shape[0], weight.shape
    output = torch.zeros(M, columns_out, dtype=x.dtype, device=x.device)
    if M and columns_out:
        with torch.cuda.device_of(x):  # where Triton launches
            grouped_product_kernel[(triton.cdiv(M, ROWS) + G, triton.cdiv(columns_out, COLUMNS))](
                x, weight, offsets, output, x.stride(0), *weight.stride(), G, columns_in, columns_out,
                ROWS=ROWS, COLUMNS=COLUMNS, DEPTH=DEPTH, **_precision(x), num_warps=4, num_stages=3,
            )  # fmt: skip
    return output


def grouped_outer_product(grad: torch.Tensor, x: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """(G, N, K): grad (M, N) transposed times x (M, K), of each group's rows alone."""
    grad, x = (t if t.stride(-1) == 1 else t.contiguous() for t in (grad, x))
    offsets = offsets.contiguous()
    G, N, K = offsets.shape[0], grad.shape[1], x.shape[1]
    weight_grad = torch.empty(G, N, K, dtype=x.dtype, device=x.device)
    if weight_grad.numel():
        with torch.cuda.device_of(x):
            grouped_outer_kernel[(G, triton.cdiv(N, ROWS), triton.cdiv(K, COLUMNS))](
                grad, x, offsets, weight_grad, grad.stride(0), x.stride(0), N, K,
                ROWS=DEPTH, OUT=ROWS, IN=COLUMNS, **_precision(x), num_warps=4, num_stages=3,
            )  # fmt: skip
    return weight_grad


def _precision(x: torch.Tensor) -> dict:
    precision = "tf32x3" if x.dtype == torch.float32 else "tf32"
    return {"PRECISION": precision, "UPCAST": is_interpreted() and x.dtype == torch.bfloat16}
