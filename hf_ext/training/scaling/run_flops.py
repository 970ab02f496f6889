"""FLOPs that a run's training took, from the rows that it was given and the equations of its model.

Rows are taken as the loader gives them, some batches long; what is padding isn't counted. A token's forward pass costs what
`count_flops` says for a row of the mean length; training costs that once more for the gradients of what goes in, and the
share of the weights that is trained once more for theirs. Evaluations are left out.
"""

import copy
import itertools
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from hf_ext.models.scored_tokens import IGNORE_INDEX
from hf_ext.training.scaling.fake_model import HEADS, model_class_of
from hf_ext.training.scaling.flops import FlopCount, count_flops


BATCHES_LOOKED_AT = 8


@dataclass(frozen=True)
class RunFlops:
    """
    Attributes:
        count: of a row of the mean length. tokens: that were trained on, both sides of pairs.
        length, source_length: mean tokens of a row; source_length None where there is one side.
        training: FLOPs of all steps. teacher: those of a teacher's forward passes among them.
    """

    count: FlopCount
    tokens: int
    length: int
    source_length: int | None
    training: float
    teacher: float = 0.0


def run_flops(trainer, model: PreTrainedModel) -> RunFlops | None:
    """What the steps so far took; None before the first.

    Args:
        trainer: after training. model: what was trained, as `count_flops` knows it.

    Raises:
        ValueError: of a model whose FLOPs can't be counted.
    """
    if trainer.state.global_step == 0:
        return None
    is_pair = bool(model.config.is_encoder_decoder)
    source, target, rows, batches = 0, 0, 0, 0
    with torch.random.fork_rng(devices=[]):  # what is drawn here is no draw of the run's
        for batch in itertools.islice(trainer.get_train_dataloader(), BATCHES_LOOKED_AT):
            seen, written = tokens_of_batch(batch, is_pair=is_pair)
            source, target = source + seen, target + written
            rows, batches = rows + len(batch["input_ids"]), batches + 1
    steps = trainer.state.global_step * trainer.args.gradient_accumulation_steps * trainer.args.world_size
    tokens = round(steps * (source + target) / batches)
    lengths = {"length": max(1, round((target if is_pair else source) / rows))}
    if is_pair:
        lengths["source_length"] = max(1, round(source / rows))
    count = _count(model, **lengths)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad) / sum(p.numel() for p in model.parameters())
    training = tokens * count.forward_per_token * (2 + trained)
    teacher = 0.0
    if getattr(trainer, "teacher", None) is not None:
        teacher = tokens * _count(trainer.teacher, **lengths).forward_per_token
    return RunFlops(count, tokens, lengths["length"], lengths.get("source_length"), training + teacher, teacher)


def tokens_of_batch(batch, *, is_pair: bool) -> tuple[int, int]:
    """Tokens that a model reads of a batch, padding left out; (source, target), target 0 where there is one side."""
    mask = batch.get("attention_mask")
    # a mask of another shape says which tokens see each other, in rows without padding
    source = int(mask.sum()) if mask is not None and mask.ndim == 2 else batch["input_ids"].numel()
    if not is_pair:
        return source, 0
    labels = batch.get("labels")
    if labels is not None and labels.ndim == 2:
        return source, int((labels != IGNORE_INDEX).sum())
    return source, source  # a classifier's or reader's decoder reads the same text


def _count(model: PreTrainedModel, **lengths) -> FlopCount:
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):  # in few bits it multiplies matrices of the same shapes
        del config.quantization_config
    there = [name for name, auto_class in HEADS.items() if type(config) in auto_class._model_mapping]
    head = next((name for name in there if model_class_of(config, name) is type(model)), None)
    return count_flops(config, head=head, **lengths)
