"""A Trainer whose metrics are computed another way for each split, because they need the split's texts."""

from collections.abc import Callable, Mapping

from transformers import EvalPrediction

from hf_ext.training.trainer import HfxTrainer


class SplitMetricsTrainer(HfxTrainer):
    """`HfxTrainer` with one `compute_metrics` a split: a model's scores alone don't tell which text they are of.

    Args, besides those of `HfxTrainer`:
        split_metrics: prefix of the metrics ("eval", "test") -> (`EvalPrediction` of all rows of the split, in their order)
            -> metrics by name.

    Raises:
        ValueError: a split is evaluated that isn't among them.
    """

    def __init__(self, *args, split_metrics: Mapping[str, Callable[[EvalPrediction], dict[str, float]]], **kwargs):
        super().__init__(*args, compute_metrics=next(iter(split_metrics.values())), **kwargs)
        self.split_metrics = dict(split_metrics)

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        if metric_key_prefix not in self.split_metrics:
            raise ValueError(
                f"metric_key_prefix={metric_key_prefix!r}: split_metrics are for {', '.join(self.split_metrics)}; add it"
            )
        self.compute_metrics = self.split_metrics[metric_key_prefix]
        return super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
