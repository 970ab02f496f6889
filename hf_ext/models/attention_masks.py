"""Which token may see which, in the form that the chosen attention implementation takes: transformers' mask functions.

B rows, T tokens, S keys.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import nn
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    and_masks,
    bidirectional_mask_function,
    create_causal_mask,
    create_sliding_window_causal_mask,
)

from hf_ext.models.pretrained_model import can_look_at
from hf_ext.ops.fake_tensors import has_values
from hf_ext.ops.flex_attention import check_flex_cache, uncompiled_on_cpu
from hf_ext.ops.rotary import document_indices


CAUSAL_MASKS = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}


def causal_masks(
    config,
    kinds: list[str],
    inputs_embeds: torch.Tensor,
    attention_mask,
    past_key_values,
    position_ids: torch.Tensor,
    prefix_mask: torch.Tensor | None = None,
) -> dict:
    """Layer type -> mask of a stack in which a token sees itself and what came before in its document.

    Args:
        kinds: the layer types that there are.
        attention_mask: the 2-D padding mask, a ready 4-D one, or what generate has made already: a dict by layer type.
        prefix_mask: (B, columns of the cache and of the tokens at hand, or fewer) bool, True for tokens that see each other
            in both directions; Liu et al. 2018, arXiv 1801.10198; Raffel et al. 2019, arXiv 1910.10683, sec. 3.2.1.
    """
    check_flex_cache(config._attn_implementation, past_key_values)
    if prefix_mask is not None:
        check_prefix_mask(config, prefix_mask, inputs_embeds, attention_mask, past_key_values)
        if past_key_values is not None and int(past_key_values.get_seq_length()) >= prefix_mask.shape[1]:
            prefix_mask = None  # all of it is cached: what comes now sees it anyway
    if isinstance(attention_mask, dict):
        return attention_mask
    masks = {}
    with _mask_context(config, inputs_embeds):
        for kind in kinds:
            both_ways = None
            if prefix_mask is not None:
                window = config.sliding_window if kind == "sliding_attention" else None
                both_ways = _prefix_rule(_whole_prefix(prefix_mask, inputs_embeds, past_key_values), window)
            masks[kind] = CAUSAL_MASKS[kind](
                config=config,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                position_ids=position_ids,
                **({} if both_ways is None else {"or_mask_function": both_ways}),
            )
    return masks


def bidirectional_masks(
    config,
    kinds: list[str],
    inputs_embeds: torch.Tensor,
    attention_mask,
    position_ids: torch.Tensor,
    past_key_values=None,
) -> dict:
    """Layer type -> mask of a stack in which a token sees all of its document, or its window to both sides.

    Args: as in `causal_masks`. Documents are told apart by positions that restart, where there is no attention_mask.
    """
    check_flex_cache(config._attn_implementation, past_key_values)
    windows = {kind: config.sliding_window if kind == "sliding_attention" else None for kind in kinds}
    S = inputs_embeds.shape[1] + (0 if past_key_values is None else past_key_values.get_seq_length())
    is_packed = attention_mask is None and past_key_values is None
    documents = documents_by_token(position_ids, inputs_embeds.shape[0]) if is_packed else None
    with _mask_context(config, inputs_embeds):
        return {
            kind: _make_mask(config, inputs_embeds, S, attention_mask, documents, documents, window)
            for kind, window in windows.items()
        }


def cross_attention_mask(
    config,
    inputs_embeds: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    encoder_attention_mask,
    position_ids: torch.Tensor | None = None,
    encoder_position_ids: torch.Tensor | None = None,
):
    """The mask by which the decoder's tokens (B, T, d) see the encoder's (B, S, d): all that aren't padding.

    Args:
        encoder_attention_mask: (B, S) padding mask, or a ready 4-D one.
        position_ids, encoder_position_ids: given for packed rows without padding: the n-th document of the one side belongs
            to the n-th of the other.
    """
    own = others = None
    if encoder_attention_mask is None and position_ids is not None and encoder_position_ids is not None:
        others = documents_by_token(encoder_position_ids, encoder_hidden_states.shape[0])
        own = document_indices(position_ids).expand(inputs_embeds.shape[0], -1)
        if others is None and bool((own > 0).any()):
            others = torch.zeros(encoder_hidden_states.shape[:2], dtype=torch.long, device=own.device)
    with _mask_context(config, inputs_embeds):
        S = encoder_hidden_states.shape[1]
        return _make_mask(config, inputs_embeds, S, encoder_attention_mask, own, others, None)


def _make_mask(
    config,
    inputs_embeds: torch.Tensor,
    key_length: int,
    attention_mask,
    documents: torch.Tensor | None,
    key_documents: torch.Tensor | None,
    window: int | None,
):
    """A mask without a causal order, by transformers' interface for the implementation at hand."""
    if attention_mask is not None and not (isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2):
        return attention_mask
    if attention_mask is not None:
        attention_mask = attention_mask.to(device=inputs_embeds.device, dtype=torch.bool)
    rule = bidirectional_mask_function
    if window is not None:
        rule = and_masks(rule, _window_rule(window))
    if key_documents is not None:
        rule = and_masks(rule, _same_document_rule(documents, key_documents))
    return ALL_MASK_ATTENTION_FUNCTIONS[config._attn_implementation](
        batch_size=inputs_embeds.shape[0],
        q_length=inputs_embeds.shape[1],
        kv_length=key_length,
        q_offset=max(0, key_length - inputs_embeds.shape[1]) if window is not None else 0,
        kv_offset=0,
        mask_function=rule,
        attention_mask=attention_mask,
        local_size=window,
        allow_is_causal_skip=False,
        allow_is_bidirectional_skip=key_documents is None,
        use_vmap=False,
        dtype=inputs_embeds.dtype,
        config=config,
        device=inputs_embeds.device,
    )


