"""Configuration of the encoder-decoder family."""

import copy

from huggingface_hub.dataclasses import strict

from hf_ext.layers.cross_attention_blocks import CROSS_BLOCKS
from hf_ext.models.configuration_checks import LAYER_TYPES
from hf_ext.models.configuration_transformer import HfxTransformerConfig
from hf_ext.models.parallel_plans import tensor_parallel_plan


@strict
class HfxEncoderDecoderConfig(HfxTransformerConfig):
    """An encoder and a decoder that reads it, of your own design. Defaults: 6 + 6 layers of Llama-like blocks, one
    vocabulary, 63M parameters.

    Both stacks have the same sizes and options; positions of every kind act within each of them, and none between them.
    `num_hidden_layers` (also `decoder_layers`) and `layer_types` are the decoder's.

    Args, besides those of `HfxTransformerConfig`:
        encoder_layers: of the encoder; default num_hidden_layers. encoder_layer_types: its `layer_types`; default
            "sliding_attention" where there is a sliding_window, else "full_attention".
        encoder_vocab_size: of the encoder's own vocabulary; None: both sides have one and the same, `vocab_size`.
        share_embeddings: one matrix embeds the tokens of both sides.
        tie_word_embeddings: whether the output matrix is the decoder's embedding.
        output_multiplier: factor on the decoder's output before the vocabulary; T5 with tied embeddings has
            hidden_size ** -0.5.
        final_dropout: after each stack's final norm (T5).
        classifier_dropout: in the sequence classifier; default hidden_dropout.
        decoder_start_token_id: what the decoder's text starts with; default pad_token_id, or 0 where there is none.
        use_cache: whether keys and values are kept by default.
        padding_free: the encoder computes nothing for padding, where a padding mask tells where it is; the same numbers,
            faster.

    Raises:
        ValueError: one line, for what can't be built.
    """

    model_type = "hfx_encoder_decoder"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {"decoder_layers": "num_hidden_layers"}
    # embeddings that both sides share, and the output matrix that is one of them, must be gathered as one: not here
    base_model_fsdp_plan = {"encoder.layers.*": "free_full_weight", "decoder.layers.*": "free_full_weight"}
    _choices = HfxTransformerConfig._choices | {"block_type": CROSS_BLOCKS}
    _sizes = (*HfxTransformerConfig._sizes, "encoder_layers", "encoder_vocab_size")
    _positive = (*HfxTransformerConfig._positive, "output_multiplier")
    _probabilities = (*HfxTransformerConfig._probabilities, "final_dropout", "classifier_dropout")

    is_encoder_decoder: bool = True
    num_hidden_layers: int = 6
    encoder_layers: int | None = None
    encoder_layer_types: list[str] | None = None
    encoder_vocab_size: int | None = None
    share_embeddings: bool = True
    tie_word_embeddings: bool = True
    output_multiplier: float | int | None = None
    final_dropout: float | int = 0.0
    classifier_dropout: float | int | None = None
    decoder_start_token_id: int | None = None
    use_cache: bool = True
    padding_free: bool = True

    def __post_init__(self, **kwargs):
        if self.encoder_layers is None:
            self.encoder_layers = self.num_hidden_layers
        if self.encoder_layer_types is None:
            self.encoder_layer_types = self._layers_all_alike(self.encoder_layers)
        if self.layer_types is None:  # before the parent looks whether a window is used
            self.layer_types = self._layers_all_alike(self.num_hidden_layers)
        if self.decoder_start_token_id is None:
            self.decoder_start_token_id = 0 if self.pad_token_id is None else self.pad_token_id
        super().__post_init__(**kwargs)
        if self.classifier_dropout is None:
            self.classifier_dropout = self.hidden_dropout

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name in ("sliding_window", "encoder_layers") and len(set(self.encoder_layer_types or ())) == 1:
            self.encoder_layer_types = self._layers_all_alike(self.encoder_layers)

    def rope_parameters_by_layer_type(self) -> dict[str, dict | None]:
        """As the parent's, of both stacks."""
        kinds = sorted({*self.layer_types, *self.encoder_layer_types})
        nested = any(kind in self.rope_parameters for kind in LAYER_TYPES)
        return {kind: self.rope_parameters.get(kind) if nested else self.rope_parameters for kind in kinds}

    @property
    def source_vocab_size(self) -> int:
        """Tokens in the vocabulary that the encoder reads."""
        return self.vocab_size if self.encoder_vocab_size is None else self.encoder_vocab_size

    def _split_matrices(self) -> dict[str, str]:
        stack = tensor_parallel_plan(self)
        cross = {key.replace("self_attn", "cross_attn"): how for key, how in stack.items() if "self_attn" in key}
        # transformers adds the embedding of a model that is one stack by itself; the output matrix may be the decoder's
        stack = {"embed_tokens": "embedding_rowwise", **stack}
        plan = {f"encoder.{key}": how for key, how in stack.items()}
        return plan | {f"decoder.{key}": how for key, how in (stack | cross).items()}

    def get_text_config(self, decoder=None, encoder=None) -> "HfxEncoderDecoderConfig":
        """As transformers': the decoder's is this one, the encoder's has the encoder's layers and vocabulary in the plain
        names."""
        if not encoder or decoder:
            return self
        config = copy.deepcopy(self)
        config.layer_types = None  # not to follow the number of layers before it is the encoder's
        config.num_hidden_layers = self.encoder_layers
        config.layer_types = list(self.encoder_layer_types)
        config.vocab_size = self.source_vocab_size
        return config

    def validate_architecture(self):
        super().validate_architecture()
        if self.encoder_vocab_size is not None and self.share_embeddings:
            raise ValueError(
                f"share_embeddings=True: encoder_vocab_size={self.encoder_vocab_size} is a vocabulary of its own, which "
                "needs its own embeddings; set share_embeddings=False, or leave encoder_vocab_size out"
            )
        start = self.decoder_start_token_id
        if start is not None and not 0 <= start < self.vocab_size:
            raise ValueError(
                f"decoder_start_token_id={start}: must be a token of the vocabulary 0..{self.vocab_size - 1}"
            )
        if self.encoder_vocab_size is not None and (self.pad_token_id or 0) >= self.encoder_vocab_size:
            raise ValueError(
                f"pad_token_id={self.pad_token_id}: must be a token of the encoder's vocabulary too, "
                f"0..{self.encoder_vocab_size - 1}"
            )


__all__ = ["HfxEncoderDecoderConfig"]
