"""Pretraining from scratch: the steps that `recipes/pretraining/train.py` puts together.

Every section of the YAML is a dataclass here or in the room that owns it; the model section takes any field of the
family's configuration.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import yaml
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from hf_ext.data import PYTHON_LIBRARY, PYTHON_LIBRARY_LICENSE, TOKENIZER_KINDS, DataArguments, train_tokenizer
from hf_ext.models.configuration_choices import check_choice, check_known
from hf_ext.tasks.samples import SampleArguments
from hf_ext.training.arguments import HfxTrainingArguments
from hf_ext.training.schedules import SCHEDULES, check_schedule


logger = logging.get_logger(__name__)


@dataclass
class TokenizerArguments:
    """Which tokenizer: a new one, trained on the training documents, or one that exists."""

    path: str | None = field(
        default=None, metadata={"help": "Folder or Hub name of a tokenizer to take instead of training one."}
    )
    kind: str | None = field(
        default=None, metadata={"help": f"To train: {' or '.join(TOKENIZER_KINDS)}. Default: the first."}
    )
    vocab_size: int | None = field(
        default=None, metadata={"help": "To train: tokens at most, special ones included. Default: 32,000."}
    )
    min_frequency: int | None = field(
        default=None, metadata={"help": "To train: occurrences that a token needs. Default: 2 (bytes), 1 (characters)."}
    )
    max_documents: int | None = field(
        default=None, metadata={"help": "To train: documents to learn from; default all."}
    )

    def __post_init__(self):
        if self.kind is not None:
            check_choice("tokenizer.kind", self.kind, TOKENIZER_KINDS)
        for name in ("kind", "vocab_size", "min_frequency", "max_documents"):
            value = getattr(self, name)
            if self.path is not None and value is not None:
                raise ValueError(
                    f"tokenizer.{name}={value}: has no effect with tokenizer.path={self.path!r}; leave one out"
                )
            if isinstance(value, int) and value < 1:
                raise ValueError(f"tokenizer.{name}={value}: must be at least 1")

    @property
    def size(self) -> int:
        """Tokens that a new tokenizer may have."""
        return 32_000 if self.vocab_size is None else self.vocab_size


@dataclass
class PackingArguments:
    """How documents become rows."""

    row_length: int = field(default=512, metadata={"help": "Tokens a row."})
    strategy: str = field(
        default="split",
        metadata={"help": "split (no padding, documents may be cut) or best_fit (whole where they fit)."},
    )
    overlap: int = field(
        default=0,
        metadata={"help": "With split: tokens of a cut document that the next row repeats, as context only."},
    )


SECTIONS = {
    "model": dict,
    "tokenizer": TokenizerArguments,
    "data": DataArguments,
    "objective": dict,
    "packing": PackingArguments,
    "samples": SampleArguments,
    "training": HfxTrainingArguments,
}


# kind of objective -> the Hub's name of the task
HUB_TASKS = {"causal": "text-generation", "masked": "fill-mask", "sequence_to_sequence": "text2text-generation"}

# of what evaluation gives, the numbers that say something about the model
REPORTED = ("eval_loss", "eval_perplexity", "eval_bits_per_byte", "eval_tokens")


def build_config(section: dict, tokenizer: PreTrainedTokenizerBase | None, *, vocab_size: int) -> PretrainedConfig:
    """The configuration that a recipe's model section describes; called once before any data is read, to refuse nonsense.

    Args:
        section: `model_type` (default hfx_decoder) and fields of its configuration.
        tokenizer: gives the vocabulary's size and the special tokens; None before there is one.
        vocab_size: what the tokenizer is meant to have, while there is none.

    Raises:
        ValueError: unknown model type or field (with the nearest name), or what the configuration itself refuses.
    """
    section = dict(section)
    model_type = section.pop("model_type", "hfx_decoder")
    try:
        config_class = type(AutoConfig.for_model(model_type))
    except ValueError as error:
        raise ValueError(f"model.model_type={model_type!r}: not known to transformers or hf_ext") from error
    if "vocab_size" in section:
        raise ValueError(
            f"model.vocab_size={section['vocab_size']}: comes from the tokenizer; set tokenizer.vocab_size"
        )
    check_known("model", section, [f.name for f in dataclasses.fields(config_class)])
    special = {}
    if tokenizer is not None:
        vocab_size = len(tokenizer)
        special = {n: getattr(tokenizer, n) for n in ("pad_token_id", "bos_token_id", "eos_token_id")}
    return config_class(vocab_size=vocab_size, **special, **section)


def check_run(training: HfxTrainingArguments, data: DataArguments, config: PretrainedConfig, row_length: int) -> None:
    """Raises ValueError, one line, for settings that don't fit each other."""
    if row_length > config.max_position_embeddings:
        raise ValueError(
            f"packing.row_length={row_length}: longer than model.max_position_embeddings={config.max_position_embeddings}; "
            "lower the one or raise the other"
        )
    if data.streaming and training.max_steps <= 0:
        raise ValueError(
            f"training.max_steps={training.max_steps}: a streamed data set has no known length; say how many steps to train"
        )

    schedule = training.lr_scheduler_type.value
    if training.max_steps > 0 and schedule in SCHEDULES:
        check_schedule(
            schedule,
            num_warmup_steps=training.get_warmup_steps(training.max_steps),
            num_training_steps=training.max_steps,
            **(training.lr_scheduler_kwargs or {}),
        )


