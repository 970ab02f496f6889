"""Token classification: a type for each word, and entities of several words, in texts of any length.

What `recipes/token_classification/train.py` puts together. Whatever form the rows have (words with tags, a text with
spans, a text from which a rule derives them), they become a text with words and their tags, in three columns: `text`;
`words`, pairs of first character and one after the last; `tags`, in IOB2, which transformers' pipeline reads. Tokens
belong to words by the characters that they stand for.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from datasets import Dataset, Features, List, Value
from transformers import DataCollatorForTokenClassification, EvalPrediction, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_ext.data import RowArguments
from hf_ext.hub.usage import USAGE
from hf_ext.metrics import compute
from hf_ext.models.configuration_choices import check_choice
from hf_ext.tasks.adapter_section import AdapterArguments
from hf_ext.tasks.tagging_rules import RULES, WORD
from hf_ext.tasks.tokenizer_section import TokenizerArguments
from hf_ext.training.arguments import HfxTrainingArguments


logger = logging.get_logger(__name__)

IGNORED_LABEL = -100
# scheme -> prefix -> the prefixes that may follow in the same entity; an entity begins with B or S
SCHEMES = {"IOB2": {"B": "I", "I": "I"}, "BIOES": {"B": "IE", "I": "IE", "E": "", "S": ""}}
LABELLED = ("all", "first")
OPTIONAL_COLUMNS = ("tokens", "tags", "text", "spans")
FEATURES = Features(
    {"text": Value("string"), "words": List(List(Value("int32"))), "tags": List(Value("string"))},
)


@dataclass
class TaggingArguments:
    """What is found in a text, and how words and tokens go together."""

    rule: str | None = field(
        default=None,
        metadata={"help": f"Derive the tags from the column text: {', '.join(RULES)}. Default: they are given."},
    )
    scheme: str = field(
        default="IOB2", metadata={"help": f"How tags that are given mark entities: {' or '.join(SCHEMES)}."}
    )
    tag_names: list[str] | None = field(
        default=None, metadata={"help": "Where tags are numbers: the tag of 0, 1, …  Default: what the data set says."}
    )
    label_pieces: str = field(
        default="all",
        metadata={
            "help": "Tokens of a word that are learnt: all (an entity's further ones are inside it) or the first."
        },
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of a window; longer texts are read in several. Default: what the model reads at most."
        },
    )
    stride: int | None = field(
        default=None, metadata={"help": "Tokens that windows overlap by. Default: a quarter of max_length."}
    )

    def __post_init__(self):
        check_choice("tagging.rule", self.rule, (None, *RULES))
        check_choice("tagging.scheme", self.scheme, SCHEMES)
        check_choice("tagging.label_pieces", self.label_pieces, LABELLED)
        for name in ("scheme", "tag_names"):
            if self.rule is not None and getattr(self, name) not in ("IOB2", None):
                raise ValueError(
                    f"tagging.{name}={getattr(self, name)!r}: has no effect with tagging.rule; leave it out"
                )
        if self.max_length is not None and self.max_length < 4:
            raise ValueError(f"tagging.max_length={self.max_length}: must be at least 4")
        if self.stride is not None and self.stride < 0:
            raise ValueError(f"tagging.stride={self.stride}: must not be negative")

    def window(self, max_length: int, tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
        """Tokens of a window, special ones included, and how many overlap; `max_length` is what the model reads at most.

        Raises:
            ValueError: windows that wouldn't move on.
        """
        length = min(self.max_length or max_length, max_length)
        room = length - tokenizer.num_special_tokens_to_add()
        stride = length // 4 if self.stride is None else self.stride
        if stride >= room:
            raise ValueError(
                f"tagging.stride={stride}: must be below {room}, the tokens of a text in a window; lower it"
            )
        return length, stride


SECTIONS = {
    "model": dict,
    "tokenizer": TokenizerArguments,
    "data": RowArguments,
    "tagging": TaggingArguments,
    "adapter": AdapterArguments,
    "training": HfxTrainingArguments,
}
HEADLINE = ("f1", "precision", "recall")


def tagged_texts(rows: Dataset, arguments: TaggingArguments, where: str) -> Dataset:
    """`text`, `words`, `tags` from whatever the rows have; see the head of the file.

    Raises:
        ValueError: neither form of columns, both of them, tags that don't fit words or scheme, spans that cut a word, no
            rows.
    """
    present = set(rows.column_names)
    forms = [form for form in (("tokens", "tags"), ("text", "spans")) if present.issuperset(form)]
    if arguments.rule is not None:
        if "text" not in present:
            raise ValueError(
                f"data.columns: tagging.rule needs a text column, {where} has {sorted(present)}; map it: {{text: …}}"
            )
        convert = _by_rule
    elif len(forms) != 1:
        found = "both" if forms else "neither"
        raise ValueError(
            f"data.columns: {where} must have tokens and tags, or text and spans, and has {found} (of these names "
            f"{sorted(present)}); map them with data.columns, or set tagging.rule"
        )
    else:
        convert = _from_tokens if forms[0][0] == "tokens" else _from_spans
    names = arguments.tag_names
    if convert is _from_tokens and names is None:
        names = getattr(getattr(rows.features["tags"], "feature", None), "names", None)
    made = []
    for number, row in enumerate(rows):
        made += convert(row, f"row {number} of {where}", arguments, names)
    if not made:
        raise ValueError(f"data: no texts for {where}; tagging.rule={arguments.rule!r} finds none in its rows")
    return Dataset.from_list(made, features=FEATURES)


def _by_rule(row: dict, place: str, arguments: TaggingArguments, names) -> Iterator[dict]:
    for tagged in RULES[arguments.rule](row["text"] or ""):
        yield _tagged(tagged.text, tagged.words, tagged.entities)


def _from_tokens(row: dict, place: str, arguments: TaggingArguments, names: list[str] | None) -> Iterator[dict]:
    tokens, tags = row["tokens"] or [], row["tags"] or []
    if len(tokens) != len(tags):
        raise ValueError(f"tags: {len(tags)} for {len(tokens)} tokens in {place}; give one a token")
    if not tokens or not all(token.strip() for token in tokens):
        raise ValueError(f"tokens: {place} has an empty token, or none; remove it")
    if names is not None:
        if wrong := [tag for tag in tags if not (isinstance(tag, int) and 0 <= tag < len(names))]:
            raise ValueError(f"tags: {wrong[0]!r} in {place} is none of the {len(names)} of tagging.tag_names")
        tags = [names[tag] for tag in tags]
    elif not isinstance(tags[0], str):
        raise ValueError(f"tags: {tags[0]!r} in {place} is a number; say what they mean in tagging.tag_names")
    check_tags(tags, arguments.scheme, place)
    words, start = [], 0
    for token in tokens:
        words.append((start, start + len(token)))
        start = words[-1][1] + 1
    yield _tagged(" ".join(tokens), words, entities_of(tags))


def _from_spans(row: dict, place: str, arguments: TaggingArguments, names) -> Iterator[dict]:
    text = row["text"] or ""
    words = [match.span() for match in WORD.finditer(text)]
    if not words:
        raise ValueError(f"text: {place} is empty; remove it")
    first_at, last_at = ({span[side]: number for number, span in enumerate(words)} for side in (0, 1))
    entities = []
    for span in sorted(row["spans"] or [], key=lambda span: span["start"]):
        start, end, kind = span["start"], span["end"], span["label"]
        if start not in first_at or end not in last_at or start >= end or not kind:
            raise ValueError(
                f"spans: {start} to {end} ({kind!r}, {text[start:end]!r}) in {place} must begin and end where a word does, "
                "and have a label"
            )
        if entities and entities[-1][1] > first_at[start]:
            raise ValueError(f"spans: {start} to {end} in {place} lies over the one before; a word has one tag")
        entities.append((first_at[start], last_at[end] + 1, kind))
    yield _tagged(text, words, entities)


def _tagged(text: str, words: Sequence[tuple[int, int]], entities: Sequence[tuple[int, int, str]]) -> dict:
    tags = ["O"] * len(words)
    for first, end, kind in entities:
        tags[first:end] = [f"B-{kind}"] + [f"I-{kind}"] * (end - first - 1)
    return {"text": text, "words": [list(word) for word in words], "tags": tags}


def check_tags(tags: Sequence[str], scheme: str, place: str) -> None:
    """Tags are whole entities by the rules of the scheme.

    Raises:
        ValueError: one line, with the first that isn't.
    """
    follows, before = SCHEMES[scheme], "O"
    for number, tag in enumerate([*tags, "O"]):
        prefix, dash, kind = tag.partition("-")
        if tag != "O" and (prefix not in follows or not dash or not kind):
            raise ValueError(
                f"tags: {tag!r} in {place} must be O or one of {', '.join(follows)} with - and the type, for "
                f"tagging.scheme={scheme!r}"
            )
        goes_on = tag != "O" and prefix in "IE"
        unfinished = scheme == "BIOES" and before[0] in "BI"
        same = before != "O" and before[2:] == kind and prefix in follows[before[0]]
        if (goes_on or unfinished) and not (goes_on and same):
            at = "the end" if number == len(tags) else repr(tag)
            raise ValueError(
                f"tags: {at} after {before!r} in {place}: not {scheme}; "
                + ("end the entity with E, or S for one word" if unfinished else f"an entity begins with B-{kind}")
            )
        before = tag


def entities_of(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """(first word, one after the last, type) of each entity; an I that nothing begins, begins one, as for conlleval."""
    found = []
    for number, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        if prefix == "O":
            continue
        if prefix in "IE" and found and found[-1][1] == number and found[-1][2] == kind and tags[number - 1][0] in "BI":
            found[-1] = (found[-1][0], number + 1, kind)
        else:
            found.append((number, number + 1, kind))
    return found


@dataclass(frozen=True)
class TagLabels:
    """The model's labels: O, and B- and I- of each type."""

    names: list[str]

    @property
    def types(self) -> list[str]:
        return sorted({name[2:] for name in self.names if name != "O"})

    @property
    def head(self) -> dict:
        """Fields of the configuration."""
        return {
            "id2label": dict(enumerate(self.names)),
            "label2id": {name: number for number, name in enumerate(self.names)},
        }


