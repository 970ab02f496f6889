"""Computing nothing for padding: the real tokens of a batch side by side in one row, padded again only inside attention.

Everything in a stack but attention looks at one token at a time, so that padding costs time there and changes nothing. A
stack unpads once at its bottom, (B, T, d) -> (1, N, d), and pads once at its top; its attention calls get their queries,
keys and values padded, and so run on every implementation, with the masks and biases of the padded batch. Flash attention
kernels take the row as it is, and where its documents begin.

B rows, T tokens a row, N real tokens of all rows, H heads, D head dim.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers.utils.generic import is_flash_attention_requested


@dataclass(frozen=True)
class RealTokens:
    """Where the real tokens of a padded batch are. indices: (N,) int64 into its B * T tokens, ascending. lengths: (B,)."""

    indices: torch.Tensor
    lengths: torch.Tensor
    batch_size: int
    num_columns: int

    def gather(self, padded: torch.Tensor) -> torch.Tensor:
        """(B, T, ...) -> (1, N, ...)."""
        return _Gather.apply(padded.flatten(0, 1), self.indices)[None]

    def scatter(self, tokens: torch.Tensor) -> torch.Tensor:
        """(1, N, ...) -> (B, T, ...), zeros at padding."""
        rows = _Scatter.apply(tokens[0], self.indices, self.batch_size * self.num_columns)
        return rows.unflatten(0, (self.batch_size, -1))


class _Gather(torch.autograd.Function):
    """x[indices]. The indices differ from one another: the gradient is copied to its places, where torch's own, which can't
    know that, adds it up one by one."""

    @staticmethod
    def forward(ctx, x, indices):
        ctx.save_for_backward(indices)
        ctx.length = x.shape[0]
        return x.index_select(0, indices)

    @staticmethod
    def backward(ctx, gradient):
        return _Scatter.apply(gradient, ctx.saved_tensors[0], ctx.length), None


class _Scatter(torch.autograd.Function):
    """y[indices] = x, zeros elsewhere."""

    @staticmethod
    def forward(ctx, x, indices, length):
        ctx.save_for_backward(indices)
        return x.new_zeros(length, *x.shape[1:]).index_copy_(0, indices, x)

    @staticmethod
    def backward(ctx, gradient):
        return _Gather.apply(gradient, ctx.saved_tensors[0]), None, None


def find_real_tokens(attention_mask: torch.Tensor | None) -> RealTokens | None:
    """The real tokens that a padding mask (B, T) names; None where there is no padding, or nothing to be known of it: no
    2-D mask, or a graph that is traced, whose shapes can't depend on values."""
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.ndim != 2:
        return None
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or type(attention_mask) is not torch.Tensor:
        return None
    real = attention_mask != 0
    if bool(real.all()):
        return None
    return RealTokens(real.flatten().nonzero().flatten(), real.sum(dim=-1), *real.shape)


def unpad_inputs(inputs_by_kind: dict[str, dict], tokens: RealTokens, attention: str) -> dict[str, dict]:
    """What the blocks of a padded batch are called with, as they take it on its real tokens alone.

    Args:
        inputs_by_kind: by layer type, see `attention_inputs`. attention: the implementation's name.
    """
    if is_flash_attention_requested(requested_attention_implementation=attention):
        return {kind: _for_flash(inputs, tokens) for kind, inputs in inputs_by_kind.items()}
    return {
        kind: inputs
        | {
            "position_embeddings": _gather_angles(inputs["position_embeddings"], tokens),
            "attention_interface": with_padding(inputs["attention_interface"], tokens, tokens),
        }
        for kind, inputs in inputs_by_kind.items()
    }


def with_padding(attend: Callable, queries: RealTokens | None, keys: RealTokens | None) -> Callable:
    """`attend`, called with real tokens side by side, (1, H, N, D), where it wants padded rows, (B, H, T, D).

    Args:
        queries, keys: of which batch they are the real tokens; None for those that are padded rows already.
    """

    def attend_padded(module, query, key, value, attention_mask, **kwargs):
        query, key, value = _pad_heads(query, queries), _pad_heads(key, keys), _pad_heads(value, keys)
        output, weights = attend(module, query, key, value, attention_mask, **kwargs)  # (B, T, H, D)
        return (output if queries is None else queries.gather(output)), weights

    return attend_padded


def _pad_heads(states: torch.Tensor, tokens: RealTokens | None) -> torch.Tensor:
    """(1, H, N, D) -> (B, H, T, D)."""
    return states if tokens is None else tokens.scatter(states.transpose(1, 2)).transpose(1, 2)


def _gather_angles(angles: tuple | None, tokens: RealTokens) -> tuple | None:
    """cos and sin (B or 1, T, R) -> (1, N, R)."""
    if angles is None:
        return None
    return tuple(tokens.gather(part.expand(tokens.batch_size, -1, -1)) for part in angles)


def _for_flash(inputs: dict, tokens: RealTokens) -> dict:
    starts = torch.nn.functional.pad(tokens.lengths.cumsum(0), (1, 0)).to(torch.int32)
    longest = int(tokens.lengths.max())
    positions = inputs["position_ids"].expand(tokens.batch_size, -1)
    return inputs | {
        "attention_mask": None,
        "position_ids": tokens.gather(positions),
        "position_embeddings": _gather_angles(inputs["position_embeddings"], tokens),
        "cu_seq_lens_q": starts,
        "cu_seq_lens_k": starts,
        "max_length_q": longest,
        "max_length_k": longest,
    }
