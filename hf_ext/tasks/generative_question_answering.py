"""Question answering by writing the answer, which need not stand in the text.

What `recipes/question_answering/generative.py` puts together.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from datasets import Dataset

from hf_ext.data import RowArguments
from hf_ext.metrics import compute
from hf_ext.metrics.squad import ARTICLES
from hf_ext.models.configuration_choices import check_choice
from hf_ext.tasks.adapter_section import AdapterArguments
from hf_ext.tasks.generation_section import GenerationArguments
from hf_ext.tasks.question_answering import load_questions
from hf_ext.tasks.source_and_target import WritingArguments, clean
from hf_ext.tasks.tokenizer_section import TokenizerArguments
from hf_ext.training.arguments import HfxTrainingArguments


HEADLINE = ("exact_match", "f1")


@dataclass
class WrittenAnswerArguments(WritingArguments):
    """What the model reads of question and text, and how long an answer may be."""

    max_target_length: int = field(
        default=32, metadata={"help": "Tokens of an answer that are learnt, end token included; longer ones are cut."}
    )
    null_answers: bool = field(
        default=False, metadata={"help": "Questions may have no answer (SQuAD 2): the model learns to write nothing."}
    )
    language: str | None = field(
        default="en", metadata={"help": "Of the answers, for the metrics: en, de, es, vi, hi, zh; null for others."}
    )

    section, long, others = "question_answering", "context", ("question",)
    # T5's form; Raffel et al. 2019, arXiv 1910.10683, appendix D
    default_prompts = ("question: {question} context: {context}", "context: {context}\nquestion: {question}\nanswer:")

    def __post_init__(self):
        super().__post_init__()
        check_choice("question_answering.language", self.language, tuple(ARTICLES))


SECTIONS = {
    "model": dict,
    "tokenizer": TokenizerArguments,
    "data": RowArguments,
    "question_answering": WrittenAnswerArguments,
    "generation": GenerationArguments,
    "adapter": AdapterArguments,
    "training": HfxTrainingArguments,
}


def load(data: RowArguments, asked: WrittenAnswerArguments) -> dict[str, Dataset]:
    """The splits' questions, each with `answer_texts`: the right answers, the first of which is learnt to be written."""
    return {split: _with_texts(rows) for split, rows in load_questions(data, asked.null_answers).items()}


def _with_texts(rows: Dataset) -> Dataset:
    return rows.add_column("answer_texts", [list(answers["text"]) for answers in rows["answers"]])


def texts(rows: Dataset) -> Iterator[str]:
    """All questions and answers, and each text once, for a tokenizer to learn from."""
    yield from dict.fromkeys(rows["context"])
    yield from rows["question"]
    for answers in rows["answer_texts"]:
        yield from answers


def score(rows: Dataset, asked: WrittenAnswerArguments) -> Callable[[list[str]], dict[str, float]]:
    """The metric `squad` of what is written for the rows."""
    right = [list(answers) for answers in rows["answer_texts"]]

    def of(written: list[str]) -> dict[str, float]:
        return compute("squad", clean(written), right, language=asked.language, with_unanswerable=asked.null_answers)

    return of


def predictions(written: Sequence[str], rows: Dataset) -> list[dict]:
    """A line of the predictions file for each question."""
    return [
        {"id": row["id"], "question": row["question"], "prediction": text, "answers": row["answer_texts"]}
        for row, text in zip(rows, clean(written), strict=True)
    ]