def find_checkpoint(output_dir: str, resume: str | bool | None) -> str | None:
    """The checkpoint to go on from, or None to start anew.

    Args:
        resume: None, "auto" (the last checkpoint if there is one) or True (there must be one), or a checkpoint's path.

    Raises:
        ValueError: nothing to resume, or the folder holds a run that would be overwritten.
    """
    folder = Path(output_dir)
    last = get_last_checkpoint(output_dir) if folder.is_dir() else None
    finished = [name for name in ("train_results.json", "model.safetensors") if (folder / name).exists()]
    if resume in (None, False) and last is not None:
        raise ValueError(
            f"training.output_dir={output_dir!r}: holds a run already ({Path(last).name}); "
            "go on from it with --resume, choose another folder, or delete it"
        )
    if last is None and finished and resume in (None, False, "auto"):
        raise ValueError(
            f"training.output_dir={output_dir!r}: holds a run already ({finished[0]}) without a checkpoint to go on from; "
            "choose another folder, or delete it"
        )
    if resume in (None, False):
        return None
    if resume in (True, "auto"):
        if last is None and resume is True:
            raise ValueError(f"--resume: no checkpoint in {output_dir!r}; leave --resume out to start anew")
        return last
    if not (Path(resume) / "trainer_state.json").is_file():
        raise ValueError(f"--resume {resume}: not a checkpoint (no trainer_state.json in it)")
    return str(resume)


def check_writable(output_dir: str) -> None:
    """Raises ValueError where the folder can't be made or written to."""
    there = Path(output_dir).absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK):
        what = "can't be written to" if there.is_dir() else "is a file"
        raise ValueError(f"training.output_dir={output_dir!r}: {there.name or there} {what}; choose another folder")


# what transformers writes into a config beside the architecture
_NOT_ARCHITECTURE = {"_name_or_path", "architectures", "dtype", "transformers_version", "use_cache"}


def check_same_run(checkpoint: str | None, config: PretrainedConfig, values: dict[str, dict]) -> None:
    """Raises ValueError where a checkpoint was trained as another model, or its run's recipe has another tokenizer."""
    if checkpoint is None:
        return
    saved, asked = AutoConfig.from_pretrained(checkpoint).to_dict(), config.to_dict()
    for name in sorted(set(saved) | set(asked)):
        if name not in _NOT_ARCHITECTURE and saved.get(name) != asked.get(name):
            raise ValueError(
                f"model.{name}={asked.get(name)!r}: {Path(checkpoint).name} was trained with {saved.get(name)!r}; "
                "set it back, or start anew in another folder"
            )
    recipe = Path(checkpoint).parent / "recipe.yaml"
    if recipe.is_file():
        before = yaml.safe_load(recipe.read_text(encoding="utf-8")) or {}
        for section in ("tokenizer", "objective", "packing"):
            if before.get(section, {}) != values.get(section, {}):
                raise ValueError(
                    f"{section}: {values.get(section, {})} is not what {Path(checkpoint).name} was trained with, "
                    f"{before.get(section, {})}; set it back, or start anew in another folder"
                )


