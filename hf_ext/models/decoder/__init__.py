"""Decoders: causal attention, with a head for text, classes, tokens or answers."""

from hf_ext.models.decoder.configuration_decoder import HfxDecoderConfig
from hf_ext.models.decoder.modeling_decoder import HfxDecoderForCausalLM, HfxDecoderModel, HfxDecoderPreTrainedModel
from hf_ext.models.decoder.modeling_decoder_heads import (
    HfxDecoderForQuestionAnswering,
    HfxDecoderForSequenceClassification,
    HfxDecoderForTokenClassification,
)


__all__ = [
    "HfxDecoderConfig",
    "HfxDecoderForCausalLM",
    "HfxDecoderForQuestionAnswering",
    "HfxDecoderForSequenceClassification",
    "HfxDecoderForTokenClassification",
    "HfxDecoderModel",
    "HfxDecoderPreTrainedModel",
]
