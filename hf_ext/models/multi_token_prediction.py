"""Multi-token prediction: in training each token also predicts the ones after the next, by a chain of further blocks.

    h_k = Block_k(W_k [RMSNorm(Emb(t_{i+k})); RMSNorm(h_{k-1})])      DeepSeek-V3, arXiv 2412.19437, eq. 21, 22
    p_k = head(RMSNorm(h_k)) predicts t_{i+k+1}                        eq. 23; embedding and head are the model's own
    loss += weight / D * sum over k of the mean loss of p_k            eq. 24, 25

The idea, with parallel heads: Gloeckle et al. 2024, arXiv 2404.19737. B batch, T tokens, d d_model, D depth of the chain.
"""

from collections.abc import Callable

import torch
from torch import nn

from hf_ext.layers.linear import Linear


class MultiTokenLayer(nn.Module):
    """One more token: joins a token's states with the embedding of the token that is known by then."""

    def __init__(self, d_model: int, block: nn.Module, norm: Callable[[], nn.Module]):
        super().__init__()
        self.enorm, self.hnorm = norm(), norm()
        self.eh_proj = Linear(2 * d_model, d_model, bias=False)
        self.mtp_block = block
        self.post_norm = norm()

    def forward(self, embeddings: torch.Tensor, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        """Two (B, T, d) -> (B, T, d), normed for the head and for the next of the chain."""
        joined = torch.cat((self.enorm(embeddings), self.hnorm(hidden_states)), dim=-1)
        return self.post_norm(self.mtp_block(self.eh_proj(joined), **kwargs))


class MultiTokenPrediction(nn.Module):
    """The chain.

    Args:
        d_model: d. blocks: a transformer block for each further token. norm: makes a new norm over d at each call.
    """

    def __init__(self, d_model: int, blocks: list[nn.Module], norm: Callable[[], nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(MultiTokenLayer(d_model, block, norm) for block in blocks)

    def forward(self, embeddings: torch.Tensor, hidden_states: torch.Tensor, **kwargs) -> list[torch.Tensor]:
        """States (B, T, d) of depth 1, 2, …, from token embeddings and the model's last states, (B, T, d) each.

        What the last tokens of a document read beyond its end is seen by none that has a target.
        """
        found = []
        for layer in self.layers:
            embeddings = nn.functional.pad(embeddings, (0, 0, 0, 1))[:, 1:]  # of the token after
            hidden_states = layer(embeddings, hidden_states, **kwargs)
            found.append(hidden_states)
        return found
