"""The model families."""

from hf_ext.models.decoder import (
    HfxDecoderConfig,
    HfxDecoderForCausalLM,
    HfxDecoderForQuestionAnswering,
    HfxDecoderForSequenceClassification,
    HfxDecoderForTokenClassification,
    HfxDecoderModel,
)


__all__ = [
    "HfxDecoderConfig",
    "HfxDecoderForCausalLM",
    "HfxDecoderForQuestionAnswering",
    "HfxDecoderForSequenceClassification",
    "HfxDecoderForTokenClassification",
    "HfxDecoderModel",
]
