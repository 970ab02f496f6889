"""Our architectures as Optimum's exporter to OpenVINO knows them: inputs, sizes of the caches, and what is traced.

`import hf_ext` has this file imported right after optimum-intel's own list of architectures. From then on
`OVModelFor….from_pretrained(folder, export=True)` and `optimum-cli export openvino` take our models as they take Llama.
"""

import inspect
from collections.abc import Callable, Iterable

import torch
from optimum.exporters.openvino.config import (
    TextDecoderOpenVINOConfig,
    TextEncoderOpenVINOConfig,
    TextSeq2SeqOpenVINOConfig,
)
from optimum.exporters.openvino.model_patcher import OVDecoderModelPatcher, OVSeq2SeqModelPatcher
from optimum.exporters.openvino.patching_utils import ModelPatcher
from optimum.exporters.tasks import TasksManager
from optimum.utils import (
    DummyPastKeyValuesGenerator,
    DummySeq2SeqDecoderTextInputGenerator,
    DummySeq2SeqPastKeyValuesGenerator,
    DummyTextInputGenerator,
)
from optimum.utils.normalized_config import NormalizedSeq2SeqConfig, NormalizedTextConfig

from hf_ext.export.dense_experts import dense_experts
from hf_ext.export.tasks import WITH_PAST, exported_attention, tasks_of
from hf_ext.layers.rope import LENGTH_DEPENDENT
from hf_ext.models.configuration_transformer import HfxTransformerConfig
from hf_ext.models.decoder import HfxDecoderConfig
from hf_ext.models.encoder import HfxEncoderConfig
from hf_ext.models.encoder_decoder import HfxEncoderDecoderConfig


CACHED = ("text-generation", "text2text-generation")


def cache_dims(config: HfxTransformerConfig) -> tuple[tuple[int, int], tuple[int, int]]:
    """(heads, dims of a head) of what a layer caches: keys and values, or of latent attention latents and rotated keys."""
    if config.attention_type == "latent":
        return (1, config.kv_lora_rank), (1, config.qk_rope_head_dim)
    return ((config.num_key_value_heads, config.head_dim),) * 2


def cross_cache_dims(config: HfxEncoderDecoderConfig) -> tuple[tuple[int, int], tuple[int, int]]:
    """The same of the source's keys and values, which always are of plain heads."""
    latent = config.attention_type == "latent"
    dims = config.hidden_size // config.num_attention_heads if latent else config.head_dim
    return ((config.num_key_value_heads, dims),) * 2


class DummyTokens(DummyTextInputGenerator):
    """Tokens of what is read first, segments that there are, and positions of one document."""

    def __init__(self, task: str, normalized_config: NormalizedTextConfig, **kwargs):
        super().__init__(task, normalized_config, **kwargs)
        self.vocab_size = getattr(normalized_config.config, "source_vocab_size", self.vocab_size)

    def generate(self, input_name: str, framework: str = "pt", int_dtype: str = "int64", float_dtype: str = "fp32"):
        made = super().generate(input_name, framework, int_dtype, float_dtype)
        if input_name == "token_type_ids":
            return made.clamp(max=self.normalized_config.type_vocab_size - 1)
        if input_name == "position_ids":
            return torch.arange(self.sequence_length).expand(self.batch_size, -1).contiguous()
        return made


class DummyCache(DummyPastKeyValuesGenerator):
    """A decoder's cache."""

    def __init__(self, task: str, normalized_config: NormalizedTextConfig, **kwargs):
        super().__init__(task, normalized_config, **kwargs)
        self.dims = cache_dims(normalized_config.config)

    def generate(self, input_name: str, framework: str = "pt", int_dtype: str = "int64", float_dtype: str = "fp32"):
        shapes = [(self.batch_size, heads, self.sequence_length, dims) for heads, dims in self.dims]
        return [
            tuple(self.random_float_tensor(shape, framework=framework, dtype=float_dtype) for shape in shapes)
            for _ in range(self.num_layers)
        ]


class DummyPairOfCaches(DummySeq2SeqPastKeyValuesGenerator):
    """An encoder-decoder's caches: of the text that is written, and of the source."""

    def generate(self, input_name: str, framework: str = "pt", int_dtype: str = "int64", float_dtype: str = "fp32"):
        config = self.normalized_config.config
        lengths = ((cache_dims(config), self.sequence_length), (cross_cache_dims(config), self.encoder_sequence_length))
        shapes = [(self.batch_size, heads, length, dims) for both, length in lengths for heads, dims in both]
        return [
            tuple(self.random_float_tensor(shape, framework=framework, dtype=float_dtype) for shape in shapes)
            for _ in range(self.decoder_num_layers)
        ]


class TracedModel(ModelPatcher):
    """While a model is traced: the attention whose trace holds for any length, padding computed like the rest, and experts
    without their own operator."""

    def __enter__(self):
        super().__enter__()
        config = self._model.config
        self._before = {
            name: getattr(config, name) for name in ("padding_free", "_attn_implementation") if hasattr(config, name)
        }
        if "padding_free" in self._before:
            config.padding_free = False
        self._model.set_attn_implementation(exported_attention(config))
        self._experts = dense_experts(self._model)
        self._experts.__enter__()

    def __exit__(self, exc_type, exc_value, traceback):
        super().__exit__(exc_type, exc_value, traceback)
        self._model.set_attn_implementation(self._before.pop("_attn_implementation"))
        for name, value in self._before.items():
            setattr(self._model.config, name, value)
        self._experts.__exit__(exc_type, exc_value, traceback)