def documents_by_token(position_ids: torch.Tensor, batch_size: int) -> torch.Tensor | None:
    """(B, T) number of each token's document; None where every row holds one (not looked at where there are no values)."""
    documents = document_indices(position_ids).expand(batch_size, -1)
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or not has_values(documents)
    if not traced and not bool((documents > 0).any()):
        return None
    return documents


def _window_rule(window: int) -> Callable:
    def within(batch, head, query, key):
        return abs(query - key) < window

    return within


def _same_document_rule(documents: torch.Tensor, key_documents: torch.Tensor) -> Callable:
    def same(batch, head, query, key):
        return documents[batch, query] == key_documents[batch, key]

    return same


def _prefix_rule(prefix: torch.Tensor, window: int | None) -> Callable:
    def both_in_prefix(batch, head, query, key):
        visible = prefix[batch, query] & prefix[batch, key]
        return visible if window is None else visible & ((query - key).abs() < window)

    return both_in_prefix


def _whole_prefix(prefix_mask: torch.Tensor, inputs_embeds: torch.Tensor, past_key_values) -> torch.Tensor:
    """The prefix mask with a column for each key that a mask may ask about."""
    columns = inputs_embeds.shape[1]
    if past_key_values is not None:
        length, offset = past_key_values.get_mask_sizes(columns, 0)
        columns = max(length + offset, int(past_key_values.get_seq_length()) + columns)
    prefix_mask = prefix_mask.to(device=inputs_embeds.device, dtype=torch.bool)
    return nn.functional.pad(prefix_mask, (0, max(0, columns - prefix_mask.shape[1])))


def check_prefix_mask(config, prefix_mask: torch.Tensor, inputs_embeds, attention_mask, past_key_values) -> None:
    """Raises ValueError, one line, where a prefix couldn't be seen in both directions."""
    B, T = inputs_embeds.shape[:2]
    past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
    if prefix_mask.ndim != 2 or prefix_mask.shape[0] != B or prefix_mask.shape[1] > past + T:
        raise ValueError(f"prefix_mask: shape {tuple(prefix_mask.shape)} must be {(B, past + T)}, one value a token")
    if "flash" in config._attn_implementation:
        raise ValueError(
            f"prefix_mask: attn_implementation={config._attn_implementation!r} knows no such mask; choose eager, sdpa, "
            "flex_attention or hfx_tiled"
        )
    if past < prefix_mask.shape[1] and (isinstance(attention_mask, dict) or getattr(attention_mask, "ndim", 2) != 2):
        raise ValueError("prefix_mask: given with a mask that is ready, as of a static cache; leave one of them out")
    if 0 < past < prefix_mask.shape[1] and can_look_at(prefix_mask):
        prefix = prefix_mask != 0
        torn = prefix[:, :past].any(dim=-1) & prefix[:, past:].any(dim=-1)
        if torn.any():
            raise ValueError(
                f"prefix_mask: row {int(torn.nonzero()[0])} has a prefix that begins in the cache, whose {past} tokens "
                "haven't seen the rest of it; pass all of it in one call"
            )


def _mask_context(config, inputs_embeds: torch.Tensor):
    flex = config._attn_implementation == "flex_attention"
    return uncompiled_on_cpu(inputs_embeds.device) if flex else nullcontext()
