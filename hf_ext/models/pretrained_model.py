"""What every family of ours shares: initialisation of the parts, strict loading, and checks of what comes in."""

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import logging

from hf_ext.layers.attention import MultiHeadAttention
from hf_ext.layers.differential_attention import LAMBDA_STD, LAMBDA_VECTORS, DifferentialAttention
from hf_ext.layers.mixture_of_experts import Experts, Router
from hf_ext.layers.norms import UnitOffsetRMSNorm
from hf_ext.layers.rope import RotaryEmbedding
from hf_ext.models.attention_checks import check_continuous_batching, check_loaded_attention
from hf_ext.models.fused_projections import FusedProjectionsMixin
from hf_ext.models.saved_code import is_of_these_sources, saving_code
from hf_ext.ops.attention_support import RELATIVE_BIAS, SCORE_BIAS, SINKS, SOFTCAP, refusal
from hf_ext.ops.backends import BACKENDS


logger = logging.get_logger(__name__)

# what says where and how to fetch a file; passed on when the config is read ahead of the weights
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def asked_options(config: PretrainedConfig) -> dict[str, str]:
    """What a config asks of attention that not every implementation computes: option -> field and value."""
    asked = {}
    for option, field in ((SOFTCAP, "attn_logit_softcapping"), (SINKS, "attention_sinks")):
        value = getattr(config, field, None)
        if value:
            asked[option] = f"{field}={value}"
    positions = getattr(config, "position_embedding_type", None)
    if positions in ("alibi", "relative"):
        asked[SCORE_BIAS] = f"position_embedding_type={positions!r}"
    if positions == "relative":
        asked[RELATIVE_BIAS] = asked[SCORE_BIAS]
    return asked


