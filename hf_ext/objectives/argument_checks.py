"""What collators refuse: each check raises a ValueError of one line, or returns nothing."""

from collections.abc import Sequence

import torch

from hf_ext.objectives.segments import IGNORED_LABEL, Segments


def check_vocabulary(vocab_size: int, **token_ids: int | Sequence[int]) -> None:
    """There are ids, and each of `token_ids`, one or several under a field's name, is one of them."""
    if vocab_size < 1:
        raise ValueError(f"vocab_size: {vocab_size} must be at least 1")
    for name, values in token_ids.items():
        for value in [values] if isinstance(values, int) else values:
            if not 0 <= value < vocab_size:
                raise ValueError(f"{name}: {value} is outside the vocabulary 0..{vocab_size - 1}")


def check_probability(**values: float) -> None:
    """Each of `values`, by its field's name, is from 0 to 1."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: {value} must be from 0 to 1")


def check_different(names: str, token_ids: Sequence[int]) -> None:
    """No id is there twice."""
    if len(set(token_ids)) < len(token_ids):
        raise ValueError(f"{names}: {list(token_ids)} has an id twice; give each place an id of its own")


def check_absent(names: str, token_ids: Sequence[int], segments: Segments) -> None:
    """No document holds one of `token_ids`: who reads the batch couldn't tell it from those set here."""
    found = torch.isin(segments.tokens, torch.tensor(token_ids)) & ~segments.is_padding[segments.owners]
    if found.any():
        index = int(found.nonzero()[0])
        row, column = segments.place(index)
        raise ValueError(
            f"input_ids: {int(segments.tokens[index])} in row {row} at position {column} is among {names}; tokenize with "
            "split_special_tokens=True, so that no text forges one"
        )


def check_predicted(labels: torch.Tensor, num_rows: int) -> None:
    """Not all of `labels`, of any shape, are -100."""
    if not (labels != IGNORED_LABEL).any():
        raise ValueError(
            f"labels: all of the {num_rows} rows' labels are {IGNORED_LABEL}, nothing is predicted and the loss "
            "would be NaN; drop these rows or give longer documents"
        )
