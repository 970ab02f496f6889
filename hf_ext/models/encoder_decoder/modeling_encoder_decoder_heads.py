"""The encoder-decoder family with a head: a text, a class for a row, an answer in it."""

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers import EncoderDecoderCache
from transformers.modeling_outputs import (
    Seq2SeqLMOutput,
    Seq2SeqQuestionAnsweringModelOutput,
    Seq2SeqSequenceClassifierOutput,
)
from transformers.utils import can_return_tuple

from hf_ext.layers.dropout import Dropout
from hf_ext.layers.linear import Linear
from hf_ext.layers.prediction_head import PredictionHead
from hf_ext.models.attention_inputs import changing_frequencies, default_position_ids, forget_tokens
from hf_ext.models.checked_generation import CheckedGenerationMixin, padding_mask
from hf_ext.models.classification_heads import check_problem_type, last_token, predict_spans, sequence_loss
from hf_ext.models.encoder_decoder.configuration_encoder_decoder import HfxEncoderDecoderConfig
from hf_ext.models.encoder_decoder.cross_attention_cache import with_whole_cross_cache
from hf_ext.models.encoder_decoder.decoder_inputs import decoder_inputs_of, shift_documents_right, shift_right
from hf_ext.models.encoder_decoder.modeling_encoder_decoder import (
    HfxEncoderDecoderModel,
    HfxEncoderDecoderPreTrainedModel,
)
from hf_ext.models.language_modeling_head import LOSS_OPTIONS, LanguageModelingHead
from hf_ext.models.pretrained_model import check_labels


class HfxEncoderDecoderForConditionalGeneration(
    LanguageModelingHead, HfxEncoderDecoderPreTrainedModel, CheckedGenerationMixin
):
    """The encoder-decoder with a language-modelling head: each token of the decoder predicts the next."""

    _tied_weights_keys = {"lm_head.weight": "model.decoder.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: HfxEncoderDecoderConfig):
        super().__init__(config)
        self.model = HfxEncoderDecoderModel(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=config.lm_head_bias)
        self.post_init()

    @classmethod
    def maybe_distribute_model(cls, model, distributed_config, mesh_manager):
        """As transformers'; under FSDP `generate`, which calls the encoder alone, gathers what `forward` does."""
        model = super().maybe_distribute_model(model, distributed_config, mesh_manager)
        if isinstance(model, FSDPModule):
            register_fsdp_forward_method(model, "generate")
        return model

    @property
    def _pad(self) -> int:
        pad = self.config.pad_token_id
        return self.config.decoder_start_token_id if pad is None else pad

    def prepare_decoder_input_ids_from_labels(self, labels: torch.LongTensor) -> torch.LongTensor:
        """(B, T): what the decoder reads while it is scored on `labels`; `DataCollatorForSeq2Seq` asks."""
        return decoder_inputs_of(labels, self.config.decoder_start_token_id, self._pad)[0]

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        decoder_position_ids: torch.LongTensor | None = None,
        encoder_outputs=None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        decoder_inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> Seq2SeqLMOutput:
        """Logits and loss.

        Args, besides those of `HfxEncoderDecoderModel.forward`:
            labels: (B, T); the decoder's token t is scored on label t; -100 is not scored. Without decoder_input_ids the
                decoder reads them one token later, after decoder_start_token_id; -100 before the first and after the last
                label then is padding.
            logits_to_keep: compute logits for the last so many tokens, or for the given indices; 0 is all.
            skip_logits: compute the loss without ever holding the logits; default: where training with labels.
            num_items_in_batch: scored tokens in the whole (accumulated) batch; the loss is the sum over it.
            kwargs: `label_smoothing`, weight moved from the label to all tokens alike; `z_loss_weight`, on log(Z)².

        Returns:
            loss (0-d), logits (B, T, V) or None, past_key_values, encoder_last_hidden_state (B, S, d), hidden states and
            attentions of both stacks, cross_attentions.
        """
        loss_options = {name: kwargs.pop(name) for name in LOSS_OPTIONS if name in kwargs}
        shift_labels = loss_options.pop("shift_labels", None)  # an encoder-decoder's labels are so already
        labels = shift_labels if labels is None else labels
        if labels is not None:
            use_cache = bool(use_cache)  # by default none: the whole text is there
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                check_labels(labels, self.config.vocab_size, labels.shape)
                decoder_input_ids, mask = decoder_inputs_of(
                    labels, self.config.decoder_start_token_id, self._pad, decoder_position_ids
                )
                if decoder_attention_mask is None and mask is not None:
                    cached = 0 if past_key_values is None else past_key_values.get_seq_length()  # a learnt prefix
                    decoder_attention_mask = nn.functional.pad(mask, (cached, 0), value=1)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            decoder_position_ids=decoder_position_ids,
            encoder_outputs=encoder_outputs,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        if self.config.output_multiplier is not None:
            hidden_states = hidden_states * self.config.output_multiplier
        loss, logits = self.loss_and_logits(
            hidden_states,
            None,
            labels,
            logits_to_keep=logits_to_keep,
            skip_logits=skip_logits,
            num_items_in_batch=num_items_in_batch,
            **loss_options,
        )
        return Seq2SeqLMOutput(
            loss=loss, logits=logits, **{k: v for k, v in outputs.items() if k != "last_hidden_state"}
        )

    def _prepare_cache_for_generation(self, generation_config, model_kwargs: dict, *args, **kwargs) -> None:
        """As transformers', with a cache for all of the encoder's tokens, see `with_whole_cross_cache`."""
        given = model_kwargs.get("past_key_values")
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        cache = model_kwargs.get("past_key_values")
        if given is None and cache is not None and any(cache.cross_attention_cache.is_sliding):
            encoder_length = model_kwargs["encoder_outputs"][0].shape[1]
            model_kwargs["past_key_values"] = with_whole_cross_cache(cache, self.config, encoder_length)

    def prepare_inputs_for_generation(
        self,
        input_ids,
        next_sequence_length=None,
        past_key_values=None,
        attention_mask=None,
        inputs_embeds=None,  # named, because generate reads from the signature that it may be given
        **kwargs,
    ):
        """As transformers', with positions by the decoder's mask, and all tokens again where the rotary rule changes its
        frequencies."""
        mask = padding_mask(kwargs, "decoder_attention_mask")
        positions = default_position_ids(mask, None, input_ids.shape[1], input_ids.device)
        if mask is not None and kwargs.get("decoder_position_ids") is None:
            kwargs["decoder_position_ids"] = positions
        cached = 0 if past_key_values is None else past_key_values.get_seq_length()
        rotary_emb = self.model.rotary_emb
        if past_key_values is not None and any(rope.depends_on_length for rope in rotary_emb.values()) and int(cached):
            lengths = positions[:, -1] + 1
            if changing_frequencies(rotary_emb, lengths - (input_ids.shape[1] - int(cached)), lengths) is not None:
                forget_tokens(past_key_values.self_attention_cache)
                next_sequence_length = None
        return super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )


