"""Translation: a text in one language to the same in another, by an encoder-decoder or a decoder alone.

What `recipes/translation/train.py` puts together. How a pair becomes tokens:

    encoder-decoder    reads  [tag] source            writes  target <eos>
    decoder            reads  [tag] source separator  goes on with  target <eos>, which alone is scored

The source is what the tokenizer makes of the text, nothing else: who has the model needs nothing to remember. The tag
names the language to translate into where one model knows several directions; Johnson et al. 2016, arXiv 1611.04558.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from datasets import Dataset, concatenate_datasets
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from hf_ext.data import RowArguments, load_rows
from hf_ext.metrics import compute
from hf_ext.metrics.sacrebleu import TOKENIZERS
from hf_ext.models.configuration_choices import check_choice
from hf_ext.objectives.segments import IGNORED_LABEL
from hf_ext.tasks.adapter_section import AdapterArguments
from hf_ext.tasks.generation_section import GenerationArguments
from hf_ext.tasks.tokenizer_section import TokenizerArguments
from hf_ext.training.arguments import HfxTrainingArguments
from hf_ext.training.text_evaluation import TextEvaluation


SEPARATOR = "<|translation|>"  # what a decoder's translation begins after
PAIR_COLUMN = "translation"  # of Hub data sets: {"en": …, "de": …}
HEADLINE = ("bleu", "chrf")


@dataclass
class TranslationArguments:
    """What is translated into what."""

    directions: list[str] = field(
        default_factory=list,
        metadata={
            "help": "As [en-de]; [en-de, de-en] for one model of both. A language is the column that holds its texts."
        },
    )
    language_tags: bool | None = field(
        default=None,
        metadata={
            "help": "Put a token such as <2de> before the source, by the target. Default: where there are several."
        },
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of a side. Longer pairs aren't trained on; longer sources are cut when translated. "
            "Default: what the model reads at most, of which a decoder has half for each side."
        },
    )
    greedy_while_training: bool = field(
        default=True,
        metadata={"help": "Validate greedily until the end, a multiple as fast; final scores are by `generation`."},
    )
    bleu_tokenizer: str = field(default="13a", metadata={"help": f"sacrebleu's: {', '.join(TOKENIZERS)}."})

    def __post_init__(self):
        if not self.directions:
            raise ValueError("translation.directions: none given; name the columns of the languages, as [en-de]")
        for direction in self.directions:
            sides = direction.split("-")
            if len(sides) != 2 or not all(sides) or sides[0] == sides[1]:
                raise ValueError(
                    f"translation.directions: {direction!r} must be two different languages around one hyphen, as en-de; "
                    "a name with a hyphen in it gets another by data.columns"
                )
        if len(set(self.directions)) < len(self.directions):
            raise ValueError(f"translation.directions: {self.directions} names one twice; leave it out")
        if self.language_tags is False and len({target for _, target in self.pairs}) > 1:
            raise ValueError(
                "translation.language_tags=False: with several target languages the model can't know which is wanted; "
                "leave it out"
            )
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"translation.max_length={self.max_length}: must be at least 2 tokens")
        check_choice("translation.bleu_tokenizer", self.bleu_tokenizer, TOKENIZERS)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(source language, target language) of each direction."""
        return [tuple(direction.split("-")) for direction in self.directions]

    @property
    def languages(self) -> list[str]:
        """All of them, each once."""
        return list(dict.fromkeys(language for pair in self.pairs for language in pair))

    @property
    def tags(self) -> dict[str, str]:
        """Target language -> the token that asks for it; empty where none is needed."""
        targets = list(dict.fromkeys(target for _, target in self.pairs))
        wanted = len(targets) > 1 if self.language_tags is None else self.language_tags
        return {target: f"<2{target}>" for target in targets} if wanted else {}


SECTIONS = {
    "model": dict,
    "tokenizer": TokenizerArguments,
    "data": RowArguments,
    "translation": TranslationArguments,
    "generation": GenerationArguments,
    "adapter": AdapterArguments,
    "training": HfxTrainingArguments,
}


def side_length(asked: TranslationArguments, generation: GenerationArguments, config: PretrainedConfig) -> int:
    """Tokens that either side of a pair may have.

    Raises:
        ValueError: more than the model reads, or than it can write.
    """
    room = config.max_position_embeddings
    # a decoder reads both sides and the separator in one row
    most = room if config.is_encoder_decoder else (room - 1) // 2
    length = most if asked.max_length is None else asked.max_length
    if length > most:
        raise ValueError(
            f"translation.max_length={length}: above {most}, what a side may have with "
            f"model.max_position_embeddings={room}; lower the one or raise the other"
        )
    most_written = room if config.is_encoder_decoder else room - 1 - length
    if generation.max_new_tokens > most_written:
        raise ValueError(
            f"generation.max_new_tokens={generation.max_new_tokens}: above {most_written}, what is left of "
            f"model.max_position_embeddings={room}; lower the one or raise the other"
        )
    return length


