"""The matrix of every layer: torch's own, multiplied by what is fastest on the machine."""

import torch
from torch import nn

from hf_ext.ops.matrix_product import linear


class Linear(nn.Linear):
    """`nn.Linear` whose fp32 product on the CPU is `hf_ext.ops.matrix_product`'s; the same number, names and options."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features)."""
        return linear(x, self.weight, self.bias)