def get_tokenizer(
    arguments: TokenizerArguments,
    texts: Iterator[str],
    *,
    model_max_length: int,
    checkpoint: str | None,
    special_tokens: Mapping = MappingProxyType({}),
) -> PreTrainedTokenizerBase:
    """The checkpoint's where there is one, an existing one where the recipe names it, else a new one.

    Args:
        special_tokens: what a new one has besides; arguments of `train_tokenizer`.
    """
    if checkpoint is not None:
        return AutoTokenizer.from_pretrained(checkpoint)
    if arguments.path is not None:
        return AutoTokenizer.from_pretrained(arguments.path)
    return train_tokenizer(
        texts,
        kind=arguments.kind or TOKENIZER_KINDS[0],
        vocab_size=arguments.size,
        min_frequency=arguments.min_frequency,
        model_max_length=model_max_length,
        **special_tokens,
    )


def is_complete(checkpoint: str | None, training: HfxTrainingArguments) -> bool:
    """Whether nothing is left to train after `checkpoint`."""
    if checkpoint is None:
        return False
    state = json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))
    if training.max_steps > 0:
        return state["global_step"] >= training.max_steps
    return state["global_step"] >= state["max_steps"] and state["num_train_epochs"] >= training.num_train_epochs


def steps_done(checkpoint: str | None) -> int:
    """Optimizer steps behind a checkpoint."""
    if checkpoint is None:
        return 0
    return json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]


def train(trainer, checkpoint: str | None) -> dict:
    """Train, or go on, and return the metrics of the whole run; a run that is complete already keeps its own."""
    if is_complete(checkpoint, trainer.args):  # the stock Trainer would train one step more
        trainer.load_finished(checkpoint)
        saved = Path(trainer.args.output_dir) / "train_results.json"
        if saved.is_file():
            return json.loads(saved.read_text(encoding="utf-8"))
        done = trainer.state.global_step
        return {"train_loss": whole_training_loss(trainer.state.log_history, 0.0, done, done)}
    result = trainer.train(resume_from_checkpoint=checkpoint)
    loss = whole_training_loss(
        trainer.state.log_history, result.metrics["train_loss"], steps_done(checkpoint), trainer.state.global_step
    )
    return {**result.metrics, "train_loss": loss}


def whole_training_loss(log_history: list[dict], stock: float, resumed_at: int, last_step: int) -> float:
    """Mean loss over all steps of a run that was resumed.

    The stock figure divides the sum since the resume by all steps. What came before is in the log, up to the last entry
    before the checkpoint; steps between that entry and the checkpoint are not counted.
    """
    total, logged = stock * last_step, 0
    for entry in log_history:
        if "loss" in entry and entry["step"] <= resumed_at:
            total += entry["loss"] * (entry["step"] - logged)
            logged = entry["step"]
    counted = logged + last_step - resumed_at
    return total / counted if counted else stock


def dataset_name(data: DataArguments) -> str:
    """What the card calls the data: its name, or that of the first file, never a folder of this machine."""
    if data.dataset_name is not None:
        return Path(data.dataset_name).name if Path(data.dataset_name).exists() else data.dataset_name
    files = data.data_files
    while not isinstance(files, str):
        files = next(iter(files.values())) if isinstance(files, dict) else files[0]
    return Path(files).name


def describe_data(data: DataArguments, train_rows, eval_tokens: int, row_length: int) -> str:
    """One sentence for the card."""
    rows = f"{len(train_rows):,} rows of {row_length} tokens" if hasattr(train_rows, "__len__") else "a stream of rows"
    licence = f" Licence of the text: {PYTHON_LIBRARY_LICENSE}." if data.dataset_name == PYTHON_LIBRARY else ""
    return f"`{dataset_name(data)}`: {rows} to train on, {eval_tokens:,} tokens held out.{licence}"


def reload_in_fresh_process(folder: str, prompt: str) -> dict:
    """What `hf_ext.tasks.reload_check` prints of the saved model in a process of its own.

    Raises:
        RuntimeError: the process failed; its last lines are in the message.
    """
    command = [sys.executable, "-m", "hf_ext.tasks.reload_check", str(folder), "--prompt", prompt]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{folder}: doesn't load in a fresh process: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
