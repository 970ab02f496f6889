"""Batches of rows of like length, as many rows as fit a budget of tokens.

Rows are drawn at random into pools, sorted by length within each, cut where the budget is full, and the batches shuffled:
little padding, and an order that is random still. What a batch of n rows costs is added up over the sides, which are one, or
a source and a target:

    "padded"    n * longest row       what a padded batch holds
    "real"      sum of the lengths    what is computed where padding costs nothing

Legend: N rows, S sides.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from torch.utils.data import IterableDataset, Sampler, get_worker_info


COSTS = ("padded", "real")
# shuffles whose largest number of batches becomes that of every epoch
NUM_TRIALS = 4


def batch_costs(lengths: np.ndarray, cost: str) -> np.ndarray:
    """(n, S) lengths of rows -> (n,): what the first 1, 2, … n of them cost as a batch, in tokens. Never falls."""
    if cost == "real":
        return lengths.sum(axis=1).cumsum()
    return np.maximum.accumulate(lengths, axis=0).sum(axis=1) * np.arange(1, len(lengths) + 1)


def cut_batches(lengths: np.ndarray, tokens_per_batch: int, cost: str) -> list[np.ndarray]:
    """Rows (n, S), each within the budget, into batches of numbers of rows that lie beside each other by length."""
    # of pairs by the longer side first: that pads less than by either side or by their sum
    order = np.lexsort((lengths.sum(axis=1), lengths.max(axis=1)))
    lengths, batches, start, guess = lengths[order], [], 0, 16
    while start < len(order):
        window = lengths[start : start + guess]
        size = int(np.searchsorted(batch_costs(window, cost), tokens_per_batch, side="right"))
        if size == len(window) and start + size < len(order):
            guess *= 2  # there may be room for more than was looked at
            continue
        batches.append(order[start : start + size])
        start, guess = start + size, 2 * size
    return batches


def split_to(batches: list[np.ndarray], number: int) -> list[np.ndarray]:
    """`number` batches: those of most rows are halved; where all are of one row, the first are repeated."""
    batches = sorted(batches, key=len)
    while len(batches) < number:
        largest = batches.pop()
        if len(largest) == 1:
            batches = [*batches, largest]
            return [batches[i % len(batches)] for i in range(number)]
        half = len(largest) // 2
        batches += [largest[:half], largest[half:]]
        batches.sort(key=len)
    return batches


def check_lengths(lengths: np.ndarray, tokens_per_batch: int, first_row: int = 0) -> None:
    """Raises ValueError, one line, for a row that no batch holds."""
    too_long = np.flatnonzero(lengths.sum(axis=1) > tokens_per_batch)
    if len(too_long):
        row = int(too_long[0])
        raise ValueError(
            f"tokens_per_batch={tokens_per_batch}: row {first_row + row} alone has {int(lengths[row].sum())} tokens; "
            "raise it, or cut the rows"
        )


class TokenBatchSampler(Sampler[list[int]]):
    """Batches of row numbers for a `DataLoader`: every row once an epoch, in another order each, the same in every process.

    Every epoch has the same number of batches, a multiple of the processes, so that epochs, steps and resumes can be
    counted: the most that any of the first epochs needs. Where a shuffle needs fewer, the largest batches are halved; where
    it needs more, it is drawn anew. Process p takes batches p, p + num_processes, …

    Args:
        lengths: (N,) or (N, S) tokens. tokens_per_batch: the budget of one batch on one device.
        cost: "padded" or "real". pool_size: rows of a pool. seed: of the shuffles, with the epoch.

    Raises:
        ValueError: no rows, or one that is longer than the budget.
    """

    def __init__(
        self,
        lengths: Sequence,
        *,
        tokens_per_batch: int,
        cost: str = "padded",
        pool_size: int = 8192,
        seed: int = 0,
        num_processes: int = 1,
        process_index: int = 0,
    ):
        lengths = np.asarray(lengths, dtype=np.int64)
        self.lengths = lengths[:, None] if lengths.ndim == 1 else lengths
        if not len(self.lengths):
            raise ValueError("training data: has no rows")
        check_lengths(self.lengths, tokens_per_batch)
        self.tokens_per_batch, self.cost, self.seed = tokens_per_batch, cost, seed
        self.num_pools = max(1, round(len(self.lengths) / pool_size))
        self.num_processes, self.process_index = num_processes, process_index
        self.epoch = 0
        most = max(len(self._draw(epoch, 0)) for epoch in range(NUM_TRIALS))
        self.num_batches = -(-most // num_processes) * num_processes

    def set_epoch(self, epoch: int) -> None:
        """The epoch, from 0, whose order is asked for next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_batches // self.num_processes

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.epoch_batches(self.epoch)[self.process_index :: self.num_processes]:
            yield batch.tolist()

    def epoch_batches(self, epoch: int) -> list[np.ndarray]:
        """The batches of all processes, in order."""
        drawn = (self._draw(epoch, attempt) for attempt in count())
        batches = split_to(next(found for found in drawn if len(found) <= self.num_batches), self.num_batches)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(batches))
        return [batches[number] for number in order]

    def _draw(self, epoch: int, attempt: int) -> list[np.ndarray]:
        rows = np.random.default_rng((self.seed, epoch, attempt)).permutation(len(self.lengths))
        return [
            pool[batch]
            for pool in np.array_split(rows, self.num_pools)
            for batch in cut_batches(self.lengths[pool], self.tokens_per_batch, self.cost)
        ]


