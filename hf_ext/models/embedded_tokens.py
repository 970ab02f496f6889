"""From token embeddings to what enters the first block: their scale, positions, norm and dropout."""

import torch
from torch import nn

from hf_ext.models.pretrained_model import check_positions


def scale_embeddings(config, inputs_embeds: torch.Tensor) -> torch.Tensor:
    """Token embeddings (B, T, d) times `embedding_multiplier`."""
    if config.embedding_multiplier is None:
        return inputs_embeds
    # rounded to the states' dtype before it multiplies, as Gemma does
    return inputs_embeds * torch.tensor(config.embedding_multiplier, dtype=inputs_embeds.dtype)


def embed(
    stack: nn.Module, inputs_embeds: torch.Tensor, position_ids: torch.Tensor, segments: torch.Tensor | None = None
) -> torch.Tensor:
    """dropout(norm(scale * token embeddings + segments + position embeddings)), (B, T, d), by the modules of a stack.

    Args:
        stack: has `config`, `embed_positions` (or None), `embedding_norm` and `embedding_dropout`.
        inputs_embeds: (B, T, d). position_ids: (B or 1, T).
    """
    hidden_states = scale_embeddings(stack.config, inputs_embeds)
    if segments is not None:
        hidden_states = hidden_states + segments
    if stack.embed_positions is not None:
        if stack.config.position_embedding_type == "learned":
            check_positions(position_ids, stack.config.max_position_embeddings)
        hidden_states = hidden_states + stack.embed_positions(position_ids).to(hidden_states.dtype)
    return stack.embedding_dropout(stack.embedding_norm(hidden_states))
