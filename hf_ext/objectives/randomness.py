"""Where the chance of an objective comes from: torch's global generator, or a seed of the collator's own."""

from dataclasses import dataclass, field

import torch
from torch.utils.data import get_worker_info

from hf_ext.objectives.argument_checks import check_vocabulary


MAX_SEED = 2**32 - 1
# worker numbers take the lowest bits of a generator's seed, so that no two pairs (seed, worker) share one
WORKER_BITS = 16


@dataclass(kw_only=True)
class RandomCollator:
    """Fields and draws that all collators with chance share.

    Without a `seed`, draws come from torch's global generator: the Trainer's seed and its checkpoints hold it, and a
    DataLoader gives each worker another one in every epoch. With a `seed` they come from a generator of the collator's
    own, which begins anew in every process: the same seed, rows and number of workers give the same batches. Workers
    that are started again in every epoch then draw what they drew before, for whatever rows come.

    Args:
        vocab_size: number of ids that the model embeds.
        pad_token_id: id that fills up shorter rows. Segments of nothing else are padding.
        seed: None, or an integer from 0 to 2**32 - 1.
    """

    vocab_size: int
    pad_token_id: int
    seed: int | None = None
    _generator: torch.Generator | None = field(default=None, init=False, repr=False, compare=False)
    _worker: int = field(default=-1, init=False, repr=False, compare=False)

    def __post_init__(self):
        check_vocabulary(self.vocab_size, pad_token_id=self.pad_token_id)
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed: {self.seed} must be from 0 to {MAX_SEED}, or None for torch's global generator")

    def generator(self) -> torch.Generator | None:
        """What to give torch's random functions as `generator`."""
        if self.seed is None:
            return None
        info = get_worker_info()
        worker = 0 if info is None else 1 + info.id
        if self._generator is None or worker != self._worker:
            self._generator = torch.Generator().manual_seed((self.seed << WORKER_BITS) + worker)
            self._worker = worker
        return self._generator

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_generator": None}
