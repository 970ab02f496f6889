"""Fill in the middle: a causal model learns to write what stands between a beginning and an end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from hf_ext.objectives.argument_checks import (
    check_absent,
    check_different,
    check_predicted,
    check_probability,
    check_vocabulary,
)
from hf_ext.objectives.randomness import RandomCollator
from hf_ext.objectives.segments import (
    IGNORED_LABEL,
    Segments,
    join,
    one_each,
    packed_batch,
    read_segments,
    select,
)


# three sentinels and the end token
NUM_ADDED = 4


@dataclass(kw_only=True)
class FillInTheMiddleCollator(RandomCollator):
    """Cut documents in three, put the middle last, and train as a causal model does on the tokens so ordered.

    Each document is taken with probability `fim_rate`. Both cuts fall anywhere, uniformly and independently, so that any
    part may be empty. With probability `spm_rate` it is then written in the second order, else in the first:

        PSM   <prefix> prefix <suffix> suffix <middle> middle <eos>
        SPM   <prefix> <suffix> suffix <middle> prefix middle <eos>

    SPM is the paper's second variant: the sentinels keep their order, and a model trained on both learns each from the
    other. The end token says where the middle ends.

    A document keeps its length, so that rows do. To make room for three sentinels it loses as many tokens before its
    end token, that is the end of its suffix; one without an end token, cut by packing, gains one and loses four.
    Documents of up to four tokens, end token included, stay as they are.

    Rows and batch are as for `CausalCollator`, with positions that count 0, 1, 2, … in every document; segments keep
    their places. All tokens are predicted, sentinels too, but a segment's first. A label -100 that a row gives a token
    other than a document's first goes with the token.

    Args:
        prefix_token_id, middle_token_id, suffix_token_id: the sentinels. No document may hold one.
        eos_token_id: end of a document.
        fim_rate: from 0 to 1. The paper trains with 0.5 and finds no harm to plain prediction up to 0.9.
        spm_rate: from 0 to 1, the share of SPM among those taken.

    Raises:
        ValueError: as `CausalCollator` does; a rate outside 0..1; ids outside the vocabulary or twice the same; a
            sentinel in a document.

    Source: Bavarian et al., 2022, arXiv 2207.14255, section 3 and appendix D, at token level.
    """

    prefix_token_id: int
    middle_token_id: int
    suffix_token_id: int
    eos_token_id: int
    fim_rate: float = 0.5
    spm_rate: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        names = ("prefix_token_id", "middle_token_id", "suffix_token_id")
        check_vocabulary(self.vocab_size, **{name: getattr(self, name) for name in (*names, "eos_token_id")})
        sentinels = [getattr(self, name) for name in names]
        check_different(f"{', '.join(names)}, eos_token_id", [*sentinels, self.eos_token_id])
        if self.pad_token_id in sentinels:
            raise ValueError(f"pad_token_id: {self.pad_token_id} is a sentinel too; give padding an id of its own")
        check_probability(fim_rate=self.fim_rate, spm_rate=self.spm_rate)

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, torch.Tensor]:
        segments = read_segments(rows, vocab_size=self.vocab_size, pad_token_id=self.pad_token_id)
        segments.check_positions()
        sentinels = [self.prefix_token_id, self.middle_token_id, self.suffix_token_id]
        check_absent("prefix_token_id, middle_token_id, suffix_token_id", sentinels, segments)
        taken, sources = self._reorder(segments)
        added = torch.tensor([*sentinels, self.eos_token_id])
        is_added = sources < 0
        sources_of_text = sources.clamp(min=0)
        tokens = torch.where(is_added, added[-1 - sources.clamp(max=-1)], segments.tokens[sources_of_text])

        labels = segments.next_token_labels()
        first = taken[segments.owners] & (segments.indices == 0)
        # what was a document's first token has a past now; the sentinel that is it instead has none
        labels = torch.where(first, segments.tokens, labels)[sources_of_text]
        labels = torch.where(is_added, tokens, labels).masked_fill(first, IGNORED_LABEL)
        batch = packed_batch(segments, tokens, labels)
        check_predicted(batch["labels"][:, 1:], len(rows))
        return batch

    def _reorder(self, segments: Segments) -> tuple[torch.Tensor, torch.Tensor]:
        """Which segments are taken, (D,) bool, and of each token of the batch, (N,) int64, where in `segments` it is from.

        -1, -2, -3, -4 stand for the sentinels of prefix, middle and suffix, and for the end token.
        """
        lengths = segments.lengths
        draws = torch.rand(4, len(lengths), dtype=torch.float64, generator=self.generator())
        num_text = lengths - NUM_ADDED
        taken = (draws[0] < self.fim_rate) & (num_text > 0) & ~segments.is_padding
        swapped = taken & (draws[1] < self.spm_rate)
        # clamped for the draw that rounds up to 1
        cuts = (draws[2:] * (num_text + 1)).long().minimum(num_text).sort(dim=0).values
        begin, end = cuts[:, segments.owners]
        owner_taken, owner_swapped = taken[segments.owners], swapped[segments.owners]
        in_prefix = segments.indices < begin
        in_middle = (segments.indices >= begin) & (segments.indices < end)
        in_suffix = (segments.indices >= end) & (segments.indices < num_text[segments.owners])

        def part(inside: torch.Tensor):
            return select(torch.arange(len(segments.tokens)), lengths, inside)

        sources, new_lengths = join(
            one_each(-1, taken),
            part(in_prefix & owner_taken & ~owner_swapped),
            one_each(-3, taken),
            part(in_suffix & owner_taken),
            one_each(-2, taken),
            part(in_prefix & owner_swapped),
            part(in_middle & owner_taken),
            one_each(-4, taken),
            part(~owner_taken),
        )
        assert torch.equal(new_lengths, lengths)
        return taken, sources
