"""What torch's flex attention (transformers' `flex_attention`) needs around it to give our numbers, or one line.

On a CPU torch (2.13) has its forward pass only, and the C++ that it compiles doesn't build once rows with padding come in
two lengths, as they do with every generated token. There it runs uncompiled: the same function, whose scores exist whole.

B batch, H query heads, K key/value heads, T queries, S keys, D head dim.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask


MIN_GPU_HEAD_DIM = 16


def too_narrow(device: torch.device, *head_dims: int) -> str | None:
    """Why heads of these sizes have no kernel on the device, in some words; None where they have one."""
    if device.type != "cuda" or min(head_dims) >= MIN_GPU_HEAD_DIM:
        return None
    return f"heads of {min(head_dims)} numbers on a GPU, at least {MIN_GPU_HEAD_DIM} are needed"


def uncompiled_on_cpu(device: torch.device) -> AbstractContextManager:
    """Within it, what transformers compiles for flex attention runs uncompiled if `device` is a CPU."""
    if device.type != "cpu" or torch.compiler.is_compiling():
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def with_flex_limits(attend: Callable) -> Callable:
    """`attend`, transformers' flex attention, as it can run on the device of what it gets.

    Raises, when it is called:
        ValueError: on a CPU, tensors that need a gradient, or attention sinks; on a GPU, heads below 16 numbers.
    """

    def attend_where_it_can(module, query, key, value, attention_mask, **kwargs):
        narrow = too_narrow(query.device, query.shape[-1], value.shape[-1])
        if narrow is not None:
            raise ValueError(
                f"attn_implementation='flex_attention' does not support {narrow}; choose sdpa, hfx_tiled or eager"
            )
        if query.device.type == "cpu":
            if torch.is_grad_enabled() and any(states.requires_grad for states in (query, key, value)):
                raise ValueError(
                    "attn_implementation='flex_attention' has no backward on a CPU; train with sdpa, hfx_tiled or eager, "
                    "or compute under torch.no_grad()"
                )
            if kwargs.get("s_aux") is not None:
                raise ValueError(
                    "attn_implementation='flex_attention' does not support attention_sinks=True on a CPU; choose "
                    "hfx_tiled or eager"
                )
        with uncompiled_on_cpu(query.device):
            return attend(module, query, key, value, attention_mask, **kwargs)

    return attend_where_it_can


def flex_mask(mask: torch.Tensor, batch_size: int) -> BlockMask:
    """A ready bool mask (B or 1, H or 1, T, S) as flex attention takes it; as a tensor it would be added to the scores.

    Raises:
        ValueError: an additive mask, of which transformers' wrapper reads the first head only.
    """
    if mask.dtype != torch.bool:
        raise ValueError(
            f"attention_mask: {str(mask.dtype).removeprefix('torch.')}, attn_implementation='flex_attention' takes no "
            "additive masks; give a bool one, or choose eager, sdpa or hfx_tiled"
        )
    rows, heads = mask.shape[:2]

    def visible(batch, head, query, key):
        return mask[batch if rows > 1 else 0, head if heads > 1 else 0, query, key]

    with uncompiled_on_cpu(mask.device):
        return create_block_mask(
            visible,
            batch_size if rows > 1 else None,
            heads if heads > 1 else None,
            *mask.shape[-2:],
            device=mask.device,
        )


def check_flex_cache(attention: str, past_key_values) -> None:
    """Raises ValueError for flex attention over a static cache: its mask would ask how many tokens are cached when they have
    become more, and let tokens see what comes after them."""
    if attention == "flex_attention" and past_key_values is not None and past_key_values.is_compileable:
        raise ValueError(
            "past_key_values: attn_implementation='flex_attention' does not support a static cache; use the default one, "
            "or sdpa, hfx_tiled or eager"
        )
