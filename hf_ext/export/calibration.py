"""Texts by which a quantization learns the ranges of a graph's inputs."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_ext.export.parts import Part, Tokens, flat


def read_texts(path: str | Path) -> list[dict[str, str]]:
    """{"text": …} a row, and "target" where there is one: a text a line, or JSON lines.

    Raises:
        ValueError: no such file, no text in it, or a row without one.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"calibration={str(path)!r}: no such file; give texts, one a line, or JSON lines with text")
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    try:
        rows = [json.loads(line) if path.suffix in (".json", ".jsonl") else {"text": line} for line in lines]
    except ValueError:
        raise ValueError(f"calibration={str(path)!r}: isn't JSON a line; write it so, or give plain text") from None
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise ValueError(f'calibration={str(path)!r}: row {number} has no "text"; give each row one')
    if not rows:
        raise ValueError(f"calibration={str(path)!r}: holds no text; give at least one")
    return rows


def calibration_inputs(
    model: PreTrainedModel, task: str, part: Part, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, str]]
) -> Iterator[dict[str, torch.Tensor]]:
    """A graph's inputs for each text: all of it at once; and with a cache, its second half after the first."""
    for row in rows:
        for tokens in _tokens_of(model, task, part, tokenizer, row):
            yield flat(part.inputs_of(tokens))


def _tokens_of(model, task: str, part: Part, tokenizer, row: dict[str, str]) -> Iterator[Tokens]:
    longest = model.config.max_position_embeddings
    ids = tokenizer(row["text"], return_tensors="pt", truncation=True, max_length=longest)["input_ids"]
    if not ids.numel():
        return
    written = None
    if model.config.is_encoder_decoder:
        target = tokenizer(text_target=row.get("target", row["text"]), truncation=True, max_length=longest - 1)[
            "input_ids"
        ]
        written = torch.tensor([[model.config.decoder_start_token_id, *target]])
    if task == "multiple-choice":
        ids = ids.unsqueeze(1)
    mask = torch.ones_like(ids)
    half = (ids if written is None else written).shape[-1] // 2
    if not part.goes_on or written is None:
        yield Tokens(ids, mask, written)
    if part.goes_on and half:
        yield Tokens(ids, mask, written, cached=half)
