"""Distillation: a student learns from what a teacher says beside the labels.

    L = (1 - a) L_labels + a T² (1/N) Σ KL(p_teacher(T) || p_student(T)) + b L_hidden,   p(T) = softmax(scores / T)

Hinton et al. 2015, arXiv 1503.02531, sec. 2: at temperature T the gradient of the middle term shrinks as 1 / T², hence
the factor. L_hidden brings hidden states of chosen layers together, 1 - cos as in DistilBERT (Sanh et al. 2019,
arXiv 1910.01108, sec. 3). N is what the labels' loss is divided by: accumulated batches give the whole batch's gradient.
"""

from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from hf_ext.models.language_modeling_head import LanguageModelingHead
from hf_ext.models.scored_tokens import IGNORE_INDEX, next_token_labels
from hf_ext.training.trainer import HfxTrainer


# scores of both models that exist at a time, in numbers: 64 MB each in fp32
CHUNK_NUMBERS = 2**24


@dataclass
class DistillationArguments:
    """How much is learnt from the teacher, and from which of its layers."""

    temperature: float = field(default=2.0, metadata={"help": "Divides both models' scores before the softmax."})
    soft_weight: float = field(
        default=0.5, metadata={"help": "Share of the teacher's scores in the loss, 0 to 1; the labels have the rest."}
    )
    hidden_weight: float = field(
        default=0.0, metadata={"help": "Weight of the hidden states' distance; needs a student as wide as its teacher."}
    )
    student_layers: list[int] | None = field(
        default=None,
        metadata={"help": "The teacher's layers that the student begins as (the decoder's of an encoder-decoder)."},
    )
    student_encoder_layers: list[int] | None = field(
        default=None, metadata={"help": "The same of an encoder-decoder's encoder. Default: all of them."}
    )

    def __post_init__(self):
        if self.temperature <= 0:
            raise ValueError(f"distillation.temperature={self.temperature}: must be above 0")
        if not 0 <= self.soft_weight <= 1:
            raise ValueError(f"distillation.soft_weight={self.soft_weight}: must be from 0 to 1")
        if self.hidden_weight < 0:
            raise ValueError(f"distillation.hidden_weight={self.hidden_weight}: must not be negative")
        if self.soft_weight == self.hidden_weight == 0:
            raise ValueError("distillation.soft_weight, hidden_weight: both are 0, so nothing is taught; raise one")
        for name in ("student_layers", "student_encoder_layers"):
            layers = getattr(self, name)
            if layers is not None and (not layers or sorted(set(layers)) != layers or layers[0] < 0):
                raise ValueError(
                    f"distillation.{name}={layers}: must be layers from 0 in ascending order, such as [0, 2]"
                )


