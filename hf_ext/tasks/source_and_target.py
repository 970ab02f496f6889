"""A text to write of another that may be too long: how summaries and written answers become tokens, rows and prompts.

    encoder-decoder    reads  prompt             writes  target <eos>
    decoder            reads  prompt             goes on with  target <eos>, which alone is scored

The prompt is a template around the text. Where both are too long for the model, the text alone loses its end; the template
and what else it holds, such as a question, stay whole. It is what the tokenizer makes of it as a whole: who has the model
and the template asks it the same tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_ext.data import pack_answers, pack_pairs
from hf_ext.objectives.causal import CausalCollator
from hf_ext.objectives.sequence_to_sequence import SequenceToSequenceCollator


logger = logging.get_logger(__name__)
# what the Hub calls the task of an encoder-decoder, or of a decoder
HUB_TASKS = {True: "text2text-generation", False: "text-generation"}
# what a new tokenizer puts around a source that an encoder reads; a decoder's text simply begins
SPECIAL_TOKENS = {"bos_token": "<|source|>", "wraps": True}


@dataclass
class WritingArguments:
    """The section of a task in which a text is written of another; `section`, `long`, `prompts` are the task's."""

    prompt: str | None = field(
        default=None,
        metadata={"help": "Template of what the model reads. Default: by the kind of model, see the chapter."},
    )
    max_source_length: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of the prompt; longer texts lose their end. Default: what the model reads (a decoder: less "
            "max_target_length)."
        },
    )
    max_target_length: int = field(
        default=128,
        metadata={"help": "Tokens of what is learnt to be written, end token included; longer ones are cut."},
    )
    packing: bool = field(
        default=True, metadata={"help": "Several examples a row, each by itself to the model; else one a row."}
    )

    # no fields: the name of the section, of the placeholder that may be cut, and the default templates
    section = ""
    long = ""
    others = ()
    default_prompts = ("", "")

    def __post_init__(self):
        for name in ("max_source_length", "max_target_length"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise ValueError(f"{self.section}.{name}={value}: must be at least 2")
        for name in (self.long, *self.others) if self.prompt is not None else ():
            if self.prompt.count(f"{{{name}}}") != 1:
                raise ValueError(f"{self.section}.prompt={self.prompt!r}: must have {{{name}}} once, where it goes")

    def template(self, config: PretrainedConfig) -> str:
        """The template: the recipe's, or the default of encoder-decoders or decoders."""
        return self.default_prompts[0 if config.is_encoder_decoder else 1] if self.prompt is None else self.prompt

    def source_length(self, config: PretrainedConfig) -> int:
        """Tokens of a prompt at most.

        Raises:
            ValueError: the model doesn't read, or write, so many.
        """
        most = config.max_position_embeddings
        room = most if config.is_encoder_decoder else most - self.max_target_length
        if self.max_target_length > most or room < 2 or (self.max_source_length or 0) > room:
            raise ValueError(
                f"{self.section}.max_source_length={self.max_source_length}, max_target_length={self.max_target_length}: "
                f"the model reads {most} tokens{'' if config.is_encoder_decoder else ', both together'}; lower them, or "
                "raise model.max_position_embeddings"
            )
        return self.max_source_length or room


def writing_class(config: PretrainedConfig):
    """The Auto class by which a configuration's model writes.

    Raises:
        ValueError: it doesn't.
    """
    auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    if type(config) not in auto_class._model_mapping:
        raise ValueError(
            f"model.model_type={config.model_type!r}: writes nothing; use hfx_encoder_decoder or hfx_decoder"
        )
    return auto_class


def special_tokens(config: PretrainedConfig) -> dict:
    """Arguments of `train_tokenizer` for a new tokenizer."""
    return SPECIAL_TOKENS if config.is_encoder_decoder else {}


def fill(template: str, long: str, values: Mapping[str, str]) -> tuple[str, int, int]:
    """The template with its values, and the characters [start, end) of the value named `long`."""
    before, after = template.split(f"{{{long}}}")
    for name, value in values.items():
        if name != long:
            before, after = before.replace(f"{{{name}}}", value), after.replace(f"{{{name}}}", value)
    return before + values[long] + after, len(before), len(before) + len(values[long])


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    start: int,
    end: int,
    *,
    max_length: int,
    is_encoder_decoder: bool,
) -> tuple[list[int], int]:
    """Token ids of a prompt, of which the text in [start, end) is cut to fit, and how many of its tokens were cut.

    Raises:
        ValueError: the rest alone doesn't fit.
    """
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids, offsets = list(encoded["input_ids"]), encoded["offset_mapping"]
    if not is_encoder_decoder and ids and ids[-1] == tokenizer.eos_token_id:  # it goes on there
        ids, offsets = ids[:-1], offsets[:-1]
    excess = max(0, len(ids) - max_length)
    # a token that the text shares with what follows it stays
    inside = [place for place, (first, last) in enumerate(offsets) if start <= last - 1 and first < last <= end]
    if excess >= len(inside) and excess > 0:
        raise ValueError(f"{len(ids) - len(inside)} tokens beside the text leave it no room in {max_length}")
    cut = set(inside[len(inside) - excess :])
    return [token for place, token in enumerate(ids) if place not in cut], excess


