"""Encoder-decoders: a text written from another one, with a head for text, classes or answers."""

from hf_ext.models.encoder_decoder.configuration_encoder_decoder import HfxEncoderDecoderConfig
from hf_ext.models.encoder_decoder.modeling_encoder_decoder import (
    HfxEncoderDecoderModel,
    HfxEncoderDecoderPreTrainedModel,
)
from hf_ext.models.encoder_decoder.modeling_encoder_decoder_heads import (
    HfxEncoderDecoderForConditionalGeneration,
    HfxEncoderDecoderForQuestionAnswering,
    HfxEncoderDecoderForSequenceClassification,
)
from hf_ext.models.encoder_decoder.transformer import Transformer


__all__ = [
    "HfxEncoderDecoderConfig",
    "HfxEncoderDecoderForConditionalGeneration",
    "HfxEncoderDecoderForQuestionAnswering",
    "HfxEncoderDecoderForSequenceClassification",
    "HfxEncoderDecoderModel",
    "HfxEncoderDecoderPreTrainedModel",
    "Transformer",
]
