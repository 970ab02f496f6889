"""What a written text must be like: a pattern it matches, words it has, where it stops, how long it is.

Each is a rule on the next token (a logits processor of transformers), so that it holds whichever way tokens are chosen,
greedily, drawn or by beams. What can't be kept any more, because the tokens are used up, is counted as not satisfied;
nothing is mended afterwards.
"""

import abc
from collections.abc import Sequence
from dataclasses import dataclass, field

import regex
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase


@dataclass
class ConstraintArguments:
    """Rules for what is written; without any, everything may be."""

    pattern: str | None = field(
        default=None,
        metadata={"help": "Regular expression that the whole text matches: '[a-z ,]*\\\\.' or '(yes|no)'."},
    )
    must_include: list[str] = field(
        default_factory=list,
        metadata={"help": "Texts that stand in it, in any order; written at the latest when room ends."},
    )
    stop_strings: list[str] | None = field(default=None, metadata={"help": "It ends after the first of these."})
    min_new_tokens: int | None = field(default=None, metadata={"help": "Tokens to write at least."})

    def __post_init__(self):
        if self.pattern is not None:
            if self.must_include:
                raise ValueError(
                    f"constraints.must_include={self.must_include}: not together with pattern, which may forbid it; write "
                    "it into the pattern"
                )
            try:
                regex.compile(self.pattern)
            except regex.error as error:
                raise ValueError(f"constraints.pattern={self.pattern!r}: no regular expression: {error}") from error
        for name in ("must_include", "stop_strings"):
            if not all(getattr(self, name) or ()):
                raise ValueError(f"constraints.{name}: one is empty; give at least a character")
        if self.min_new_tokens is not None and self.min_new_tokens < 1:
            raise ValueError(f"constraints.min_new_tokens={self.min_new_tokens}: must be at least 1, or null")

    @property
    def given(self) -> bool:
        """Whether there is a rule that a text may fail."""
        return self.pattern is not None or bool(self.must_include)

    def apply(self, config: GenerationConfig) -> GenerationConfig:
        """`config` with the rules that transformers has itself."""
        config.stop_strings, config.min_new_tokens = self.stop_strings, self.min_new_tokens
        return config

    def processors(self, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> LogitsProcessorList:
        """The others."""
        found = LogitsProcessorList()
        if self.pattern is not None:
            found.append(MatchesPattern(tokenizer, self.pattern))
        if self.must_include:
            found.append(IncludesTexts(tokenizer, self.must_include, max_new_tokens))
        return found

    def satisfied_by(self, text: str) -> bool:
        """Whether a whole text keeps the rules."""
        matches = self.pattern is None or regex.fullmatch(self.pattern, text) is not None
        return matches and all(one in text for one in self.must_include)


class NewTokens(LogitsProcessor, abc.ABC):
    """A processor that looks at what was written after the prompt; every call of `generate` needs a new one.

    The prompt's length is that of the first call: prompts of one batch are of one length, or padded to it on the left.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.prompt_length: int | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """input_ids (B, T), scores (B, vocabulary) of the next token -> scores with -inf where it must not be."""
        if self.prompt_length is None or input_ids.shape[1] < self.prompt_length:
            self.prompt_length = input_ids.shape[1]
        new = input_ids[:, self.prompt_length :]
        texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        scores = scores.clone()
        for row, text in enumerate(texts):
            self.restrict(scores[row], text, new.shape[1])
        return scores

    @abc.abstractmethod
    def restrict(self, scores: torch.Tensor, text: str, num_new: int) -> None:
        """Change the scores (vocabulary,) of what follows `text`, of `num_new` tokens, in place."""


class MatchesPattern(NewTokens):
    """Only tokens after which the text may still become one that matches, and the end only where it does.

    `regex` says whether a text is the beginning of a match. Time: a trial a token of the vocabulary and step; good for
    vocabularies of some thousands.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pattern: str):
        super().__init__(tokenizer)
        self.pattern = regex.compile(pattern)
        special = set(tokenizer.all_special_ids)
        tokens = [(token, tokenizer.decode([token])) for token in range(len(tokenizer)) if token not in special]
        # a token that is a part of a character only decodes to the sign for what can't be read
        self.tokens = [(token, text) for token, text in tokens if text and "\ufffd" not in text]

    def restrict(self, scores: torch.Tensor, text: str, num_new: int) -> None:
        fits = self.pattern.fullmatch
        allowed = [token for token, piece in self.tokens if fits(text + piece, partial=True)]
        if fits(text) or not allowed:
            allowed.append(self.tokenizer.eos_token_id)
        kept = scores[allowed].clone()
        scores.fill_(-torch.inf)
        # what an earlier rule has forbidden stays so, unless nothing else is left
        scores[allowed] = kept if kept.isfinite().any() else torch.zeros_like(kept)


class IncludesTexts(NewTokens):
    """The end is barred while a text is missing; when no more tokens are left than the missing need, they are forced."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_new_tokens: int):
        super().__init__(tokenizer)
        self.texts, self.max_new_tokens = list(texts), max_new_tokens
        needed = len(self._tokens(self.texts))
        if needed > max_new_tokens:
            raise ValueError(
                f"constraints.must_include: its texts have {needed} tokens, above writing.max_new_tokens={max_new_tokens}; "
                "raise it"
            )

    def _tokens(self, texts: Sequence[str]) -> list[int]:
        return self.tokenizer("".join(f" {text}" for text in texts), add_special_tokens=False)["input_ids"]

    def restrict(self, scores: torch.Tensor, text: str, num_new: int) -> None:
        missing = [one for one in self.texts if one not in text]
        if not missing:
            return
        scores[self.tokenizer.eos_token_id] = -torch.inf
        ends = self._tokens(missing)
        # begun already: what was forced before goes on
        begun = next((n for n in range(len(ends) - 1, 0, -1) if text.endswith(self.tokenizer.decode(ends[:n]))), 0)
        if self.max_new_tokens - num_new <= len(ends) - begun:
            scores.fill_(-torch.inf)
            scores[ends[begun]] = 0
