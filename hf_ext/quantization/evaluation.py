"""What a saved model costs and computes, measured in a process of its own, so that models can be compared in one table.

Any folder of ours: plain or quantized, every family and head. Each is given the same texts.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)

from hf_ext.hub.model_folder import check_holds_model
from hf_ext.quantization.saving import DESCRIPTION, load_quantized, model_class_of


IGNORED = -100
# every so manieth token is hidden from a masked language model: 15 % as in training, the same for all models
HIDDEN_EVERY = 7
NEW_TOKENS = 32
REPEATS = 5


@dataclass(frozen=True)
class Measured:
    """What one process found out about one folder.

    Attributes:
        folder, method: the method's name, or "-" for plain weights.
        megabytes: of the weights on disk. peak_megabytes: most memory that loading and computing took beyond what the
            process had before, None where the system doesn't tell.
        token_ms, batch_ms: medians of one forward pass over one token, and over all texts at once.
        metric: its name and value; None where the texts say nothing that could be scored.
    """

    folder: str
    method: str
    megabytes: float
    peak_megabytes: float | None
    token_ms: float
    batch_ms: float
    metric: tuple[str, float] | None


def load_saved(folder: str | Path) -> PreTrainedModel:
    """A saved model of ours in eval mode, quantized or not.

    Raises:
        ValueError: a folder without a model, or with one that isn't ours.
    """
    folder = Path(folder)
    check_holds_model(folder, f"folder={str(folder)!r}")
    if (folder / DESCRIPTION).is_file():
        return load_quantized(folder)
    return model_class_of(AutoConfig.from_pretrained(folder, trust_remote_code=False)).from_pretrained(folder).eval()


def read_rows(path: str | Path) -> list[dict]:
    """Rows to evaluate on: a text a line, or JSON lines with "text" and what belongs to it, "label" or "target".

    Raises:
        ValueError: no row, or one without text.
    """
    lines = [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    is_json = Path(path).suffix in (".json", ".jsonl")
    rows = [json.loads(line) if is_json else {"text": line} for line in lines]
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise ValueError(f'texts={str(path)!r}: row {number} has no "text"; give each row one')
    if not rows:
        raise ValueError(f"texts={str(path)!r}: holds no text; give at least one")
    return rows


def make_batch(model: PreTrainedModel, tokenizer, rows: list[dict]) -> dict[str, torch.Tensor]:
    """All rows as one padded batch of the model's inputs, with labels where the rows have something to be scored by.

    Raises:
        ValueError: a tokenizer without a token to pad with, a label that the model doesn't know.
    """
    texts = [row["text"] for row in rows]
    longest = model.config.max_position_embeddings
    if tokenizer.pad_token is None:
        raise ValueError("tokenizer: has no pad_token, and texts of different lengths need one; set it")
    batch = dict(tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=longest))
    batch.pop("token_type_ids", None)
    mask = batch["attention_mask"].bool()
    if _is(model, AutoModelForCausalLM):
        batch["labels"] = batch["input_ids"].masked_fill(~mask, IGNORED)
    elif _is(model, AutoModelForMaskedLM):
        hidden = mask & (torch.arange(mask.shape[1]) % HIDDEN_EVERY == HIDDEN_EVERY // 2)
        batch["labels"] = batch["input_ids"].masked_fill(~hidden, IGNORED)
        batch["input_ids"] = batch["input_ids"].masked_fill(hidden, tokenizer.mask_token_id)
    elif _is(model, AutoModelForSeq2SeqLM):
        targets = [row.get("target", row["text"]) for row in rows]
        given = tokenizer(text_target=targets, return_tensors="pt", padding=True, truncation=True, max_length=longest)
        batch["labels"] = given["input_ids"].masked_fill(~given["attention_mask"].bool(), IGNORED)
    elif _is(model, AutoModelForSequenceClassification) and all("label" in row for row in rows):
        batch["labels"] = torch.tensor([_class_number(model, row["label"]) for row in rows])
    return batch


def _class_number(model: PreTrainedModel, label) -> int:
    known = {str(name): int(number) for number, name in model.config.id2label.items()}
    if str(label) not in known:
        raise ValueError(f"label: {label!r} is none of the model's, {', '.join(known)}")
    return known[str(label)]


def _is(model: PreTrainedModel, auto_class) -> bool:
    return auto_class._model_mapping.get(type(model.config), None) is type(model)


@torch.no_grad()
def predictions(
    model: PreTrainedModel, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, tuple[str, float] | None]:
    """What the model says of each token that isn't padding, or of each row, (N, C), and its metric.

    Returns:
        logits, and the perplexity of texts, hidden tokens or targets, or the accuracy; None without labels.
    """
    outputs = model(**batch)
    if "start_logits" in outputs:
        logits = torch.stack((outputs.start_logits, outputs.end_logits), dim=-1)
    else:
        logits = outputs.logits if "logits" in outputs else outputs.last_hidden_state
    labels = batch.get("labels")
    metric = None
    if labels is not None and _is(model, AutoModelForSequenceClassification):
        metric = ("accuracy", (logits.argmax(-1) == labels).float().mean().item())
    elif labels is not None:
        metric = ("perplexity", outputs.loss.exp().item())
    if _is(model, AutoModelForSeq2SeqLM):
        return logits[labels != IGNORED].float(), metric
    if logits.ndim == 3 and logits.shape[1] == batch["input_ids"].shape[1]:
        logits = logits[batch["attention_mask"].bool()]
    return logits.float(), metric


@torch.no_grad()
def greedy_tokens(model: PreTrainedModel, tokenizer, rows: list[dict]) -> torch.Tensor | None:
    """What the model writes after each text, or of it, greedily: (rows, NEW_TOKENS); None for a model that doesn't write.

    A decoder reads half of a text, so that it goes on within it.
    """
    if not model.can_generate():
        return None
    written = []
    for row in rows:
        ids = tokenizer(row["text"], return_tensors="pt").input_ids
        longest = model.config.max_position_embeddings
        if not model.config.is_encoder_decoder:
            ids = ids[:, : max(1, min(ids.shape[1] // 2, longest - NEW_TOKENS))]
        ids = ids[:, :longest]
        room = min(NEW_TOKENS, longest - 1 if model.config.is_encoder_decoder else longest - ids.shape[1])
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=room,
            min_new_tokens=room,
            do_sample=False,
            num_beams=1,
        )[0]
        made = made[1:] if model.config.is_encoder_decoder else made[ids.shape[1] :]
        written.append(torch.nn.functional.pad(made, (0, NEW_TOKENS - made.shape[0]), value=-1))
    return torch.stack(written)


def measure(folder: str, texts: str, results: str) -> Measured:
    """Load, run and time the model in `folder`; logits and written tokens go to the file `results`. One thread of control:
    call it in a fresh process, for the memory is the process's."""
    rows = read_rows(texts)
    before = _memory("VmRSS")
    model = load_saved(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    batch = make_batch(model, tokenizer, rows)
    logits, metric = predictions(model, batch)
    written = greedy_tokens(model, tokenizer, rows)
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    if _is(model, AutoModelForSeq2SeqLM):
        inputs["decoder_input_ids"] = batch["input_ids"]
    one = {name: tensor[:1, :1] for name, tensor in inputs.items()}
    token_ms, batch_ms = _milliseconds(model, one), _milliseconds(model, inputs)
    peak = _memory("VmHWM")
    save_file({"logits": logits.contiguous(), **({} if written is None else {"written": written})}, results)
    files = [*Path(folder).glob("*.safetensors")]
    return Measured(
        folder=folder,
        method=getattr(model, "quantized_with", {"method": "-"})["method"],
        megabytes=sum(file.stat().st_size for file in files) / 2**20,
        peak_megabytes=None if peak is None or before is None else peak - before,
        token_ms=token_ms,
        batch_ms=batch_ms,
        metric=metric,
    )


@torch.no_grad()
def _milliseconds(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> float:
    model(**inputs)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        model(**inputs)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def _memory(field: str) -> float | None:
    """Of this process in megabytes: VmRSS now, VmHWM at its highest. Linux tells; getrusage would count the parent's."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


@dataclass(frozen=True)
class Compared:
    """A folder beside the first one.

    Attributes:
        measured: of the folder alone.
        logits_error: mean absolute difference of the logits, over the standard deviation of the first's.
        agreement: share of greedily written tokens, or of predictions, that are the first's.
    """

    measured: Measured
    logits_error: float
    agreement: float


def compare(folders: list[str], texts: str) -> list[Compared]:
    """Measure all folders, each in a process of its own, and compare what they say with what the first one says.

    Raises:
        ValueError: a folder that can't be loaded, models of different outputs, texts that can't be read.
    """
    rows = []
    reference = None
    read_rows(texts)  # refused here, not in a process
    with tempfile.TemporaryDirectory() as place:
        for number, folder in enumerate(folders):
            results = f"{place}/{number}.safetensors"
            measured = _in_a_process(folder, texts, results)
            found = load_file(results)
            reference = found if reference is None else reference
            rows.append(Compared(measured, *_differences(found, reference, folder)))
    return rows


def _in_a_process(folder: str, texts: str, results: str) -> Measured:
    command = [sys.executable, "-m", "hf_ext.quantization", "measure", folder, "--texts", texts, "--results", results]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        raise ValueError(f"{folder}: {last.removeprefix('error: ')}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return Measured(**{**found, "metric": None if found["metric"] is None else tuple(found["metric"])})


def _differences(found: dict, reference: dict, folder: str) -> tuple[float, float]:
    if found["logits"].shape != reference["logits"].shape:
        raise ValueError(
            f"{folder}: another model's, its logits are {tuple(found['logits'].shape)} instead of "
            f"{tuple(reference['logits'].shape)}; compare models of one tokenizer and head"
        )
    error = (found["logits"] - reference["logits"]).abs().mean() / reference["logits"].std()
    if "written" in found:
        same = (found["written"] == reference["written"])[reference["written"] >= 0]
    else:
        same = found["logits"].argmax(-1) == reference["logits"].argmax(-1)
    return error.item(), same.float().mean().item()


def table(rows: list[Compared]) -> str:
    """Text of a line for each folder: method, MB on disk, most MB in memory, ms for a token and for all texts, the metric,
    the error of the logits, the agreement."""
    lines = _cells(rows)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def markdown(rows: list[Compared]) -> str:
    """The same for a card."""
    head, *lines = (f"| {' | '.join(cells)} |" for cells in _cells(rows))
    return "\n".join([head, "| --- | --- |" + " ---: |" * (head.count("|") - 3), *lines, ""])


def _cells(rows: list[Compared]) -> list[list[str]]:
    name = next((row.measured.metric[0] for row in rows if row.measured.metric), "metric")
    lines = [["folder", "method", "MB", "peak MB", "ms/token", "ms/batch", name, "logits error", "agreement"]]
    for row in rows:
        m = row.measured
        peak = "-" if m.peak_megabytes is None else f"{m.peak_megabytes:.0f}"
        metric = "-" if m.metric is None else f"{m.metric[1]:.4g}"
        numbers = [f"{m.megabytes:.2f}", peak, f"{m.token_ms:.2f}", f"{m.batch_ms:.2f}", metric]
        shares = [f"{100 * row.logits_error:.2f} %", f"{100 * row.agreement:.1f} %"]
        lines.append([Path(m.folder).name, m.method, *numbers, *shares])
    return lines
