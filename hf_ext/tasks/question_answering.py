"""Question answering by a span of a text, which may be longer than what the model reads at once, or may have no answer.

What `recipes/question_answering/train.py` puts together; `find_answers` asks a trained model.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from datasets import Dataset
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForMaskedLM,
    DataCollatorWithPadding,
    EvalPrediction,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from hf_ext.data import RowArguments, load_rows, unfold_squad
from hf_ext.metrics import compute
from hf_ext.metrics.squad import ARTICLES
from hf_ext.models.configuration_choices import check_choice
from hf_ext.tasks.adapter_section import AdapterArguments
from hf_ext.tasks.answer_spans import Span, best_spans, doubt, find_tokens, token_characters, with_probabilities
from hf_ext.tasks.tokenizer_section import TokenizerArguments
from hf_ext.training.arguments import HfxTrainingArguments


logger = logging.get_logger(__name__)
COLUMNS, OPTIONAL_COLUMNS = ("question", "context", "answers"), ("id", "title")
# a tokenizer trained here puts these around question and text, as BERT's does
SPECIAL_TOKENS = {"bos_token": "<|cls|>", "mask_token": "<|mask|>", "wraps": True}
HEADLINE = ("exact_match", "f1")
# columns of windows that the model doesn't read
_BESIDE = ("row", "begins", "ends", "null")
# tokens of the text that a window needs beside the question for its answer to have any surroundings
SMALLEST_WINDOW = 8


@dataclass
class AnswerArguments:
    """How texts are cut into windows, and what is taken for an answer."""

    max_length: int | None = field(
        default=None,
        metadata={"help": "Tokens of a window, question and special tokens included. Default: what the model reads."},
    )
    stride: int | None = field(
        default=None, metadata={"help": "Tokens of the text that a window shares with the next. Default: a quarter."}
    )
    max_answer_length: int = field(default=30, metadata={"help": "Tokens of an answer at most."})
    n_best: int = field(default=20, metadata={"help": "Answers in the n-best lists."})
    null_answers: bool = field(
        default=False, metadata={"help": "Questions may have no answer (SQuAD 2): the model learns to say so."}
    )
    no_answer_threshold: float | None = field(
        default=None,
        metadata={"help": "With null_answers: probability of no answer above which none is given. Default: 0.5."},
    )
    language: str | None = field(
        default="en", metadata={"help": "Of the answers, for the metrics: en, de, es, vi, hi, zh; null for others."}
    )

    def __post_init__(self):
        if self.max_length is not None and self.max_length < SMALLEST_WINDOW:
            raise ValueError(f"question_answering.max_length={self.max_length}: must be at least {SMALLEST_WINDOW}")
        if self.stride is not None and self.stride < 0:
            raise ValueError(f"question_answering.stride={self.stride}: must not be negative")
        for name in ("max_answer_length", "n_best"):
            if getattr(self, name) < 1:
                raise ValueError(f"question_answering.{name}={getattr(self, name)}: must be at least 1")
        if self.no_answer_threshold is not None:
            if not self.null_answers:
                raise ValueError(
                    f"question_answering.no_answer_threshold={self.no_answer_threshold}: has no effect without "
                    "null_answers: true; leave it out"
                )
            if not 0 <= self.no_answer_threshold <= 1:
                raise ValueError(
                    f"question_answering.no_answer_threshold={self.no_answer_threshold}: must be from 0 to 1"
                )
        check_choice("question_answering.language", self.language, tuple(ARTICLES))

    @property
    def threshold(self) -> float:
        """Probability of no answer above which none is given."""
        return 0.5 if self.no_answer_threshold is None else self.no_answer_threshold


SECTIONS = {
    "model": dict,
    "tokenizer": TokenizerArguments,
    "data": RowArguments,
    "question_answering": AnswerArguments,
    "adapter": AdapterArguments,
    "training": HfxTrainingArguments,
}


@dataclass(frozen=True)
class Answer:
    """What a model answers.

    Attributes:
        text: the answer, of the text's own characters; "" for none. start, end: which of them.
        spans: the n-best list. null_probability: share of "no answer" in it; 0 where there must be one.
        no_answer_probability: of none against the best one.
    """

    text: str
    start: int
    end: int
    spans: list[Span]
    null_probability: float
    no_answer_probability: float


def load_questions(arguments: RowArguments, null_answers: bool) -> dict[str, Dataset]:
    """The splits; each row has `id`, `question`, `context` and `answers`, {"text": [...], "answer_start": [...]}.

    SQuAD's own files, and data sets that have a question a row. What is held out shares no text with what is trained on, and
    no value of `data.group_column` (SQuAD: `title`, the article).

    Raises:
        ValueError: what `load_rows` refuses; an empty question or text; an answer that isn't where it is said to be, or none
            where there must be one.
    """
    rows = load_rows(arguments, COLUMNS, OPTIONAL_COLUMNS, unfold=unfold_squad, group="context")
    for split, asked in rows.items():
        ids = [str(i) for i in (asked["id"] if "id" in asked.column_names else range(len(asked)))]
        if len(set(ids)) < len(ids):
            twice = next(i for i in ids if ids.count(i) > 1)
            raise ValueError(f"id: {twice!r} stands twice in {split}; give each question one of its own")
        for number, row in enumerate(asked):
            check_question(row, f"row {number} of {split}", null_answers)
        rows[split] = asked.remove_columns([c for c in ("id",) if c in asked.column_names]).add_column("id", ids)
    return rows


def check_question(row: Mapping, where: str, null_answers: bool) -> None:
    """Raises ValueError for a row that can't be learnt from or asked."""
    for name in ("question", "context"):
        if not (row[name] or "").strip():
            raise ValueError(f"{name}: {where} has none; remove it")
    given = row["answers"]
    if not isinstance(given, Mapping) or not {"text", "answer_start"} <= set(given):
        raise ValueError(f"answers: {where} has {given!r}; must be {{text: [...], answer_start: [...]}}")
    if not given["text"] and not null_answers:
        raise ValueError(f"answers: {where} has none; set question_answering.null_answers: true, or remove it")
    for text, start in zip(given["text"], given["answer_start"], strict=True):
        there = row["context"][start : start + len(text)] if start >= 0 else ""
        if there != text or not text.strip():
            raise ValueError(
                f"answers: {text!r} is not at character {start} of the text in {where}, but {there!r}; mend it"
            )