def encode(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    arguments: WritingArguments,
    where: str,
    *,
    target: str,
) -> Dataset:
    """`prompt` and `answer`, token ids; order and number stay. Says how many were cut, and by how much.

    Args:
        rows: with a column for each placeholder of the template, and `target`: what is to be written; the first where it is
            a list, and nothing where that is empty.

    Raises:
        ValueError: a prompt of which nothing fits, or a special token in a text, which would forge a border.
    """
    template, longest = arguments.template(config), arguments.source_length(config)
    names = (arguments.long, *arguments.others)

    def convert(row: dict, number: int) -> dict:
        written = row[target][0] if isinstance(row[target], list) and row[target] else row[target] or ""
        for name, text in [*((name, row[name]) for name in names), (target, written)]:
            if forged := [token for token in tokenizer.all_special_tokens if token in text]:
                raise ValueError(f"{name}: row {number} of {where} holds the special token {forged[0]}; remove it")
        try:
            prompt, cut = encode_prompt(
                tokenizer,
                *fill(template, arguments.long, {name: row[name].strip() for name in names}),
                max_length=longest,
                is_encoder_decoder=config.is_encoder_decoder,
            )
        except ValueError as error:
            raise ValueError(
                f"{arguments.section}.max_source_length={longest}: row {number} of {where}: {error}; raise it"
            ) from None
        lead = "" if config.is_encoder_decoder or not written else " "
        answer = tokenizer(lead + written.strip(), add_special_tokens=False)["input_ids"]
        kept = answer[: arguments.max_target_length - 1]
        return {
            "prompt": prompt,
            "answer": [*kept, tokenizer.eos_token_id],
            "cut_source": cut,
            "cut_target": len(answer) - len(kept),
        }

    encoded = rows.map(convert, with_indices=True, remove_columns=rows.column_names, desc=f"tokens of {where}")
    for side, limit in (("source", longest), ("target", arguments.max_target_length)):
        cut = [tokens for tokens in encoded[f"cut_{side}"] if tokens]
        if cut:
            logger.warning(
                f"{arguments.section}.max_{side}_length={limit}: {len(cut):,} of {len(encoded):,} {side}s of {where} are "
                f"longer and lose their end, {sum(cut):,} tokens in all"
            )
    return encoded.remove_columns(["cut_source", "cut_target"])


def training_rows(
    encoded: Dataset, config: PretrainedConfig, arguments: WritingArguments, packing: bool | None = None
) -> Dataset:
    """Rows as `collator` takes them; several examples a row where they are packed."""
    packing = arguments.packing if packing is None else packing
    if not config.is_encoder_decoder:
        row_length = config.max_position_embeddings
        return Dataset.from_list(list(pack_answers(encoded, row_length=row_length, packing=packing)))
    pairs = encoded.rename_columns({"prompt": "input_ids", "answer": "labels"})
    if not packing:
        return pairs
    sizes = {"source_length": arguments.source_length(config), "target_length": arguments.max_target_length}
    return Dataset.from_list(list(pack_pairs(pairs, **sizes)))


def collator(
    tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig
) -> CausalCollator | SequenceToSequenceCollator:
    """Batches of `training_rows`."""
    ids = {"vocab_size": config.vocab_size, "pad_token_id": tokenizer.pad_token_id}
    if config.is_encoder_decoder:
        return SequenceToSequenceCollator(**ids, decoder_start_token_id=config.decoder_start_token_id)
    return CausalCollator(**ids)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ValueError where a token is missing that every row needs."""
    for name in ("eos_token", "pad_token"):
        if getattr(tokenizer, name) is None:
            raise ValueError(f"tokenizer: it has no {name}; use one that has")
    if not tokenizer.is_fast:
        raise ValueError(f"tokenizer: {type(tokenizer).__name__} doesn't know its tokens' places; use a fast tokenizer")


def clean(texts: Sequence[str]) -> list[str]:
    """What was written, without the spaces around it."""
    return [text.strip() for text in texts]


def samples(
    arguments: WritingArguments, config: PretrainedConfig, rows: Dataset, written: Sequence[str], count: int = 3
) -> list[dict[str, str]]:
    """The card's first prompts, whole, and what the model wrote."""
    names, template = (arguments.long, *arguments.others), arguments.template(config)
    chosen = zip(rows.select(range(min(count, len(rows)))), written, strict=False)
    return [
        {"prompt": fill(template, arguments.long, {n: row[n].strip() for n in names})[0], "text": text}
        for row, text in chosen
    ]
