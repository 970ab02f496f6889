"""Models for other engines: the forms in which they are read there."""

from hf_ext.export.export_model import Exported, export_model
from hf_ext.export.gguf import export_gguf
from hf_ext.export.options import ExportOptions, add_export_arguments, options_of
from hf_ext.export.parity import ParityError
from hf_ext.export.verification import verify


__all__ = [
    "ExportOptions",
    "Exported",
    "ParityError",
    "add_export_arguments",
    "export_gguf",
    "export_model",
    "options_of",
    "verify",
]