class HfxPreTrainedModel(FusedProjectionsMixin, PreTrainedModel):
    """Base of all our models. `from_pretrained` loads what was saved or refuses; it never leaves a part at random."""

    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def __init__(self, config: PretrainedConfig, *inputs, **kwargs):
        config.validate_architecture()  # again: it may have been changed since it was made
        super().__init__(config, *inputs, **kwargs)
        if getattr(config, "router_balance_bias", False):  # a step of 1e-3 would be lost in bf16
            self._keep_in_fp32_modules_strict = {"e_score_correction_bias"}

    def _sdpa_can_dispatch(self, is_init_check: bool = False) -> bool:
        """Whether `sdpa` computes what the config asks for; a ValueError says that it doesn't."""
        self._refuse_unsupported("sdpa")
        return super()._sdpa_can_dispatch(is_init_check)

    def _refuse_unsupported(self, attn_implementation: str | None) -> None:
        reason = refusal(attn_implementation, asked_options(self.config)) if attn_implementation else None
        if reason is not None:
            raise ValueError(reason)
        missing = BACKENDS[attn_implementation].missing() if attn_implementation in BACKENDS else None
        if missing is not None:
            raise ValueError(f"attn_implementation={attn_implementation!r}: {missing}; choose sdpa or hfx_tiled")

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """As transformers', but what takes the place of an `sdpa` that nobody asked for is `hfx_tiled`, not `eager`."""
        self._refuse_unsupported(requested_attention)
        found = super().get_correct_attn_implementation(requested_attention, is_init_check)
        if requested_attention is None and found == "eager":
            logger.warning_once(f"{type(self).__name__}: sdpa can't compute this configuration; using hfx_tiled")
            return "hfx_tiled"
        return found

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None, **kwargs):
        """As transformers', but without reentrant checkpointing where it would lose a gradient.

        That is where something with a gradient enters or leaves a block beside the hidden states. Both ways of
        checkpointing give the same number otherwise.
        """
        if (gradient_checkpointing_kwargs or {}).get("use_reentrant"):
            reason = _why_not_reentrant(self.config)
            if reason:
                logger.warning_once(
                    f"use_reentrant=True: would lose a gradient with {reason}; using use_reentrant=False"
                )
                gradient_checkpointing_kwargs = gradient_checkpointing_kwargs | {"use_reentrant": False}
        super().gradient_checkpointing_enable(gradient_checkpointing_kwargs=gradient_checkpointing_kwargs, **kwargs)

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *args, **kwargs) -> str:
        """As transformers', for kernels from the Hub too, which `get_correct_attn_implementation` is not asked about."""
        self._refuse_unsupported(attn_implementation)
        found = super()._check_and_adjust_attn_implementation(attn_implementation, *args, **kwargs)
        check_loaded_attention(self.config, found)
        return found

    def init_continuous_batching(self, *args, **kwargs):
        """As transformers', which `generate_batch` calls; refused where a paged cache can't hold what the model needs."""
        check_continuous_batching(self)
        return super().init_continuous_batching(*args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # normal(0, initializer_range) matrices and embeddings, norms of one
        if isinstance(module, MultiHeadAttention) and hasattr(module, "sinks"):
            init.zeros_(module.sinks)
        if isinstance(module, MultiHeadAttention) and module.value_mix is not None:
            init.constant_(module.value_mix, 0.5)
        if isinstance(module, DifferentialAttention):
            for name in LAMBDA_VECTORS:
                init.normal_(getattr(module, name), std=LAMBDA_STD)
        if isinstance(module, Router):
            init.normal_(module.weight, std=self.config.initializer_range)
            if module.e_score_correction_bias is not None:
                init.zeros_(module.e_score_correction_bias)
                init.zeros_(module.expert_load)
        if isinstance(module, Experts):
            for parameter in module.parameters():
                init.normal_(parameter, std=self.config.initializer_range)
            if getattr(self.config, "zero_init_residual", False):
                init.zeros_(module.down_proj)
        if isinstance(module, UnitOffsetRMSNorm):
            init.zeros_(module.weight)
        # the matrix itself is marked: transformers passes over modules without a parameter of their own
        if getattr(module, "is_residual_output", False) and getattr(self.config, "zero_init_residual", False):
            init.zeros_(module.weight)
        if isinstance(module, RotaryEmbedding):
            # non-persistent: from_pretrained hands the buffer over uninitialised
            init.copy_(module.inv_freq, module.frequencies()[0])

    def save_pretrained(self, save_directory, *args, bundle: bool | None = None, **kwargs):
        """As transformers', with the code of the model beside config.json: it then loads without hf_ext too.

        Args:
            bundle: False leaves the code out; who loads the model must then have hf_ext. None is True, unless `push_to_hub`
                or `saving_code` around this call says otherwise.
        """
        with saving_code(bundle):
            return super().save_pretrained(save_directory, *args, **kwargs)

    def push_to_hub(self, *args, bundle: bool | None = None, **kwargs):
        """As transformers'; `bundle` as in `save_pretrained`."""
        with saving_code(bundle):
            return super().push_to_hub(*args, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoModel"):
        """As transformers', for classes derived from ours: it would save one file, and ours are saved with all they need."""
        if not is_of_these_sources(cls):
            super().register_for_auto_class(auto_class)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, output_loading_info: bool = False, **kwargs):
        """As `PreTrainedModel.from_pretrained`, but another architecture's weights are refused.

        Raises:
            ValueError: the checkpoint's model_type is another one's, or its weights and this model's base don't match
                name by name. A new head over a loaded base is allowed; a base, or the saved class's own head, isn't.
                With `output_loading_info` the names that don't match are in what is returned instead, and with
                `ignore_mismatched_sizes` weights of another size start anew, as was asked for.
        """
        path = pretrained_model_name_or_path
        if path is not None and not kwargs.get("gguf_file"):
            _refuse_other_model_type(cls, path, {k: kwargs[k] for k in HUB_ARGUMENTS if k in kwargs})
        model, info = super().from_pretrained(path, *model_args, output_loading_info=True, **kwargs)
        if output_loading_info:
            return model, info
        _refuse_unmatched_weights(model, info, path)
        return model


def _why_not_reentrant(config: PretrainedConfig) -> str | None:
    """The option whose tensors a block takes or gives beside the hidden states; reentrant checkpointing sees only these."""
    for name in ("value_residual", "num_experts"):
        value = getattr(config, name, None)
        if value:
            return f"{name}={value}"
    if config.is_encoder_decoder:
        return "an encoder, whose states each block of the decoder takes"
    relative = getattr(config, "position_embedding_type", None) == "relative"
    return "position_embedding_type='relative'" if relative else None


def _refuse_other_model_type(model_class: type[PreTrainedModel], path, hub_arguments: dict) -> None:
    try:
        saved, _ = PretrainedConfig.get_config_dict(path, **hub_arguments)
    except OSError:  # an adapter's folder has no config; for any other, transformers says what is missing
        return
    expected = model_class.config_class.model_type
    found = saved.get("model_type", expected)
    if found != expected:
        raise ValueError(
            f"{path}: holds a model of model_type {found!r}, {model_class.__name__} loads {expected!r}; "
            "load it with AutoModel, or with the class that it was saved from"
        )


def _refuse_unmatched_weights(model: PreTrainedModel, info: dict, path) -> None:
    prefix = f"{model.base_model_prefix}."
    parts_of_body = {name for name, _ in model.base_model.named_children()}

    def is_body(name: str) -> bool:
        return name.removeprefix(prefix).split(".")[0] in parts_of_body

    # the head may differ where the class does: a classifier over a language model's body
    same_class = type(model).__name__ in (getattr(model.config, "architectures", None) or [])
    missing = sorted(name for name in info["missing_keys"] if same_class or is_body(name))
    foreign = sorted(name for name in info["unexpected_keys"] if same_class or is_body(name))
    if missing or foreign:
        parts = []
        if missing:
            parts.append(f"{len(missing)} of its weights are not there (first: {missing[0]})")
        if foreign:
            parts.append(f"{len(foreign)} weights there are not its own (first: {foreign[0]})")
        raise ValueError(
            f"{path}: not a checkpoint of this {type(model).__name__}: {' and '.join(parts)}; "
            "load it with the class and config it was saved from"
        )


def check_token_ids(input_ids: torch.Tensor | None, vocab_size: int, name: str = "input_ids") -> None:
    """Raises ValueError for ids outside the vocabulary and for rows without tokens.

    Looks at the values on CPU only and not while compiling: on an accelerator it would wait for the device, and torch's
    own assertion stops the run there.
    """
    if input_ids is None:
        return
    if input_ids.ndim != 2 or input_ids.is_floating_point():
        kind = str(input_ids.dtype).removeprefix("torch.")
        raise ValueError(f"{name}: {kind} of shape {tuple(input_ids.shape)}, must be integers of shape (batch, tokens)")
    if input_ids.numel() == 0:
        raise ValueError(f"{name}: shape {tuple(input_ids.shape)} holds no tokens; every row needs at least one")
    if not can_look_at(input_ids):
        return
    lowest, highest = int(input_ids.min()), int(input_ids.max())
    if lowest < 0 or highest >= vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(
            f"{name}: token id {wrong} is outside the vocabulary 0..{vocab_size - 1}; "
            "tokenize with this model's tokenizer or resize the embeddings"
        )


def check_labels(labels: torch.Tensor, vocab_size: int, shape: torch.Size, ignore_index: int = -100) -> None:
    """Raises ValueError for labels of another shape than the tokens or outside the vocabulary (values on CPU only)."""
    if labels.shape != shape:
        raise ValueError(f"labels: shape {tuple(labels.shape)} must be that of the tokens, {tuple(shape)}")
    if not can_look_at(labels):
        return
    wrong = labels[(labels != ignore_index) & ((labels < 0) | (labels >= vocab_size))]
    if wrong.numel():
        raise ValueError(
            f"labels: {int(wrong[0])} is outside the vocabulary 0..{vocab_size - 1}; "
            f"use {ignore_index} for tokens that are not to be predicted"
        )


def check_attention_mask(attention_mask, num_new_tokens: int, past_key_values=None) -> None:
    """Raises ValueError for a 2-D padding mask that doesn't fit its tokens or has a row without any, and for a
    ready one that isn't bool or additive: of any other the numbers would be added to the scores.

    With a cache a row may be padding so far: its tokens come in a later chunk.
    """
    if not isinstance(attention_mask, torch.Tensor):
        return
    if attention_mask.ndim != 2:
        if attention_mask.ndim != 4 or not (attention_mask.dtype == torch.bool or attention_mask.is_floating_point()):
            kind = str(attention_mask.dtype).removeprefix("torch.")
            raise ValueError(
                f"attention_mask: {kind} of shape {tuple(attention_mask.shape)}, must be (batch, tokens), or bool or "
                "additive floats of shape (batch, heads or 1, tokens, keys)"
            )
        return
    columns = attention_mask.shape[1]
    cached = 0 if past_key_values is None else past_key_values.get_seq_length()
    if isinstance(cached, torch.Tensor):  # a static cache counts on the device
        cached = int(cached) if can_look_at(cached) else 0
    # without a cache there is nothing that further columns could stand for
    if columns < cached + num_new_tokens or (past_key_values is None and columns != num_new_tokens):
        of_them = f", {cached} of them cached" if cached else ""
        raise ValueError(
            f"attention_mask: {columns} columns for {cached + num_new_tokens} tokens{of_them}; "
            "it needs one column for each token, those in the cache included"
        )
    if past_key_values is None:
        check_rows_have_tokens(attention_mask)


def check_rows_have_tokens(attention_mask: torch.Tensor) -> None:
    """Raises ValueError for a row of a 2-D padding mask that is padding alone (values on CPU only)."""
    if can_look_at(attention_mask) and not bool(attention_mask.any(dim=-1).all()):
        row = int((~attention_mask.any(dim=-1)).nonzero()[0])
        raise ValueError(f"attention_mask: row {row} has no token; drop the row or unmask at least one token")


def check_positions(position_ids: torch.Tensor, max_position_embeddings: int) -> None:
    """Raises ValueError for positions that have no embedding (values on CPU only)."""
    if can_look_at(position_ids) and int(position_ids.max()) >= max_position_embeddings:
        raise ValueError(
            f"position_ids: position {int(position_ids.max())} has no embedding, max_position_embeddings="
            f"{max_position_embeddings}; shorten the input or use other positions"
        )


def can_look_at(tensor: torch.Tensor) -> bool:
    """Whether reading values costs nothing: on CPU, outside of tracing."""
    return (
        tensor.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and type(tensor) in (torch.Tensor, nn.Parameter)
    )