class DistillationTrainer(HfxTrainer):
    """`HfxTrainer` that adds the teacher's terms to the loss in training; evaluation is the student's alone.

    Args, besides those of `HfxTrainer`:
        teacher: a trained model with the student's head; it is only read.
        distillation: see `DistillationArguments`.
        hidden_layers: (the student's layer, the teacher's) pairs whose outputs are brought together, numbered from 0.

    Raises:
        ValueError: heads, vocabularies or widths that don't fit each other.
    """

    def __init__(
        self, *args, teacher: PreTrainedModel, distillation: DistillationArguments, hidden_layers=(), **kwargs
    ):
        super().__init__(*args, **kwargs)
        student = self._innermost_model()
        check_pair(student, teacher, distillation)
        self.teacher = teacher.eval().requires_grad_(False).to(self.args.device)
        self.distillation, self.hidden_layers = distillation, tuple(hidden_layers)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError("distillation: not for weights sharded by FSDP or DeepSpeed; train on whole ones")
        if distillation.hidden_weight and student.config.is_encoder_decoder and not self.is_language_model:
            raise ValueError(
                f"distillation.hidden_weight={distillation.hidden_weight}: an encoder-decoder's only under its language "
                "model's head; leave it out"
            )
        if distillation.hidden_weight and not self.hidden_layers:
            raise ValueError(f"distillation.hidden_weight={distillation.hidden_weight}: no layers to bring together")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        asked = self.distillation
        options = {"output_hidden_states": True} if asked.hidden_weight else {}
        heard = {**inputs, **options}
        with _heads_heard(self._innermost_model(), self.teacher) as (said, taught):
            hard, outputs = super().compute_loss(model, heard, True, num_items_in_batch)
            with torch.no_grad(), self.compute_loss_context_manager():
                teacher_outputs = self.teacher(**heard)
        loss = (1 - asked.soft_weight) * hard
        if asked.soft_weight:
            if said:
                soft = self._language_model_loss(said[0], taught[0], num_items_in_batch)
            else:
                soft = self._class_loss(outputs["logits"], teacher_outputs["logits"], inputs, num_items_in_batch)
            loss = loss + asked.soft_weight * self._of_all_processes(soft, num_items_in_batch)
        if asked.hidden_weight:
            distance = self._hidden_loss(outputs, teacher_outputs, inputs, num_items_in_batch)
            loss = loss + asked.hidden_weight * self._of_all_processes(distance, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _of_all_processes(self, loss: torch.Tensor, num_items) -> torch.Tensor:
        """As the stock Trainer does with the labels' loss: N counts the rows of all processes, gradients are averaged."""
        if self.args.average_tokens_across_devices and num_items is not None:
            return loss * self.accelerator.num_processes
        return loss

    def _language_model_loss(self, said, taught, num_items) -> torch.Tensor:
        """Over the tokens that have a label, in chunks: the two models' scores never exist whole."""
        (student, states, _), (teacher, teacher_states, _) = said, taught
        # in training a masked language model passes the tokens with a label alone
        states, teacher_states = (s.flatten(0, -2)[(t != IGNORE_INDEX).flatten()] for _, s, t in (said, taught))
        items = max(1, len(states)) if num_items is None else num_items
        length = max(1, CHUNK_NUMBERS // student.lm_head.weight.shape[0])
        total = states.new_zeros((), dtype=torch.float32)
        for start in range(0, len(states), length):
            part = slice(start, start + length)
            total = total + checkpoint(
                _divergence_of_states,
                states[part],
                teacher_states[part],
                student,
                teacher,
                self.distillation.temperature,
                use_reentrant=False,
            )
        return total / items

    def _class_loss(self, scores, teacher_scores, inputs, num_items) -> torch.Tensor:
        config, temperature = self._innermost_model().config, self.distillation.temperature
        if config.problem_type == "regression" or config.num_labels == 1:
            return F.mse_loss(scores, teacher_scores, reduction="sum") / (
                scores.numel() if num_items is None else num_items
            )
        if config.problem_type == "multi_label_classification":
            soft = torch.sigmoid(teacher_scores / temperature)
            total = F.binary_cross_entropy_with_logits(scores / temperature, soft, reduction="sum") * temperature**2
            return total / (scores.numel() if num_items is None else num_items)
        kept = (inputs["labels"] != IGNORE_INDEX).flatten()
        scores, teacher_scores = (s.flatten(0, -2)[kept] for s in (scores, teacher_scores))
        total = divergence(scores, teacher_scores, temperature)
        return total / (kept.sum().clamp(min=1) if num_items is None else num_items)

    def _hidden_loss(self, outputs, teacher_outputs, inputs, num_items) -> torch.Tensor:
        """1 - cos of the pairs' outputs, a mean over scored tokens, as the labels' loss is, else rows (and of a row
        its tokens)."""
        labels = inputs["labels"]
        name = "decoder_hidden_states" if self._innermost_model().config.is_encoder_decoder else "hidden_states"
        distances = []
        for student_layer, teacher_layer in self.hidden_layers:
            # the embeddings are number 0
            one, other = outputs[name][student_layer + 1], teacher_outputs[name][teacher_layer + 1]
            distances.append(1 - F.cosine_similarity(one.float(), other.float(), dim=-1))
        distance = torch.stack(distances).mean(0)  # (B, T)
        if labels.shape == distance.shape:
            shifts = self.is_language_model and self._loss_shifts_labels
            scored = (next_token_labels(labels) if shifts else labels) != IGNORE_INDEX
            return (distance * scored).sum() / (scored.sum().clamp(min=1) if num_items is None else num_items)
        real = inputs.get("attention_mask")
        real = torch.ones_like(distance) if real is None else real.to(distance)
        by_row = (distance * real).sum(-1) / real.sum(-1)
        # of several labels at once, items are rows times labels
        items = len(by_row) if num_items is None else num_items * len(by_row) / labels.numel()
        return by_row.sum() / items


def divergence(scores: torch.Tensor, teacher_scores: torch.Tensor, temperature: float) -> torch.Tensor:
    """T² Σ KL(teacher || student) over rows of scores (N, V), in fp32; 0-d."""
    log_p = F.log_softmax(teacher_scores.float() / temperature, dim=-1)
    log_q = F.log_softmax(scores.float() / temperature, dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum() * temperature**2


def _divergence_of_states(states, teacher_states, student, teacher, temperature) -> torch.Tensor:
    with torch.no_grad():
        teacher_scores = teacher.compute_logits(teacher_states)
    return divergence(student.compute_logits(states), teacher_scores, temperature)


@contextmanager
def _heads_heard(student, teacher):
    """Two lists that fill with (model, hidden states at the head, targets) while the models run.

    Language models of ours compute their loss without ever holding the scores; these are what they'd be computed from.
    """
    said, taught = [], []
    if not isinstance(student, LanguageModelingHead):
        yield said, taught
        return

    def hear(model, heard, speaks):
        compute = model.loss_and_logits

        def loss_and_logits(hidden_states, labels, shift_labels=None, **options):
            if not heard:  # further tokens' heads come after the next one's
                heard.append(
                    (model, hidden_states, next_token_labels(labels) if shift_labels is None else shift_labels)
                )
            return compute(hidden_states, labels, shift_labels, **options) if speaks else (None, None)

        model.loss_and_logits = loss_and_logits

    hear(student, said, True)
    hear(teacher, taught, False)
    try:
        yield said, taught
    finally:
        del student.loss_and_logits, teacher.loss_and_logits


def check_pair(student: PreTrainedModel, teacher: PreTrainedModel, asked: DistillationArguments) -> None:
    """Raises ValueError, one line, for a student that this teacher can't teach."""
    is_language_model = isinstance(student, LanguageModelingHead)
    if is_language_model != isinstance(teacher, LanguageModelingHead):
        raise ValueError(
            f"teacher.path: a {type(teacher).__name__} can't teach a {type(student).__name__}; both need the same head"
        )
    if is_language_model and student.config.vocab_size != teacher.config.vocab_size:
        raise ValueError(
            f"teacher.path: its vocabulary has {teacher.config.vocab_size} tokens, the student's "
            f"{student.config.vocab_size}; a student learns with its teacher's tokenizer"
        )
    if not is_language_model and student.config.id2label != teacher.config.id2label:
        raise ValueError(
            f"teacher.path: its classes are {list(teacher.config.id2label.values())}, the data's "
            f"{list(student.config.id2label.values())}; they must be the same, in one order"
        )
    if asked.hidden_weight and student.config.hidden_size != teacher.config.hidden_size:
        raise ValueError(
            f"distillation.hidden_weight={asked.hidden_weight}: the student is {student.config.hidden_size} wide, "
            f"its teacher {teacher.config.hidden_size}; leave it out, or make them alike (hidden_size)"
        )
