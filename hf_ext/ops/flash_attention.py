"""Flash attention in torch: tiles, online softmax, own backward, memory linear in the sequence length.

B batch, H query heads, K key/value heads, G = H / K query heads a group, T queries, S keys, D head dim.

Forward (Dao et al. 2022, arXiv 2205.14135, alg. 1; the online softmax is Milakov & Gimelshein 2018, arXiv 1805.02867):
for each tile of queries, keys come tile by tile; a running maximum m, sum l and accumulator o are rescaled by
exp(m_old - m_new) whenever the maximum grows. What is kept for backward: the output and log(l) + m, one number a query.

Backward (ibid. alg. 4): the weights P = exp(scores - log_sum_exp) are computed again tile by tile, and
    dV = P^T dO,   dP = dO V^T,   dS = P * (dP - rowsum(dO * O)),   dQ = scaling * dS K,   dK = scaling * dS^T Q.

All arithmetic is fp32 (fp64 for fp64 inputs), whatever the inputs are.
"""

import torch

from hf_ext.ops.fake_tensors import has_values
from hf_ext.ops.mask_rule import Mask, mask_tile
from hf_ext.ops.score_bias import ScoreBias


# Queries times keys in a tile. Smaller ones pay for the Python loop, larger ones leave the second-level cache and compute
# more of what a causal mask hides; `python tests/benchmarks/attention.py --tiles` prints the times of each.
QUERY_TILE = 256
KEY_TILE = 256


def flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    mask: Mask = None,
    is_causal: bool = False,
    scaling: float | None = None,
    softcap: float | None = None,
    bias: ScoreBias | None = None,
    sinks: torch.Tensor | None = None,
    dropout: float = 0.0,
    query_tile: int = QUERY_TILE,
    key_tile: int = KEY_TILE,
) -> torch.Tensor:
    """Exactly `eager_attention`, without the (T, S) matrix.

    Args:
        query: (B, H, T, D). key: (B, K, S, D). value: (B, K, S, Dv); floating, of one dtype.
        mask: `MaskRule` (linear memory), or a bool (True = may see) or additive tensor broadcastable to (B, H, T, S).
            No gradient flows into an additive mask.
        bias: a `ScoreBias`; its weight gets a gradient. sinks: (H,), as in `eager_attention`.
        is_causal, scaling, softcap, dropout: as in `eager_attention`. The dropped weights differ from the reference's
            for the same seed, their distribution doesn't.
        query_tile, key_tile: tile sizes in tokens; the result doesn't depend on them beyond rounding.

    Returns:
        (B, H, T, Dv) in the dtype of `query`. A query that may see no key gets zeros.
    """
    if isinstance(mask, torch.Tensor) and mask.requires_grad:
        raise ValueError(
            "flash_attention: mask requires a gradient, but the tiled backward computes none for it; use eager attention"
        )
    if bias is not None and not isinstance(bias, ScoreBias):
        raise ValueError(f"flash_attention: bias is a {type(bias).__name__}, must be a ScoreBias; use eager attention")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    # the seed stands for all the dropped weights: backward draws them again, and checkpointing restores it
    seed = int(torch.randint(2**31, (1,))) if dropout > 0 else 0
    output, _ = _FlashAttention.apply(
        query,
        key,
        value,
        None if bias is None else bias.weight,
        sinks,
        mask,
        bias,
        is_causal,
        scaling,
        softcap,
        dropout,
        seed,
        query_tile,
        key_tile,
    )
    return output