def load_texts(data: RowArguments, asked: TranslationArguments) -> dict[str, Dataset]:
    """The splits, each with a column of texts for each language: columns of the data, or keys of its `translation`.

    Raises:
        ValueError: a missing column or language, a text that is empty, or what `load_rows` refuses.
    """
    if PAIR_COLUMN in data.columns:
        rows = load_rows(data, [PAIR_COLUMN])
    else:
        rows = {} if data.columns else load_rows(data, None)
        if not rows or PAIR_COLUMN not in rows["train"].column_names:
            rows = load_rows(data, asked.languages)
    return {split: _checked(_unfolded(part, asked.languages, split), split) for split, part in rows.items()}


def _unfolded(rows: Dataset, languages: Sequence[str], split: str) -> Dataset:
    if PAIR_COLUMN not in rows.column_names:
        return rows
    feature = rows.features[PAIR_COLUMN]
    present = list(getattr(feature, "languages", None) or (feature if isinstance(feature, dict) else ()))
    for language in languages:
        if language not in present:
            raise ValueError(
                f"translation.directions: {PAIR_COLUMN!r} of {split} has no {language!r}, only {present or feature}; "
                "name languages that are there"
            )
    return Dataset.from_dict({language: [row[language] for row in rows[PAIR_COLUMN]] for language in languages})


def _checked(rows: Dataset, split: str) -> Dataset:
    for language in rows.column_names:
        for number, text in enumerate(rows[language]):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{language}: row {number} of {split} is {text!r}, no text; remove it")
    return rows


def texts(rows: Dataset) -> Iterator[str]:
    """All texts, for a tokenizer to learn from."""
    for language in rows.column_names:
        yield from rows[language]


def special_tokens(asked: TranslationArguments, config: PretrainedConfig) -> list[str]:
    """Tokens that stand for something: tags, and a decoder's separator."""
    return [*asked.tags.values(), *([] if config.is_encoder_decoder else [SEPARATOR])]


