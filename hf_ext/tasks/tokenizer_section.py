"""The tokenizer section of a recipe: a tokenizer that exists, or a new one, trained on the texts at hand."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from types import MappingProxyType

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_ext.data import TOKENIZER_KINDS, train_tokenizer
from hf_ext.models.configuration_choices import check_choice


@dataclass
class TokenizerArguments:
    """Which tokenizer: a new one, trained on the training documents, or one that exists."""

    path: str | None = field(
        default=None, metadata={"help": "Folder or Hub name of a tokenizer to take instead of training one."}
    )
    kind: str | None = field(
        default=None, metadata={"help": f"To train: {' or '.join(TOKENIZER_KINDS)}. Default: the first."}
    )
    vocab_size: int | None = field(
        default=None, metadata={"help": "To train: tokens at most, special ones included. Default: 32,000."}
    )
    min_frequency: int | None = field(
        default=None, metadata={"help": "To train: occurrences that a token needs. Default: 2 (bytes), 1 (characters)."}
    )
    max_documents: int | None = field(
        default=None, metadata={"help": "To train: documents to learn from; default all."}
    )

    def __post_init__(self):
        if self.kind is not None:
            check_choice("tokenizer.kind", self.kind, TOKENIZER_KINDS)
        for name in ("kind", "vocab_size", "min_frequency", "max_documents"):
            value = getattr(self, name)
            if self.path is not None and value is not None:
                raise ValueError(
                    f"tokenizer.{name}={value}: has no effect with tokenizer.path={self.path!r}; leave one out"
                )
            if isinstance(value, int) and value < 1:
                raise ValueError(f"tokenizer.{name}={value}: must be at least 1")

    @property
    def size(self) -> int:
        """Tokens that a new tokenizer may have."""
        return 32_000 if self.vocab_size is None else self.vocab_size


def get_tokenizer(
    arguments: TokenizerArguments,
    texts: Iterator[str],
    *,
    model_max_length: int,
    checkpoint: str | None,
    model_path: str | None = None,
    special_tokens: Mapping = MappingProxyType({}),
) -> PreTrainedTokenizerBase:
    """The checkpoint's where there is one, one that the recipe names, the trained model's, else a new one.

    Args:
        texts: what a new one learns from, `max_documents` of them.
        model_path: the trained model to go on from.
        special_tokens: what a new one has besides; arguments of `train_tokenizer`.
    """
    if checkpoint is not None:
        return AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    if arguments.path or model_path:
        return AutoTokenizer.from_pretrained(arguments.path or model_path, trust_remote_code=False)
    return train_tokenizer(
        islice(texts, arguments.max_documents),
        kind=arguments.kind or TOKENIZER_KINDS[0],
        vocab_size=arguments.size,
        min_frequency=arguments.min_frequency,
        model_max_length=model_max_length,
        **special_tokens,
    )
