"""hf_ext: transformers of your own design as full citizens of the Hugging Face ecosystem.

`import hf_ext` registers the model families and attention backends with transformers. In the process of the command line
`hf-ext` this waits until a subcommand needs it (`load`), for help and versions take no torch.
"""

import sys
from typing import TYPE_CHECKING

from hf_ext.cli.starting import is_command_line


if TYPE_CHECKING:
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

    __version__: str

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


def load() -> None:
    """Does what `import hf_ext` is for, if it hasn't been done yet: takes the classes in and registers them."""
    from importlib import import_module
    from importlib.metadata import version

    from hf_ext import models
    from hf_ext.hub.bundle import write_bundle
    from hf_ext.models.after_import import after_import
    from hf_ext.models.saved_code import set_code_writer
    from hf_ext.registry import register

    names = {name: getattr(models, name) for name in __all__ if name != "__version__"}
    globals().update(names, __version__=version("hf-ext"))
    register()
    set_code_writer(write_bundle)
    # optimum-intel's list of architectures; ours enter it where somebody imports it
    after_import("optimum.exporters.openvino.model_configs", lambda _: import_module("hf_ext.export.optimum_intel"))


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    load()
    return globals()[name]


if not is_command_line(sys.orig_argv):
    load()