def add_special_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    """Give a tokenizer that exists already those that it lacks.

    Raises:
        ValueError: it has no token that ends a text.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("tokenizer.path: it has no eos_token, by which a translation ends; choose another")
    known = tokenizer.get_vocab()
    if lacking := [token for token in tokens if token not in known]:
        tokenizer.add_tokens(lacking, special_tokens=True)


@dataclass(frozen=True)
class PairFormat:
    """How texts become what a model reads and what it is scored on.

    Attributes:
        tags: target language -> its token. separator: a decoder's; None for an encoder-decoder.
        max_length: tokens of a side, tag and end included.
    """

    tokenizer: PreTrainedTokenizerBase
    tags: Mapping[str, str]
    separator: str | None
    max_length: int

    def source_text(self, text: str, target: str) -> str:
        """A text as the model is asked to translate it: `tokenizer(source_text)` is what it reads."""
        return f"{self.tags.get(target, '')}{text}{self.separator or ''}"

    def prompts(self, sources: Sequence[str], target: str) -> tuple[list[list[int]], int]:
        """Token ids of each source, and the number of those that were cut to `max_length`."""
        whole = self._read(sources, target)
        cut = sum(len(ids) > self.max_length for ids in whole)
        fitting = self._read(sources, target, truncation=True, max_length=self.max_length) if cut else whole
        return [ids + self._separator_ids() for ids in fitting], cut

    def rows(self, sources: Sequence[str], targets: Sequence[str], target: str) -> dict[str, list[list[int]]]:
        """`input_ids` and `labels` of the pairs whose sides fit, for training and the loss."""
        rows = {"input_ids": [], "labels": []}
        written = self.tokenizer(list(targets), add_special_tokens=False)["input_ids"]
        for source, answer in zip(self._read(sources, target), written, strict=True):
            answer = [*answer, self.tokenizer.eos_token_id]
            if max(len(source), len(answer)) > self.max_length:
                continue
            prompt = source + self._separator_ids()
            goes_on = self.separator is not None
            rows["input_ids"].append(prompt + answer if goes_on else prompt)
            rows["labels"].append([IGNORED_LABEL] * len(prompt) + answer if goes_on else answer)
        return rows

    def _read(self, sources: Sequence[str], target: str, **options) -> list[list[int]]:
        tag = self.tags.get(target, "")
        return self.tokenizer([tag + text for text in sources], **options)["input_ids"]

    def _separator_ids(self) -> list[int]:
        return [] if self.separator is None else [self.tokenizer.convert_tokens_to_ids(self.separator)]


def pair_rows(texts: Dataset, pairs: Sequence[tuple[str, str]], form: PairFormat, split: str) -> Dataset:
    """The pairs of all directions as a model takes them; says how many were left out because they are too long.

    Raises:
        ValueError: all of them are; or a text has a special token in it, which would forge a tag, a border or an end.
    """
    for language in texts.column_names:
        _check_no_special_tokens(texts[language], form.tokenizer, f"{language}: row {{}} of {split}")
    parts = [
        texts.map(
            lambda batch, a=source, b=target: form.rows(batch[a], batch[b], b),
            batched=True,
            remove_columns=texts.column_names,
            desc=f"tokens of {split}, {source}-{target}",
        )
        for source, target in pairs
    ]
    rows = concatenate_datasets(parts)
    left_out = len(texts) * len(pairs) - len(rows)
    if not len(rows):
        raise ValueError(
            f"translation.max_length={form.max_length}: every pair of {split} has a side of more tokens; raise it"
        )
    if left_out:
        print(f"{split}: {left_out:,} pairs with a side of more than {form.max_length} tokens left out")
    return rows


def _check_no_special_tokens(column: Sequence[str], tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    forged = re.compile("|".join(map(re.escape, tokenizer.all_special_tokens)))
    for number, text in enumerate(column):
        if found := forged.search(text):
            raise ValueError(f"{where.format(number)} holds the special token {found.group()}; remove it")


@dataclass(frozen=True)
class Translations:
    """What is to be translated of a split: sources and references of all directions, one direction after the other."""

    directions: list[tuple[str, str]]
    sources: list[list[str]]
    references: list[list[str]]
    bleu_tokenizer: str

    def score(self, written: Sequence[str]) -> dict[str, float]:
        """`bleu`, `chrf`, `brevity_penalty`: the mean over directions where there are several, which have their own too."""
        scores, start = {}, 0
        for (source, target), references in zip(self.directions, self.references, strict=True):
            own = written[start : start + len(references)]
            start += len(references)
            found = compute("sacrebleu", own, references, tokenize=self.bleu_tokenizer)
            found["chrf"] = compute("chrf", own, references)["chrf"]
            scores[f"{source}_{target}"] = {name: found[name] for name in (*HEADLINE, "brevity_penalty")}
        names = next(iter(scores.values()))
        mean = {name: sum(own[name] for own in scores.values()) / len(scores) for name in names}
        if len(scores) > 1:
            mean |= {f"{name}_{direction}": own[name] for direction, own in scores.items() for name in HEADLINE}
        return mean

    def lines(self, written: Sequence[str]) -> list[dict[str, str]]:
        """What the predictions file says of each text."""
        asked = (
            {"direction": "-".join(direction), "source": source, "reference": reference}
            for direction, sources, references in zip(self.directions, self.sources, self.references, strict=True)
            for source, reference in zip(sources, references, strict=True)
        )
        return [{**line, "prediction": text} for line, text in zip(asked, written, strict=True)]


def translations(rows: Dataset, asked: TranslationArguments) -> Translations:
    """The texts of a split, in all directions."""
    sides = [[list(rows[language]) for language in pair] for pair in asked.pairs]
    return Translations(asked.pairs, [s for s, _ in sides], [t for _, t in sides], asked.bleu_tokenizer)


def evaluation(
    asked: Translations, form: PairFormat, generation: GenerationArguments, model, split: str, **changes
) -> TextEvaluation:
    """Writes and scores them; `changes` are of the generation. Says how many sources were cut."""
    found = [
        form.prompts(sources, target) for sources, (_, target) in zip(asked.sources, asked.directions, strict=True)
    ]
    if cut := sum(number for _, number in found):
        print(f"{split}: {cut:,} sources cut to {form.max_length} tokens")
    return TextEvaluation(
        prompts=[prompt for prompts, _ in found for prompt in prompts],
        score=asked.score,
        generation=generation.config(model, form.tokenizer, **changes),
        batch_size=generation.batch_size,
    )


def greedy(generation: GenerationArguments) -> dict:
    """Changes to a generation that searches with beams, by which it is greedy; none to one that draws."""
    return {} if generation.num_beams == 1 else {"num_beams": 1, "length_penalty": None}
