"""Rotary positions on queries and keys in one Triton kernel; the twin of `apply_rotary` in `ops/rotary.py`.

B batch, H query heads, K key heads, T tokens, D head dim, R <= D rotated dims.

A program takes one token with all its heads, so that its cos and sin are read once. A pair (a, b) turns to
(a cos_a - b sin_a, b cos_b + a sin_b), computed in fp32; its gradient turns the other way.
"""

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable


@triton.jit
def _turn_heads(
    source,
    target,
    batch,
    token,
    s_batch,
    s_head,
    s_step,
    t_batch,
    t_head,
    t_step,
    num_heads,
    first_dims,
    second_dims,
    cos_first,
    cos_second,
    sin_first,
    sin_second,
    in_pair,
    HEADS: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    REST: tl.constexpr,
    BACKWARD: tl.constexpr,
    COPIES_REST: tl.constexpr,
):
    heads = tl.arange(0, HEADS).to(tl.int64)  # a head may be 2^31 numbers away
    there = heads < num_heads
    source += batch.to(tl.int64) * s_batch + token.to(tl.int64) * s_step
    target += batch.to(tl.int64) * t_batch + token.to(tl.int64) * t_step
    mask = there[:, None] & in_pair[None, :]
    a = tl.load(source + heads[:, None] * s_head + first_dims[None, :], mask=mask, other=0.0).to(tl.float32)
    b = tl.load(source + heads[:, None] * s_head + second_dims[None, :], mask=mask, other=0.0).to(tl.float32)
    if BACKWARD:
        first = a * cos_first[None, :] + b * sin_second[None, :]
        second = b * cos_second[None, :] - a * sin_first[None, :]
    else:
        first = a * cos_first[None, :] - b * sin_first[None, :]
        second = b * cos_second[None, :] + a * sin_second[None, :]
    dtype = target.dtype.element_ty
    tl.store(target + heads[:, None] * t_head + first_dims[None, :], first.to(dtype), mask=mask)
    tl.store(target + heads[:, None] * t_head + second_dims[None, :], second.to(dtype), mask=mask)
    if COPIES_REST:
        dims = R + tl.arange(0, REST)
        mask = there[:, None] & (dims < D)[None, :]
        rest = tl.load(source + heads[:, None] * s_head + dims[None, :], mask=mask, other=0.0)
        tl.store(target + heads[:, None] * t_head + dims[None, :], rest, mask=mask)


@triton.jit
def rotary_kernel(
    query,
    key,
    query_out,
    key_out,
    cos,
    sin,
    q_batch,
    q_head,
    q_step,
    k_batch,
    k_head,
    k_step,
    qo_batch,
    qo_head,
    qo_step,
    ko_batch,
    ko_head,
    ko_step,
    angles_batch,
    num_tokens,
    num_heads,
    num_kv_heads,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    R: tl.constexpr,
    PAIRS: tl.constexpr,
    D: tl.constexpr,
    REST: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BACKWARD: tl.constexpr,
    COPIES_REST: tl.constexpr,
):
    """Grid: (B * T,). cos, sin: (B or 1, T, R), contiguous. PAIRS, REST, HEADS: powers of two."""
    program = tl.program_id(0)
    batch = program // num_tokens
    token = program % num_tokens
    pairs = tl.arange(0, PAIRS)
    in_pair = pairs < R // 2
    if INTERLEAVED:
        first_dims = 2 * pairs
        second_dims = 2 * pairs + 1
    else:
        first_dims = pairs
        second_dims = pairs + R // 2
    angles = batch.to(tl.int64) * angles_batch + token.to(tl.int64) * R
    cos_first = tl.load(cos + angles + first_dims, mask=in_pair, other=0.0).to(tl.float32)
    cos_second = tl.load(cos + angles + second_dims, mask=in_pair, other=0.0).to(tl.float32)
    sin_first = tl.load(sin + angles + first_dims, mask=in_pair, other=0.0).to(tl.float32)
    sin_second = tl.load(sin + angles + second_dims, mask=in_pair, other=0.0).to(tl.float32)
    _turn_heads(
        query, query_out, batch, token, q_batch, q_head, q_step, qo_batch, qo_head, qo_step, num_heads,
        first_dims, second_dims, cos_first, cos_second, sin_first, sin_second, in_pair,
        HEADS, R, D, REST, BACKWARD, COPIES_REST,
    )  # fmt: skip
    _turn_heads(
        key, key_out, batch, token, k_batch, k_head, k_step, ko_batch, ko_head, ko_step, num_kv_heads,
        first_dims, second_dims, cos_first, cos_second, sin_first, sin_second, in_pair,
        KV_HEADS, R, D, REST, BACKWARD, COPIES_REST,
    )  # fmt: skip


