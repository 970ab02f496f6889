"""What a decoder reads while it is scored on a text: the same text, one token later.

B rows, T tokens a row.
"""

import torch

from hf_ext.models.pretrained_model import can_look_at
from hf_ext.models.scored_tokens import IGNORE_INDEX
from hf_ext.ops.rotary import document_indices


def shift_right(tokens: torch.Tensor, real: torch.Tensor, start: int, pad: int) -> torch.Tensor:
    """(B, T) int64: at each token the one before it, and `start` at the first of a row.

    Args:
        tokens: (B, T) ids, or -100 for none. real: (B, T) bool, False for padding, to the left or the right.
        start: id that the text begins after. pad: stands where there is no id.
    """
    before = torch.nn.functional.pad(tokens[:, :-1], (1, 0), value=start)
    before = before.masked_fill(first_real(real), start)
    return before.masked_fill(~real | (before == IGNORE_INDEX), pad)


def shift_documents_right(tokens: torch.Tensor, position_ids: torch.Tensor, start: int, pad: int) -> torch.Tensor:
    """As `shift_right`, of rows without padding, in which each document begins with `start`.

    Args:
        position_ids: (B or 1, T), which restart with each document.
    """
    documents = document_indices(position_ids).expand(tokens.shape)
    begins = documents != torch.nn.functional.pad(documents[:, :-1], (1, 0), value=-1)
    before = torch.nn.functional.pad(tokens[:, :-1], (1, 0), value=start).masked_fill(begins, start)
    return before.masked_fill(before == IGNORE_INDEX, pad)


def first_real(real: torch.Tensor) -> torch.Tensor:
    """(B, T) bool: True at the first real token of each row; a row without any has none."""
    return real & (real.long().cumsum(dim=-1) == 1)


def between_first_and_last(real: torch.Tensor) -> torch.Tensor:
    """(B, T) bool: True from the first real token of a row to its last, those between that aren't real included."""
    seen = real.long().cumsum(dim=-1)
    return (seen > 0) & ((seen < seen[:, -1:]) | real)


def decoder_inputs_of(
    labels: torch.Tensor, start: int, pad: int, position_ids: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Decoder's input ids (B, T) and padding mask (B, T) int64, for labels (B, T) padded by -100 on either side.

    A row that is scored nowhere reads `start` and padding. With `position_ids`, (B or 1, T), which restart with each
    document of a packed row, each begins with `start`; there is no padding and no mask.
    """
    if position_ids is not None:
        return shift_documents_right(labels, position_ids, start, pad), None
    real = between_first_and_last(labels != IGNORE_INDEX)
    nothing = ~real.any(dim=-1, keepdim=True)
    real = real | (nothing & (torch.arange(labels.shape[1], device=labels.device) == 0))
    return shift_right(labels, real, start, pad), real.long()


def check_packed_pairs(positions: dict, masks: dict, options: dict, attention: str) -> None:
    """Whether rows that hold several documents hold as many on the other side (values on CPU only).

    Args:
        positions: of the encoder's and the decoder's tokens, (B or 1, S) and (B or 1, T), by the arguments' names, as the
            caller gave them, or None. masks: their padding masks, likewise.
        options: the forward's further keyword arguments. attention: name of the attention implementation.

    Raises:
        ValueError: they don't, or nothing could keep them apart.
    """
    if options.get("cu_seq_lens_q") is not None:
        raise ValueError(
            "cu_seq_lens_q: there are two sequences, and it is not said of which; give position_ids and "
            "decoder_position_ids that restart with each document"
        )
    unmasked = [ids if mask is None else None for ids, mask in zip(positions.values(), masks.values(), strict=True)]
    counts = [_documents_by_row(ids) for ids in unmasked]
    if all(count is None or not bool((count > 1).any()) for count in counts):
        return
    for name, count, mask in zip(positions, counts, masks.items(), strict=True):
        if mask[1] is not None:
            raise ValueError(f"{mask[0]}: given with several documents in a row; leave it and the padding out")
        if count is None:
            raise ValueError(
                f"{name}: missing, and the other side's rows hold several documents; give both, restarting"
            )
    own, other = torch.broadcast_tensors(*counts)
    if bool((own != other).any()):
        row = int((own != other).nonzero()[0])
        raise ValueError(
            f"decoder_position_ids: row {row} holds {int(other[row])} documents and position_ids {int(own[row])}; the n-th "
            "of the one side reads the n-th of the other"
        )
    if "flash" in attention:
        raise ValueError(
            f"decoder_position_ids: several documents in a row, which attn_implementation={attention!r} can't keep apart in "
            "cross-attention; choose eager, sdpa, flex_attention or hfx_tiled"
        )


def check_flash_cross_mask(attention: str, mask) -> None:
    """Raises ValueError where flash attention would take the source's padding for the decoder's: transformers cuts the mask
    of keys to the number of queries."""
    if "flash" in attention and mask is not None:
        raise ValueError(
            f"attention_mask: attn_implementation={attention!r} can't leave out the source's padding in cross-attention; "
            "pass rows without padding, or choose eager, sdpa, flex_attention or hfx_tiled"
        )


def _documents_by_row(position_ids: torch.Tensor | None) -> torch.Tensor | None:
    """(B or 1,) number of documents in each row."""
    if position_ids is None or position_ids.ndim != 2 or not can_look_at(position_ids):
        return None
    return document_indices(position_ids)[:, -1] + 1
