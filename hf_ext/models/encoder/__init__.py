"""Encoders: attention to both sides, with a head for masks, classes, tokens, answers or choices."""

from hf_ext.models.encoder.configuration_encoder import HfxEncoderConfig
from hf_ext.models.encoder.modeling_encoder import (
    HfxEncoderForMaskedLM,
    HfxEncoderForMultipleChoice,
    HfxEncoderForQuestionAnswering,
    HfxEncoderForSequenceClassification,
    HfxEncoderForTokenClassification,
    HfxEncoderModel,
)


__all__ = [
    "HfxEncoderConfig",
    "HfxEncoderForMaskedLM",
    "HfxEncoderForMultipleChoice",
    "HfxEncoderForQuestionAnswering",
    "HfxEncoderForSequenceClassification",
    "HfxEncoderForTokenClassification",
    "HfxEncoderModel",
]
