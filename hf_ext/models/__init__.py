"""The model families, and what a model tells about its attention."""

from hf_ext.models.attention_maps import attention_weights, draw_attention
from hf_ext.models.attention_report import attention_report
from hf_ext.models.decoder import (
    HfxDecoderConfig,
    HfxDecoderForCausalLM,
    HfxDecoderForQuestionAnswering,
    HfxDecoderForSequenceClassification,
    HfxDecoderForTokenClassification,
    HfxDecoderModel,
)
from hf_ext.models.encoder import (
    HfxEncoderConfig,
    HfxEncoderForMaskedLM,
    HfxEncoderForMultipleChoice,
    HfxEncoderForQuestionAnswering,
    HfxEncoderForSequenceClassification,
    HfxEncoderForTokenClassification,
    HfxEncoderModel,
)
from hf_ext.models.encoder_decoder import (
    HfxEncoderDecoderConfig,
    HfxEncoderDecoderForConditionalGeneration,
    HfxEncoderDecoderForQuestionAnswering,
    HfxEncoderDecoderForSequenceClassification,
    HfxEncoderDecoderModel,
    Transformer,
)
from hf_ext.models.pooling import sentence_embeddings


__all__ = [
    "HfxDecoderConfig",
    "HfxDecoderForCausalLM",
    "HfxDecoderForQuestionAnswering",
    "HfxDecoderForSequenceClassification",
    "HfxDecoderForTokenClassification",
    "HfxDecoderModel",
    "HfxEncoderConfig",
    "HfxEncoderDecoderConfig",
    "HfxEncoderDecoderForConditionalGeneration",
    "HfxEncoderDecoderForQuestionAnswering",
    "HfxEncoderDecoderForSequenceClassification",
    "HfxEncoderDecoderModel",
    "HfxEncoderForMaskedLM",
    "HfxEncoderForMultipleChoice",
    "HfxEncoderForQuestionAnswering",
    "HfxEncoderForSequenceClassification",
    "HfxEncoderForTokenClassification",
    "HfxEncoderModel",
    "Transformer",
    "attention_report",
    "attention_weights",
    "draw_attention",
    "sentence_embeddings",
]
