"""Positions other than rotary: added to the embeddings, or to the attention scores."""

import torch
from torch import nn

from hf_ext.ops.score_bias import ScoreBias, alibi_slopes


class LearnedPositions(nn.Embedding):
    """A vector for each position; Gehring et al. 2017, arXiv 1705.03122; GPT-2, BERT.

    Args:
        max_position_embeddings: positions there are. d_model: size of a vector.
    """

    def __init__(self, max_position_embeddings: int, d_model: int):
        super().__init__(max_position_embeddings, d_model)


class SinusoidalPositions(nn.Module):
    """sin and cos of position / 10000^(2i / d_model) in dims 2i and 2i + 1; Vaswani et al. 2017, arXiv 1706.03762, sec. 3.5.

    Args:
        d_model: size of a vector.
        interleaved: False puts all sines first and all cosines after them, as the paper's own code and Marian do.
    """

    def __init__(self, d_model: int, *, interleaved: bool = True):
        super().__init__()
        self.d_model = d_model
        self.interleaved = interleaved

    def forward(self, position_ids: torch.Tensor) -> torch.Tensor:
        """(B, T) -> (B, T, d_model), fp32."""
        exponents = torch.arange(0, self.d_model, 2, device=position_ids.device, dtype=torch.float32) / self.d_model
        angles = position_ids[..., None].float() / 10_000**exponents
        if not self.interleaved:
            return torch.cat((angles.sin(), angles.cos()), dim=-1)[..., : self.d_model]
        return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)[..., : self.d_model]


class AlibiBias(nn.Module):
    """score - slope_h * |key position - query position|; Press et al. 2021, arXiv 2108.12409.

    Args:
        num_heads: H.
        is_causal: whether keys after the query are masked anyway: their bias then is positive, as in BLOOM, and in the
            past it is the same.
    """

    def __init__(self, num_heads: int, *, is_causal: bool = True):
        super().__init__()
        self.num_heads = num_heads
        self.is_causal = is_causal

    def forward(self, query_positions: torch.Tensor, key_positions: torch.Tensor) -> ScoreBias:
        """Positions (B or 1, T) and (B or 1, S) -> the bias of an attention call."""
        slopes = alibi_slopes(self.num_heads).to(query_positions.device)
        return ScoreBias(slopes, query_positions, key_positions, bidirectional=not self.is_causal)


class RelativeBias(nn.Module):
    """score + a learnt number for each head and bucket of distances; T5, Raffel et al. 2019, arXiv 1910.10683, sec. 2.1.

    Args:
        num_heads: H. num_buckets: of distances. max_distance: tokens from which on all share the last bucket.
        bidirectional: whether keys after the query have buckets of their own.
    """

    def __init__(self, num_heads: int, num_buckets: int = 32, max_distance: int = 128, *, bidirectional: bool = False):
        super().__init__()
        self.max_distance, self.bidirectional = max_distance, bidirectional
        self.relative_attention_bias = nn.Embedding(num_buckets, num_heads)

    def forward(self, query_positions: torch.Tensor, key_positions: torch.Tensor) -> ScoreBias:
        """Positions (B or 1, T) and (B or 1, S) -> the bias of an attention call."""
        table = self.relative_attention_bias.weight.T  # (H, num_buckets)
        return ScoreBias(table, query_positions, key_positions, self.max_distance, self.bidirectional)
