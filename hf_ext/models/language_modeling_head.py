"""Hidden states to logits and loss: what every language-modelling head of ours does, with and without the logits."""

import torch
from transformers.utils import logging

from hf_ext.layers.plain_linear import why_not_plain
from hf_ext.models.kept_tokens import keep_tokens
from hf_ext.models.pretrained_model import check_labels
from hf_ext.models.scored_tokens import next_token_labels
from hf_ext.ops.cross_entropy import cross_entropy, linear_cross_entropy


logger = logging.get_logger(__name__)

# keyword arguments of a forward that are the loss's, not the body's
LOSS_OPTIONS = ("shift_labels", "label_smoothing", "z_loss_weight")


class LanguageModelingHead:
    """Mixin for models with an `lm_head`. In training the loss is computed in chunks and the logits never exist whole;
    `skip_logits=False`, or a head that isn't a plain matrix, takes the other way to the same number.

    Attributes:
        linear_cross_entropy: the loss in chunks; another function of the same signature may stand in for it.
    """

    linear_cross_entropy = staticmethod(linear_cross_entropy)

    def loss_and_logits(
        self,
        hidden_states: torch.Tensor,
        labels: torch.Tensor | None,
        shift_labels: torch.Tensor | None = None,
        *,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        label_smoothing: float = 0.0,
        z_loss_weight: float = 0.0,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Loss (0-d, None without labels) and logits (B, T kept, V; None where skipped).

        Args:
            hidden_states: (B, T, d) after the final norm.
            labels: (B, T), label t + 1 scored on token t. shift_labels: (B, T), label t scored on token t; they stand in
                for `labels`, which transformers' sequence parallelism passes along (a shard can't shift its own).
        """
        if labels is None and shift_labels is None:
            return None, self.compute_logits(keep_tokens(hidden_states, logits_to_keep))
        targets = next_token_labels(labels) if shift_labels is None else shift_labels
        targets = targets.to(hidden_states.device)
        # not the weight's shape: an engine may leave this process a part of it, or nothing
        check_labels(targets, self.config.vocab_size, hidden_states.shape[:-1])

        options = {
            "num_items_in_batch": num_items_in_batch,
            "label_smoothing": label_smoothing,
            "z_loss_weight": z_loss_weight,
        }
        if hasattr(self, "_loss_function"):  # the user's own, set by `model.loss_function = …`
            logits = self.compute_logits(hidden_states)
            loss = self.loss_function(
                logits=logits, labels=labels, shift_labels=targets, vocab_size=logits.shape[-1], **options
            )
            return loss, logits

        keeps_all = isinstance(logits_to_keep, int) and logits_to_keep == 0
        skip_logits = self.training if skip_logits is None else skip_logits
        obstacle = why_not_plain(self.lm_head)
        if obstacle is not None and skip_logits:
            logger.warning_once(f"lm_head {obstacle}: the loss is computed from whole logits")
        if obstacle is None and (skip_logits or not keeps_all):
            loss = self.linear_cross_entropy(
                hidden_states,
                self.lm_head.weight,
                targets,
                bias=self.lm_head.bias,
                softcap=self.config.final_logit_softcapping,
                **options,
            )
            kept = None if skip_logits else self.compute_logits(keep_tokens(hidden_states, logits_to_keep))
            return loss, kept
        logits = self.compute_logits(hidden_states)
        loss = cross_entropy(logits.flatten(0, -2), targets.flatten(), **options)
        return loss, logits if keeps_all else keep_tokens(logits, logits_to_keep)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(…, d) -> (…, V), softcapped where the config says so."""
        logits = self.lm_head(hidden_states)
        softcap = self.config.final_logit_softcapping
        return logits if softcap is None else softcap * torch.tanh(logits / softcap)
