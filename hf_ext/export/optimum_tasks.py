"""Our model types in Optimum's `TasksManager`: which tasks each can be exported for, and what the graphs are called with.

    TasksManager.get_supported_tasks_for_model_type("hfx_decoder", "onnx", library_name="transformers")

Optimum guesses a library from the first part of a class's module, so `library_name` must be told it wherever it takes one.
"""

from hf_ext.export.parts import TEXT_INPUTS
from hf_ext.export.tasks import WITH_PAST, tasks_of
from hf_ext.registry import FAMILIES


BACKEND = "onnx"


def register_tasks(tasks) -> None:
    """Idempotent.

    Args:
        tasks: optimum.exporters.tasks, which has the `TasksManager`.
    """
    from optimum.exporters.base import ExporterConfig
    from optimum.utils import NormalizedTextConfig

    class HfxExporterConfig(ExporterConfig):
        """Names and free dims of the inputs; the graphs are made by `hf_ext.export.export_model`."""

        NORMALIZED_CONFIG_CLASS = NormalizedTextConfig
        ATOL_FOR_VALIDATION = 1e-4
        SUPPORTS_PAST = True

        def __init__(self, config, task: str = "feature-extraction", use_past: bool = False, **kwargs):
            super().__init__(config, task, **kwargs)
            self.use_past = use_past

        @property
        def inputs(self) -> dict[str, dict[int, str]]:
            """Input -> dim -> its name; of a cache, where there is one, those of each layer."""
            dims = {0: "batch_size", 1: "num_choices", 2: "sequence_length"}
            if self.task != "multiple-choice":
                dims = {0: "batch_size", 1: "sequence_length"}
            named = {name: dict(dims) for name in TEXT_INPUTS}
            if getattr(self._config, "type_vocab_size", 0):
                named["token_type_ids"] = dict(dims)
            if self._config.is_encoder_decoder and self.task in ("text2text-generation", "feature-extraction"):
                named["decoder_input_ids"] = {0: "batch_size", 1: "decoder_sequence_length"}
            if not self.use_past:
                return named
            kinds = ("decoder.", "encoder.") if self._config.is_encoder_decoder else ("",)
            lengths = {"encoder.": "sequence_length"}
            for layer in range(self._config.num_hidden_layers):
                for kind in kinds:
                    for tensor in ("key", "value"):
                        name = f"past_key_values.{layer}.{kind}{tensor}"
                        named[name] = {0: "batch_size", 2: lengths.get(kind, "past_sequence_length")}
            return named

    register = tasks.TasksManager.create_register(BACKEND)
    for config_class in FAMILIES:
        names = list(tasks_of(config_class))
        names += [f"{name}{WITH_PAST}" for name in names if name in ("text-generation", "text2text-generation")]
        register(config_class.model_type, *names, library_name="transformers")(HfxExporterConfig)
