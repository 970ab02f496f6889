"""The objective section of a recipe: what is predicted from what, and what that asks of model, tokenizer and rows."""

import dataclasses
from collections.abc import Callable, Mapping

from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from hf_ext.models.configuration_choices import check_choice, check_known
from hf_ext.objectives import (
    CausalCollator,
    DenoisingCollator,
    FillInTheMiddleCollator,
    MaskedCollator,
    MixtureOfDenoisersCollator,
    PrefixLMCollator,
    SpanCorruptionCollator,
)


AUTO_CLASSES = {
    "causal": AutoModelForCausalLM,
    "masked": AutoModelForMaskedLM,
    "sequence_to_sequence": AutoModelForSeq2SeqLM,
}
FIM_TOKENS = {
    "prefix_token_id": "<|fim_prefix|>",
    "middle_token_id": "<|fim_middle|>",
    "suffix_token_id": "<|fim_suffix|>",
}
MODE_TOKENS = {"R": "[NLU]", "X": "[NLG]", "S": "[S2S]"}  # UL2's names
NUM_SENTINELS = 100  # T5's


@dataclasses.dataclass(frozen=True)
class Objective:
    """An objective by its name in a recipe.

    Attributes:
        collator: the class in `hf_ext/objectives`.
        kind: key of `AUTO_CLASSES`; None: the model's.
        special_tokens: what a new tokenizer is trained with, arguments of `train_tokenizer`.
        token_ids: (tokenizer, config) -> the collator's arguments that come from them.
        has_bos: whether rows begin each document with the bos token.
        sees_prefix: whether a decoder that has learnt it reads a prompt in both directions.
    """

    collator: type
    kind: str | None
    special_tokens: Mapping = dataclasses.field(default_factory=dict)
    token_ids: Callable[[PreTrainedTokenizerBase, PretrainedConfig], dict] = lambda tokenizer, config: {}
    has_bos: bool = False
    sees_prefix: bool = False


def _sentinels(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of `<extra_id_0>`, `<extra_id_1>`, … as far as there are any."""
    vocabulary, found = tokenizer.get_vocab(), []
    while (name := f"<extra_id_{len(found)}>") in vocabulary:
        found.append(vocabulary[name])
    if not found:
        raise ValueError(
            "tokenizer.path: it has no tokens <extra_id_0>, … for spans; leave it out to train one that has"
        )
    return found


def _token(tokenizer: PreTrainedTokenizerBase, name: str) -> int:
    if name not in tokenizer.get_vocab():
        raise ValueError(f"tokenizer.path: it has no token {name}; leave it out to train one that has")
    return tokenizer.convert_tokens_to_ids(name)


def _mask(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.mask_token_id is None:
        raise ValueError("tokenizer.path: it has no mask token; leave it out to train one that has")
    return tokenizer.mask_token_id


def _targets(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> dict:
    # a decoder's own rows begin with what is given, not with a token to start from
    start = config.decoder_start_token_id if config.is_encoder_decoder else tokenizer.pad_token_id
    return {"eos_token_id": tokenizer.eos_token_id, "decoder_start_token_id": start}


def _sentence_ends(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of full stop, question and exclamation mark, as the tokenizer has them."""
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary[space + mark] for space in ("", "Ġ", "▁") for mark in ".?!" if space + mark in vocabulary)


