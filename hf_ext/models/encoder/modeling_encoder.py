"""The encoder family: attention to both sides over one sequence, from parts in `hf_ext/layers`.

    tokens + segments + positions -> blocks -> final norm -> one prediction a token, or a row

B batch, T tokens, d hidden_size, V vocab_size.
"""

from functools import partial

import torch
from torch import nn
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from hf_ext.layers.attention import MultiHeadAttention
from hf_ext.layers.blocks import BLOCKS, TransformerBlock
from hf_ext.layers.dropout import Dropout
from hf_ext.layers.linear import Linear
from hf_ext.layers.prediction_head import PredictionHead
from hf_ext.models.attention_inputs import attention_inputs, cached_key_positions, default_position_ids
from hf_ext.models.attention_masks import bidirectional_masks
from hf_ext.models.classification_heads import check_problem_type, predict_spans, sequence_loss, token_loss
from hf_ext.models.configured_layers import (
    make_attention,
    make_embedding_norm,
    make_feed_forward,
    make_final_norm,
    make_norm,
    make_position_bias,
    make_position_embeddings,
    make_rotary_embeddings,
)
from hf_ext.models.embedded_tokens import embed
from hf_ext.models.encoder.configuration_encoder import HfxEncoderConfig
from hf_ext.models.language_modeling_head import LOSS_OPTIONS, LanguageModelingHead
from hf_ext.models.packed_rows import check_packed_rows, flash_lengths
from hf_ext.models.padding_free import find_real_tokens, unpad_inputs
from hf_ext.models.pooling import pool_tokens
from hf_ext.models.pretrained_model import (
    HfxPreTrainedModel,
    check_attention_mask,
    check_labels,
    check_token_ids,
)
from hf_ext.ops.fake_tensors import has_values


def encoder_block(config: HfxEncoderConfig, layer_idx: int) -> TransformerBlock:
    """Block `layer_idx`, wired as `config.block_type` says."""
    block = BLOCKS[config.block_type](
        make_attention(config, layer_idx, config.layer_types[layer_idx], is_causal=False),
        make_feed_forward(config),
        partial(make_norm, config),
        dropout=config.hidden_dropout,
    )
    if layer_idx == 0 and not config.norm_before_first_layer:
        block.input_layernorm = nn.Identity()
    return block


def sequence_head(config: HfxEncoderConfig) -> PredictionHead:
    """The layer between a pooled vector, or a token's, and the classifier."""
    norm = partial(make_norm, config) if config.classifier_norm else None
    return PredictionHead(config.hidden_size, activation=config.classifier_activation, bias=config.head_bias, norm=norm)


class HfxEncoderPreTrainedModel(HfxPreTrainedModel):
    config_class = HfxEncoderConfig
    config: HfxEncoderConfig
    base_model_prefix = "model"
    _no_split_modules = [block.__name__ for block in BLOCKS.values()]
    _can_record_outputs = {"hidden_states": TransformerBlock, "attentions": MultiHeadAttention}


