"""Which tokens a training loss is taken over, and which document each is of: what every auxiliary loss needs to know."""

from dataclasses import dataclass

import torch
from torch import nn

from hf_ext.models.pretrained_model import can_look_at
from hf_ext.ops.rotary import document_indices


IGNORE_INDEX = -100


@dataclass
class ScoredTokens:
    """targets: (B, T) int64, what each token predicts, or -100. documents: (B, T) int64, numbered through the batch, below
    B * T. num_items: scored tokens of the whole (accumulated) batch. real: (B, T) bool, False for padding, which predicts
    nothing; None where there is none."""

    targets: torch.Tensor
    documents: torch.Tensor
    num_items: torch.Tensor | int
    real: torch.Tensor | None = None

    @property
    def scored(self) -> torch.Tensor:
        """(B, T) bool: tokens that have a target."""
        return self.targets != IGNORE_INDEX

    def targets_after(self, distance: int) -> torch.Tensor:
        """(B, T): the target `distance` tokens further on, where that is in the same document."""
        targets = nn.functional.pad(self.targets, (0, distance), value=IGNORE_INDEX)[:, distance:]
        documents = nn.functional.pad(self.documents, (0, distance), value=-1)[:, distance:]
        targets = targets.masked_fill(documents != self.documents, IGNORE_INDEX)
        return targets if self.real is None else targets.masked_fill(~self.real, IGNORE_INDEX)


def scored_tokens(targets, position_ids, num_items_in_batch, attention_mask=None) -> ScoredTokens:
    """From what a language model's forward is given; documents are packed where the positions start again."""
    B, T = targets.shape
    rows = torch.arange(B, device=targets.device)[:, None] * T
    documents = rows.expand(B, T)
    if position_ids is not None:
        documents = documents + document_indices(position_ids.to(targets.device)).expand(B, T)
    if num_items_in_batch is None:
        num_items_in_batch = (targets != IGNORE_INDEX).sum().clamp(min=1)
    elif isinstance(num_items_in_batch, torch.Tensor):
        num_items_in_batch = num_items_in_batch.to(targets.device)
    real = None
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        real = attention_mask[:, -T:].to(targets.device) != 0
    return ScoredTokens(targets, documents, num_items_in_batch, real)


def next_token_labels(labels: torch.Tensor) -> torch.Tensor:
    """(B, T) labels moved one to the left: what each token is to predict; the last one predicts nothing."""
    return nn.functional.pad(labels, (0, 1), value=IGNORE_INDEX)[..., 1:]


def check_unseen_targets(targets: torch.Tensor, prefix_mask: torch.Tensor | None) -> None:
    """Raises ValueError where a token of a prefix is scored on one that it sees (values on CPU only).

    Args:
        targets: (B, T), what each token predicts, or -100. prefix_mask: (B, up to T), tokens that see each other.
    """
    if prefix_mask is None or not can_look_at(targets) or not can_look_at(prefix_mask):
        return
    prefix = prefix_mask[:, : targets.shape[1]] != 0
    seen = prefix[:, :-1] & prefix[:, 1:] & (targets[:, : prefix.shape[1] - 1] != IGNORE_INDEX)
    if bool(seen.any()):
        row, token = (int(index) for index in seen.nonzero()[0])
        raise ValueError(
            f"labels: row {row}, token {token + 1} is to be predicted by one that sees it, both are in the prefix; "
            f"use {IGNORE_INDEX} for the tokens of prefix_mask"
        )
