"""The encoder-decoder family: one sequence is read to both sides, another written from it token by token.

    source -> embedding -> encoder blocks -> final norm ----v
    target -> embedding -> decoder blocks with cross-attention -> final norm -> vocabulary

B batch, S tokens of the encoder's sequence, T of the decoder's at hand, d hidden_size, V vocab_size.
"""

from functools import partial

import torch
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    Seq2SeqModelOutput,
)
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from hf_ext.layers.attention import MultiHeadAttention
from hf_ext.layers.blocks import BLOCKS, TransformerBlock
from hf_ext.layers.cross_attention import CrossAttention
from hf_ext.layers.cross_attention_blocks import CROSS_BLOCKS, CrossAttentionBlock
from hf_ext.layers.dropout import Dropout
from hf_ext.models.attention_inputs import (
    attention_function,
    attention_inputs,
    cached_key_positions,
    check_cached_frequencies,
    default_position_ids,
)
from hf_ext.models.attention_masks import bidirectional_masks, causal_masks, cross_attention_mask
from hf_ext.models.configured_layers import (
    attention_options,
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
from hf_ext.models.encoder_decoder.configuration_encoder_decoder import HfxEncoderDecoderConfig
from hf_ext.models.encoder_decoder.cross_attention_cache import check_cross_attention_cache
from hf_ext.models.encoder_decoder.decoder_inputs import check_flash_cross_mask, check_packed_pairs
from hf_ext.models.packed_rows import check_packed_rows, flash_lengths
from hf_ext.models.padding_free import find_real_tokens, unpad_inputs, with_padding
from hf_ext.models.pretrained_model import HfxPreTrainedModel, check_attention_mask, check_token_ids


def make_cross_attention(config: HfxEncoderDecoderConfig, layer_idx: int) -> CrossAttention:
    """The cross-attention of decoder layer `layer_idx`: always multi-head, whatever the self-attention is."""
    plain = config.attention_type != "latent"  # whose head_dim is of its own kind
    attention = CrossAttention(
        config.hidden_size,
        config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim if plain else None,
        qk_norm=config.qk_norm,
        **attention_options(config, layer_idx),
    )
    attention.config = config  # transformers' flash-attn integration asks for its dtype
    return attention


def encoder_block(config: HfxEncoderDecoderConfig, layer_idx: int) -> TransformerBlock:
    """Block `layer_idx` of the encoder, wired as `config.block_type` says."""
    return BLOCKS[config.block_type](
        make_attention(config, layer_idx, config.encoder_layer_types[layer_idx], is_causal=False),
        make_feed_forward(config),
        partial(make_norm, config),
        dropout=config.hidden_dropout,
    )


def decoder_block(config: HfxEncoderDecoderConfig, layer_idx: int) -> CrossAttentionBlock:
    """Block `layer_idx` of the decoder, likewise."""
    return CROSS_BLOCKS[config.block_type](
        make_attention(config, layer_idx, config.layer_types[layer_idx], is_causal=True),
        make_cross_attention(config, layer_idx),
        make_feed_forward(config),
        partial(make_norm, config),
        dropout=config.hidden_dropout,
    )


class HfxEncoderDecoderPreTrainedModel(HfxPreTrainedModel):
    config_class = HfxEncoderDecoderConfig
    config: HfxEncoderDecoderConfig
    base_model_prefix = "model"
    _no_split_modules = [block.__name__ for blocks in (BLOCKS, CROSS_BLOCKS) for block in blocks.values()]

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """As transformers', on both sides and the output; returns the encoder's.

        Raises:
            ValueError: there are two vocabularies, and it is not said which is to grow.
        """
        if self.config.encoder_vocab_size is not None:
            raise ValueError(
                f"resize_token_embeddings: there are two vocabularies, encoder_vocab_size={self.config.encoder_vocab_size} "
                f"and vocab_size={self.config.vocab_size}; make the model with the sizes that it is to have"
            )
        embeddings = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        decoder = getattr(self.base_model, "decoder", None)
        if decoder is not None and decoder.embed_tokens.num_embeddings != embeddings.num_embeddings:
            decoder.embed_tokens = self._get_resized_embeddings(
                decoder.embed_tokens, embeddings.num_embeddings, mean_resizing=mean_resizing
            )
            self.tie_weights()
        return embeddings

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """What transformers traces a model with where it has no inputs."""
        ids = torch.arange(3, device=self.device)[None] % self.config.vocab_size
        return {"input_ids": ids, "decoder_input_ids": ids}


class EncoderDecoderStack(HfxEncoderDecoderPreTrainedModel):
    """What the two stacks share: parts below and above their blocks.

    Args:
        layer_types: of the blocks. vocab_size: of the tokens that the stack reads. is_causal: whether it is the decoder.
    """

    def __init__(self, config: HfxEncoderDecoderConfig, layer_types: list[str], vocab_size: int, *, is_causal: bool):
        super().__init__(config)
        # the embedding of padding stays 0, but what a text starts with is learnt
        padding = None if config.pad_token_id == config.decoder_start_token_id else config.pad_token_id
        self.embed_tokens = nn.Embedding(vocab_size, config.hidden_size, padding)
        self.embed_positions = make_position_embeddings(config)
        self.embedding_norm = make_embedding_norm(config)
        self.embedding_dropout = Dropout(config.embedding_dropout)
        block = decoder_block if is_causal else encoder_block
        self.layers = nn.ModuleList(block(config, i) for i in range(len(layer_types)))
        self.norm = make_final_norm(config)
        self.final_dropout = Dropout(config.final_dropout)
        rotary = make_rotary_embeddings(config)
        self.rotary_emb = nn.ModuleDict({kind: rope for kind, rope in rotary.items() if kind in layer_types})
        self.position_bias = make_position_bias(config, is_causal=is_causal)  # one for all layers
        self.gradient_checkpointing = False

    def init_parallel_plans(self) -> None:
        """None of its own: the configuration's plan is of both stacks and belongs to the model that has them."""
        super().init_parallel_plans()
        self._tp_plan, self._fsdp_plan = {}, {}

    def embeddings_of(self, input_ids, inputs_embeds, names: tuple[str, str]) -> torch.Tensor:
        """(B, T, d) from the one of the two that is given. names: what the caller knows them by."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError(f"{names[0]}, {names[1]}: exactly one of them must be given")
        check_token_ids(input_ids, self.embed_tokens.num_embeddings, names[0])
        return self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds

    def positions_of(self, position_ids, attention_mask, past_key_values, inputs_embeds, name: str) -> torch.Tensor:
        """(B or 1, T): those given, or tokens counted from the row's first unmasked one."""
        T = inputs_embeds.shape[1]
        if position_ids is None:
            return default_position_ids(attention_mask, past_key_values, T, inputs_embeds.device)
        if position_ids.shape[-1] != T:
            raise ValueError(f"{name}: shape {tuple(position_ids.shape)} for {T} tokens; give one a token")
        return position_ids

    def attention_inputs(
        self, masks: dict, layer_types: list[str], inputs_embeds, position_ids, past_key_values, *, is_causal: bool
    ) -> dict[str, dict]:
        """Layer type -> what its blocks are called with besides the hidden states: mask, bias, rotation, backend."""
        biases = {}
        for kind in masks if self.position_bias is not None else []:
            key_positions = cached_key_positions(position_ids, past_key_values, layer_types.index(kind))
            biases[kind] = self.position_bias(position_ids, key_positions)
        return attention_inputs(
            self.config, masks, biases, self.rotary_emb, inputs_embeds, position_ids, is_causal=is_causal
        )

    def real_tokens_of(self, attention_mask, options: dict):
        """The tokens of a padded batch that are computed; None: all. Records are of all."""
        records = any(options.get(name) for name in ("output_hidden_states", "output_attentions"))
        records = records or self.config.output_hidden_states or self.config.output_attentions
        return None if records or not self.config.padding_free else find_real_tokens(attention_mask)


class HfxEncoderDecoderEncoder(EncoderDecoderStack):
    """Reads the source: every token sees all of it."""

    _can_record_outputs = {"hidden_states": TransformerBlock, "attentions": MultiHeadAttention}

    def __init__(self, config: HfxEncoderDecoderConfig):
        super().__init__(config, config.encoder_layer_types, config.source_vocab_size, is_causal=False)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutput:
        """Hidden states after the final norm; zeros at padding where it was left out.

        Args:
            input_ids: (B, S) tokens, or inputs_embeds (B, S, d) instead.
            attention_mask: (B, S) 1 for tokens and 0 for padding; or a ready 4-D mask.
            position_ids: (B or 1, S); default: tokens counted from the row's first unmasked one. Positions that restart
                within a row, with attention_mask=None, keep packed documents apart.
            use_cache: the decoder's affair.
        """
        inputs_embeds = self.embeddings_of(input_ids, inputs_embeds, ("input_ids", "inputs_embeds"))
        check_attention_mask(attention_mask, inputs_embeds.shape[1])
        check_packed_rows(position_ids, attention_mask, None, kwargs)
        attention, kinds = self.config._attn_implementation, self.config.encoder_layer_types
        kwargs |= flash_lengths(attention, position_ids, inputs_embeds, attention_mask, kwargs)
        position_ids = self.positions_of(position_ids, attention_mask, None, inputs_embeds, "position_ids")

        masks = bidirectional_masks(
            self.config, list(dict.fromkeys(kinds)), inputs_embeds, attention_mask, position_ids
        )
        inputs_by_kind = self.attention_inputs(masks, kinds, inputs_embeds, position_ids, None, is_causal=False)
        hidden_states = embed(self, inputs_embeds, position_ids)
        real_tokens = self.real_tokens_of(attention_mask, kwargs)
        if real_tokens is not None:
            hidden_states = real_tokens.gather(hidden_states)
            inputs_by_kind = unpad_inputs(inputs_by_kind, real_tokens, attention)
        if self.config.value_residual:
            kwargs["first_values"] = []
        for kind, block in zip(kinds, self.layers, strict=True):
            hidden_states = block(hidden_states, **inputs_by_kind[kind], **kwargs)
        hidden_states = self.final_dropout(self.norm(hidden_states))
        if real_tokens is not None:
            hidden_states = real_tokens.scatter(hidden_states)
        return BaseModelOutput(last_hidden_state=hidden_states)


class HfxEncoderDecoderDecoder(EncoderDecoderStack):
    """Writes the target: a token sees what came before it, and all of the source."""

    _can_record_outputs = {
        "hidden_states": TransformerBlock,
        "attentions": OutputRecorder(MultiHeadAttention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(CrossAttention, index=1, layer_name="cross_attn"),
    }

    def __init__(self, config: HfxEncoderDecoderConfig):
        super().__init__(config, config.layer_types, config.vocab_size, is_causal=True)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        encoder_hidden_states: torch.FloatTensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        encoder_position_ids: torch.LongTensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Hidden states after the final norm; zeros at padding where it was left out.

        Args:
            input_ids, inputs_embeds, position_ids: (B, T), (B, T, d), (B or 1, T), as the encoder's.
            attention_mask: (B, tokens of the cache and at hand); or a ready 4-D mask, or one by layer type.
            encoder_hidden_states: (B, S, d). encoder_attention_mask: (B, S), 0 for padding; or a ready 4-D mask.
            encoder_position_ids: (B or 1, S) where rows are packed: the n-th document of the one side reads the n-th of the
                other.
            past_key_values: to go on from. use_cache: return one.
        """
        inputs_embeds = self.embeddings_of(input_ids, inputs_embeds, ("decoder_input_ids", "decoder_inputs_embeds"))
        if encoder_hidden_states is None:
            raise ValueError("encoder_hidden_states: missing; the decoder reads what the encoder gives")
        if encoder_hidden_states.shape[0] != inputs_embeds.shape[0]:
            raise ValueError(
                f"encoder_outputs: {encoder_hidden_states.shape[0]} rows for {inputs_embeds.shape[0]} of the decoder; give "
                "each its own"
            )
        check_attention_mask(encoder_attention_mask, encoder_hidden_states.shape[1])
        check_cross_attention_cache(past_key_values, encoder_hidden_states.shape[1])
        own_cache = None if past_key_values is None else past_key_values.self_attention_cache
        check_attention_mask(attention_mask, inputs_embeds.shape[1], own_cache)
        check_packed_rows(position_ids, attention_mask, own_cache, kwargs)
        attention, kinds = self.config._attn_implementation, self.config.layer_types
        cross_mask = cross_attention_mask(
            self.config,
            inputs_embeds,
            encoder_hidden_states,
            encoder_attention_mask,
            None if attention_mask is not None or own_cache is not None else position_ids,
            encoder_position_ids,
        )
        check_flash_cross_mask(attention, cross_mask)
        position_ids = self.positions_of(position_ids, attention_mask, own_cache, inputs_embeds, "decoder_position_ids")
        if own_cache is not None:
            check_cached_frequencies(self.rotary_emb, own_cache, position_ids)

        # made before a new cache is: packed rows are looked for only where there is none yet
        masks = causal_masks(
            self.config, list(dict.fromkeys(kinds)), inputs_embeds, attention_mask, own_cache, position_ids
        )
        inputs_by_kind = self.attention_inputs(masks, kinds, inputs_embeds, position_ids, own_cache, is_causal=True)
        real_tokens = source_tokens = None
        if past_key_values is None and not use_cache:
            real_tokens = self.real_tokens_of(attention_mask, kwargs)
            source_tokens = self.real_tokens_of(encoder_attention_mask, kwargs)
        elif past_key_values is None:
            # the encoder's keys are cached whole, whatever the decoder's layers see
            past_key_values = EncoderDecoderCache(DynamicCache(config=self.config), DynamicCache())

        hidden_states = embed(self, inputs_embeds, position_ids)
        if real_tokens is not None:
            hidden_states = real_tokens.gather(hidden_states)
            inputs_by_kind = unpad_inputs(inputs_by_kind, real_tokens, attention)
        if source_tokens is not None:
            encoder_hidden_states = source_tokens.gather(encoder_hidden_states)
        cross_attend = with_padding(self.cross_attention_interface(), real_tokens, source_tokens)
        if self.config.value_residual:
            kwargs["first_values"] = []
        for kind, block in zip(kinds, self.layers, strict=True):
            hidden_states = block(
                hidden_states,
                encoder_hidden_states=encoder_hidden_states,
                encoder_attention_mask=cross_mask,
                cross_attention_interface=cross_attend,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **inputs_by_kind[kind],
                **kwargs,
            )
        hidden_states = self.final_dropout(self.norm(hidden_states))
        if real_tokens is not None:
            hidden_states = real_tokens.scatter(hidden_states)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=hidden_states, past_key_values=past_key_values
        )

    def cross_attention_interface(self):
        """The attention call of the config's implementation."""
        return attention_function(self.config._attn_implementation)


class HfxEncoderDecoderModel(HfxEncoderDecoderPreTrainedModel):
    """Encoder and decoder without a head: two sequences of tokens to the decoder's hidden states."""

    _tied_weights_keys = {"encoder.embed_tokens.weight": "decoder.embed_tokens.weight"}

    def __init__(self, config: HfxEncoderDecoderConfig):
        super().__init__(config)
        self.encoder = HfxEncoderDecoderEncoder(config)
        self.decoder = HfxEncoderDecoderDecoder(config)
        self.post_init()

    @property
    def rotary_emb(self) -> nn.ModuleDict:
        """By layer type, of the text that is generated."""
        return self.decoder.rotary_emb

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """As transformers', but whether the sides share their embeddings is not a matter of the output's."""
        if all_submodels or not self.config.share_embeddings:
            return super().get_expanded_tied_weights_keys(True) if all_submodels else {}
        return dict(self._tied_weights_keys)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.encoder.embed_tokens = value
        if self.config.share_embeddings:
            self.decoder.embed_tokens = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        decoder_position_ids: torch.LongTensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        decoder_inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> Seq2SeqModelOutput:
        """The decoder's hidden states after the final norm.

        Args:
            input_ids, attention_mask, position_ids, inputs_embeds: of the encoder, see `HfxEncoderDecoderEncoder.forward`.
            encoder_outputs: what the encoder gave, in place of its input.
            decoder_input_ids, decoder_attention_mask, decoder_position_ids, decoder_inputs_embeds: of the decoder, see
                `HfxEncoderDecoderDecoder.forward`.
            past_key_values: an `EncoderDecoderCache` to go on from. use_cache: return one.

        Returns:
            last_hidden_state (B, T, d), past_key_values, encoder_last_hidden_state (B, S, d); hidden states and attentions
            of both stacks and cross_attentions where asked for.
        """
        positions = {"position_ids": position_ids, "decoder_position_ids": decoder_position_ids}
        masks = {"attention_mask": attention_mask, "decoder_attention_mask": decoder_attention_mask}
        check_packed_pairs(positions, masks, kwargs, self.config._attn_implementation)
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
                **kwargs,
            )
        elif not isinstance(encoder_outputs, BaseModelOutput):
            encoder_outputs = BaseModelOutput(*encoder_outputs[:3])
        outputs = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            position_ids=decoder_position_ids,
            encoder_hidden_states=encoder_outputs.last_hidden_state,
            encoder_attention_mask=attention_mask,
            encoder_position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            decoder_hidden_states=outputs.hidden_states,
            decoder_attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
        )


__all__ = [
    "HfxEncoderDecoderDecoder",
    "HfxEncoderDecoderEncoder",
    "HfxEncoderDecoderModel",
    "HfxEncoderDecoderPreTrainedModel",
]