class HfxEncoderModel(HfxEncoderPreTrainedModel):
    """The encoder without a head: tokens to hidden states."""

    def __init__(self, config: HfxEncoderConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.embed_segments = (
            nn.Embedding(config.type_vocab_size, config.hidden_size) if config.type_vocab_size else None
        )
        self.embed_positions = make_position_embeddings(config)
        self.embedding_norm = make_embedding_norm(config)
        self.embedding_dropout = Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList(encoder_block(config, i) for i in range(config.num_hidden_layers))
        self.norm = make_final_norm(config)
        self.rotary_emb = make_rotary_embeddings(config)
        self.position_bias = make_position_bias(config, is_causal=False)  # one for all layers
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        past_key_values=None,
        **kwargs,
    ) -> BaseModelOutput:
        """Hidden states after the final norm.

        Args:
            input_ids: (B, T) tokens, or inputs_embeds (B, T, d) instead.
            attention_mask: (B, T) 1 for tokens and 0 for padding; or a ready 4-D mask.
            token_type_ids: (B, T) segments; default 0.
            position_ids: (B, T); default: tokens counted from the row's first unmasked one. Positions that restart
                within a row, with attention_mask=None, keep packed documents apart.
            past_key_values: keys and values that every token sees besides, as peft's prefix tuning gives them.

        Returns:
            last_hidden_state (B, T, d), zeros at padding where it was left out; hidden_states and attentions where asked
            for.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("input_ids, inputs_embeds: exactly one of them must be given")
        check_token_ids(input_ids, self.config.vocab_size)
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        T = inputs_embeds.shape[1]
        check_attention_mask(attention_mask, T, past_key_values)
        check_packed_rows(position_ids, attention_mask, past_key_values, kwargs)
        attention = self.config._attn_implementation
        if past_key_values is None:
            kwargs |= flash_lengths(attention, position_ids, inputs_embeds, attention_mask, kwargs)
        if position_ids is None:
            position_ids = default_position_ids(attention_mask, past_key_values, T, inputs_embeds.device)
        elif position_ids.shape[-1] != T:
            raise ValueError(f"position_ids: shape {tuple(position_ids.shape)} for {T} tokens; give one a token")

        inputs_by_kind = self.attention_inputs(inputs_embeds, attention_mask, past_key_values, position_ids)
        hidden_states = embed(self, inputs_embeds, position_ids, self.segments(token_type_ids, inputs_embeds))
        recorded = ("output_hidden_states", "output_attentions")
        records = any(kwargs.get(name, getattr(self.config, name, False)) for name in recorded)
        wants_all = records or past_key_values is not None or not self.config.padding_free
        real_tokens = None if wants_all else find_real_tokens(attention_mask)
        if real_tokens is not None:
            hidden_states = real_tokens.gather(hidden_states)
            inputs_by_kind = unpad_inputs(inputs_by_kind, real_tokens, attention)
        if self.config.value_residual:
            kwargs["first_values"] = []
        for kind, block in zip(self.config.layer_types, self.layers, strict=True):
            hidden_states = block(hidden_states, **inputs_by_kind[kind], past_key_values=past_key_values, **kwargs)
        hidden_states = self.norm(hidden_states)
        if real_tokens is not None:
            hidden_states = real_tokens.scatter(hidden_states)
        return BaseModelOutput(last_hidden_state=hidden_states)

    def segments(self, token_type_ids: torch.LongTensor | None, inputs_embeds: torch.Tensor) -> torch.Tensor | None:
        """Segment embeddings (B or 1, T or 1, d), or None where there are none."""
        if self.embed_segments is None:
            if token_type_ids is not None and bool(token_type_ids.any()):
                raise ValueError("token_type_ids: this model has no segments; leave them out, or set type_vocab_size")
            return None
        if token_type_ids is None:
            return self.embed_segments.weight[:1, None]
        check_token_ids(token_type_ids, self.config.type_vocab_size, "token_type_ids")
        if token_type_ids.shape[-1] != inputs_embeds.shape[1]:
            raise ValueError(
                f"token_type_ids: shape {tuple(token_type_ids.shape)} for {inputs_embeds.shape[1]} tokens; give one a token"
            )
        return self.embed_segments(token_type_ids)

    def attention_inputs(self, inputs_embeds, attention_mask, past_key_values, position_ids) -> dict[str, dict]:
        """Layer type -> what its blocks are called with besides the hidden states: mask, bias, rotation, backend."""
        kinds = list(dict.fromkeys(self.config.layer_types))
        masks = bidirectional_masks(
            self.config, kinds, inputs_embeds, attention_mask, position_ids, past_key_values=past_key_values
        )
        biases = {}
        for kind in kinds if self.position_bias is not None else []:
            key_positions = cached_key_positions(position_ids, past_key_values, self.config.layer_types.index(kind))
            biases[kind] = self.position_bias(position_ids, key_positions)
        return attention_inputs(
            self.config, masks, biases, self.rotary_emb, inputs_embeds, position_ids, is_causal=False
        )


class HfxEncoderForMaskedLM(LanguageModelingHead, HfxEncoderPreTrainedModel):
    """The encoder with a language-modelling head: masked tokens are predicted from all others."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: HfxEncoderConfig):
        super().__init__(config)
        self.model = HfxEncoderModel(config)
        self.head = PredictionHead(
            config.hidden_size, activation=config.hidden_act, bias=config.head_bias, norm=partial(make_norm, config)
        )
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=config.lm_head_bias)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        skip_logits: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> MaskedLMOutput:
        """Logits and loss.

        Args, besides those of `HfxEncoderModel.forward`:
            labels: (B, T), the token that stood there; -100 is not scored.
            skip_logits: compute the loss without the logits, and the head for scored tokens alone; default: where training
                with labels.
            num_items_in_batch: scored tokens in the whole (accumulated) batch; the loss is the sum over it.

        Returns:
            loss (0-d), logits (B, T, V) or None, hidden_states, attentions.
        """
        loss_options = {name: kwargs.pop(name) for name in LOSS_OPTIONS if name in kwargs}
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        skip_logits = self.training if skip_logits is None else skip_logits
        if labels is not None:
            labels = labels.to(hidden_states.device)
            check_labels(labels, self.config.vocab_size, hidden_states.shape[:-1])
            if skip_logits and not torch.compiler.is_compiling() and has_values(labels):
                scored = (labels != -100).flatten().nonzero().flatten()
                hidden_states = hidden_states.flatten(0, 1).index_select(0, scored)[None]
                labels = labels.flatten()[scored][None]
        loss, logits = self.loss_and_logits(
            self.head(hidden_states),
            None,
            shift_labels=labels,  # each is scored where it stands
            skip_logits=skip_logits,
            num_items_in_batch=num_items_in_batch,
            **loss_options,
        )
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class HfxEncoderForSequenceClassification(HfxEncoderPreTrainedModel):
    """The encoder with one prediction a row, from its pooled tokens: classes, several labels, or numbers."""

    def __init__(self, config: HfxEncoderConfig):
        super().__init__(config)
        check_problem_type(config)
        self.num_labels = config.num_labels
        self.model = HfxEncoderModel(config)
        self.head = sequence_head(config)
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
        past_key_values=None,  # named, because peft's prefix tuning reads from the signature that it may be given
        **kwargs,
    ) -> SequenceClassifierOutput:
        """logits (B, num_labels) and, with labels (B,) or (B, num_labels), the loss; see `sequence_loss`."""
        outputs = self.model(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=past_key_values, **kwargs
        )
        pooled = pool_tokens(
            outputs.last_hidden_state, attention_mask, self.config.classifier_pooling, kwargs.get("position_ids")
        )
        logits = self.classifier(self.dropout(self.head(pooled)))
        loss = None if labels is None else sequence_loss(logits, labels, self.config, num_items_in_batch)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class HfxEncoderForTokenClassification(HfxEncoderPreTrainedModel):
    """The encoder with a class for each token."""

    def __init__(self, config: HfxEncoderConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = HfxEncoderModel(config)
        self.head = sequence_head(config) if config.classifier_on_tokens else nn.Identity()
        self.dropout = Dropout(config.classifier_dropout)
        self.classifier = Linear(config.hidden_size, config.num_labels)
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
        logits = self.classifier(self.dropout(self.head(outputs.last_hidden_state)))
        loss = None if labels is None else token_loss(logits, labels, num_items_in_batch)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class HfxEncoderForQuestionAnswering(HfxEncoderPreTrainedModel):
    """The encoder with two scores for each token: that the answer begins, and that it ends there."""

    def __init__(self, config: HfxEncoderConfig):
        super().__init__(config)
        self.model = HfxEncoderModel(config)
        self.head = sequence_head(config) if config.classifier_on_tokens else nn.Identity()
        self.dropout = Dropout(config.classifier_dropout if config.classifier_on_tokens else 0.0)
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
            self.qa_outputs(self.dropout(self.head(outputs.last_hidden_state))),
            start_positions,
            end_positions,
            attention_mask,
            kwargs.get("position_ids"),
            num_items_in_batch,
        )
        return QuestionAnsweringModelOutput(**spans, hidden_states=outputs.hidden_states, attentions=outputs.attentions)


