"""The position-wise half of a block: plain and gated multi-layer perceptrons, and their activations by name."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from hf_ext.layers.dropout import Dropout
from hf_ext.layers.joint_projections import joint_product
from hf_ext.layers.linear import Linear
from hf_ext.ops.kernel_choice import takes_triton
from hf_ext.ops.recomputed import recomputed


def relu_squared(x: torch.Tensor) -> torch.Tensor:
    """max(x, 0)²; So et al. 2021 (Primer), arXiv 2109.08668, sec. 4."""
    return nn.functional.relu(x).square()


# transformers' names. `gelu` is x * Phi(x), Hendrycks & Gimpel 2016, arXiv 1606.08415; `gelu_pytorch_tanh` (also known as
# `gelu_new`) its tanh approximation; `silu` is x * sigmoid(x), also known as swish.
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": nn.functional.gelu,
    "gelu_new": partial(nn.functional.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(nn.functional.gelu, approximate="tanh"),
    "relu": nn.functional.relu,
    "relu2": relu_squared,
    "silu": nn.functional.silu,
    "tanh": torch.tanh,
}
# those of which the gated form is a Triton kernel
IN_TRITON = {ACTIVATIONS[name]: name for name in ("silu", "gelu", "gelu_pytorch_tanh", "relu")}
IN_TRITON[ACTIVATIONS["gelu_new"]] = "gelu_pytorch_tanh"


class FeedForward(nn.Module):
    """down(activation(up(x))); Vaswani et al. 2017, arXiv 1706.03762, eq. 2.

    Args:
        d_model: size of the input and output.
        intermediate_size: size between the two matrices.
        activation: name in `ACTIVATIONS`.
        bias: whether both matrices have one.
        dropout: on what goes into the second matrix, in training.
    """

    def __init__(
        self,
        d_model: int,
        intermediate_size: int,
        *,
        activation: str = "gelu",
        bias: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.up_proj = Linear(d_model, intermediate_size, bias=bias)
        self.down_proj = Linear(intermediate_size, d_model, bias=bias)
        self.down_proj.is_residual_output = True  # read where weights are initialised
        self.activation = ACTIVATIONS[activation]
        self.dropout = Dropout(dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, T, d_model) -> (B, T, d_model)."""
        return self.down_proj(self.dropout(self.activation(self.up_proj(hidden_states))))


class GatedFeedForward(nn.Module):
    """down(activation(gate(x)) * up(x)); Shazeer 2020, arXiv 2002.05202: SwiGLU with silu, GeGLU with gelu (eq. 6).

    Args: as `FeedForward`.
    """

    same_input = (("gate_proj", "up_proj"),)  # see `joint_projections.py`

    def __init__(
        self,
        d_model: int,
        intermediate_size: int,
        *,
        activation: str = "silu",
        bias: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.gate_proj = Linear(d_model, intermediate_size, bias=bias)
        self.up_proj = Linear(d_model, intermediate_size, bias=bias)
        self.down_proj = Linear(intermediate_size, d_model, bias=bias)
        self.down_proj.is_residual_output = True  # read where weights are initialised
        self.activation = GatedActivation(activation)
        self.dropout = Dropout(dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, T, d_model) -> (B, T, d_model)."""
        gate, up = joint_product(hidden_states, (self.gate_proj, self.up_proj))
        return self.down_proj(self.dropout(self.activation(gate, up)))


class GatedActivation(nn.Module):
    """activation(gate) * up: a module without weights, so that other kernels can stand in for it alone.

    Args:
        name: in `ACTIVATIONS`.
    """

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def forward(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """(..., I), (..., I) -> (..., I)."""
        return gated(ACTIVATIONS[self.name], gate, up)

    def extra_repr(self) -> str:
        return self.name


def gated(activation: Callable[[torch.Tensor], torch.Tensor], gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """activation(gate) * up; for the backward pass gate and up alone are kept."""
    if takes_triton(gate, up) and activation in IN_TRITON:
        from hf_ext.ops.triton.triton_gated import triton_gated

        return triton_gated(IN_TRITON[activation], gate, up)

    def product(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        activated = activation(gate)
        return activated * up if torch.is_grad_enabled() else activated.mul_(up)

    return recomputed(product, gate, up)


FEED_FORWARDS: dict[str, type[nn.Module]] = {"plain": FeedForward, "gated": GatedFeedForward}