class _FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        query,
        key,
        value,
        bias_weight,
        sinks,
        mask,
        bias,
        is_causal,
        scaling,
        softcap,
        dropout,
        seed,
        query_tile,
        key_tile,
    ):
        bias = None if bias is None else bias.with_weight(bias_weight.detach())
        B, H, T, D = query.shape
        K, S, Dv = key.shape[1], key.shape[2], value.shape[3]
        G = H // K
        dtype = torch.promote_types(query.dtype, torch.float32)
        output = query.new_empty(B, H, T, Dv)
        log_sum_exp = query.new_empty(B, H, T, dtype=dtype)

        for q0, q1 in _tiles(T, query_tile):
            # (B, K, G, q, D): grouped heads are rows of one product, so keys and values are never repeated
            q = query[:, :, q0:q1].to(dtype).reshape(B, K, G, q1 - q0, D) * scaling
            maximum = q.new_full((B, K, G, q1 - q0, 1), float("-inf"))
            total = q.new_zeros(B, K, G, q1 - q0, 1)
            accumulator = q.new_zeros(B, K, G, q1 - q0, Dv)
            for k0, k1 in _visible_key_tiles(q1, S, is_causal, key_tile):
                allowed = _tile_mask(mask, is_causal, q0, q1, k0, k1, B, H, K, query.device)
                if allowed is _NOTHING:
                    continue
                tile_bias = _tile_bias(bias, q0, q1, k0, k1, K)
                scores, _ = _tile_scores(q, key[:, :, None, k0:k1].to(dtype), allowed, softcap, tile_bias)
                new_maximum = torch.maximum(maximum, scores.amax(dim=-1, keepdim=True))
                # a row that has seen no key yet has maximum -inf: shift by 0 there, exp(-inf) is the 0 we want
                shift = new_maximum.masked_fill(new_maximum == float("-inf"), 0.0)
                weights = torch.exp(scores.sub_(shift))
                decay = torch.exp(maximum - shift)
                total = total * decay + weights.sum(dim=-1, keepdim=True)
                if dropout > 0:
                    weights = weights * _dropout_tile(weights, dropout, seed, q0, k0, S)
                accumulator = accumulator * decay + weights @ value[:, :, None, k0:k1].to(dtype)
                maximum = new_maximum
            if sinks is not None:  # one more key, whose value is zero
                sink = sinks.to(dtype).reshape(1, K, G, 1, 1)
                new_maximum = torch.maximum(maximum, sink)
                decay = torch.exp(maximum - new_maximum)
                total = total * decay + torch.exp(sink - new_maximum)
                accumulator, maximum = accumulator * decay, new_maximum
            seen = total > 0
            safe_total = total.masked_fill(~seen, 1.0)
            output[:, :, q0:q1] = (accumulator / safe_total).reshape(B, H, q1 - q0, Dv).to(query.dtype)
            # +inf where nothing was seen: exp(scores - inf) = 0 gives zero weights in backward too
            tile_log_sum_exp = (maximum + safe_total.log()).masked_fill(~seen, float("inf"))
            log_sum_exp[:, :, q0:q1] = tile_log_sum_exp.reshape(B, H, q1 - q0)
        return output, log_sum_exp

    @staticmethod
    def setup_context(ctx, inputs, output):
        query, key, value, bias_weight, sinks, mask, ctx.bias, *ctx.options = inputs
        ctx.mask = None if isinstance(mask, torch.Tensor) else mask
        tensor_mask = mask if isinstance(mask, torch.Tensor) else None
        ctx.save_for_backward(query, key, value, bias_weight, sinks, tensor_mask, *output)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx, output_grad, _):
        query, key, value, bias_weight, sinks, tensor_mask, output, log_sum_exp = ctx.saved_tensors
        is_causal, scaling, softcap, dropout, seed, query_tile, key_tile = ctx.options
        mask = tensor_mask if tensor_mask is not None else ctx.mask
        B, H, T, D = query.shape
        K, S, Dv = key.shape[1], key.shape[2], value.shape[3]
        G = H // K
        dtype = log_sum_exp.dtype
        bias = None if ctx.bias is None else ctx.bias.with_weight(bias_weight.detach())
        sinks_grad = None if sinks is None else torch.zeros_like(sinks, dtype=dtype)
        bias_grad = None
        if bias is not None and ctx.needs_input_grad[3]:
            bias_grad = torch.zeros_like(bias_weight, dtype=torch.promote_types(bias_weight.dtype, torch.float32))
        query_grad = query.new_zeros(B, H, T, D)
        key_grad = key.new_zeros(B, K, S, D, dtype=dtype)
        value_grad = value.new_zeros(B, K, S, Dv, dtype=dtype)

        for q0, q1 in _tiles(T, query_tile):
            q = query[:, :, q0:q1].to(dtype).reshape(B, K, G, q1 - q0, D) * scaling
            out_grad = output_grad[:, :, q0:q1].to(dtype).reshape(B, K, G, q1 - q0, Dv)
            out = output[:, :, q0:q1].to(dtype).reshape(B, K, G, q1 - q0, Dv)
            normalizer = log_sum_exp[:, :, q0:q1].reshape(B, K, G, q1 - q0, 1)
            delta = (out_grad * out).sum(dim=-1, keepdim=True)
            q_grad = torch.zeros_like(q)
            if sinks is not None:
                sink_weights = torch.exp(sinks.to(dtype).reshape(1, K, G, 1, 1) - normalizer)
                sinks_grad -= (sink_weights * delta).sum(dim=(0, 3, 4)).flatten()
            for k0, k1 in _visible_key_tiles(q1, S, is_causal, key_tile):
                allowed = _tile_mask(mask, is_causal, q0, q1, k0, k1, B, H, K, query.device)
                if allowed is _NOTHING:
                    continue
                k, v = key[:, :, None, k0:k1].to(dtype), value[:, :, None, k0:k1].to(dtype)
                scores, slope = _tile_scores(q, k, allowed, softcap, _tile_bias(bias, q0, q1, k0, k1, K))
                weights = torch.exp(scores.sub_(normalizer))
                weights_grad = out_grad @ v.transpose(-1, -2)
                dropped = weights
                if dropout > 0:
                    keep = _dropout_tile(weights, dropout, seed, q0, k0, S)
                    weights_grad, dropped = weights_grad * keep, weights * keep
                value_grad[:, :, k0:k1] += (dropped.transpose(-1, -2) @ out_grad).sum(dim=2)
                scores_grad = weights_grad.sub_(delta).mul_(weights)
                if bias_grad is not None:
                    bias.accumulate_gradient(bias_grad, scores_grad.reshape(B, H, q1 - q0, k1 - k0), (q0, k0))
                if slope is not None:
                    scores_grad = scores_grad * slope
                q_grad += scores_grad @ k
                key_grad[:, :, k0:k1] += (scores_grad.transpose(-1, -2) @ q).sum(dim=2)
            query_grad[:, :, q0:q1] = (q_grad * scaling).reshape(B, H, q1 - q0, D).to(query.dtype)
        if bias_grad is not None:
            bias_grad = bias_grad.to(bias_weight.dtype)
        if sinks_grad is not None:
            sinks_grad = sinks_grad.to(sinks.dtype)
        return query_grad, key_grad.to(key.dtype), value_grad.to(value.dtype), bias_grad, sinks_grad, *(None,) * 9


