"""Pack pairs of texts, a source and a target, into rows of two sides, in which the pairs stay apart.

A row is at most `source_length` tokens of sources and `target_length` of targets; the n-th source belongs to the n-th
target. Position ids restart at 0 with every text, on both sides; by them the attention tells the pairs apart.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice


# rows that a pair is tried in before it opens a new one: more fill rows better and cost more time a pair
OPEN_ROWS = 64


def pack_pairs(
    pairs: Iterable[Mapping[str, Sequence[int]]],
    *,
    source_length: int,
    target_length: int,
    buffer_size: int = 1000,
) -> Iterator[dict[str, list[int]]]:
    """Yield rows `{"input_ids", "position_ids", "labels", "decoder_position_ids"}`, as `SequenceToSequenceCollator` takes
    them.

    Among `buffer_size` pairs the longest come first, and each goes into the first of the `OPEN_ROWS` newest rows that holds
    both its sides. No text is cut, and nothing is padded: the collator does that. In memory: `buffer_size` pairs. Time: O(1)
    a pair.

    Args:
        pairs: `input_ids` of the source and `labels` of the target, end tokens included.
        source_length, target_length: tokens a row has room for on each side.
        buffer_size: pairs among which rows are filled.

    Raises:
        ValueError: a size below 1, at the call; a pair with an empty side, or one that no row holds, when it is reached.
    """
    for name, size in (
        ("source_length", source_length),
        ("target_length", target_length),
        ("buffer_size", buffer_size),
    ):
        if size < 1:
            raise ValueError(f"{name}: {size} must be at least 1")
    return _packed(iter(pairs), source_length, target_length, buffer_size)


def _packed(pairs: Iterator, source_length: int, target_length: int, buffer_size: int) -> Iterator[dict]:
    first = 0
    while buffer := list(islice(pairs, buffer_size)):
        for number, pair in enumerate(buffer, start=first):
            _check_pair(pair, number, source_length, target_length)
        first += len(buffer)
        for numbers in _filled_rows(buffer, source_length, target_length):
            yield _row([buffer[number] for number in numbers])


def _check_pair(pair: Mapping, number: int, source_length: int, target_length: int) -> None:
    for name, room, limit in (
        ("input_ids", "source_length", source_length),
        ("labels", "target_length", target_length),
    ):
        length = len(pair[name])
        if not 1 <= length <= limit:
            what = (
                "is empty; drop the pair" if length == 0 else f"is longer than {room} {limit}; cut it or raise {room}"
            )
            raise ValueError(f"{name}: of {length} tokens in pair {number} {what}")


def _filled_rows(buffer: list[Mapping], source_length: int, target_length: int) -> list[list[int]]:
    """The numbers of the pairs of each row, in the order of the pairs."""

    def share(number: int) -> float:  # of a row, on the fuller side
        pair = buffer[number]
        return max(len(pair["input_ids"]) / source_length, len(pair["labels"]) / target_length)

    rows, open_rows = [], []  # an open row: its number, free tokens of both sides
    for number in sorted(range(len(buffer)), key=share, reverse=True):
        source, target = len(buffer[number]["input_ids"]), len(buffer[number]["labels"])
        for row in open_rows:
            if row[1] >= source and row[2] >= target:
                break
        else:
            row = [len(rows), source_length, target_length]
            rows.append([])
            open_rows = [*open_rows[1 - OPEN_ROWS :], row]
        rows[row[0]].append(number)
        row[1] -= source
        row[2] -= target
        if 0 in row[1:]:
            open_rows.remove(row)
    # otherwise each buffer would go to the model from long to short
    return sorted(sorted(row) for row in rows)


def _row(pairs: list[Mapping]) -> dict[str, list[int]]:
    row = {"input_ids": [], "position_ids": [], "labels": [], "decoder_position_ids": []}
    for pair in pairs:
        for tokens, positions in (("input_ids", "position_ids"), ("labels", "decoder_position_ids")):
            row[tokens] += pair[tokens]
            row[positions] += range(len(pair[tokens]))
    return row
