"""Domain adaptation: go on pretraining a model on another domain's text, and measure what it gains there and forgets.

What `recipes/domain_adaptation/train.py` puts together. Gururangan et al. 2020, arXiv 2004.10964; a share of the old
domain's rows among the new ones keeps it from being forgotten: Ibrahim et al. 2024, arXiv 2403.08763, sec. 4.2.
"""

from dataclasses import dataclass, field

from datasets import Dataset, concatenate_datasets

from hf_ext.data import DataArguments
from hf_ext.tasks.pretraining import SECTIONS as PRETRAINING


@dataclass
class OldDomainArguments(DataArguments):
    """The text that the model was trained on: to replay a part of it, and to see how much of it is forgotten."""

    replay: float = field(
        default=0.0, metadata={"help": "Share of the training rows that are of the old domain, from 0 to below 1."}
    )

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.replay < 1:
            raise ValueError(f"old_domain.replay={self.replay}: must be at least 0 and below 1")
        if self.streaming:
            raise ValueError("old_domain.streaming=True: rows are drawn among all; leave it out")


SECTIONS = {**PRETRAINING, "old_domain": OldDomainArguments}


def with_replay(new: Dataset, old: Dataset, share: float, seed: int) -> Dataset:
    """Rows of both domains, `share` of all from the old one, drawn once; the Trainer shuffles them at every epoch.

    Raises:
        ValueError: the old domain has too few rows for that share.
    """
    if share == 0:
        return new
    wanted = round(share / (1 - share) * len(new))
    if wanted > len(old):
        most = len(old) / (len(old) + len(new))
        raise ValueError(
            f"old_domain.replay={share}: asks for {wanted:,} rows of the old domain, it has {len(old):,}; at most {most:.3f}"
        )
    chosen = old.shuffle(seed=seed).select(range(wanted))
    return concatenate_datasets([new, chosen.cast(new.features)])


def perplexities(trainer, rows: dict[str, Dataset]) -> dict[str, float]:
    """Perplexity of each domain's held-out rows under the model as it is."""
    return {
        name: trainer.predict(held_out, metric_key_prefix=name).metrics[f"{name}_perplexity"]
        for name, held_out in rows.items()
    }


def table(before: dict[str, float], after: dict[str, float]) -> str:
    """Before and after for a terminal."""
    lines = [f"{'perplexity':>12}  {'before':>9}  {'after':>9}"]
    lines += [f"{name:>12}  {before[name]:>9.2f}  {after[name]:>9.2f}" for name in before]
    return "\n".join(["", *lines])
