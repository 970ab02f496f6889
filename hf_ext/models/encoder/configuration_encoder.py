"""Configuration of the encoder family."""

from huggingface_hub.dataclasses import strict

from hf_ext.layers.feed_forward import ACTIVATIONS
from hf_ext.models.configuration_transformer import HfxTransformerConfig
from hf_ext.models.pooling import POOLINGS


@strict
class HfxEncoderConfig(HfxTransformerConfig):
    """An encoder of your own design. Defaults: a ModernBERT-like model of 42M parameters (vocabulary 32,000), all of whose
    layers are global; `sliding_window` and `layer_types` make some of them local.

    Args, besides those of `HfxTransformerConfig`:
        type_vocab_size: segments whose embeddings `token_type_ids` choose (BERT: 2); 0 for none.
        norm_before_first_layer: whether the first block's attention has a norm before it, where the others have one;
            ModernBERT's has not, for its embeddings are normed already.
        classifier_pooling: which vector of a row sequence and multiple-choice heads read: "cls", the first token's, or
            "mean", of all tokens.
        classifier_activation: in those heads' layer between pooling and prediction: "tanh" (BERT), "relu" (DistilBERT),
            "gelu" (ModernBERT). classifier_norm: whether a norm follows it.
        classifier_on_tokens: whether token and question-answering heads have that layer too (ModernBERT).
        head_bias: of that layer's matrix, and of the masked-LM head's.
        classifier_dropout: before the prediction; default hidden_dropout.
        padding_free: compute nothing for padding, where a padding mask tells where it is; the same numbers, faster.

    Raises:
        ValueError: one line, for what can't be built.
    """

    model_type = "hfx_encoder"
    _choices = HfxTransformerConfig._choices | {
        "classifier_pooling": POOLINGS,
        "classifier_activation": ACTIVATIONS,
    }
    _not_negative = (*HfxTransformerConfig._not_negative, "type_vocab_size")
    _probabilities = (*HfxTransformerConfig._probabilities, "classifier_dropout")

    norm_type: str = "layernorm"
    norm_eps: float = 1e-5
    norm_bias: bool = False
    hidden_act: str = "gelu"
    embedding_norm: bool = True
    lm_head_bias: bool = True
    tie_word_embeddings: bool = True
    type_vocab_size: int = 0
    norm_before_first_layer: bool = True
    classifier_pooling: str = "cls"
    classifier_activation: str = "tanh"
    classifier_norm: bool = False
    classifier_on_tokens: bool = False
    classifier_dropout: float | int | None = None
    head_bias: bool = True
    padding_free: bool = True

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.classifier_dropout is None:
            self.classifier_dropout = self.hidden_dropout

    def validate_architecture(self):
        super().validate_architecture()
        if not self.norm_before_first_layer and self.block_type not in ("pre_norm", "sandwich"):
            raise ValueError(
                f"norm_before_first_layer=False: block_type={self.block_type!r} has no norm before its attention alone; "
                "leave it out, or use pre_norm or sandwich"
            )


__all__ = ["HfxEncoderConfig"]
