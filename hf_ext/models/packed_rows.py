"""Several documents in one row: positions that restart tell them apart. What would let them see each other is refused.

B rows, T tokens a row. transformers keeps documents apart where it is given `position_ids` and neither an attention mask
nor a cache; in every other case positions that restart change nothing in its masks.
"""

import torch

from hf_ext.models.pretrained_model import can_look_at


def steps_between_tokens(position_ids: torch.Tensor, real: torch.Tensor | None = None) -> torch.Tensor:
    """(B, T - 1): each token's position minus the one's before; 1 where `real`, (B, T), says that either is padding."""
    steps = position_ids.diff(dim=-1)
    return steps if real is None else steps.masked_fill(~(real[:, 1:] & real[:, :-1]).to(steps.device), 1)


def check_packed_rows(position_ids: torch.Tensor | None, attention_mask, past_key_values, options: dict) -> None:
    """Whether the documents of packed rows are kept apart (values on CPU only).

    Args:
        position_ids: (B or 1, T) as the caller gave them, or None.
        attention_mask: the 2-D padding mask, or whatever else takes its place.
        options: the forward's further keyword arguments.

    Raises:
        ValueError: they aren't.
    """
    if position_ids is None:
        if options.get("cu_seq_lens_q") is not None:
            raise ValueError(
                "cu_seq_lens_q: given without position_ids, by which documents are told apart; "
                "give position_ids that restart with each document"
            )
        return
    if position_ids.ndim != 2 or position_ids.shape[-1] == 1 or not can_look_at(position_ids):
        return
    padded = isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2
    if not padded and (attention_mask is not None or past_key_values is None):
        return
    real = None
    if padded:
        cached = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        real = attention_mask[:, cached : cached + position_ids.shape[1]].bool()
    packed = (steps_between_tokens(position_ids, real) <= 0).any(dim=-1)
    if packed.any():
        reason = (
            "attention_mask lets them see each other; leave it and the padding out"
            if padded
            else "past_key_values holds one document a row; leave it out"
        )
        raise ValueError(f"position_ids: row {int(packed.nonzero()[0])} holds several documents, but {reason}")


def check_one_document(position_ids: torch.Tensor | None, real: torch.Tensor | None, what: str) -> None:
    """Raises ValueError where a row holds several documents and there is but one `what` for all of them.

    Looks at the values on accelerators too: what is computed otherwise is the last document's alone.
    """
    if position_ids is None or position_ids.ndim != 2 or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return
    packed = (steps_between_tokens(position_ids, real) != 1).any(dim=-1)
    if bool(packed.any()):
        row = int(packed.nonzero()[0])
        raise ValueError(
            f"position_ids: row {row} holds several documents, but there is one {what} a row; give one document a row"
        )


def flash_lengths(
    attention: str, position_ids: torch.Tensor | None, inputs_embeds, attention_mask, options: dict
) -> dict:
    """Where documents begin, in the arguments of flash attention: cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k.

    transformers looks for them in a single row only and, of several packed rows, lets the documents see each other. Empty
    where the call says it already, where there is nothing packed, for other implementations, and in traced graphs.
    """
    if "flash" not in attention or position_ids is None or attention_mask is not None or torch.compiler.is_compiling():
        return {}
    if position_ids.ndim != 2 or options.get("cu_seq_lens_q") is not None:
        return {}
    B, T = inputs_embeds.shape[:2]
    apart = (steps_between_tokens(position_ids) != 1).expand(B, -1)
    if not bool(apart.any()):
        return {}
    begins = torch.cat((apart.new_ones(B, 1), apart), dim=-1).flatten().nonzero().flatten()
    cumulative = torch.cat((begins, begins.new_tensor([B * T]))).to(torch.int32)
    longest = int(cumulative.diff().max())
    return {
        "cu_seq_lens_q": cumulative,
        "cu_seq_lens_k": cumulative,
        "max_length_q": longest,
        "max_length_k": longest,
    }
