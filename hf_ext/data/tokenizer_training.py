"""Train a tokenizer on your own text; what it saves loads with `AutoTokenizer` alone."""

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging


logger = logging.get_logger(__name__)

TOKENIZER_KINDS = ("byte_level_bpe", "characters")
NUM_BYTES = 256


def train_tokenizer(
    texts: Iterable[str],
    *,
    kind: str = "byte_level_bpe",
    vocab_size: int = 32_000,
    min_frequency: int | None = None,
    model_max_length: int,
    eos_token: str = "<|endoftext|>",
    pad_token: str = "<|pad|>",
    unk_token: str = "<|unk|>",
    bos_token: str | None = None,
    mask_token: str | None = None,
    num_sentinels: int = 0,
    extra_tokens: Sequence[str] = (),
    wraps: bool = False,
    reads_words: bool = False,
) -> PreTrainedTokenizerFast:
    """Learn a vocabulary from `texts` and return a tokenizer whose round trip is the text itself.

    `byte_level_bpe`: GPT-2's splitting into words, then byte pair encoding over their UTF-8 bytes. Any Unicode text
    comes back unchanged, spaces, tabs and line breaks included. `characters`: one token per Unicode code point, line
    breaks included; a character outside the vocabulary becomes `unk_token`.

    The first ids are the special tokens: `eos_token` 0, `pad_token` 1, for characters `unk_token` 2, then those asked for
    in the order of the arguments. The tokenizer adds none of them by itself, unless it `wraps`: the packing does. The same
    texts in the same order give the same files, byte for byte.

    Args:
        texts: documents; an iterator is read once, and only word or character counts are kept in memory.
        kind: `byte_level_bpe` or `characters`.
        vocab_size: upper bound on the number of tokens, special tokens included. Characters: the most frequent stay.
        min_frequency: occurrences that a merged pair (default 2) or a character (default 1) needs to get an id.
        model_max_length: tokens that the model reads at most.
        bos_token: default `eos_token`. It is the cls token too, and `eos_token` the sep token, where the tokenizer wraps.
        mask_token: for masked language modeling and denoising; None for none.
        num_sentinels: tokens `<extra_id_0>`, `<extra_id_1>`, … that stand for spans; T5, arXiv 1910.10683, sec. 3.1.4.
        extra_tokens: further special tokens.
        wraps: whether the tokenizer puts `bos_token` before a text, or a pair, and `eos_token` after each of its texts, as
            BERT's does; not with `add_special_tokens=False`.
        reads_words: (byte_level_bpe) put a space before a text, as all its further words have one: a text and the list of
            its words (`is_split_into_words=True`) are the same tokens then. And the characters that a token stands for,
            its offsets, don't begin with a space.

    Raises:
        ValueError: unknown kind, a bound too small, no text, or an item that is not a `str`.

    Source: Sennrich et al., 2016, arXiv 1508.07909 (byte pair encoding); Radford et al., 2019 (its byte-level form).
    """
    if kind not in TOKENIZER_KINDS:
        nearest = difflib.get_close_matches(kind, TOKENIZER_KINDS, n=1, cutoff=0.0)[0]
        raise ValueError(f"kind: '{kind}' is not one of {', '.join(TOKENIZER_KINDS)}; did you mean '{nearest}'?")
    special_tokens = [eos_token, pad_token] if kind == "byte_level_bpe" else [eos_token, pad_token, unk_token]
    sentinels = [f"<extra_id_{number}>" for number in range(num_sentinels)]
    special_tokens += [token for token in (bos_token, mask_token) if token is not None]
    special_tokens += [*sentinels, *extra_tokens]
    if len(set(special_tokens)) < len(special_tokens) or "" in special_tokens:
        raise ValueError(f"eos_token, pad_token, …: {special_tokens} must be different and not empty")
    smallest = len(special_tokens) + (NUM_BYTES if kind == "byte_level_bpe" else 1)
    if vocab_size < smallest:
        alphabet = "the 256 bytes" if kind == "byte_level_bpe" else "one character"
        raise ValueError(
            f"vocab_size: {vocab_size} is below {smallest}: {alphabet}, {len(special_tokens)} special tokens; raise it"
        )
    if reads_words and kind != "byte_level_bpe":
        raise ValueError(f"reads_words: True is for byte_level_bpe only, not for '{kind}'; leave it out")
    if min_frequency is None:
        min_frequency = 2 if kind == "byte_level_bpe" else 1
    if min_frequency < 1:
        raise ValueError(f"min_frequency: {min_frequency} must be at least 1 occurrence")
    if model_max_length < 2:
        raise ValueError(
            f"model_max_length: {model_max_length} must be at least 2 tokens, one to read and one to predict"
        )

    texts = _require_text(texts)
    if kind == "byte_level_bpe":
        tokenizer = _train_byte_level_bpe(texts, vocab_size, min_frequency, special_tokens, reads_words)
    else:
        tokenizer = _train_characters(texts, vocab_size, min_frequency, special_tokens)
    real_size = tokenizer.get_vocab_size(with_added_tokens=True)
    if real_size < vocab_size:
        logger.warning(f"vocab_size: the text fills {real_size} of the {vocab_size} tokens asked for")
    first = eos_token if bos_token is None else bos_token
    if wraps:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {eos_token}",
            pair=f"{first} $A {eos_token} $B:1 {eos_token}:1",
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in dict.fromkeys((first, eos_token))],
        )
    if reads_words:
        trims = processors.ByteLevel(add_prefix_space=True, trim_offsets=True)
        tokenizer.post_processor = processors.Sequence([trims, tokenizer.post_processor]) if wraps else trims
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=first,
        cls_token=first if wraps else None,
        sep_token=eos_token if wraps else None,
        mask_token=mask_token,
        extra_special_tokens=[*sentinels, *extra_tokens],
        eos_token=eos_token,
        pad_token=pad_token,
        unk_token=unk_token if kind == "characters" else None,
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )


def _require_text(texts: Iterable[str]) -> Iterator[str]:
    """The same texts; the first one that is not empty is read at once, so that a source without text fails early."""
    if isinstance(texts, str):
        raise ValueError("texts: a single str would be read letter by letter; pass a list or an iterator of documents")
    checked = _check_types(texts)
    first = next((text for text in checked if text), None)
    if first is None:
        raise ValueError("texts: no text at all; a tokenizer needs at least one document that is not empty")
    return chain([first], checked)


def _check_types(texts: Iterable[str]) -> Iterator[str]:
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"texts: item {index} is {type(text).__name__}, not str; pass the text column alone")
        yield text


def _train_byte_level_bpe(
    texts: Iterator[str], vocab_size: int, min_frequency: int, special_tokens: list[str], add_prefix_space: bool
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special_tokens],
        # All 256 bytes have an id even if the text lacks some: that is what makes unseen text lossless.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return tokenizer


def _train_characters(
    texts: Iterator[str], vocab_size: int, min_frequency: int, special_tokens: list[str]
) -> Tokenizer:
    counts = Counter()
    for text in texts:
        counts.update(text)
    kept = [character for character, count in counts.items() if count >= min_frequency]
    kept.sort(key=lambda character: (-counts[character], character))
    kept = sorted(kept[: vocab_size - len(special_tokens)])
    if not kept:
        raise ValueError(f"min_frequency: no character occurs {min_frequency} times; lower it or give more text")
    if len(kept) < len(counts):
        logger.warning(f"vocab_size: {len(kept)} of {len(counts)} characters have an id, the others become unknown")
    vocabulary = {token: index for index, token in enumerate([*special_tokens, *kept])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special_tokens[2]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special_tokens])
    return tokenizer
