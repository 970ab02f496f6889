"""Where words begin in a row of tokens, read off a tokenizer's vocabulary."""

import torch
from transformers import PreTrainedTokenizerBase


# WordPiece marks what goes on with a word; the others mark the space before one.
CONTINUATION = "##"
# A space, line break, tab or carriage return as the byte-level alphabet writes it, and sentencepiece's space.
WHITE_SPACE = {"byte-level": "ĠĊĉč", "sentencepiece": "▁"}


class WordBorders:
    """(N,) tokens -> (N,) bool, True where a word begins. A document's first token is the caller's to mark.

    WordPiece: every token but those that begin with `##`. Byte-level and sentencepiece: tokens that begin with white
    space, and those after a token that ends with it; punctuation without a space before it belongs to its word. Which of
    the three a vocabulary is of is what most of its entries say.

    Raises:
        ValueError: no entry begins with any of the marks.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int):
        special = set(tokenizer.all_special_tokens)
        entries = {token: index for token, index in tokenizer.get_vocab().items() if token not in special}
        entries = {token: index for token, index in entries.items() if index < vocab_size}
        marks = {"WordPiece": (CONTINUATION,), **{name: tuple(signs) for name, signs in WHITE_SPACE.items()}}
        counts = {
            name: sum(token.startswith(signs) and token != CONTINUATION for token in entries)
            for name, signs in marks.items()
        }
        self.kind = max(counts, key=counts.get)
        if counts[self.kind] == 0:
            raise ValueError(
                "tokenizer: no token of its vocabulary begins with '##', 'Ġ' or '▁', by which words are told apart; "
                "choose unit token, or span without a tokenizer"
            )
        signs = marks[self.kind]
        begins = torch.zeros(vocab_size, dtype=torch.bool)
        ends = torch.zeros(vocab_size, dtype=torch.bool)
        for token, index in entries.items():
            begins[index] = token.startswith(signs) != (self.kind == "WordPiece")
            ends[index] = self.kind != "WordPiece" and token.endswith(signs)
        self._begins_with_space = begins
        self._ends_with_space = ends

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        after_space = self._ends_with_space[tokens].roll(1)
        after_space[:1] = False
        return self._begins_with_space[tokens] | after_space
