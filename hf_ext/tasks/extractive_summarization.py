"""Summaries of a text's own sentences: an encoder reads all of it and scores each sentence.

What `recipes/summarization/extractive.py` puts together; `extract_summary` asks a trained model. As Liu 2019, arXiv
1903.10318, sec. 2.1 and 2.2: every sentence has a cls token before and a sep token after it, sentences are of segment 0
and 1 by turns, and the cls tokens' states, which have seen the whole text, are classified.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from datasets import Dataset
from rouge_score import tokenizers
from transformers import (
    AutoModelForMaskedLM,
    DataCollatorForTokenClassification,
    EvalPrediction,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from hf_ext.data import RowArguments, split_sentences
from hf_ext.data.sentences import UNITS
from hf_ext.metrics.rouge import ROUGE_TYPES, UnicodeTokenizer
from hf_ext.models.configuration_choices import check_choice
from hf_ext.tasks.adapter_section import AdapterArguments
from hf_ext.tasks.sentence_choice import choose_sentences, oracle_sentences
from hf_ext.tasks.summarization import ReferenceArguments, score
from hf_ext.tasks.tokenizer_section import TokenizerArguments
from hf_ext.training.arguments import HfxTrainingArguments


logger = logging.get_logger(__name__)
IGNORED_LABEL = -100
# what the classes of a cls token are called
NAMES = ("other", "summary")
HEAD = {"id2label": dict(enumerate(NAMES)), "label2id": {name: number for number, name in enumerate(NAMES)}}
# a tokenizer trained here has them as cls and sep
SPECIAL_TOKENS = {"bos_token": "<|cls|>", "mask_token": "<|mask|>", "wraps": True}
HEADLINE = ROUGE_TYPES
# how the card says to use the model: transformers has no pipeline for it
USAGE = """from transformers import AutoModelForTokenClassification, AutoTokenizer

