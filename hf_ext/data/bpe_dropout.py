"""BPE-dropout: a word is cut differently at each look, so that a model learns what a rare word has in common with others.

Byte pair encoding joins the pair of neighbours with the earliest merge until none is left. With dropout, each pair that
could be joined is passed over with probability p, drawn anew at each step: "films" is now `films`, now `film s`, now
`f il ms`. With p = 0 this is the tokenizer's own encoding, with p = 1 its letters. For training only.

Provilkov, Emelianenko, Voita 2020, "BPE-Dropout: Simple and Effective Subword Regularization", arXiv 1910.13267, alg. 1.
"""

import json
import random
from itertools import groupby, pairwise

import torch
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


def check_bpe_dropout(field: str, rate: float) -> None:
    """Raises ValueError, one line, for a probability that is none."""
    if not 0 <= rate < 1:
        raise ValueError(f"{field}={rate}: must be at least 0 and below 1; 0.1 is usual")


class BpeDropout:
    """Cuts token ids again, words at random, special tokens and their places as they are.

    All that is random comes from torch's generator, so a resumed run draws what the uninterrupted one does; the dropout that
    `tokenizers` has of its own can't be seeded.

    Args:
        tokenizer: a fast tokenizer with a byte pair encoding of words, as `train_tokenizer` makes it.
        rate: probability, in [0, 1), that a pair which could be joined is passed over.

    Raises:
        ValueError: another tokenizer, or a rate that is none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rate: float):
        check_bpe_dropout("bpe_dropout", rate)
        kind = type(tokenizer).__name__
        if isinstance(tokenizer, PreTrainedTokenizerFast):
            model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
            kind = model["type"]
        if kind != "BPE":
            raise ValueError(f"bpe_dropout={rate}: needs a byte pair encoding, the tokenizer is {kind}; set it to 0")
        marks = [name for name in ("continuing_subword_prefix", "end_of_word_suffix") if model.get(name)]
        if marks or tokenizer.backend_tokenizer.pre_tokenizer is None:
            rule = f"marks pieces by {marks[0]}" if marks else "doesn't split texts into words"
            raise ValueError(f"bpe_dropout={rate}: the tokenizer {rule}, which isn't supported; set it to 0")
        self.tokenizer, self.rate = tokenizer, rate
        self.ids = model["vocab"]
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        self.rank = {tuple(pair): rank for rank, pair in enumerate(pairs)}
        self.special = set(tokenizer.all_special_ids)

    def __call__(self, tokens: list[int]) -> list[int]:
        """Another encoding of the same text. A text that the tokenizer would not encode to `tokens` - its end was cut off
        within a character, say - stays as it is."""
        draw = random.Random(int(torch.randint(2**62, ()))).random
        cut = []
        for is_special, group in groupby(tokens, key=self.special.__contains__):
            part = list(group)
            cut += part if is_special else self._cut_again(part, draw)
        return cut

    def _cut_again(self, tokens: list[int], draw) -> list[int]:
        backend = self.tokenizer.backend_tokenizer
        text = self.tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
        if backend.encode(text, add_special_tokens=False).ids != tokens:
            return tokens
        normalized = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
        cut = []
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(normalized):
            pieces = self._join(list(word), draw)
            if any(piece not in self.ids for piece in pieces):
                return tokens
            cut += [self.ids[piece] for piece in pieces]
        return cut

    def _join(self, pieces: list[str], draw) -> list[str]:
        """Pieces of one word, joined as far as the draws let them be: the earliest merge first, the leftmost of equals."""
        rank, rate = self.rank, self.rate
        while len(pieces) > 1:
            best, place = None, 0
            for number, pair in enumerate(pairwise(pieces)):
                found = rank.get(pair)
                if found is not None and (best is None or found < best) and draw() >= rate:
                    best, place = found, number
            if best is None:
                break
            pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
        return pieces
