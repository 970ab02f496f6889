"""R-Drop: a row is read twice under different dropout, and what is said of it shall be the same both times.

    L = (L_1 + L_2) / 2 + a/2 · (KL(p_1 || p_2) + KL(p_2 || p_1)) / 2

over the two readings of rows; p are the classes' probabilities. Liang et al. 2021, "R-Drop: Regularized Dropout for
Neural Networks", arXiv 2106.14448, eq. 3 and 4, halved, so that the labels' part is as large as without it. Several labels
at once have the divergence of each; of a number it is the squared difference.
"""

import torch
from torch.nn import functional as F

from hf_ext.models.scored_tokens import IGNORE_INDEX
from hf_ext.training.trainer import HfxTrainer


class RowsTwice:
    """A collator's batch of rows and of the same rows again: (2B, …), the second reading of row i at B + i.

    A collator that draws (words cut anew, tokens left out) draws for each.
    """

    def __init__(self, collator):
        self.collator = collator

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        return self.collator([*rows, *rows])


class RDropTrainer(HfxTrainer):
    """`HfxTrainer` of a classifier whose rows are read twice; evaluation is as ever.

    Args, besides those of `HfxTrainer`:
        r_drop: a above, more than 0; 1 to 5 in the paper.

    Raises:
        ValueError: a weight that is none, or a language model of ours, which never holds its scores.
    """

    def __init__(self, *args, r_drop: float, **kwargs):
        if not r_drop > 0:
            raise ValueError(f"r_drop={r_drop}: must be above 0; train with HfxTrainer without it")
        super().__init__(*args, **kwargs)
        if self.is_language_model:
            raise ValueError(f"r_drop={r_drop}: for classes and numbers, not for a language model; leave it out")
        self.r_drop = r_drop
        if self.eval_data_collator is None:
            self.eval_data_collator = self.data_collator
        self.data_collator = RowsTwice(self.data_collator)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        scores = outputs["logits"]
        # a half of the items are second readings; of several labels at once each counts as an item
        pairs = inputs["labels"].numel() / 2 if num_items_in_batch is None else num_items_in_batch / 2
        apart = self._distance(scores, inputs["labels"]) / pairs
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            apart = apart * self.accelerator.num_processes  # the items are those of all; gradients are averaged
        loss = loss + self.r_drop / 2 * apart
        return (loss, outputs) if return_outputs else loss

    def _distance(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """0-d: how far the two readings of (2B, …, C) scores are apart, summed over what has a label."""
        config = self._innermost_model().config
        first, second = scores.float().chunk(2)
        if config.problem_type == "regression" or config.num_labels == 1:
            return F.mse_loss(first, second, reduction="sum")
        if config.problem_type == "multi_label_classification":
            # of each label yes or no: two classes
            first, second = (torch.stack([F.logsigmoid(s), F.logsigmoid(-s)], dim=-1) for s in (first, second))
        else:
            kept = (labels.chunk(2)[0] != IGNORE_INDEX).flatten()
            first, second = (s.flatten(0, -2)[kept].log_softmax(dim=-1) for s in (first, second))
        # (KL(p || q) + KL(q || p)) / 2
        return ((first.exp() - second.exp()) * (first - second)).sum() / 2