OBJECTIVES: dict[str, Objective] = {
    "causal": Objective(CausalCollator, "causal"),
    "prefix": Objective(PrefixLMCollator, "causal", sees_prefix=True),
    "fill_in_the_middle": Objective(
        FillInTheMiddleCollator,
        "causal",
        {"extra_tokens": tuple(FIM_TOKENS.values())},
        lambda tokenizer, config: {
            "eos_token_id": tokenizer.eos_token_id,
            **{field: _token(tokenizer, name) for field, name in FIM_TOKENS.items()},
        },
    ),
    "masked": Objective(
        MaskedCollator,
        "masked",
        {"bos_token": "<|cls|>", "mask_token": "<|mask|>", "wraps": True},
        lambda tokenizer, config: {
            "mask_token_id": _mask(tokenizer),
            "tokenizer": tokenizer,
            "special_token_ids": tokenizer.all_special_ids,
        },
        has_bos=True,
    ),
    "span_corruption": Objective(
        SpanCorruptionCollator,
        "sequence_to_sequence",
        {"num_sentinels": NUM_SENTINELS},
        lambda tokenizer, config: {"sentinel_token_ids": _sentinels(tokenizer), **_targets(tokenizer, config)},
    ),
    "mixture_of_denoisers": Objective(
        MixtureOfDenoisersCollator,
        None,
        {"num_sentinels": NUM_SENTINELS, "extra_tokens": tuple(MODE_TOKENS.values())},
        lambda tokenizer, config: {
            "architecture": "encoder_decoder" if config.is_encoder_decoder else "decoder",
            "sentinel_token_ids": _sentinels(tokenizer),
            "mode_token_ids": {mode: _token(tokenizer, name) for mode, name in MODE_TOKENS.items()},
            **_targets(tokenizer, config),
        },
        sees_prefix=True,
    ),
    "denoising": Objective(
        DenoisingCollator,
        "sequence_to_sequence",
        {"mask_token": "<|mask|>"},
        lambda tokenizer, config: {
            "mask_token_id": _mask(tokenizer),
            "sentence_end_token_ids": _sentence_ends(tokenizer),
            **_targets(tokenizer, config),
        },
    ),
}


@dataclasses.dataclass(frozen=True)
class ObjectiveSection:
    """name: key of `OBJECTIVES`. options: the collator's arguments that the recipe gives. kind: key of `AUTO_CLASSES`."""

    name: str
    options: dict
    kind: str

    @property
    def entry(self) -> Objective:
        return OBJECTIVES[self.name]

    @property
    def sees_prefix(self) -> bool:
        """Whether prompts are read in both directions by a decoder; an encoder does so anyway."""
        return self.entry.sees_prefix and self.kind == "causal"

    @property
    def auto_class(self):
        return AUTO_CLASSES[self.kind]

    def collator(self, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, seed: int | None = None):
        """The collator for a tokenizer; with a seed it draws the same in each new copy."""
        names = {field.name for field in dataclasses.fields(self.entry.collator)}
        given = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "seed": seed}
        given |= self.entry.token_ids(tokenizer, config)
        if self.options.get("unit", "token") == "token":  # which reads no words
            given.pop("tokenizer", None)
        return self.entry.collator(**{name: value for name, value in given.items() if name in names}, **self.options)


# of a collator's arguments, those that the recipe's other sections give
NOT_OPTIONS = (
    "vocab_size",
    "pad_token_id",
    "eos_token_id",
    "decoder_start_token_id",
    "mask_token_id",
    "special_token_ids",
    "bos_token_id",
    "sentinel_token_ids",
    "sentence_end_token_ids",
    "denoisers",
    "mode_token_ids",
    "tokenizer",
    "architecture",
    "seed",
    *FIM_TOKENS,
)


def read_objective(section: dict, config: PretrainedConfig) -> ObjectiveSection:
    """The section as given, checked against itself and the model.

    Args:
        section: `name` (default: what the model is for) and arguments of the collator.

    Raises:
        ValueError: an unknown name or argument, or an objective that the model isn't made for.
    """
    options = dict(section)
    default = "causal"
    if config.is_encoder_decoder:
        default = "span_corruption"
    elif type(config) not in AutoModelForCausalLM._model_mapping:
        default = "masked"
    name = options.pop("name", default)
    check_choice("objective.name", name, OBJECTIVES)
    entry = OBJECTIVES[name]
    fields = [field.name for field in dataclasses.fields(entry.collator) if field.init]
    check_known("objective", options, [field for field in fields if field not in NOT_OPTIONS])
    kind = entry.kind or ("sequence_to_sequence" if config.is_encoder_decoder else "causal")
    if type(config) not in AUTO_CLASSES[kind]._model_mapping:
        able = [key for key, other in AUTO_CLASSES.items() if type(config) in other._model_mapping]
        able += [] if able == ["masked"] else [None]
        fitting = [key for key, other in OBJECTIVES.items() if other.kind in able]
        raise ValueError(
            f"objective.name={name!r}: a {config.model_type} can't learn it; use one of {', '.join(fitting)}, or another "
            "model.model_type"
        )
    return ObjectiveSection(name, options, kind)