class TokenBatchStream(IterableDataset):
    """The same of a stream: lists of rows, out of pools of `pool_size` rows as they come, again from the start at its end.

    It never ends, so that a number of steps, and what a resume skips, mean the same however long the stream is. Every
    process reads the whole stream and takes its share of each pool's batches.

    Args:
        dataset: yields rows; its `set_epoch` is called with the pass, from 0, if it has one. lengths_of: S tokens of a row.
        others: as for `TokenBatchSampler`.

    Raises:
        ValueError: while iterating: no rows, or one that is longer than the budget.
    """

    def __init__(
        self,
        dataset: Iterable,
        lengths_of: Callable[[dict], tuple[int, ...]],
        *,
        tokens_per_batch: int,
        cost: str = "padded",
        pool_size: int = 8192,
        seed: int = 0,
        num_processes: int = 1,
        process_index: int = 0,
    ):
        self.dataset, self.lengths_of = dataset, lengths_of
        self.tokens_per_batch, self.cost, self.pool_size, self.seed = tokens_per_batch, cost, pool_size, seed
        self.num_processes, self.process_index = num_processes, process_index

    def __iter__(self) -> Iterator[list]:
        for number in count():
            if hasattr(self.dataset, "set_epoch"):
                self.dataset.set_epoch(number)
            draw, rows, first = np.random.default_rng((self.seed, number)), iter(self.dataset), 0
            while pool := list(islice(rows, self.pool_size)):
                lengths = np.array([self.lengths_of(row) for row in pool], dtype=np.int64)
                check_lengths(lengths, self.tokens_per_batch, first)
                first += len(pool)
                batches = cut_batches(lengths, self.tokens_per_batch, self.cost)
                batches = split_to(batches, -(-len(batches) // self.num_processes) * self.num_processes)
                order = draw.permutation(len(batches))[self.process_index :: self.num_processes]
                for batch in order:
                    yield [pool[row] for row in batches[batch]]
            if first == 0:
                if get_worker_info() is not None:
                    return  # a stream of fewer files than workers has nothing for the last of them
                raise ValueError("training data: the stream has no rows")


def length_columns(names: Sequence[str], *, length_column: str, is_pair: bool) -> tuple[str, ...]:
    """The columns that say how long a row is: one of numbers, or those whose tokens are counted.

    Raises:
        ValueError: they aren't there.
    """
    if length_column in names:
        return (length_column,)
    wanted = ("input_ids", "labels") if is_pair else ("input_ids",)
    for name in wanted:
        if name not in names:
            raise ValueError(
                f"tokens_per_batch: rows have no {name!r} to count ({', '.join(names)}); tokenise them first, or give a "
                f"column {length_column!r} of numbers (length_column_name)"
            )
    return wanted


def row_lengths(row: dict, columns: Sequence[str]) -> tuple[int, ...]:
    """Tokens of a row on each side."""
    return tuple(int(row[c]) if isinstance(row[c], int | np.integer) else len(row[c]) for c in columns)


def dataset_lengths(dataset, columns: Sequence[str]) -> np.ndarray:
    """(N, S) tokens of every row; of a `datasets.Dataset` without reading the tokens."""
    if not isinstance(dataset, Dataset):
        return np.array([row_lengths(row, columns) for row in dataset], dtype=np.int64).reshape(-1, len(columns))
    found = []
    for part in dataset.select_columns(list(columns)).with_format("arrow").iter(batch_size=10_000):
        found.append([_lengths(part[name]) for name in columns])
    return np.concatenate([np.stack(part, axis=1) for part in found]).astype(np.int64)


def _lengths(column: pa.ChunkedArray) -> np.ndarray:
    return (column if pa.types.is_integer(column.type) else pc.list_value_length(column)).to_numpy()