_NOTHING = object()


def _tiles(length: int, size: int) -> list[tuple[int, int]]:
    """Start and stop of each tile; a graph of symbolic lengths has but one, for it can't unroll a loop over them."""
    if torch.compiler.is_compiling():
        return [(0, length)]
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _visible_key_tiles(query_stop: int, key_length: int, is_causal: bool, key_tile: int) -> list[tuple[int, int]]:
    """Key tiles that queries before `query_stop` can reach."""
    return [(k0, k1) for k0, k1 in _tiles(key_length, key_tile) if not is_causal or k0 == 0 or k0 < query_stop]


def _tile_mask(mask, is_causal, q0, q1, k0, k1, B, H, K, device):
    """None where all is allowed, `_NOTHING` where nothing is, else bool or additive, (B|1, K|1, G|1, q, k)."""
    allowed = mask_tile(mask, q0, q1, k0, k1)
    if is_causal and (torch.compiler.is_compiling() or k1 - 1 > q0):
        causal = torch.arange(q0, q1, device=device)[:, None] >= torch.arange(k0, k1, device=device)
        if allowed is None:
            allowed = causal[None, None]
        elif allowed.dtype == torch.bool:
            allowed = allowed & causal
        else:
            allowed = allowed.masked_fill(~causal, float("-inf"))
    if allowed is None:
        return None
    if (
        allowed.dtype == torch.bool
        and not torch.compiler.is_compiling()
        and device.type == "cpu"
        and has_values(allowed)
    ):
        # looking costs a pass over the tile and saves two products; on an accelerator it would cost a wait
        if not allowed.any():
            return _NOTHING
        if allowed.all():
            return None
    if allowed.shape[1] == H and H != 1:  # a mask by head: split like the heads
        return allowed.reshape(allowed.shape[0], K, H // K, *allowed.shape[2:])
    return allowed[:, :, None]


def _tile_bias(bias, q0, q1, k0, k1, K):
    """(B|1, K, G, q, k), split like the heads; None without a bias."""
    if bias is None:
        return None
    tile = bias.tile(q0, q1, k0, k1)
    return tile.reshape(tile.shape[0], K, -1, *tile.shape[2:])


def _tile_scores(q, k, allowed, softcap, tile_bias):
    """Masked scores (B, K, G, q, k) and d(capped)/d(raw), None without softcap."""
    scores, slope = q @ k.transpose(-1, -2), None
    if softcap is not None:
        scores = torch.tanh(scores / softcap)
        slope = 1 - scores * scores
        scores = scores * softcap
    if tile_bias is not None:
        scores = scores + tile_bias
    if allowed is None:
        return scores, slope
    if allowed.dtype == torch.bool:
        return scores.masked_fill(~allowed, float("-inf")), slope
    scores = scores + allowed
    return scores.masked_fill(scores <= torch.finfo(allowed.dtype).min / 2, float("-inf")), slope


def _dropout_tile(weights, dropout, seed, q0, k0, key_length):
    """Factors 0 or 1 / (1 - dropout), the same in forward and backward for the same seed and tile."""
    generator = torch.Generator(device=weights.device).manual_seed(seed * 1_000_003 + q0 * key_length + k0)
    keep = torch.rand(weights.shape, generator=generator, device=weights.device, dtype=weights.dtype) >= dropout
    return keep.to(weights.dtype) / (1 - dropout)
