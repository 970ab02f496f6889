"""One vector for a row: its first token's, or the mean over its tokens."""

import torch
from transformers import PreTrainedModel

from hf_ext.models.configuration_choices import check_choice
from hf_ext.models.packed_rows import check_one_document


POOLINGS = ("cls", "mean")


@torch.no_grad()
def sentence_embeddings(
    model: PreTrainedModel, *, pooling: str = "mean", normalize: bool = False, attention_mask=None, **inputs
) -> torch.Tensor:
    """(B, d): a vector for each row, of the model's body in eval mode; the model is left in the mode that it was in.

    Args:
        model: an encoder, with or without a head.
        pooling: "mean" or "cls", see `pool_tokens`. normalize: whether vectors get length 1.
        inputs: what the body takes: input_ids (B, T), ….
    """
    check_choice("pooling", pooling, POOLINGS)
    body, was_training = model.base_model, model.training
    model.eval()
    try:
        hidden_states = body(attention_mask=attention_mask, **inputs).last_hidden_state
    finally:
        model.train(was_training)
    pooled = pool_tokens(hidden_states, attention_mask, pooling, inputs.get("position_ids"))
    return torch.nn.functional.normalize(pooled, dim=-1) if normalize else pooled


def pool_tokens(
    hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, pooling: str, position_ids=None
) -> torch.Tensor:
    """(B, d): the first token that isn't padding ("cls"), or the mean of all that aren't ("mean"; Reimers & Gurevych 2019,
    arXiv 1908.10084, sec. 3).

    Args:
        hidden_states: (B, T, d). attention_mask: (B, T), 0 for padding; None where there is none.

    Raises:
        ValueError: several documents in a row.
    """
    real = None
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        real = attention_mask[:, -hidden_states.shape[1] :].to(hidden_states.device) != 0
    check_one_document(position_ids, real, "prediction")
    if pooling == "mean":
        if real is None:
            return hidden_states.mean(dim=1)
        weights = real.to(hidden_states.dtype).unsqueeze(-1)
        return (hidden_states.masked_fill(~real.unsqueeze(-1), 0.0)).sum(dim=1) / weights.sum(dim=1)
    if real is None:
        return hidden_states[:, 0]
    first = real.int().argmax(dim=-1)
    return hidden_states[torch.arange(hidden_states.shape[0], device=hidden_states.device), first]