def triton_rotary(
    query: torch.Tensor,
    key: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    interleaved: bool = False,
    *,
    in_place: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`apply_rotary`: queries (B, H, T, D) and keys (B, K, T, D) turned by cos and sin (B or 1, T, R).

    Args:
        in_place: write over query and key, which must not need a gradient then; the dims that stand still are not touched.

    Returns:
        Both in their dtypes, laid out in memory as they were.

    Raises:
        ValueError: shapes that don't go together.
    """
    B, _, T, D = query.shape
    if (key.shape[0], *key.shape[2:]) != (B, T, D):
        raise ValueError(f"key: shape {tuple(key.shape)} must be that of query but for the heads, {tuple(query.shape)}")
    if cos.shape != sin.shape or cos.ndim != 3 or cos.shape[0] not in (1, B) or cos.shape[1] not in (1, T):
        raise ValueError(f"cos: shape {tuple(cos.shape)}, sin: {tuple(sin.shape)}, both must be ({B} or 1, {T}, R)")
    cos, sin = (x.expand(-1, T, -1).contiguous() for x in (cos, sin))
    if in_place and query.stride(-1) == key.stride(-1) == 1:
        _rotate(query, key, query, key, cos, sin, interleaved, backward=False)
        return query, key
    turned = _TritonRotary.apply(query, key, cos, sin, interleaved)
    return (query.copy_(turned[0]), key.copy_(turned[1])) if in_place else turned


class _TritonRotary(torch.autograd.Function):
    @staticmethod
    def forward(query, key, cos, sin, interleaved):
        query, key = _with_dims_together(query, key)
        turned = torch.empty_like(query), torch.empty_like(key)
        _rotate(query, key, *turned, cos, sin, interleaved, backward=False)
        return turned

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, _, cos, sin, ctx.interleaved = inputs
        ctx.save_for_backward(cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx, query_grad, key_grad):
        query_grad, key_grad = _with_dims_together(query_grad, key_grad)
        turned = torch.empty_like(query_grad), torch.empty_like(key_grad)
        _rotate(query_grad, key_grad, *turned, *ctx.saved_tensors, ctx.interleaved, backward=True)
        return *turned, None, None, None


def _with_dims_together(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The same, copied where a head's dims do not lie side by side, and so their like will."""
    return tuple(x if x.stride(-1) == 1 and 0 not in x.stride() else x.contiguous() for x in tensors)


def _rotate(query, key, query_out, key_out, cos, sin, interleaved: bool, *, backward: bool) -> None:
    B, H, T, D = query.shape
    K, R = key.shape[1], cos.shape[-1]
    with torch.cuda.device_of(query):  # where Triton launches
        rotary_kernel[(B * T,)](
            query,
            key,
            query_out,
            key_out,
            cos,
            sin,
            *(n for x in (query, key, query_out, key_out) for n in x.stride()[:3]),
            0 if cos.shape[0] == 1 else T * R,
            T,
            H,
            K,
            HEADS=triton.next_power_of_2(H),
            KV_HEADS=triton.next_power_of_2(K),
            R=R,
            PAIRS=triton.next_power_of_2(R // 2),
            D=D,
            REST=triton.next_power_of_2(max(1, D - R)),
            INTERLEAVED=interleaved,
            BACKWARD=backward,
            COPIES_REST=D > R and query_out.data_ptr() != query.data_ptr(),
        )