def texts(rows: Dataset) -> Iterator[str]:
    """All questions, and each text once, for a tokenizer to learn from."""
    yield from dict.fromkeys(rows["context"])
    yield from rows["question"]


def with_pair_template(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """`tokenizer`, putting a token between question and text and one at the end, as it is then saved too.

    Those of BERT's kind do so already; those of language models are given their end token for it.

    Raises:
        ValueError: it has no end token, or isn't one of the fast ones, which know where their tokens come from.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"tokenizer: {type(tokenizer).__name__} doesn't know its tokens' places; use a fast tokenizer")
    parts = tokenizer("a", "b").sequence_ids()
    if parts[-1] is None and None in parts[parts.index(0) : parts.index(1)]:
        return tokenizer
    if tokenizer.eos_token is None:
        raise ValueError("tokenizer: puts nothing between question and text and has no end token; use another one")
    ends = {
        token: tokenizer.convert_tokens_to_ids(token) for token in (tokenizer.bos_token, tokenizer.eos_token) if token
    }
    first = f"{tokenizer.bos_token} " if tokenizer.bos_token not in (None, tokenizer.eos_token) else ""
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{first}$A", pair=f"{first}$A {end} $B:1 {end}:1", special_tokens=list(ends.items())
    )
    logger.warning(f"tokenizer: puts {end} between question and text from now on, and at the end")
    return tokenizer


def cut_into_windows(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, asked: AnswerArguments, where: str
) -> Dataset:
    """A row for each window: the question and a part of its text.

    Columns: what the model reads; `start_positions`, `end_positions`, the answer's first and last token, both `null` where
    the window doesn't hold it (a question with several answers is trained on its first); `row`, which question it asks;
    `begins`, `ends`, characters that an answer from or up to each token has, or -1; `null`, the token that stands for no
    answer: the first one, or for a model that reads to the right only the last.

    Raises:
        ValueError: a question that leaves the text no room.
    """
    longest = min(asked.max_length or config.max_position_embeddings, config.max_position_embeddings)
    stride = longest // 4 if asked.stride is None else asked.stride
    has_segments = (getattr(config, "type_vocab_size", None) or 0) > 1
    sees_all = config.is_encoder_decoder or type(config) in AutoModelForMaskedLM._model_mapping
    special = tokenizer.num_special_tokens_to_add(pair=True)
    made = (*_BESIDE, "start_positions", "end_positions")

    def convert(batch: dict, numbers: list[int]) -> dict:
        for number, ids in zip(numbers, tokenizer(batch["question"], add_special_tokens=False).input_ids, strict=True):
            if len(ids) + special + stride + 1 > longest:
                raise ValueError(
                    f"question_answering.max_length={longest}: the question in row {number} of {where} has {len(ids)} "
                    f"tokens, which leaves no window longer than the stride of {stride}; raise it, or lower the stride"
                )
        encoded = tokenizer(
            batch["question"],
            batch["context"],
            truncation="only_second",
            max_length=longest,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_token_type_ids=has_segments,
        )
        owners = encoded.pop("overflow_to_sample_mapping")
        windows = {name: encoded[name] for name in encoded if name != "offset_mapping"}
        windows |= {name: [] for name in made}
        for window, owner in enumerate(owners):
            of_text = np.array([part == 1 for part in encoded.sequence_ids(window)])
            offsets = np.array(encoded["offset_mapping"][window])
            begins, ends = token_characters(batch["context"][owner], offsets, of_text)
            null = 0 if sees_all else len(begins) - 1
            first, last = answer_tokens(batch["answers"][owner], begins, ends) or (null, null)
            values = (numbers[owner], begins, ends, null, first, last)
            for name, value in zip(made, values, strict=True):
                windows[name].append(value)
        return windows

    windows = rows.map(
        convert, batched=True, with_indices=True, remove_columns=rows.column_names, desc=f"windows of {where}"
    )
    logger.warning(f"{where}: {len(rows):,} questions in {len(windows):,} windows of up to {longest} tokens")
    return windows


def answer_tokens(answers: Mapping, begins: np.ndarray, ends: np.ndarray) -> tuple[int, int] | None:
    """First and last token of the first answer, without the spaces around it; None where the window doesn't hold it."""
    if not answers["text"]:
        return None
    text, start = answers["text"][0], answers["answer_start"][0]
    start += len(text) - len(text.lstrip())
    return find_tokens(begins, ends, start, start + len(text.strip()))


def model_inputs(windows: Dataset) -> Dataset:
    """The columns that the model reads."""
    return windows.remove_columns(list(_BESIDE))


def collator(tokenizer: PreTrainedTokenizerBase) -> DataCollatorWithPadding:
    """Pads a batch to its longest window; the models compute nothing for the padding."""
    return DataCollatorWithPadding(tokenizer)


def scores_only(outputs: Sequence[torch.Tensor], labels) -> tuple[torch.Tensor, torch.Tensor]:
    """`preprocess_logits_for_metrics` of the Trainer: what encoder-decoders return besides isn't kept."""
    return outputs[0], outputs[1]


def read_answers(
    outputs: tuple[np.ndarray, np.ndarray], windows: Dataset, rows: Dataset, asked: AnswerArguments
) -> list[Answer]:
    """The answer to each question, from the scores of all its windows.

    Args:
        outputs: start_logits and end_logits, (windows, T) each.
    """
    start_logits, end_logits = outputs
    length = start_logits.shape[1]
    of_row: list[list[int]] = [[] for _ in range(len(rows))]
    for window, number in enumerate(windows["row"]):
        of_row[number].append(window)
    begins, ends = (_padded(windows[name], length) for name in ("begins", "ends"))
    nulls = np.array(windows["null"])
    every = np.arange(len(nulls))
    null_scores = start_logits[every, nulls] + end_logits[every, nulls]
    answers = []
    for number, context in enumerate(rows["context"]):
        own = of_row[number]
        spans = best_spans(
            start_logits[own],
            end_logits[own],
            begins[own],
            ends[own],
            max_answer_length=asked.max_answer_length,
            n_best=asked.n_best,
        )
        # there is no answer where every window says so
        answers.append(_answer(spans, float(null_scores[own].min()) if asked.null_answers else None, context, asked))
    return answers


def _padded(lists, length: int) -> np.ndarray:
    padded = np.full((len(lists), length), -1, dtype=np.int64)
    for row, values in enumerate(lists):
        padded[row, : len(values)] = values
    return padded


def _answer(spans: list[Span], null_score: float | None, context: str, asked: AnswerArguments) -> Answer:
    if null_score is None and not spans:  # a window of spaces alone; nothing can be said
        return Answer("", 0, 0, [], 0.0, 1.0)
    spans, null_probability = with_probabilities(spans, null_score)
    no_answer = 0.0 if null_score is None else doubt(spans, null_score)
    if not spans or no_answer > asked.threshold:
        return Answer("", 0, 0, spans, null_probability, no_answer)
    best = spans[0]
    return Answer(context[best.start : best.end], best.start, best.end, spans, null_probability, no_answer)


def scores(answers: Sequence[Answer], rows: Dataset, asked: AnswerArguments) -> dict[str, float]:
    """The metric `squad`; with null answers also of both kinds, and the thresholds that would have been best here."""
    options = {"language": asked.language}
    if asked.null_answers:
        options |= {"with_unanswerable": True, "no_answer_threshold": asked.threshold, "find_best_threshold": True}
    given = [
        {
            "id": row_id,
            # the threshold is the metric's business, which also tries others
            "prediction_text": context[a.spans[0].start : a.spans[0].end] if a.spans else "",
            "no_answer_probability": a.no_answer_probability,
        }
        for row_id, context, a in zip(rows["id"], rows["context"], answers, strict=True)
    ]
    right = [{"id": i, "answers": list(a["text"])} for i, a in zip(rows["id"], rows["answers"], strict=True)]
    return compute("squad", given, right, **options)


def metrics(windows: Dataset, rows: Dataset, asked: AnswerArguments):
    """`compute_metrics` of a split."""

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        return scores(read_answers(prediction.predictions, windows, rows, asked), rows, asked)

    return compute_metrics


def predictions(answers: Sequence[Answer], rows: Dataset, asked: AnswerArguments) -> list[dict]:
    """A line of the predictions file for each question."""
    lines = []
    for row, answer in zip(rows, answers, strict=True):
        line = {
            "id": row["id"],
            "question": row["question"],
            "prediction": answer.text,
            "answers": row["answers"]["text"],
        }
        if answer.text:
            line |= {"start": answer.start, "end": answer.end, "probability": round(answer.spans[0].probability, 6)}
        if asked.null_answers:
            line["no_answer_probability"] = round(answer.no_answer_probability, 6)
        lines.append(line)
    return lines


def n_best_lists(answers: Sequence[Answer], rows: Dataset, asked: AnswerArguments) -> list[dict]:
    """A line of the n-best file for each question: its answers by their probability, "" for none."""
    lines = []
    for row_id, context, answer in zip(rows["id"], rows["context"], answers, strict=True):
        entries = [
            {"text": context[s.start : s.end], "start": s.start, "end": s.end, "score": round(s.score, 4)}
            | {"probability": round(s.probability, 6)}
            for s in answer.spans
        ]
        if asked.null_answers:
            entries.append({"text": "", "probability": round(answer.null_probability, 6)})
            entries.sort(key=lambda entry: -entry["probability"])
        lines.append({"id": row_id, "answers": entries})
    return lines


@torch.no_grad()
def find_answers(
    model, tokenizer: PreTrainedTokenizerBase, question: str, context: str, *, batch_size: int = 16, **options
) -> Answer:
    """What a trained model answers to a question about a text of any length.

    Args:
        options: fields of `AnswerArguments`: `max_length`, `stride`, `n_best`, `null_answers`, …

    Raises:
        ValueError: an empty question or text, or an option that there isn't a value for.
    """
    asked = AnswerArguments(**options)
    row = {"question": question, "context": context, "answers": {"text": [], "answer_start": []}}
    check_question(row, "the call", null_answers=True)
    rows = Dataset.from_list([{**row, "id": "0"}])
    windows = cut_into_windows(rows, tokenizer, model.config, asked, "the call")
    inputs = model_inputs(windows).remove_columns(["start_positions", "end_positions"])
    collate, was_training = collator(tokenizer), model.training
    model.eval()
    found = []
    for start in range(0, len(inputs), batch_size):
        batch = collate([inputs[i] for i in range(start, min(start + batch_size, len(inputs)))]).to(model.device)
        output = model(**batch)
        found.append((output.start_logits.float().cpu().numpy(), output.end_logits.float().cpu().numpy()))
    model.train(was_training)
    longest = max(part.shape[1] for part, _ in found)
    padded = [[np.pad(p, ((0, 0), (0, longest - p.shape[1]))) for p in pair] for pair in found]
    return read_answers(tuple(np.concatenate(side) for side in zip(*padded, strict=True)), windows, rows, asked)[0]


def samples(answers: Sequence[Answer], rows: Dataset, count: int = 3) -> list[dict[str, str]]:
    """The card's first questions, each with its text."""
    chosen = zip(rows.select(range(min(count, len(rows)))), answers, strict=False)
    return [{"prompt": row["question"], "text": a.text, "context": row["context"]} for row, a in chosen]
