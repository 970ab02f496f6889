"""Rotary position embedding as a module: positions in, cos and sin of the rotation out."""

import torch
from torch import nn

from hf_ext.ops.rotary import (
    apply_rotary,
    check_rope_parameters,
    cos_sin_by_dim,
    document_lengths,
    rope_frequencies,
    rotary_cos_sin,
)


# Rules whose frequencies change once a sequence outgrows the length that the model was trained on.
LENGTH_DEPENDENT = ("dynamic", "longrope")


class RotaryEmbedding(nn.Module):
    """Rotates pairs of query and key dims by position * frequency; Su et al. 2021, arXiv 2104.09864, eq. 34.

    Under the rules `dynamic` and `longrope` the frequencies depend on the length of the whole document. They are computed
    for each document by itself, so that padded batches and packed rows give what the single document gives
    (transformers' own modules take the longest row of the batch). A cache filled at other frequencies can't be gone on
    from: see `frequencies_change`.

    Args:
        dim: size of a head in dims; `partial_rotary_factor` of it is rotated.
        max_position_embeddings: tokens the model is made for.
        interleaved: pairs are neighbours (2i, 2i + 1) instead of halves (i, i + R/2).
        rope_parameters: transformers' dict: rope_type, rope_theta, and the rule's own keys.
    """

    def __init__(
        self,
        dim: int,
        max_position_embeddings: int = 2048,
        *,
        interleaved: bool = False,
        rope_parameters: dict | None = None,
    ):
        super().__init__()
        self.rope_parameters = {"rope_type": "default", "rope_theta": 10_000.0, **(rope_parameters or {})}
        check_rope_parameters(self.rope_parameters, dim, max_position_embeddings)
        self.dim = dim
        self.max_position_embeddings = max_position_embeddings
        self.interleaved = interleaved
        self.depends_on_length = self.rope_parameters["rope_type"] in LENGTH_DEPENDENT
        inv_freq, self.attention_scaling = self.frequencies()
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def _apply(self, fn, recurse: bool = True):
        # half() and to(bfloat16) move the buffer but must not round it: 8 bits can't tell far positions apart
        super()._apply(fn, recurse)
        if self.inv_freq.dtype != torch.float32:
            self.inv_freq = self.frequencies()[0].to(self.inv_freq.device)
        return self

    def frequencies(self, seq_len: int | torch.Tensor | None = None) -> tuple[torch.Tensor, float]:
        """Inverse frequencies in radians a token, fp32, (R/2,) or (*seq_len.shape, R/2), and the factor on cos and sin."""
        return rope_frequencies(
            head_dim=self.dim,
            max_position_embeddings=self.max_position_embeddings,
            seq_len=seq_len,
            **self.rope_parameters,
        )

    def frequencies_change(self, cached_lengths: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Bool, by row: whether a document that has grown from `cached_lengths` to `lengths` tokens turns anew from its
        first token on, so that cached keys (and all that was computed from them) no longer hold."""
        rule = self.rope_parameters["rope_type"]
        if rule == "dynamic":
            limit = self.max_position_embeddings
            return cached_lengths.clamp(min=limit) != lengths.clamp(min=limit)
        if rule == "longrope":
            limit = self.rope_parameters["original_max_position_embeddings"]
            return (cached_lengths > limit) != (lengths > limit)
        return torch.zeros_like(lengths, dtype=torch.bool)

    def forward(
        self, position_ids: torch.Tensor, *, dtype: torch.dtype = torch.float32
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin, (B, T, R) of `dtype`, for positions (B, T)."""
        inv_freq = self.inv_freq
        if self.depends_on_length:
            inv_freq, _ = self.frequencies(document_lengths(position_ids))
        return rotary_cos_sin(position_ids, inv_freq, self.attention_scaling, self.interleaved, dtype)


class Rotation(nn.Module):
    """Turns queries and keys: a module without weights, so that other kernels can stand in for it alone.

    Args:
        interleaved: as in `RotaryEmbedding`.
    """

    def __init__(self, *, interleaved: bool = False):
        super().__init__()
        self.interleaved = interleaved

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries (B, H, T, D) and keys (B, K, T, D), their first R dims turned by cos and sin (B or 1, T, R)."""
        return apply_rotary(query, key, cos, sin, self.interleaved)

    def extra_repr(self) -> str:
        return f"interleaved={self.interleaved}"


class AxialRotaryEmbedding(RotaryEmbedding):
    """Rotary positions in two dimensions: half of the pairs turn with the row, half with the column; Heo et al. 2024,
    arXiv 2403.13298, eq. 4. Scores then depend on how many rows and how many columns apart two tokens are.

    Args:
        dim: size of a head, a multiple of 4; rows and columns have the frequencies of a head of dim / 2 each.
        grid_width: columns of the image whose tokens come row by row; needed where positions are single numbers.
        max_position_embeddings: rows, or columns, the model is made for. Others: as in `RotaryEmbedding`.
    """

    def __init__(
        self,
        dim: int,
        grid_width: int | None = None,
        max_position_embeddings: int = 2048,
        *,
        interleaved: bool = False,
        rope_parameters: dict | None = None,
    ):
        check_axial(dim, grid_width, rope_parameters)
        super().__init__(dim // 2, max_position_embeddings, interleaved=interleaved, rope_parameters=rope_parameters)
        self.grid_width = grid_width

    def forward(
        self, position_ids: torch.Tensor, *, dtype: torch.dtype = torch.float32
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin, (B, T, R) of `dtype`, for positions row * grid_width + column (B, T), or row and column (B, T, 2)."""
        if position_ids.ndim == 2:
            if self.grid_width is None:
                raise ValueError(
                    "position_ids: single numbers need grid_width; give it, or (row, column) for each token"
                )
            position_ids = torch.stack((position_ids // self.grid_width, position_ids % self.grid_width), dim=-1)
        angles = position_ids[..., None].to(torch.float32) * self.inv_freq  # (B, T, 2, R/4)
        return cos_sin_by_dim(angles.flatten(-2), self.attention_scaling, self.interleaved, dtype)


def check_axial(dim: int, grid_width: int | None, rope_parameters: dict | None) -> None:
    """Raises ValueError for what can't turn in two dimensions."""
    if dim % 4:
        raise ValueError(f"head_dim={dim}: must be a multiple of 4 to turn with rows and columns")
    if grid_width is not None and grid_width < 1:
        raise ValueError(f"rope_grid_width={grid_width}: must be at least 1")
    rule = (rope_parameters or {}).get("rope_type", "default")
    if rule in LENGTH_DEPENDENT:
        raise ValueError(f"rope_type={rule!r}: depends on the length of a row of tokens; a grid has none, use another")


RoPE = RotaryEmbedding