class TracedEncoder(TracedModel):
    """Optimum passes what a signature names, and our heads hand segments on to the body without naming them."""

    def __init__(self, config, model, model_kwargs=None):
        model.forward = with_names(model.forward, config.inputs)
        super().__init__(config, model, model_kwargs)

    def __exit__(self, exc_type, exc_value, traceback):
        super().__exit__(exc_type, exc_value, traceback)
        del self._model.forward


def with_names(forward: Callable, names: Iterable[str]) -> Callable:
    """`forward`, whose signature names the inputs too that it takes by **kwargs; itself where it names them all."""
    signature = inspect.signature(forward)
    missing = [name for name in names if name not in signature.parameters]
    if not missing:
        return forward

    def named(*args, **kwargs):
        given = signature_of_all.bind(*args, **kwargs).arguments
        rest = given.pop(further.name, {})
        return forward(**given, **rest)

    *parameters, further = signature.parameters.values()  # **kwargs comes last
    added = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None) for name in missing]
    signature_of_all = named.__signature__ = inspect.Signature([*parameters, *added, further])
    return named


class TracedDecoder(TracedModel, OVDecoderModelPatcher):
    """Ours as traced, over what optimum-intel does for any decoder."""


class TracedEncoderDecoder(TracedModel, OVSeq2SeqModelPatcher):
    """The same of an encoder-decoder."""


def check_rope(config: HfxTransformerConfig, use_past: bool) -> None:
    """Raises ValueError, one line, where cached keys would have to be turned anew once the text outgrows a length: whoever
    runs an exported model doesn't do that."""
    rules = config.rope_parameters_by_layer_type().values() if config.rope_parameters else ()
    for rule in rules:
        if use_past and rule is not None and rule.get("rope_type") in LENGTH_DEPENDENT:
            raise ValueError(
                f"rope_parameters: rope_type={rule['rope_type']!r} turns all keys anew as a text grows, which an exported "
                "cache can't; export without one (use_cache=False, or --task without -with-past)"
            )


class HfxEncoderOpenVINOConfig(TextEncoderOpenVINOConfig):
    """Every head of an encoder: tokens, mask and segments in, what the head says out."""

    NORMALIZED_CONFIG_CLASS = NormalizedTextConfig
    DUMMY_INPUT_GENERATOR_CLASSES = (DummyTokens,)
    _MODEL_PATCHER = TracedEncoder

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        names = ("batch_size", "num_choices", "sequence_length")
        if self.task != "multiple-choice":
            names = ("batch_size", "sequence_length")
        taken = ["input_ids", "attention_mask", *(["token_type_ids"] if self._config.type_vocab_size else [])]
        return {name: dict(enumerate(names)) for name in taken}


class HfxDecoderOpenVINOConfig(TextDecoderOpenVINOConfig):
    """Every head of a decoder. A language model takes positions too, as whoever generates text with it gives them."""

    NORMALIZED_CONFIG_CLASS = NormalizedTextConfig
    DUMMY_INPUT_GENERATOR_CLASSES = (DummyTokens, DummyCache)
    DUMMY_PKV_GENERATOR_CLASS = DummyCache
    _MODEL_PATCHER = TracedDecoder

    def __init__(self, config: HfxDecoderConfig, *args, use_past: bool = False, **kwargs):
        check_rope(config, use_past)
        super().__init__(config, *args, use_past=use_past, **kwargs)

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        inputs = super().inputs
        if self.task == "text-generation":
            inputs["position_ids"] = {0: "batch_size", 1: "sequence_length"}
        return inputs


class HfxEncoderDecoderOpenVINOConfig(TextSeq2SeqOpenVINOConfig):
    """Encoder and decoder as graphs of their own where text is written; the other heads read one text with both."""

    NORMALIZED_CONFIG_CLASS = NormalizedSeq2SeqConfig.with_args(
        encoder_num_layers="encoder_layers", decoder_num_layers="num_hidden_layers"
    )
    DUMMY_INPUT_GENERATOR_CLASSES = (DummyTokens, DummySeq2SeqDecoderTextInputGenerator, DummyPairOfCaches)
    DUMMY_PKV_GENERATOR_CLASS = DummyPairOfCaches
    _MODEL_PATCHER = TracedEncoderDecoder

    def __init__(self, config: HfxEncoderDecoderConfig, *args, use_past: bool = False, **kwargs):
        check_rope(config, use_past)
        super().__init__(config, *args, use_past=use_past, **kwargs)

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        inputs = super().inputs
        if self.task not in ("feature-extraction", "text2text-generation"):
            del inputs["decoder_input_ids"]  # these heads' decoder reads input_ids
        return inputs


CONFIGS = {
    HfxDecoderConfig: HfxDecoderOpenVINOConfig,
    HfxEncoderConfig: HfxEncoderOpenVINOConfig,
    HfxEncoderDecoderConfig: HfxEncoderDecoderOpenVINOConfig,
}


def register() -> None:
    """Enters our architectures into Optimum's list, under every task that they have a head for."""
    enter = TasksManager.create_register("openvino", overwrite_existing=True)
    for config_class, export_config in CONFIGS.items():
        tasks = list(tasks_of(config_class))
        tasks += [task + WITH_PAST for task in tasks if task in CACHED]
        enter(config_class.model_type, *tasks, library_name="transformers")(export_config)


register()
