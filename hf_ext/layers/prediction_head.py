"""What stands between an encoder's hidden states and its predictions: one more layer over each token."""

from collections.abc import Callable

import torch
from torch import nn

from hf_ext.layers.feed_forward import ACTIVATIONS
from hf_ext.layers.linear import Linear


class PredictionHead(nn.Module):
    """norm(activation(W x + b)); Devlin et al. 2018, arXiv 1810.04805 (their masked-LM head and, with tanh, their pooler).

    Args:
        d_model: size of the input and output.
        activation: name in `ACTIVATIONS`.
        bias: whether the matrix has one.
        norm: makes the norm; None for none.
    """

    def __init__(
        self, d_model: int, *, activation: str, bias: bool = True, norm: Callable[[], nn.Module] | None = None
    ):
        super().__init__()
        self.dense = Linear(d_model, d_model, bias=bias)
        self.activation = ACTIVATIONS[activation]
        self.norm = nn.Identity() if norm is None else norm()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., d_model) -> (..., d_model)."""
        return self.norm(self.activation(self.dense(hidden_states)))
