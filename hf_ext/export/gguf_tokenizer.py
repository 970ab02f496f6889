"""A byte-level BPE tokenizer as GGUF's metadata: tokens, merges, what kind each token is.

llama.cpp has the splitting into words built in, by name; of those only GPT-2's, which our tokenizers are trained with, is
written here ("gpt-2").
"""

import json
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase


# gguf.TokenType
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5


@dataclass(frozen=True)
class GgufTokenizer:
    """What is written.

    Attributes:
        tokens: by id, one for each row of the embedding. types: of each. merges: "a b" in their order.
        adds_bos, adds_eos: whether a text gets them.
    """

    tokens: list[str]
    types: list[int]
    merges: list[str]
    adds_bos: bool
    adds_eos: bool


def read_tokenizer(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> GgufTokenizer:
    """The tokenizer for a model of `vocab_size` embeddings; embeddings that no token has become unused ones.

    Raises:
        ValueError: one line, for a tokenizer that GGUF's "gpt2" with the splitting "gpt-2" doesn't compute.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"tokenizer: a {type(tokenizer).__name__} has no tokenizer.json; use a fast one")
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = state["model"]
    if model["type"] != "BPE" or (state["pre_tokenizer"] or {}).get("type") != "ByteLevel":
        raise ValueError(
            f"tokenizer: a {model['type']} after {_kind(state['pre_tokenizer'])}; only byte-level BPE with GPT-2's "
            "splitting can be written as GGUF"
        )
    if state["normalizer"] is not None:
        raise ValueError(f"tokenizer: normalizes texts ({_kind(state['normalizer'])}), which GGUF can't say; drop it")
    pre_tokenizer = state["pre_tokenizer"]
    if not pre_tokenizer.get("use_regex", True) or pre_tokenizer.get("add_prefix_space"):
        raise ValueError("tokenizer: puts a space before a text or doesn't split it as GPT-2's does; GGUF can't say so")
    if len(tokenizer) > vocab_size:
        raise ValueError(f"tokenizer: has {len(tokenizer)} tokens, the model has vocab_size={vocab_size}")
    tokens = [f"[PAD{number}]" for number in range(vocab_size)]
    types = [UNUSED] * vocab_size
    for token, number in model["vocab"].items():
        tokens[number], types[number] = token, NORMAL
    for added in state["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    around = tokenizer("a").input_ids
    plain = tokenizer("a", add_special_tokens=False).input_ids
    return GgufTokenizer(tokens, types, merges, *_added(around, plain, tokenizer))


def _added(around: list[int], plain: list[int], tokenizer: PreTrainedTokenizerBase) -> tuple[bool, bool]:
    """Whether `around` is `plain` with the first token before it, and the last after it."""
    for before in ([], [tokenizer.bos_token_id]):
        for after in ([], [tokenizer.eos_token_id]):
            if around == before + plain + after:
                return bool(before), bool(after)
    raise ValueError(
        "tokenizer: adds other tokens around a text than bos_token and eos_token, which GGUF can't say; take them out"
    )


def _kind(part: dict | None) -> str:
    return "nothing" if part is None else part["type"]
