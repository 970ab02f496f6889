"""Pretraining, from scratch or of a trained model on further text: what `recipes/pretraining/train.py` puts together.

Every section of the YAML is a dataclass here or in the room that owns it; the model section takes any field of the
family's configuration.
"""

from dataclasses import dataclass, field

from transformers import PretrainedConfig

from hf_ext.data import PYTHON_LIBRARY, PYTHON_LIBRARY_LICENSE, DataArguments
from hf_ext.tasks.adapter_section import AdapterArguments
from hf_ext.tasks.samples import SampleArguments
from hf_ext.tasks.tokenizer_section import TokenizerArguments
from hf_ext.training.arguments import HfxTrainingArguments


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
    "adapter": AdapterArguments,
    "samples": SampleArguments,
    "training": HfxTrainingArguments,
}


# kind of objective -> the Hub's name of the task
HUB_TASKS = {"causal": "text-generation", "masked": "fill-mask", "sequence_to_sequence": "text2text-generation"}

# of what evaluation gives, the numbers that say something about the model
REPORTED = ("eval_loss", "eval_perplexity", "eval_bits_per_byte", "eval_tokens")


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


def describe_data(name: str, train_rows, eval_tokens: int, row_length: int) -> str:
    """One sentence for the card."""
    rows = f"{len(train_rows):,} rows of {row_length} tokens" if hasattr(train_rows, "__len__") else "a stream of rows"
    licence = f" Licence of the text: {PYTHON_LIBRARY_LICENSE}." if name == PYTHON_LIBRARY else ""
    return f"`{name}`: {rows} to train on, {eval_tokens:,} tokens held out.{licence}"
