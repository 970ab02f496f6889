"""The decoder's heads for classes and answers; its language model stands with the body, in modeling_decoder.py.

B batch, T tokens.
"""

import torch
from transformers.modeling_outputs import (
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from transformers.utils import can_return_tuple

from hf_ext.layers.dropout import Dropout
from hf_ext.layers.linear import Linear
from hf_ext.models.classification_heads import check_problem_type, last_token, predict_spans, sequence_loss, token_loss
from hf_ext.models.decoder.configuration_decoder import HfxDecoderConfig
from hf_ext.models.decoder.modeling_decoder import HfxDecoderModel, HfxDecoderPreTrainedModel


class HfxDecoderForSequenceClassification(HfxDecoderPreTrainedModel):
    """The decoder with one prediction a row, read off its last token: classes, several labels, or numbers."""

    def __init__(self, config: HfxDecoderConfig):
        super().__init__(config)
        check_problem_type(config)
        self.num_labels = config.num_labels
        self.model = HfxDecoderModel(config)
        self.score = Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        past_key_values=None,  # named, because peft's prefix tuning reads from the signature that it may be given
        **kwargs,
    ) -> SequenceClassifierOutputWithPast:
        """logits (B, num_labels) and, with labels (B,) or (B, num_labels), the loss; see `sequence_loss`."""
        outputs = self.model(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=past_key_values, **kwargs
        )
        pooled = last_token(
            outputs.last_hidden_state, attention_mask, input_ids, self.config.pad_token_id, kwargs.get("position_ids")
        )
        logits = self.score(pooled)
        loss = None if labels is None else sequence_loss(logits, labels, self.config, num_items_in_batch)
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class HfxDecoderForTokenClassification(HfxDecoderPreTrainedModel):
    """The decoder with a class for each token."""

    def __init__(self, config: HfxDecoderConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = HfxDecoderModel(config)
        dropout = getattr(config, "classifier_dropout", None)
        self.dropout = Dropout(config.hidden_dropout if dropout is None else dropout)
        self.score = Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        past_key_values=None,  # named, because peft's prefix tuning reads from the signature that it may be given
        **kwargs,
    ) -> TokenClassifierOutput:
        """logits (B, T, num_labels) and, with labels (B, T), the loss over those other than -100."""
        outputs = self.model(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=past_key_values, **kwargs
        )
        logits = self.score(self.dropout(outputs.last_hidden_state))
        loss = None if labels is None else token_loss(logits, labels, num_items_in_batch)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class HfxDecoderForQuestionAnswering(HfxDecoderPreTrainedModel):
    """The decoder with two scores for each token: that the answer begins, and that it ends there."""

    def __init__(self, config: HfxDecoderConfig):
        super().__init__(config)
        self.model = HfxDecoderModel(config)
        self.qa_outputs = Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        start_positions: torch.LongTensor | None = None,
        end_positions: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        past_key_values=None,  # named, because peft's prefix tuning reads from the signature that it may be given
        **kwargs,
    ) -> QuestionAnsweringModelOutput:
        """start_logits and end_logits (B, T) and, with positions (B,), the loss; see `span_loss`."""
        outputs = self.model(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=past_key_values, **kwargs
        )
        spans = predict_spans(
            self.qa_outputs(outputs.last_hidden_state),
            start_positions,
            end_positions,
            attention_mask,
            kwargs.get("position_ids"),
            num_items_in_batch,
        )
        return QuestionAnsweringModelOutput(**spans, hidden_states=outputs.hidden_states, attentions=outputs.attentions)


__all__ = [
    "HfxDecoderForQuestionAnswering",
    "HfxDecoderForSequenceClassification",
    "HfxDecoderForTokenClassification",
]