from hf_ext.tasks.extractive_summarization import extract_summary

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForTokenClassification.from_pretrained("{folder}")
document = {prompt}
print("\\n".join(extract_summary(model, tokenizer, document)))"""
LEAD = 3


@dataclass
class ExtractionArguments(ReferenceArguments):
    """What a sentence is, and which of them make a summary."""

    unit: str = field(
        default="sentences", metadata={"help": f"{' or '.join(UNITS)}: what is chosen; lines are a dialogue's turns."}
    )
    num_sentences: int | None = field(
        default=3, metadata={"help": "Sentences of a summary at most; null: by threshold."}
    )
    threshold: float | None = field(
        default=None, metadata={"help": "Probability from which a sentence is chosen; the best one always is."}
    )
    block_trigrams: bool = field(
        default=True, metadata={"help": "Choose no sentence that shares three words in a row with one chosen before."}
    )
    max_oracle_sentences: int | None = field(
        default=None, metadata={"help": "Sentences that are labelled at most. Default: as many as raise ROUGE."}
    )
    max_length: int | None = field(
        default=None,
        metadata={"help": "Tokens of a text; sentences after it aren't read. Default: what the model reads."},
    )

    def __post_init__(self):
        super().__post_init__()
        check_choice("summarization.unit", self.unit, UNITS)
        for name, least in (("num_sentences", 1), ("max_oracle_sentences", 1), ("max_length", 4)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"summarization.{name}={value}: must be at least {least}")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ValueError(f"summarization.threshold={self.threshold}: must be between 0 and 1, both excluded")
        if self.num_sentences is None and self.threshold is None:
            raise ValueError("summarization.num_sentences, threshold: neither is given; give one of them, or both")

    def words(self, text: str) -> list[str]:
        """The words of a text as ROUGE counts them."""
        if self.rouge_tokenizer == "unicode":
            return UnicodeTokenizer().tokenize(text)
        return tokenizers.DefaultTokenizer(self.use_stemmer).tokenize(text)


SECTIONS = {
    "model": dict,
    "tokenizer": TokenizerArguments,
    "data": RowArguments,
    "summarization": ExtractionArguments,
    "adapter": AdapterArguments,
    "training": HfxTrainingArguments,
}


def check_model(config: PretrainedConfig) -> None:
    """Raises ValueError for a model whose token before a sentence doesn't see the sentence."""
    if config.is_encoder_decoder or type(config) not in AutoModelForMaskedLM._model_mapping:
        raise ValueError(
            f"model.model_type={config.model_type!r}: the token before a sentence must see it; use an encoder, hfx_encoder"
        )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ValueError where there is no token to put around a sentence."""
    for name in ("cls_token", "sep_token"):
        if getattr(tokenizer, name) is None:
            raise ValueError(f"tokenizer: it has no {name}, which every sentence needs; use an encoder's")


def split_documents(rows: Dataset, asked: ExtractionArguments, where: str) -> Dataset:
    """Columns `sentences`, `references` and `labels`, 1 for the sentences of the oracle; order and number stay.

    The oracle of training is that of the first reference, elsewhere of the best.
    """

    def convert(row: dict) -> dict:
        sentences = split_sentences(row["document"], asked.unit)
        references = row["references"][:1] if where == "train" else row["references"]
        chosen = oracle_sentences(
            [asked.words(s) for s in sentences], [asked.words(r) for r in references], asked.max_oracle_sentences
        )
        return {"sentences": sentences, "labels": [int(number in chosen) for number in range(len(sentences))]}

    return rows.map(convert, remove_columns=["document"], desc=f"sentences of {where}")


def encode_sentences(
    sentences: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int, has_segments: bool
) -> tuple[dict[str, list[int]], list[int]]:
    """What the model reads of a text, and where the cls tokens stand of the sentences that fit, all of them whole.

    A first sentence that doesn't fit alone loses its end.
    """
    ids, segments, places = [], [], []
    for number, tokens in enumerate(tokenizer(list(sentences), add_special_tokens=False)["input_ids"]):
        if number == 0:
            tokens = tokens[: max_length - 2]
        if len(ids) + len(tokens) + 2 > max_length:
            break
        places.append(len(ids))
        ids += [tokenizer.cls_token_id, *tokens, tokenizer.sep_token_id]
        segments += [number % 2] * (len(tokens) + 2)
    encoded = {"input_ids": ids, "attention_mask": [1] * len(ids)}
    return encoded | ({"token_type_ids": segments} if has_segments else {}), places


def tokenize(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    asked: ExtractionArguments,
    where: str,
) -> Dataset:
    """What the model reads of each text, and `labels`: the sentence's at its cls token, -100 elsewhere."""
    longest = min(asked.max_length or config.max_position_embeddings, config.max_position_embeddings)
    has_segments = (getattr(config, "type_vocab_size", None) or 0) > 1

    def convert(row: dict) -> dict:
        encoded, places = encode_sentences(row["sentences"], tokenizer, longest, has_segments)
        labels = [IGNORED_LABEL] * len(encoded["input_ids"])
        for place, label in zip(places, row["labels"], strict=False):
            labels[place] = label
        return {**encoded, "labels": labels, "unread": len(row["sentences"]) - len(places)}

    encoded = rows.map(convert, remove_columns=rows.column_names, desc=f"tokens of {where}")
    unread = [number for number in encoded["unread"] if number]
    if unread:
        logger.warning(
            f"summarization.max_length={longest}: {len(unread):,} of {len(encoded):,} texts of {where} are longer; their "
            f"last {sum(unread):,} sentences aren't read"
        )
    return encoded.remove_columns("unread")


def collator(tokenizer: PreTrainedTokenizerBase) -> DataCollatorForTokenClassification:
    """Pads a batch to its longest text; the models compute nothing for the padding."""
    return DataCollatorForTokenClassification(tokenizer, label_pad_token_id=IGNORED_LABEL)


def summary_logits(outputs, labels) -> torch.Tensor:
    """`preprocess_logits_for_metrics` of the Trainer: (B, T), how much likelier the summary is than the rest."""
    logits = outputs[0] if isinstance(outputs, tuple) else outputs
    return logits[..., 1] - logits[..., 0]


