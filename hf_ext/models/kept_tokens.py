"""Which tokens the head is asked about: generation needs the last one's logits only, and a vocabulary is wide."""

import torch


def keep_tokens(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """The states of the tokens to keep, as transformers 5.22 calls it `slice_logits_to_keep`; older ones don't have it.

    Args:
        hidden_states: (B, T, d).
        logits_to_keep: an int n, the last n tokens of each row, 0 for all; int (N,), these positions of each row; int
            (B, N), these positions, each row its own; bool (B, T), the tokens that are True.

    Returns:
        (B, kept tokens, d), or (kept tokens, d) for a bool mask, of which each row may keep another number.
    """
    if isinstance(logits_to_keep, int):
        return hidden_states if logits_to_keep == 0 else hidden_states[:, -logits_to_keep:]
    if logits_to_keep.ndim < 2:
        return hidden_states[:, logits_to_keep]
    if logits_to_keep.dtype == torch.bool:
        return hidden_states[logits_to_keep]
    return hidden_states.take_along_dim(logits_to_keep.unsqueeze(-1), dim=1)
