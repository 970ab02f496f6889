"""Draws made while a batch is collated (masks, spans, dropped tokens), the same for a batch whenever it is collated.

Drawn from the run's one stream of random numbers they would depend on everything drawn before: batches that were fetched
ahead, a resume that skips batches, the worker that the batch falls to. So each batch has a seed of its own:

    (seed, epoch, number of the batch in its epoch, process)
"""

import random
import signal

import numpy as np
import torch
from torch.utils.data import get_worker_info


class DrawsByBatch:
    """A collator around another: its draws from torch's, numpy's and Python's global generators are the batch's own.

    `begin` is told of every epoch before its batches are asked for. With `persistent_workers`, processes that outlive an
    epoch don't hear of the next: they count on, so that a resumed run then draws otherwise.

    Args:
        collator: what makes a batch. seed: of the run. process_index: of the process among those that train together.
    """

    def __init__(self, collator, *, seed: int, process_index: int = 0):
        self.collator, self.seed, self.process_index = collator, seed, process_index
        self.epoch = self.first = self.num_collated = 0

    def begin(self, epoch: int, first: int = 0) -> None:
        """An epoch begins with its batch `first`: those before it won't be collated."""
        self.epoch, self.first, self.num_collated = epoch, first, 0

    def __call__(self, rows):
        info = get_worker_info()
        if info is None:
            number = self.first + self.num_collated
        else:
            number = self.first + info.id + self.num_collated * info.num_workers  # workers take turns
            # a signal to the whole group is for the main process: it saves, with the batches of its workers
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.num_collated += 1
        return self._collate(rows, (self.seed, self.epoch, number, self.process_index))

    def _collate(self, rows, key: tuple[int, ...]):
        seed, short_seed = (int(word) for word in np.random.SeedSequence(key).generate_state(2, np.uint64))
        before = torch.get_rng_state(), np.random.get_state(), random.getstate()
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which also seeds the accelerators
        np.random.seed(short_seed % 2**32)
        random.seed(short_seed)
        try:
            return self.collator(rows)
        finally:
            torch.set_rng_state(before[0])
            np.random.set_state(before[1])
            random.setstate(before[2])
