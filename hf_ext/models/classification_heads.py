"""Hidden states to classes: sequence and token classification and extractive question answering, for every family.

N is what a loss is averaged over: `num_items_in_batch` where the Trainer gives it (labels in the whole accumulated batch),
else the labels at hand. So accumulated micro-batches give the gradient of the whole batch.
"""

import torch
from torch.nn import functional as F

from hf_ext.models.packed_rows import check_one_document
from hf_ext.models.pretrained_model import can_look_at


IGNORE_INDEX = -100
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


def problem_type(config, labels: torch.Tensor) -> str:
    """config.problem_type, or what the labels say: one number, classes (integers), or several yes/no (floats)."""
    if config.problem_type is not None:
        return config.problem_type
    if config.num_labels == 1:
        return "regression"
    return "single_label_classification" if not labels.is_floating_point() else "multi_label_classification"


def sequence_loss(logits: torch.Tensor, labels: torch.Tensor, config, num_items: int | torch.Tensor | None = None):
    """Loss of one prediction a row: squared error, cross-entropy, or binary cross-entropy of each label.

    Args:
        logits: (B, num_labels). labels: (B,) classes or numbers, or (B, num_labels) numbers or yes/no as floats.

    Raises:
        ValueError: labels of another shape, or (on CPU) outside the classes.
    """
    kind = problem_type(config, labels)
    if kind == "single_label_classification":
        return token_loss(logits, labels.reshape(-1), num_items)
    if labels.numel() != logits.numel():
        raise ValueError(
            f"labels: shape {tuple(labels.shape)} must be {tuple(logits.shape)} for problem_type={kind!r}; "
            "set config.num_labels to the number of labels a row"
        )
    labels = labels.reshape(logits.shape).to(logits.dtype)
    if kind == "regression":
        total = F.mse_loss(logits, labels, reduction="sum")
    else:
        total = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
    return total / (labels.numel() if num_items is None else num_items)


def token_loss(logits: torch.Tensor, labels: torch.Tensor, num_items: int | torch.Tensor | None = None):
    """Cross-entropy over the labels other than -100. logits: (..., classes); labels: (...), classes.

    Raises:
        ValueError: labels of another shape; on CPU also classes that there aren't, and no label at all.
    """
    classes = logits.shape[-1]
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"labels: shape {tuple(labels.shape)} must be {tuple(logits.shape[:-1])}, one a prediction")
    labels = labels.to(logits.device)
    scored = labels != IGNORE_INDEX
    if can_look_at(labels):
        wrong = labels[scored & ((labels < 0) | (labels >= classes))]
        if wrong.numel():
            raise ValueError(
                f"labels: {int(wrong[0])} is none of the classes 0..{classes - 1}; set config.num_labels to their number"
            )
        if num_items is None and not scored.any():
            raise ValueError(f"labels: every one is {IGNORE_INDEX}, nothing is predicted; leave such rows out")
    total = F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")
    return total / (scored.sum() if num_items is None else num_items)


def predict_spans(
    scores: torch.Tensor, start_positions, end_positions, attention_mask, position_ids, num_items
) -> dict[str, torch.Tensor | None]:
    """start_logits and end_logits (B, T) of scores (B, T, 2) and, where both positions are given, their `span_loss`."""
    start_logits, end_logits = scores.unbind(dim=-1)
    loss = None
    if start_positions is not None and end_positions is not None:
        loss = span_loss(
            start_logits, end_logits, start_positions, end_positions, attention_mask, position_ids, num_items
        )
    return {"loss": loss, "start_logits": start_logits.contiguous(), "end_logits": end_logits.contiguous()}


def span_loss(
    start_logits,
    end_logits,
    start_positions,
    end_positions,
    attention_mask=None,
    position_ids=None,
    num_items: int | torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean of the cross-entropies of an answer's first and last token; Devlin et al. 2018, arXiv 1810.04805, sec. 4.2.

    Args:
        start_logits, end_logits: (B, T). start_positions, end_positions: (B,); T or beyond: the answer is not in this
            window, the row is not scored.
        attention_mask: (B, T), 0 for padding, which then doesn't compete: the loss of a row is what it is alone.
        num_items: rows of the whole (accumulated) batch that are scored; default those at hand, for first and last token
            each.

    Raises:
        ValueError: several documents in a row, whose tokens would compete for one answer.
    """
    length = start_logits.shape[1]
    real = None
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        real = attention_mask[:, -length:] != 0
    check_one_document(position_ids, real, "answer")
    losses = []
    for logits, positions in ((start_logits, start_positions), (end_logits, end_positions)):
        positions = positions.reshape(-1).to(logits.device)
        if real is not None:
            logits = logits.masked_fill(~real, float("-inf"))
        losses.append(token_loss(logits, positions.masked_fill(positions >= length, IGNORE_INDEX), num_items))
    return (losses[0] + losses[1]) / 2


def last_token(
    hidden_states: torch.Tensor, attention_mask, input_ids, pad_token_id: int | None, position_ids=None
) -> torch.Tensor:
    """(B, d): the hidden state of each row's last token that is not padding, padded on the left or the right.

    Raises:
        ValueError: several rows, and neither a mask nor a padding token to tell their ends; or several documents in one.
    """
    B, T = hidden_states.shape[:2]
    real = None
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        real = attention_mask[:, -T:] != 0
    elif input_ids is not None and pad_token_id is not None:
        real = input_ids != pad_token_id
    elif B > 1:
        raise ValueError(
            f"attention_mask: missing for {B} rows, and there is no pad_token_id to tell where they end; give one of them"
        )
    check_one_document(position_ids, real, "prediction")
    if real is None:
        return hidden_states[:, -1]
    positions = torch.arange(T, device=hidden_states.device)
    last = (positions * real.to(hidden_states.device)).argmax(dim=-1)
    return hidden_states[torch.arange(B, device=hidden_states.device), last]


def check_problem_type(config) -> None:
    """Raises ValueError for a problem_type that isn't one."""
    if config.problem_type is not None and config.problem_type not in PROBLEM_TYPES:
        raise ValueError(f"problem_type={config.problem_type!r}: must be one of {', '.join(PROBLEM_TYPES)}, or None")