def sentence_scores(logits: np.ndarray, inputs: Dataset) -> list[list[float]]:
    """The probability of each sentence that was read to be in the summary, text by text.

    Args:
        logits: (texts, T), of `summary_logits`. inputs: of `tokenize`.
    """
    scores = []
    for row, labels in zip(logits.astype(np.float64), inputs["labels"], strict=True):
        places = np.flatnonzero(np.array(labels) != IGNORED_LABEL)
        scores.append((1 / (1 + np.exp(-row[places]))).tolist())
    return scores


def summaries(scores: Sequence[Sequence[float]], rows: Dataset, asked: ExtractionArguments) -> list[list[int]]:
    """Which sentences are chosen, text by text."""
    return [
        choose_sentences(
            own,
            [asked.words(sentence) for sentence in sentences],
            most=asked.num_sentences,
            threshold=asked.threshold,
            block_trigrams=asked.block_trigrams,
        )
        for own, sentences in zip(scores, rows["sentences"], strict=True)
    ]


def joined(rows: Dataset, chosen: Sequence[Sequence[int]]) -> list[str]:
    """The chosen sentences of each text, one a line."""
    return ["\n".join(s[i] for i in own) for s, own in zip(rows["sentences"], chosen, strict=True)]


def metrics(inputs: Dataset, rows: Dataset, asked: ExtractionArguments):
    """`compute_metrics` of a split: ROUGE of the summaries."""
    rouge = score(rows, asked)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        return rouge(joined(rows, summaries(sentence_scores(prediction.predictions, inputs), rows, asked)))

    return compute_metrics


def baselines(rows: Dataset, asked: ExtractionArguments) -> dict[str, float]:
    """ROUGE of the first three sentences (`lead3_…`), and of the oracle's (`oracle_…`), which no choice is far above."""
    lead = [list(range(min(LEAD, len(sentences)))) for sentences in rows["sentences"]]
    oracle = [[i for i, label in enumerate(labels) if label] or [0] for labels in rows["labels"]]
    rouge = score(rows, asked)
    return {
        f"{name}_{metric}": value
        for name, chosen in ((f"lead{LEAD}", lead), ("oracle", oracle))
        for metric, value in rouge(joined(rows, chosen)).items()
    }


def predictions(scores: Sequence[Sequence[float]], rows: Dataset, asked: ExtractionArguments) -> list[dict]:
    """A line of the predictions file for each text: its sentences with their scores, and those chosen."""
    chosen = summaries(scores, rows, asked)
    return [
        {
            "prediction": text,
            "references": row["references"],
            "chosen": own,
            "oracle": [number for number, label in enumerate(row["labels"]) if label],
            "sentences": row["sentences"],
            "scores": [round(value, 6) for value in values],
        }
        for row, own, values, text in zip(rows, chosen, scores, joined(rows, chosen), strict=True)
    ]


@torch.no_grad()
def extract_summary(model, tokenizer: PreTrainedTokenizerBase, document: str, **options) -> list[str]:
    """The sentences of a text that a trained model chooses, in their order.

    Args:
        options: fields of `ExtractionArguments`: `unit`, `num_sentences`, `threshold`, `block_trigrams`, `max_length`, …

    Raises:
        ValueError: an empty text, or an option that there isn't a value for.
    """
    asked = ExtractionArguments(**options)
    if not document.strip():
        raise ValueError("document: it is empty; give a text")
    rows = Dataset.from_list([{"sentences": split_sentences(document, asked.unit), "labels": [], "references": []}])
    rows = rows.map(lambda row: {"labels": [0] * len(row["sentences"])})
    inputs = tokenize(rows, tokenizer, model.config, asked, "the call")
    batch = {
        name: torch.tensor([inputs[0][name]], device=model.device) for name in inputs.column_names if name != "labels"
    }
    was_training = model.training
    logits = summary_logits((model.eval()(**batch).logits,), None).float().cpu().numpy()
    model.train(was_training)
    return [rows[0]["sentences"][i] for i in summaries(sentence_scores(logits, inputs), rows, asked)[0]]