def read_labels(train: Dataset) -> TagLabels:
    """The types of the training texts.

    Raises:
        ValueError: no entity in any.
    """
    types = sorted({tag[2:] for tags in train["tags"] for tag in tags if tag != "O"})
    if not types:
        raise ValueError("tags: no text of train has an entity, all tags are O; give rows that have some")
    return TagLabels(["O", *(f"{prefix}-{kind}" for kind in types for prefix in "BI")])


def special_tokens(arguments: TokenizerArguments) -> dict:
    """What a new tokenizer is trained with: it wraps a text as BERT's does, and reads texts and lists of words alike."""
    words = {} if arguments.kind == "characters" else {"reads_words": True}
    return {"bos_token": "<|cls|>", "mask_token": "<|mask|>", "wraps": True, **words}


def windows(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    labels: TagLabels,
    arguments: TaggingArguments,
    max_length: int,
    where: str,
) -> Dataset:
    """The texts as the model reads them, a window a row: `input_ids`, `attention_mask`, `labels`, and `row`, `heads`.

    A text longer than a window is read in several that overlap. A word belongs to the window in which it is farthest from
    where the text was cut: there alone it is learnt and scored, so every word counts once. `heads` says for each token which
    word of the text it is the first of, or -1; `row` is the text's number. With `label_pieces` "all" the further tokens of a
    word, and white space between two words of an entity, are inside it.

    Raises:
        ValueError: a label that training doesn't have; windows that wouldn't move on.
    """
    length, stride = arguments.window(max_length, tokenizer)
    ids = {name: number for number, name in enumerate(labels.names)}
    made, num_long, num_without = [], 0, 0
    for number, row in enumerate(rows):
        if unknown := sorted(set(row["tags"]) - set(ids)):
            raise ValueError(
                f"tags: {unknown[0]!r} in text {number} of {where} is not in train; leave it out or train on it"
            )
        encoded = tokenizer(
            row["text"],
            truncation=True,
            max_length=length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        own = _own_windows(row, encoded)
        num_long += len(encoded["input_ids"]) > 1
        num_without += len(row["words"]) - len(own)
        for index in range(len(encoded["input_ids"])):
            heads, learnt = _label(row, encoded, index, own, ids, arguments.label_pieces)
            kept = {name: encoded[name][index] for name in ("input_ids", "attention_mask")}
            made.append({**kept, "labels": learnt, "row": number, "heads": heads})
    if num_long:
        logger.warning(
            f"tagging.max_length={length}: {num_long} of {len(rows)} texts of {where} are longer and read in windows that "
            f"overlap by {stride} tokens"
        )
    if num_without:
        logger.warning(f"{where}: {num_without} words share all their tokens with the word before; they are tagged O")
    return Dataset.from_list(made)


def _pieces(row: dict, encoded, index: int) -> Iterator[tuple[int, int, int, bool]]:
    """(place in the window, first character, word, whether it lies in the word) of each token of the text.

    A token of white space alone, between words, counts with the word before it, -1 before the first.
    """
    starts = [word[0] for word in row["words"]]
    special = encoded["special_tokens_mask"][index]
    for place, (start, end) in enumerate(encoded["offset_mapping"][index]):
        if special[place]:
            continue
        piece = row["text"][start:end]
        start += len(piece) - len(piece.lstrip())  # offsets of some tokenizers have the space before a word
        word = (bisect_right if start < end else bisect_left)(starts, start) - 1
        yield place, start, word, word >= 0 and start < row["words"][word][1]


def _own_windows(row: dict, encoded) -> dict[int, tuple[int, int]]:
    """Word -> (window that it belongs to, first character of its first token), for the words that have tokens."""
    last = len(encoded["input_ids"]) - 1
    best: dict[int, tuple] = {}
    for index in range(last + 1):
        pieces = list(_pieces(row, encoded, index))
        for number, (_, start, word, lies_in) in enumerate(pieces):
            if lies_in:
                # tokens to the nearer cut; the text's own ends are no cuts
                left = number if index else len(pieces)
                right = len(pieces) - 1 - number if index < last else len(pieces)
                # the first token of the word, then the farthest from a cut, then the first window
                key = (-start, min(left, right), -index)
                if word not in best or key > best[word]:
                    best[word] = key
    return {word: (-index, -start) for word, (start, _, index) in best.items()}


def _label(row: dict, encoded, index: int, own: dict, ids: dict, label_pieces: str) -> tuple[list[int], list[int]]:
    """The `heads` and `labels` of a window."""
    length, tags = len(encoded["input_ids"][index]), row["tags"]
    heads, learnt = [-1] * length, [IGNORED_LABEL] * length
    for place, start, word, lies_in in _pieces(row, encoded, index):
        window, first = own.get(word, (index, None))
        if window != index:
            continue
        if lies_in and start == first:
            heads[place], learnt[place] = word, ids[tags[word]]
        elif label_pieces == "all":
            decides = tags[word] if lies_in else (tags[word + 1] if word + 1 < len(tags) else "O")
            inside = decides != "O" and (lies_in or decides[0] == "I")
            learnt[place] = ids[f"I-{decides[2:]}" if inside else "O"]
    return heads, learnt


def usage(arguments: TaggingArguments) -> str:
    """How the card says to use the model: only where all tokens of a word were learnt may the pipeline ask them all."""
    strategy = "simple" if arguments.label_pieces == "all" else "first"
    return USAGE["token-classification"].replace('"simple"', f'"{strategy}"')


def describe_rule(arguments: TaggingArguments) -> str:
    """A sentence for the card where the tags aren't anybody's."""
    return "" if arguments.rule is None else f" The tags are derived from the text by the rule `{arguments.rule}`."


def in_words(line: dict) -> str:
    """The entities of a line of predictions, for the card."""
    return "; ".join(f"{entity['type']}: {entity['text']}" for entity in line["entities"]) or "no entity"


def collator(tokenizer: PreTrainedTokenizerBase) -> DataCollatorForTokenClassification:
    """Pads a batch to its longest window; the models compute nothing for the padding."""
    return DataCollatorForTokenClassification(tokenizer)


def read_tags(scores: np.ndarray, read: Dataset, rows: Dataset, labels: TagLabels) -> list[list[tuple[str, float]]]:
    """For each text, for each word: the likeliest tag and its probability, by the word's first token.

    Args:
        scores: (windows, T, labels). read: the windows. rows: the texts. A word without a token is O, with probability 1.
    """
    tags = [[("O", 1.0)] * len(words) for words in rows["words"]]
    for logits, row, heads in zip(scores, read["row"], read["heads"], strict=True):
        places = [place for place, word in enumerate(heads) if word >= 0]
        chosen = logits[places].astype(np.float64)
        shares = np.exp(chosen - chosen.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        for place, share in zip(places, shares, strict=True):
            best = int(share.argmax())
            tags[row][heads[place]] = labels.names[best], float(share[best])
    return tags


def metrics(read: Dataset, rows: Dataset, labels: TagLabels):
    """`compute_metrics` of the Trainer for one split: the metric `seqeval` over words, and `f1_TYPE` of each type."""

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        scores = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        found = [[tag for tag, _ in tags] for tags in read_tags(scores, read, rows, labels)]
        result = compute("seqeval", found, list(rows["tags"]), per_type=True)
        by_type = result.pop("per_type")
        return {**result, **{f"f1_{kind}": score["f1"] for kind, score in by_type.items()}}

    return compute_metrics


def predictions(scores: np.ndarray, read: Dataset, rows: Dataset, labels: TagLabels) -> list[dict]:
    """A line of the predictions file for each text: `entities` that were found, with type, text, characters and the mean
    probability of its tags, and the `true` ones."""
    lines = []
    for row, tags in zip(rows, read_tags(scores, read, rows, labels), strict=True):
        found = _spans(row, [tag for tag, _ in tags])
        for entity, (first, end, _) in zip(found, entities_of([tag for tag, _ in tags]), strict=True):
            entity["score"] = round(sum(share for _, share in tags[first:end]) / (end - first), 6)
        lines.append({"text": row["text"], "entities": found, "true": _spans(row, row["tags"])})
    return lines


def _spans(row: dict, tags: Sequence[str]) -> list[dict]:
    spans = []
    for first, end, kind in entities_of(tags):
        start, stop = row["words"][first][0], row["words"][end - 1][1]
        spans.append({"type": kind, "text": row["text"][start:stop], "start": start, "end": stop})
    return spans
