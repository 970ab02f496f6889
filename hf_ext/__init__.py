"""hf_ext: transformers of your own design as full citizens of the Hugging Face ecosystem.

`import hf_ext` registers the model families and attention backends with transformers.
"""

from importlib import import_module
from importlib.metadata import version

from hf_ext.hub.bundle import write_bundle
from hf_ext.models import (
    HfxDecoderConfig,
    HfxDecoderForCausalLM,
    HfxDecoderForQuestionAnswering,
    HfxDecoderForSequenceClassification,
    HfxDecoderForTokenClassification,
    HfxDecoderModel,
    HfxEncoderConfig,
    HfxEncoderDecoderConfig,
    HfxEncoderDecoderForConditionalGeneration,
    HfxEncoderDecoderForQuestionAnswering,
    HfxEncoderDecoderForSequenceClassification,
    HfxEncoderDecoderModel,
    HfxEncoderForMaskedLM,
    HfxEncoderForMultipleChoice,
    HfxEncoderForQuestionAnswering,
    HfxEncoderForSequenceClassification,
    HfxEncoderForTokenClassification,
    HfxEncoderModel,
)
from hf_ext.models.after_import import after_import
from hf_ext.models.saved_code import set_code_writer
from hf_ext.registry import register


__version__ = version("hf-ext")
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
    "__version__",
]

register()
set_code_writer(write_bundle)
# optimum-intel's list of architectures; ours enter it where somebody imports it
after_import("optimum.exporters.openvino.model_configs", lambda _: import_module("hf_ext.export.optimum_intel"))
