"""What an attention call needs besides the hidden states: positions, masks and biases, and whether a cache still holds."""

import torch
from torch import nn
from transformers.cache_utils import DynamicLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_ext.models.pretrained_model import can_look_at
from hf_ext.ops.backends import BACKENDS, eager_attention_forward, with_equal_head_dims
from hf_ext.ops.eager_attention import causal_mask
from hf_ext.ops.flex_attention import flex_mask, with_flex_limits
from hf_ext.ops.score_bias import ScoreBias


def default_position_ids(attention_mask, past_key_values, num_tokens: int, device) -> torch.Tensor:
    """(1 or B, T): tokens counted from the first unmasked one, so that padding on the left changes nothing."""
    past = past_key_values.get_seq_length() if past_key_values is not None else 0
    columns = torch.arange(num_tokens, device=device) + past  # a mask as long as a static cache has more
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0).to(device)[:, columns]
    return columns.unsqueeze(0)


def attention_inputs(
    config, masks: dict, biases: dict, rotary_emb: nn.ModuleDict, inputs_embeds, position_ids, *, is_causal: bool = True
) -> dict[str, dict]:
    """Layer type -> what its blocks are called with besides the hidden states: mask, bias, rotation, backend.

    Args:
        masks: by layer type, as the attention implementation takes them. biases: `ScoreBias`es by layer type, or empty.
        is_causal: what the layers do where there is no mask.
    """
    implementation = config._attn_implementation
    angles = {kind: rope(position_ids, dtype=inputs_embeds.dtype) for kind, rope in rotary_emb.items()}
    attend = attention_function(implementation)
    if config.attention_type != "multi_head":  # values are of another size than queries and keys
        attend = with_equal_head_dims(implementation, attend)
    return {
        kind: {
            **join_mask_and_bias(implementation, mask, biases.get(kind), inputs_embeds, is_causal=is_causal),
            "position_embeddings": angles.get(kind),
            "position_ids": position_ids,
            "attention_interface": attend,
        }
        for kind, mask in masks.items()
    }


def attention_function(implementation: str):
    """The call of an attention implementation, which refuses what it would compute wrongly."""
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
    if implementation == "flex_attention":
        return with_flex_limits(attend)
    if implementation.startswith("paged|"):
        return _with_paged_cache(attend, implementation)
    return attend


def _with_paged_cache(attend, implementation: str):
    """`attend`, refused without the paged cache: transformers before 5.22 then lets tokens see those after them."""

    def attend_in_pages(module, query, key, value, attention_mask, **kwargs):
        if kwargs.get("cache") is None:
            raise ValueError(
                f"attn_implementation={implementation!r}: called without a paged cache; generate_batch chooses it by "
                "itself, for all else choose eager, sdpa or hfx_tiled"
            )
        return attend(module, query, key, value, attention_mask, **kwargs)

    return attend_in_pages


def join_mask_and_bias(
    attention: str, mask, bias: ScoreBias | None, inputs_embeds: torch.Tensor, *, is_causal: bool = True
) -> dict:
    """The arguments by which an attention implementation takes a mask and a score bias."""
    if attention == "flex_attention" and isinstance(mask, torch.Tensor):
        mask = flex_mask(mask, inputs_embeds.shape[0])
    if bias is None:
        return {"attention_mask": mask}
    if attention in ("eager", *BACKENDS):  # ours take the rule
        return {"attention_mask": mask, "position_bias": bias}
    matrix = bias.dense(inputs_embeds.dtype).expand(inputs_embeds.shape[0], -1, -1, -1)
    if attention != "sdpa":
        return {"attention_mask": mask, "position_bias": matrix}
    # sdpa's one mask holds both; transformers would forbid by a large number, not -inf, and padding see everything
    if mask is None and (not is_causal or matrix.shape[-2] == 1):  # the newest token sees all
        return {"attention_mask": matrix}
    if mask is None:
        mask = causal_mask(*matrix.shape[-2:], device=matrix.device)
    if mask.dtype != torch.bool:
        return {"attention_mask": matrix + mask}
    return {"attention_mask": matrix.masked_fill(~mask, float("-inf"))}


def cached_key_positions(position_ids: torch.Tensor, past_key_values, layer_idx: int) -> torch.Tensor:
    """(1 or B, S): positions of all keys that a layer's attention sees, those in the cache included.

    A cache holds one document a row, so its keys count down from the newest token's position; what comes out below 0 is
    padding.
    """
    if past_key_values is None:
        return position_ids
    num_tokens = position_ids.shape[1]
    num_keys, key_offset = past_key_values.get_mask_sizes(num_tokens, layer_idx)
    newest = past_key_values.get_seq_length() + num_tokens - 1  # slot of the newest key
    slots = torch.arange(num_keys, device=position_ids.device) + key_offset
    return position_ids[:, -1:] + slots - newest


def changing_frequencies(rotary_emb: nn.ModuleDict, cached_lengths, lengths) -> str | None:
    """The rule of `rotary_emb` under which documents grown from `cached_lengths` to `lengths` turn anew, or None."""
    for rope in rotary_emb.values():
        if rope.depends_on_length and bool(rope.frequencies_change(cached_lengths, lengths).any()):
            return rope.rope_parameters["rope_type"]
    return None


def forget_tokens(cache) -> None:
    """Empties a cache whose keys hold no longer: `Cache.reset`, which in older releases leaves a growing layer as long as it
    was, zeros for tokens."""
    cache.reset()
    for layer in cache.layers:
        if isinstance(layer, DynamicLayer):
            layer.keys = layer.values = None
            layer.is_initialized = False


def check_cached_frequencies(rotary_emb: nn.ModuleDict, past_key_values, position_ids: torch.Tensor) -> None:
    """Raises ValueError where the rule has changed the frequencies since the cache was filled (values on CPU only)."""
    if not any(rope.depends_on_length for rope in rotary_emb.values()) or not can_look_at(position_ids):
        return
    if int(past_key_values.get_seq_length()) == 0:
        return
    cached, lengths = position_ids.amin(dim=-1), position_ids.amax(dim=-1) + 1
    rule = changing_frequencies(rotary_emb, cached, lengths)
    if rule is not None:
        raise ValueError(
            f"past_key_values: {int(cached.max())} tokens were cached at other frequencies than rope_type={rule!r} gives "
            f"{int(lengths.max())}; pass all tokens without a cache, as generate does where it has their ids"
        )