class HfxEncoderDecoderForSequenceClassification(HfxEncoderDecoderPreTrainedModel):
    """One prediction a row; as BART's, both stacks read the same text, and the decoder's last token tells.

    Lewis et al. 2019, arXiv 1910.13461, sec. 3.1.
    """

    def __init__(self, config: HfxEncoderDecoderConfig):
        super().__init__(config)
        check_problem_type(config)
        check_one_vocabulary(config, type(self).__name__)
        self.num_labels = config.num_labels
        self.model = HfxEncoderDecoderModel(config)
        self.head = PredictionHead(config.hidden_size, activation="tanh")
        self.dropout = Dropout(config.classifier_dropout)
        self.classifier = Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> Seq2SeqSequenceClassifierOutput:
        """logits (B, num_labels) and, with labels (B,) or (B, num_labels), the loss; see `sequence_loss`."""
        outputs = self.model(**same_text_for_both(self.config, input_ids, attention_mask, kwargs))
        pooled = last_token(
            outputs.last_hidden_state, attention_mask, input_ids, self.config.pad_token_id, kwargs.get("position_ids")
        )
        logits = self.classifier(self.dropout(self.head(self.dropout(pooled))))
        loss = None if labels is None else sequence_loss(logits, labels, self.config, num_items_in_batch)
        return Seq2SeqSequenceClassifierOutput(
            loss=loss, logits=logits, **{k: v for k, v in outputs.items() if k != "last_hidden_state"}
        )


class HfxEncoderDecoderForQuestionAnswering(HfxEncoderDecoderPreTrainedModel):
    """Two scores for each token, that the answer begins and that it ends there; both stacks read the text (BART)."""

    def __init__(self, config: HfxEncoderDecoderConfig):
        super().__init__(config)
        check_one_vocabulary(config, type(self).__name__)
        self.model = HfxEncoderDecoderModel(config)
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
        **kwargs,
    ) -> Seq2SeqQuestionAnsweringModelOutput:
        """start_logits and end_logits (B, T) and, with positions (B,), the loss; see `span_loss`."""
        outputs = self.model(**same_text_for_both(self.config, input_ids, attention_mask, kwargs))
        spans = predict_spans(
            self.qa_outputs(outputs.last_hidden_state),
            start_positions,
            end_positions,
            attention_mask,
            kwargs.get("position_ids"),
            num_items_in_batch,
        )
        return Seq2SeqQuestionAnsweringModelOutput(
            **spans, **{k: v for k, v in outputs.items() if k != "last_hidden_state"}
        )


def same_text_for_both(config, input_ids: torch.LongTensor | None, attention_mask, options: dict) -> dict:
    """A head's arguments as the body takes them: the decoder reads the encoder's tokens, one later.

    Raises:
        ValueError: there are no tokens that it could read, or it is given others.
    """
    for name in ("decoder_input_ids", "decoder_inputs_embeds", "decoder_attention_mask", "decoder_position_ids"):
        if options.get(name) is not None:
            raise ValueError(f"{name}: this head's decoder reads input_ids, one token later; leave it out")
    if input_ids is None:
        raise ValueError("input_ids: missing; this head's decoder reads them too, inputs_embeds alone won't do")
    pad = config.decoder_start_token_id if config.pad_token_id is None else config.pad_token_id
    start, position_ids = config.decoder_start_token_id, options.get("position_ids")
    mask = padding_mask({"mask": attention_mask}, "mask")
    if mask is None and position_ids is not None:
        before = shift_documents_right(input_ids, position_ids, start, pad)
    else:
        real = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask != 0
        before = shift_right(input_ids, real, start, pad)
    return (
        {"use_cache": False}
        | options
        | {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "decoder_input_ids": before,
            "decoder_attention_mask": mask,
            "decoder_position_ids": position_ids,
        }
    )


def check_one_vocabulary(config: HfxEncoderDecoderConfig, name: str) -> None:
    """Raises ValueError where the decoder couldn't read the encoder's tokens."""
    if config.encoder_vocab_size is not None:
        raise ValueError(
            f"encoder_vocab_size={config.encoder_vocab_size}: {name} has both stacks read the same tokens; "
            "use one vocabulary"
        )


__all__ = [
    "HfxEncoderDecoderForConditionalGeneration",
    "HfxEncoderDecoderForQuestionAnswering",
    "HfxEncoderDecoderForSequenceClassification",
]
