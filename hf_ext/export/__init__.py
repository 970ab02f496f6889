"""Models for other engines: the forms in which they are read there."""

from hf_ext.export.gguf import export_gguf


__all__ = ["export_gguf"]
