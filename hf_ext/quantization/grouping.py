"""Which numbers of a matrix share a scale: all of them, those of an output channel, or neighbours within a channel.

O output channels, I inputs, G groups of n numbers each.
"""

import torch

from hf_ext.models.configuration_choices import check_choice


GRANULARITIES = ("tensor", "channel", "group")


def in_groups(weight: torch.Tensor, granularity: str = "channel", group_size: int | None = None) -> torch.Tensor:
    """(O, I) -> (G, n), a view: a row is what shares a scale.

    "tensor": G = 1. "channel": G = O, n = I. "group": n = group_size, G = O * I / n; a group lies within one channel, the
    inputs n j to n (j + 1) - 1 of it. Small groups follow the weights more closely and cost a scale each; Dettmers &
    Zettlemoyer 2023, arXiv 2212.09720.

    Raises:
        ValueError: an unknown granularity, or a group size that doesn't divide I or has no effect.
    """
    check_choice("granularity", granularity, GRANULARITIES)
    if granularity != "group":
        if group_size is not None:
            raise ValueError(f"group_size={group_size}: has no effect with granularity={granularity!r}; leave it out")
        return weight.reshape(1 if granularity == "tensor" else weight.shape[0], -1)
    check_group_size(group_size, weight.shape[-1])
    return weight.reshape(-1, group_size)


def check_group_size(group_size: int | None, in_features: int, where: str = "") -> None:
    """Raises ValueError, one line, unless groups of that size make up a row of `in_features`."""
    if group_size is None or group_size < 1 or in_features % group_size:
        raise ValueError(
            f"group_size={group_size}: must divide the {in_features} inputs of {where or 'the matrix'}; "
            "choose another one, or a method that works by channel"
        )
