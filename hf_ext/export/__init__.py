"""Models for other engines: the forms in which they are read there.

Importing it registers our model types with Optimum's `TasksManager`, as soon as that is imported.
"""

from hf_ext.export.export_model import Exported, export_model
from hf_ext.export.exported_generation import HfxExportedModelForCausalLM, HfxExportedModelForSeq2SeqLM
from hf_ext.export.exported_model import (
    HfxExportedModelForFeatureExtraction,
    HfxExportedModelForMaskedLM,
    HfxExportedModelForMultipleChoice,
    HfxExportedModelForQuestionAnswering,
    HfxExportedModelForSequenceClassification,
    HfxExportedModelForTokenClassification,
)
from hf_ext.export.gguf import export_gguf
from hf_ext.export.optimum_tasks import register_tasks
from hf_ext.export.options import ExportOptions, add_export_arguments, options_of
from hf_ext.export.parity import ParityError
from hf_ext.export.verification import verify
from hf_ext.models.after_import import after_import


__all__ = [
    "ExportOptions",
    "Exported",
    "HfxExportedModelForCausalLM",
    "HfxExportedModelForFeatureExtraction",
    "HfxExportedModelForMaskedLM",
    "HfxExportedModelForMultipleChoice",
    "HfxExportedModelForQuestionAnswering",
    "HfxExportedModelForSeq2SeqLM",
    "HfxExportedModelForSequenceClassification",
    "HfxExportedModelForTokenClassification",
    "ParityError",
    "add_export_arguments",
    "export_gguf",
    "export_model",
    "options_of",
    "verify",
]

after_import("optimum.exporters.tasks", register_tasks)
