"""Summaries: rows with their references, ROUGE, and summaries that are written.

What `recipes/summarization/train.py` puts together; sentences chosen from the text are `extractive_summarization.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from datasets import Dataset

from hf_ext.data import RowArguments, load_rows, split_sentences
from hf_ext.metrics import compute
from hf_ext.metrics.rouge import ROUGE_TYPES, TOKENIZERS
from hf_ext.models.configuration_choices import check_choice
from hf_ext.tasks.adapter_section import AdapterArguments
from hf_ext.tasks.generation_section import GenerationArguments
from hf_ext.tasks.source_and_target import WritingArguments, clean
from hf_ext.tasks.tokenizer_section import TokenizerArguments
from hf_ext.training.arguments import HfxTrainingArguments


HEADLINE = ROUGE_TYPES


@dataclass
class ReferenceArguments:
    """Which summaries are right, and how others are compared with them."""

    summary_columns: list[str] = field(
        default_factory=lambda: ["summary"],
        metadata={
            "help": "Columns of right summaries; those that a split has are its references. The first is learnt from."
        },
    )
    rouge_tokenizer: str = field(
        default="rouge_score",
        metadata={"help": "Words of ROUGE: rouge_score (a-z and digits, as in papers) or unicode (any script)."},
    )
    use_stemmer: bool = field(default=False, metadata={"help": "ROUGE of the stems of English words."})

    def __post_init__(self):
        if not self.summary_columns or len(set(self.summary_columns)) < len(self.summary_columns):
            raise ValueError(f"summarization.summary_columns={self.summary_columns}: name one at least, each once")
        check_choice("summarization.rouge_tokenizer", self.rouge_tokenizer, TOKENIZERS)
        if self.use_stemmer and self.rouge_tokenizer != "rouge_score":
            raise ValueError(
                f"summarization.use_stemmer=True: has no effect on rouge_tokenizer={self.rouge_tokenizer!r}; leave one out"
            )

    @property
    def rouge(self) -> dict:
        """Options of the metric."""
        return {"tokenizer": self.rouge_tokenizer, "use_stemmer": self.use_stemmer}


@dataclass
class SummaryArguments(ReferenceArguments, WritingArguments):
    """How long texts and summaries may be, what the model reads, and which summaries are right."""

    section, long = "summarization", "document"
    default_prompts = ("{document}", "{document}\nSummary:")

    def __post_init__(self):
        ReferenceArguments.__post_init__(self)
        WritingArguments.__post_init__(self)


SECTIONS = {
    "model": dict,
    "tokenizer": TokenizerArguments,
    "data": RowArguments,
    "summarization": SummaryArguments,
    "generation": GenerationArguments,
    "adapter": AdapterArguments,
    "training": HfxTrainingArguments,
}


def load_documents_with_summaries(arguments: RowArguments, asked: ReferenceArguments) -> dict[str, Dataset]:
    """The splits; each row has `document` and `references`, a list of right summaries.

    Raises:
        ValueError: what `load_rows` refuses, a split without any of the summaries' columns, or an empty text.
    """

    def gather(rows: Dataset) -> Dataset:
        there = [name for name in asked.summary_columns if name in rows.column_names]
        if not there:
            raise ValueError(
                f"summarization.summary_columns={asked.summary_columns}: none is among the columns {rows.column_names}; "
                "name those of the summaries"
            )
        columns = [rows[name] for name in there]
        references = [
            [text for given in row for text in (given if isinstance(given, list) else [given]) if (text or "").strip()]
            for row in zip(*columns, strict=True)
        ]
        return rows.remove_columns(there).add_column("references", references)

    rows = load_rows(arguments, ("document", "references"), unfold=gather)
    for split, found in rows.items():
        for number, row in enumerate(found):
            for name in ("document", "references"):
                if not row[name] or (name == "document" and not row[name].strip()):
                    raise ValueError(f"{name}: row {number} of {split} has none; remove it")
    return rows


def texts(rows: Dataset) -> Iterator[str]:
    """All texts and summaries, for a tokenizer to learn from."""
    yield from rows["document"]
    for references in rows["references"]:
        yield from references


def by_lines(text: str) -> str:
    """A sentence a line, as rougeLsum takes it."""
    return "\n".join(split_sentences(text))


def score(rows: Dataset, asked: ReferenceArguments) -> Callable[[Sequence[str]], dict[str, float]]:
    """ROUGE of summaries of the rows, and their mean length in words."""
    references = [[by_lines(text) for text in right] for right in rows["references"]]

    def of(written: Sequence[str]) -> dict[str, float]:
        written = clean(written)
        words = sum(len(text.split()) for text in written) / len(written)
        return {**compute("rouge", [by_lines(t) for t in written], references, **asked.rouge), "words": words}

    return of


def predictions(written: Sequence[str], rows: Dataset) -> list[dict]:
    """A line of the predictions file for each text."""
    return [
        {"document": row["document"], "prediction": text, "references": row["references"]}
        for row, text in zip(rows, clean(written), strict=True)
    ]
