"""Dropout of every layer: torch's own, drawn by what is fastest on the machine."""

import torch
from torch import nn

from hf_ext.ops.dropout_mask import dropout


class Dropout(nn.Dropout):
    """`nn.Dropout` whose mask on the CPU is `hf_ext.ops.dropout_mask`'s; the same distribution and options."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape -> the same."""
        if not self.training or self.p == 0 or self.inplace:
            return super().forward(x)
        return dropout(x, self.p)
