"""Likelihood of packed documents under a model that reads one document a row: an exported one.

Packed rows know their documents by position ids, which a graph hasn't as an input (an encoder's), or in which it sees no
borders (a decoder's). So each document gets a row of its own and a mask for its padding. What is predicted, and from
what, stays the same.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F


IGNORED_LABEL = -100
PACKED = {"input_ids", "position_ids", "labels"}


@dataclass(frozen=True)
class DocumentScores:
    """nats: negative log-likelihood in all. tokens: that were predicted."""

    nats: float
    tokens: int

    def metrics(self, num_bytes: int | None) -> dict[str, float]:
        """As the Trainer reports them of a model of torch's. num_bytes: of the documents, for bits per byte."""
        loss = self.nats / self.tokens
        found = {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf}
        if num_bytes:
            found["bits_per_byte"] = self.nats / math.log(2) / num_bytes
        return found | {"tokens": self.tokens}


@torch.no_grad()
def score_documents(
    model, rows: Sequence, collator, *, pad_token_id: int, batch_size: int, shifts: bool
) -> DocumentScores:
    """Scores of a model that takes `input_ids` and `attention_mask`.

    Args:
        rows: packed. collator: of the objective, causal or masked. batch_size: packed rows at a time, and documents.
        shifts: whether the logits at a token are of the next one.

    Raises:
        ValueError: an objective whose batches have more than tokens, positions and labels.
    """
    nats, tokens = 0.0, 0
    for start in range(0, len(rows), batch_size):
        batch = collator([rows[index] for index in range(start, min(start + batch_size, len(rows)))])
        for documents in documents_of(batch, pad_token_id, batch_size):
            labels = documents.pop("labels")
            logits = model(**documents, use_cache=False).logits
            if shifts:
                logits, labels = logits[:, :-1], labels[:, 1:]
            nats += F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").item()
            tokens += int((labels != IGNORED_LABEL).sum())
    return DocumentScores(nats, tokens)


def documents_of(
    batch: Mapping[str, torch.Tensor], pad_token_id: int, batch_size: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of documents, short ones first, of a batch of packed rows; without those in which nothing is predicted.

    Args:
        batch: input_ids, position_ids, labels, each (B, T).

    Returns:
        input_ids, attention_mask, labels, each (at most batch_size, tokens of the longest).
    """
    if unknown := sorted(batch.keys() - PACKED) or sorted(PACKED - batch.keys()):
        raise ValueError(
            f"{unknown[0]}: an export is scored on documents by the objectives causal and masked; run the model itself"
        )
    ids, labels = batch["input_ids"].flatten(), batch["labels"].flatten()
    lengths = (batch["position_ids"].flatten() == 0).nonzero().flatten().diff(append=torch.tensor([len(ids)])).tolist()
    pairs = zip(ids.split(lengths), labels.split(lengths), strict=True)
    pairs = sorted((pair for pair in pairs if (pair[1] != IGNORED_LABEL).any()), key=lambda pair: len(pair[0]))
    for start in range(0, len(pairs), batch_size):
        chosen, targets = zip(*pairs[start : start + batch_size], strict=True)
        pad = torch.nn.utils.rnn.pad_sequence
        yield {
            "input_ids": pad(chosen, batch_first=True, padding_value=pad_token_id),
            "attention_mask": pad([torch.ones_like(tokens) for tokens in chosen], batch_first=True),
            "labels": pad(targets, batch_first=True, padding_value=IGNORED_LABEL),
        }
