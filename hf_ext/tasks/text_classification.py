"""Text classification: one class of several, several labels at once, or a number, for a text or a pair of texts.

What `recipes/text_classification/train.py` puts together.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter

import numpy as np
import torch
from datasets import Dataset, List, Value
from transformers import DataCollatorWithPadding, EvalPrediction, PreTrainedTokenizerBase

from hf_ext.data import BpeDropout, RowArguments, check_bpe_dropout
from hf_ext.metrics import compute
from hf_ext.models.configuration_choices import check_choice
from hf_ext.tasks.adapter_section import AdapterArguments
from hf_ext.tasks.tokenizer_section import TokenizerArguments
from hf_ext.training.arguments import HfxTrainingArguments
from hf_ext.training.r_drop import RDropTrainer
from hf_ext.training.trainer import HfxTrainer


PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
# a tokenizer trained here puts these around a text, as BERT's does, and reads its first word as it reads the others
SPECIAL_TOKENS = {"bos_token": "<|cls|>", "mask_token": "<|mask|>", "wraps": True, "reads_words": True}


@dataclass
class ClassificationArguments:
    """What is asked of a text."""

    problem_type: str | None = field(
        default=None,
        metadata={
            "help": f"{', '.join(PROBLEM_TYPES)}. Default: by the labels: classes, lists of labels, or decimals."
        },
    )
    label_names: dict[str, str] | None = field(
        default=None,
        metadata={"help": "Label in the data -> its name, in the classes' order. Default: those found, sorted."},
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Tokens of a text; longer ones are cut. Default: what the model reads at most."}
    )
    token_dropout: float = field(
        default=0.0,
        metadata={"help": "Probability that a token is left out of a text in training, drawn anew at each look."},
    )
    bpe_dropout: float = field(
        default=0.0,
        metadata={"help": "Probability that a merge is passed over, so that words are cut differently at each look."},
    )
    r_drop: float = field(
        default=0.0,
        metadata={"help": "Reads each row twice and wants the same said; weight of the difference, 1 to 5. R-Drop."},
    )
    threshold: float = field(
        default=0.5, metadata={"help": "With several labels at once: probability from which one is given."}
    )

    def __post_init__(self):
        check_choice("classification.problem_type", self.problem_type, (None, *PROBLEM_TYPES))
        if self.problem_type == "regression" and self.label_names:
            raise ValueError("classification.label_names: a number has no names; leave it out")
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"classification.max_length={self.max_length}: must be at least 2")
        if not 0 <= self.token_dropout < 1:
            raise ValueError(f"classification.token_dropout={self.token_dropout}: must be at least 0 and below 1")
        check_bpe_dropout("classification.bpe_dropout", self.bpe_dropout)
        if self.r_drop < 0:
            raise ValueError(f"classification.r_drop={self.r_drop}: must not be negative; 0 is without")
        if not 0 < self.threshold < 1:
            raise ValueError(f"classification.threshold={self.threshold}: must be between 0 and 1, both excluded")


SECTIONS = {
    "model": dict,
    "tokenizer": TokenizerArguments,
    "data": RowArguments,
    "classification": ClassificationArguments,
    "adapter": AdapterArguments,
    "training": HfxTrainingArguments,
}
# what the card puts first
HEADLINES = {
    "single_label_classification": ("accuracy", "f1", "matthews_correlation"),
    "multi_label_classification": ("subset_accuracy", "f1_micro", "f1_macro"),
    "regression": ("mse", "pearson", "spearman"),
}
COLUMNS, OPTIONAL_COLUMNS = ("text", "label"), ("text_pair",)


@dataclass(frozen=True)
class Labels:
    """The classes, in the order of the model's outputs, and how a label in the data becomes what the model is trained on.

    Attributes:
        problem_type: as a configuration has it. values: labels as the data writes them (as text); [] for numbers.
        names: what the model calls them.
    """

    problem_type: str
    values: list[str]
    names: list[str]

    @property
    def head(self) -> dict:
        """Fields of the configuration."""
        names = self.names or ["score"]
        return {
            "problem_type": self.problem_type,
            "id2label": dict(enumerate(names)),
            "label2id": {name: number for number, name in enumerate(names)},
        }

    def encode(self, label, where: str) -> int | float | list[float]:
        """A label of the data as the model is trained on it.

        Raises:
            ValueError: a label that isn't among the classes, or no number.
        """
        if self.problem_type == "regression":
            try:
                return float(label)
            except (TypeError, ValueError):
                raise ValueError(
                    f"label: {label!r} in {where} is no number; classification.problem_type is regression"
                ) from None
        given = [str(one) for one in (label if self.problem_type == "multi_label_classification" else [label])]
        for one in given:
            if one not in self.values:
                raise ValueError(f"label: {one!r} in {where} is not among the classes {', '.join(self.values[:20])}")
        if self.problem_type == "multi_label_classification":
            return [float(value in given) for value in self.values]
        return self.values.index(given[0])


def read_labels(train: Dataset, arguments: ClassificationArguments) -> Labels:
    """The classes of the training rows.

    Raises:
        ValueError: a label that is missing, one class only, or names that don't fit what is found.
    """
    column, feature = train["label"], train.features["label"]
    if any(label is None for label in column):
        raise ValueError(f"label: row {list(column).index(None)} of train has none; remove it or give it one")
    kind = arguments.problem_type or _problem_type(feature)
    if kind == "regression":
        return Labels(kind, [], [])
    if (kind == "multi_label_classification") != isinstance(feature, List):
        raise ValueError(
            f"classification.problem_type={kind!r}: labels are {feature}; several labels at once are lists, one is none"
        )
    if kind == "multi_label_classification":
        found = {str(one) for labels in column for one in labels}
    else:
        found = {str(label) for label in column}
    class_names = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)
    if arguments.label_names is not None:
        names = {str(value): name for value, name in arguments.label_names.items()}
        if missing := sorted(found - set(names)):
            raise ValueError(f"classification.label_names: the data has {missing[0]!r} too, which isn't named; add it")
    elif class_names is not None:
        names = {str(number): name for number, name in enumerate(class_names)}
    else:
        numeric = all(value.lstrip("-").isdigit() for value in found)
        names = {value: value for value in sorted(found, key=int if numeric else None)}
    if len(names) < 2:
        raise ValueError(f"label: all of train have the label {next(iter(found))!r}; give rows of at least two classes")
    return Labels(kind, list(names), list(names.values()))


def _problem_type(feature) -> str:
    if isinstance(feature, List):
        return "multi_label_classification"
    is_decimal = isinstance(feature, Value) and feature.dtype.startswith("float")
    return "regression" if is_decimal else "single_label_classification"


def tokenize(rows: Dataset, tokenizer: PreTrainedTokenizerBase, labels: Labels, max_length: int, where: str) -> Dataset:
    """`input_ids` (and what else the tokenizer gives) and `labels`, as the model takes them; order and number stay.

    Raises:
        ValueError: a row without text, or a label that there isn't.
    """

    def convert(row: dict, number: int) -> dict:
        if not (row["text"] or "").strip():
            raise ValueError(f"text: row {number} of {where} is empty; remove it")
        encoded = tokenizer(row["text"], row.get("text_pair"), truncation=True, max_length=max_length)
        return {**encoded, "labels": labels.encode(row["label"], where)}

    return rows.map(convert, with_indices=True, remove_columns=rows.column_names, desc=f"tokens of {where}")


def texts(rows: Dataset) -> Iterator[str]:
    """All texts, for a tokenizer to learn from."""
    for column in ("text", "text_pair"):
        if column in rows.column_names:
            yield from (text for text in rows[column] if text)


def collator(
    tokenizer: PreTrainedTokenizerBase, asked: ClassificationArguments | None = None, max_length: int | None = None
):
    """Pads a batch to its longest text; the models compute nothing for the padding.

    Args:
        asked: for training only: its `bpe_dropout` cuts words anew, its `token_dropout` leaves out tokens.
        max_length: tokens that a text may have, with `bpe_dropout`.
    """
    if asked is None or not (asked.token_dropout or asked.bpe_dropout):
        return DataCollatorWithPadding(tokenizer)
    return DropoutCollator(tokenizer, asked.token_dropout, asked.bpe_dropout, max_length)


@dataclass
class DropoutCollator:
    """`DataCollatorWithPadding` of texts whose words were cut anew, and which have lost some tokens.

    Args:
        token_dropout: probability that a token is left out, special ones excepted. Iyyer et al. 2015, "Deep Unordered
            Composition Rivals Syntactic Methods for Text Classification", sec. 3.1.
        bpe_dropout: probability that a merge is passed over.
        max_length: a text that would become longer stays as it was cut before; None for no bound.
    """

    tokenizer: PreTrainedTokenizerBase
    token_dropout: float = 0.0
    bpe_dropout: float = 0.0
    max_length: int | None = None

    def __post_init__(self):
        self.pad = DataCollatorWithPadding(self.tokenizer)
        self.special = set(self.tokenizer.all_special_ids)
        self.cut_anew = BpeDropout(self.tokenizer, self.bpe_dropout) if self.bpe_dropout else None

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        if self.cut_anew is not None:
            rows = [self._cut(row) for row in rows]
        if self.token_dropout:
            rows = [self._thinned(row) for row in rows]
        return self.pad(rows)

    def _cut(self, row: dict) -> dict:
        types = row.get("token_type_ids") or [0] * len(row["input_ids"])
        tokens, new_types = [], []
        for kind, group in groupby(zip(row["input_ids"], types, strict=True), key=itemgetter(1)):
            part = self.cut_anew([token for token, _ in group])
            tokens += part
            new_types += [kind] * len(part)
        if self.max_length is not None and len(tokens) > self.max_length:
            return row
        new = {"input_ids": tokens, "attention_mask": [1] * len(tokens), "token_type_ids": new_types}
        return {name: new.get(name, value) for name, value in row.items()}

    def _thinned(self, row: dict) -> dict:
        tokens = row["input_ids"]
        drawn = torch.rand(len(tokens)).tolist()
        kept = [
            place
            for place, (token, share) in enumerate(zip(tokens, drawn, strict=True))
            if share >= self.token_dropout or token in self.special
        ]
        by_token = ("input_ids", "attention_mask", "token_type_ids")
        return {name: [value[place] for place in kept] if name in by_token else value for name, value in row.items()}


def trainer(asked: ClassificationArguments, **arguments) -> HfxTrainer:
    """A Trainer that reads rows once, or twice with `r_drop`; `arguments` are those of `HfxTrainer`."""
    return RDropTrainer(r_drop=asked.r_drop, **arguments) if asked.r_drop else HfxTrainer(**arguments)


def metrics(labels: Labels, threshold: float):
    """`compute_metrics` of the Trainer: the metrics `classification`, `multilabel_classification` or `regression`."""

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        scores = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        if labels.problem_type == "regression":
            return compute("regression", scores.reshape(-1), prediction.label_ids.reshape(-1))
        if labels.problem_type == "multi_label_classification":
            given = (_sigmoid(scores) >= threshold).astype(int)
            return compute("multilabel_classification", given, prediction.label_ids.astype(int))
        average = "binary" if len(labels.names) == 2 else "macro"
        return compute("classification", scores.argmax(-1), prediction.label_ids, average=average)

    return compute_metrics


def predictions(scores: np.ndarray, rows: Dataset, labels: Labels, threshold: float) -> list[dict]:
    """A line of the predictions file for each row: the text, its label, what the model says and how sure it is."""
    lines = []
    for row, logits in zip(rows, scores, strict=True):
        line = {name: row[name] for name in ("text", "text_pair", "label") if name in row}
        if labels.problem_type == "regression":
            line["prediction"] = float(logits.reshape(-1)[0])
        else:
            is_multi = labels.problem_type == "multi_label_classification"
            shares = _sigmoid(logits) if is_multi else _softmax(logits)
            best = [n for n, share in zip(labels.names, shares, strict=True) if share >= threshold]
            line["prediction"] = best if is_multi else labels.names[int(shares.argmax())]
            line["scores"] = {name: round(float(share), 6) for name, share in zip(labels.names, shares, strict=True)}
        lines.append(line)
    return lines


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x.astype(np.float64)))


def _softmax(x: np.ndarray) -> np.ndarray:
    shares = np.exp(x.astype(np.float64) - x.max())
    return shares / shares.sum()