class HfxEncoderForMultipleChoice(HfxEncoderPreTrainedModel):
    """The encoder with a score for each of several rows, of which one is right."""

    def __init__(self, config: HfxEncoderConfig):
        super().__init__(config)
        self.model = HfxEncoderModel(config)
        self.head = sequence_head(config)
        self.dropout = Dropout(config.classifier_dropout)
        self.classifier = Linear(config.hidden_size, 1)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> MultipleChoiceModelOutput:
        """logits (B, C) for inputs (B, C, T) of C choices and, with labels (B,), the loss: cross-entropy over the choices.

        token_type_ids and position_ids, where given, are (B, C, T) too, inputs_embeds (B, C, T, d).
        """
        given = input_ids if inputs_embeds is None else inputs_embeds
        if given is None or given.ndim != (3 if inputs_embeds is None else 4):
            shape = None if given is None else tuple(given.shape)
            raise ValueError(f"input_ids: shape {shape} must be (batch, choices, tokens)")
        B, C = given.shape[:2]

        def as_rows(tensor):
            return tensor.flatten(0, 1) if isinstance(tensor, torch.Tensor) and tensor.ndim >= 3 else tensor

        rows = {name: as_rows(value) for name, value in kwargs.items()}
        attention_mask = as_rows(attention_mask)
        outputs = self.model(
            input_ids=as_rows(input_ids), attention_mask=attention_mask, inputs_embeds=as_rows(inputs_embeds), **rows
        )
        pooled = pool_tokens(
            outputs.last_hidden_state, attention_mask, self.config.classifier_pooling, rows.get("position_ids")
        )
        logits = self.classifier(self.dropout(self.head(pooled))).view(B, C)
        loss = None if labels is None else token_loss(logits, labels.reshape(-1), num_items_in_batch)
        return MultipleChoiceModelOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = [
    "HfxEncoderForMaskedLM",
    "HfxEncoderForMultipleChoice",
    "HfxEncoderForQuestionAnswering",
    "HfxEncoderForSequenceClassification",
    "HfxEncoderForTokenClassification",
    "HfxEncoderModel",
    "HfxEncoderPreTrainedModel",
]
