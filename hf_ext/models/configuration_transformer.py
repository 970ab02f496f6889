"""What the configuration of every text family says about its layers: sizes, wiring, attention, positions."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.dataclasses import strict
from transformers import PretrainedConfig

from hf_ext.layers.attention import OUTPUT_GATES, QK_NORMS, check_heads
from hf_ext.layers.blocks import BLOCKS
from hf_ext.layers.feed_forward import ACTIVATIONS, FEED_FORWARDS
from hf_ext.layers.norms import NORMS
from hf_ext.layers.rope import check_axial
from hf_ext.models.code_by_name import check_names_no_code
from hf_ext.models.configuration_checks import (
    LATENT_FIELDS,
    LAYER_TYPES,
    check_attention_type,
    check_layer_types,
    check_numbers,
    check_positions,
    check_sizes,
    check_special_tokens,
    check_zero_init,
)
from hf_ext.models.configuration_choices import check_choice
from hf_ext.models.configuration_limits import check_saved_sizes
from hf_ext.models.parallel_plans import expert_parallel_plan, tensor_parallel_plan
from hf_ext.models.saved_code import code_beside, is_of_these_sources, saving_code
from hf_ext.ops.rotary import check_rope_parameters


@strict
class HfxTransformerConfig(PretrainedConfig):
    """Base of our families' configurations. A family adds fields, and names to the tuples by which they are checked.

    Args:
        vocab_size: tokens in the vocabulary.
        hidden_size: width of the residual stream.
        intermediate_size: width inside the feed-forward; default 4 hidden_size for a plain one, 8/3 of it, rounded up to
            a multiple of 64, for a gated one (as many parameters).
        num_hidden_layers, num_attention_heads: counts.
        num_key_value_heads: default num_attention_heads; 1 is multi-query attention.
        head_dim: default hidden_size / num_attention_heads.
        block_type: wiring of a block by its name in `hf_ext/layers/blocks.py`: "pre_norm", "post_norm", "sandwich", …
        norm_type: "rmsnorm", "rmsnorm_unit_offset" or "layernorm". norm_eps: added to the mean square or variance.
        mlp_type: "gated" (SwiGLU with silu, GeGLU with gelu) or "plain". hidden_act: its activation.
        qk_norm: None, "head" or "projection", see `MultiHeadAttention`.
        position_embedding_type: "rope", "learned" (GPT-2, BERT) or "sinusoidal" (2017) vectors added to the embeddings,
            "alibi" (BLOOM) or "relative" (T5) biases on the scores, or "none".
        sinusoidal_interleave: whether sine and cosine alternate (2017), or all sines come first (Marian).
        relative_attention_num_buckets, relative_attention_max_distance: of the relative bias.
        embedding_norm: a norm right after the embeddings (BERT, BLOOM).
        rope_parameters: transformers' dict (rope_type, rope_theta, factor, …), or one for each layer type, by its name;
            None in place of a dict: no positions in those layers.
        rope_grid_width: columns of an image whose tokens come row by row: rotate by row and column (`AxialRotaryEmbedding`).
        rope_interleave: rotate neighbouring dims (GPT-J) instead of halves (Llama).
        max_position_embeddings: tokens in a row the model is made for.
        attention_bias, attention_output_bias (default attention_bias), mlp_bias, lm_head_bias: biases of the matrices.
        norm_bias: of LayerNorms.
        query_pre_attn_scalar: scores are divided by its root; default head_dim.
        attn_logit_softcapping: c in c * tanh(scores / c); None for none.
        attention_sinks: a learnt score for each head that takes weight without giving a value (GPT-OSS).
        attention_type: "multi_head", "differential" (the difference of two maps, `DifferentialAttention`) or "latent"
            (DeepSeek's, `LatentAttention`, with its compressed cache).
        kv_lora_rank, q_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim: of latent attention. Defaults: 4 head_dim,
            None (no latent for queries), head_dim, head_dim / 2, head_dim; head_dim then becomes their sum, nope + rope.
        attention_output_gate: None, "elementwise" or "headwise": sigmoid gate on what the heads give.
        value_residual: mix the values of each layer with the first layer's.
        sliding_window: tokens that a query sees to a side, itself included, in the layers that `layer_types` calls
            "sliding_attention" (the others: "full_attention"); without `layer_types` in all layers. Set or taken away
            later, it does so in all layers if they are all alike.
        embedding_multiplier: factor on the embeddings; Gemma's is hidden_size ** 0.5.
        attention_dropout, hidden_dropout, embedding_dropout: probabilities in training. activation_dropout: inside the
            feed-forward.
        final_logit_softcapping: c in c * tanh(logits / c); None for none.
        initializer_range: standard deviation of new matrices.
        zero_init_residual: new output matrices of attention and feed-forward start at 0, so that each block starts as the
            identity; Zhang et al. 2019, arXiv 1901.09321, sec. 3.
        tie_word_embeddings: whether the output matrix is the embedding.

    Raises:
        ValueError: one line, for what can't be built.
    """

    _choices = {
        "block_type": BLOCKS,
        "norm_type": NORMS,
        "mlp_type": FEED_FORWARDS,
        "hidden_act": ACTIVATIONS,
        "position_embedding_type": ("rope", "learned", "sinusoidal", "alibi", "relative", "none"),
        "qk_norm": (None, *QK_NORMS),
        "attention_type": ("multi_head", "differential", "latent"),
        "attention_output_gate": (None, *OUTPUT_GATES),
    }
    _sizes = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "relative_attention_num_buckets",
        *LATENT_FIELDS,
    )
    _positive = (
        "norm_eps",
        "query_pre_attn_scalar",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "embedding_multiplier",
        "sliding_window",
    )
    _not_negative = ("initializer_range",)
    _probabilities = ("attention_dropout", "hidden_dropout", "embedding_dropout", "activation_dropout")

    vocab_size: int = 32_000
    hidden_size: int = 512
    intermediate_size: int | None = None
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    block_type: str = "pre_norm"
    norm_type: str = "rmsnorm"
    norm_eps: float = 1e-6
    norm_bias: bool = True
    mlp_type: str = "gated"
    hidden_act: str = "silu"
    mlp_bias: bool = False
    attention_bias: bool = False
    attention_output_bias: bool | None = None
    lm_head_bias: bool = False
    query_pre_attn_scalar: float | int | None = None
    attn_logit_softcapping: float | int | None = None
    attention_sinks: bool = False
    attention_type: str = "multi_head"
    q_lora_rank: int | None = None
    kv_lora_rank: int | None = None
    qk_nope_head_dim: int | None = None
    qk_rope_head_dim: int | None = None
    v_head_dim: int | None = None
    attention_output_gate: str | None = None
    value_residual: bool = False
    sliding_window: int | None = None
    layer_types: list[str] | None = None
    embedding_norm: bool = False
    embedding_multiplier: float | int | None = None
    qk_norm: str | None = None
    position_embedding_type: str = "rope"
    sinusoidal_interleave: bool = True
    rope_parameters: dict | None = None
    rope_grid_width: int | None = None
    rope_interleave: bool = False
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    max_position_embeddings: int = 2048
    attention_dropout: float | int = 0.0
    hidden_dropout: float | int = 0.0
    embedding_dropout: float | int = 0.0
    activation_dropout: float | int = 0.0
    final_logit_softcapping: float | int | None = None
    initializer_range: float = 0.02
    zero_init_residual: bool = False
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs):
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        self.validate_architecture()  # before anything is derived: a plain ValueError, not a division by zero
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.attention_type == "latent":
            self._fill_in_latent_sizes()
        if self.intermediate_size is None:
            gated = -(-self.hidden_size * 8 // 3 // 64) * 64
            self.intermediate_size = gated if self.mlp_type == "gated" else 4 * self.hidden_size
        if self.layer_types is None:
            self.layer_types = self._layers_all_alike(self.num_hidden_layers)
        super().__post_init__(**kwargs)
        if self.position_embedding_type != "rope":
            self.rope_parameters = None  # transformers fills in its default
        else:
            self.validate_rope()
            for rope_parameters in self.rope_parameters_by_layer_type().values():
                if rope_parameters is not None:
                    check_rope_parameters(rope_parameters, self.rotary_dim, self.max_position_embeddings)
                    if self.rope_grid_width is not None:
                        check_axial(self.rotary_dim, self.rope_grid_width, rope_parameters)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As transformers', which every load of a config.json goes through; absurd sizes, and names of code, are refused."""
        defaults = {name: field.default for name, field in cls.__dataclass_fields__.items()}
        check_saved_sizes(config_dict, defaults=defaults)
        check_names_no_code(config_dict, "config.json")
        return super().from_dict(config_dict, **kwargs)

    def save_pretrained(
        self,
        save_directory,
        push_to_hub: bool = False,
        *,
        bundle: bool | None = None,
        repo_id: str | None = None,
        **kwargs,
    ):
        """As transformers', with the code that config.json's auto_map names; `bundle` as in `HfxPreTrainedModel`."""
        self.validate()  # as transformers' does, before a file is there
        with saving_code(bundle):
            with code_beside(self, save_directory):
                super().save_pretrained(save_directory, **kwargs)
            if push_to_hub:  # all of it: transformers would push what is newer than its call, which the code is not
                self.push_to_hub(repo_id or Path(save_directory).name, **kwargs)

    def push_to_hub(self, *args, bundle: bool | None = None, **kwargs):
        """As transformers'; `bundle` as in `save_pretrained`."""
        with saving_code(bundle):
            return super().push_to_hub(*args, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoConfig"):
        """As transformers', for classes derived from ours; ours are saved with all their code anyway."""
        if not is_of_these_sources(cls):
            super().register_for_auto_class(auto_class)

    def _fill_in_latent_sizes(self) -> None:
        head_dim = self.head_dim
        if self.qk_nope_head_dim is not None and self.qk_rope_head_dim is not None:
            head_dim = self.qk_nope_head_dim  # filled in already, and head_dim is their sum
        self.kv_lora_rank = 4 * head_dim if self.kv_lora_rank is None else self.kv_lora_rank
        self.qk_nope_head_dim = head_dim if self.qk_nope_head_dim is None else self.qk_nope_head_dim
        self.qk_rope_head_dim = head_dim // 2 if self.qk_rope_head_dim is None else self.qk_rope_head_dim
        self.v_head_dim = head_dim if self.v_head_dim is None else self.v_head_dim
        self.head_dim = self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def rotary_dim(self) -> int:
        """Dims of a head that rotary positions may turn."""
        return self.qk_rope_head_dim if self.attention_type == "latent" else self.head_dim

    @property
    def qk_head_dim(self) -> int | None:
        """Size of keys that are not of the values' size: by it transformers knows how to set up a cache in advance."""
        return self.head_dim if self.attention_type == "latent" else None

    @property
    def base_model_tp_plan(self) -> dict[str, str]:
        return self._split_matrices() | self.__dict__.get("base_model_tp_plan", {})

    @base_model_tp_plan.setter
    def base_model_tp_plan(self, plan: dict[str, str]) -> None:
        # transformers 5.17 sets it, with an entry more where the embedding is tied; what follows from the fields still does
        own = self._split_matrices()
        self.__dict__["base_model_tp_plan"] = {name: how for name, how in plan.items() if name not in own}

    def _split_matrices(self) -> dict[str, str]:
        return tensor_parallel_plan(self)

    @property
    def base_model_ep_plan(self) -> dict[str, str] | None:
        return expert_parallel_plan(self)

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        # layers that are all alike follow, so that a window or a number of layers set later, as `from_pretrained(…,
        # sliding_window=…)` does, is not without effect
        if name in ("sliding_window", "num_hidden_layers") and len(set(self.layer_types or ())) == 1:
            self.layer_types = self._layers_all_alike(self.num_hidden_layers)

    def _layers_all_alike(self, count: int) -> list[str]:
        """The types of `count` layers of a config that names none."""
        every = "full_attention" if self.sliding_window is None else "sliding_attention"
        return [every] * count

    def standardize_rope_params(self):
        """As transformers', which before 5.22 puts defaults beside the layer types' parameters, where they are no type's."""
        parameters = self.rope_parameters or {}
        kinds = [kind for kind in LAYER_TYPES if kind in parameters]
        for name in ("rope_theta", "partial_rotary_factor") if kinds else ():
            if name in parameters:
                value = parameters.pop(name)
                for kind in kinds:
                    if parameters[kind] is not None:
                        parameters[kind].setdefault(name, value)
        with self._parameters_of_its_layers():
            super().standardize_rope_params()

    def validate_rope(self):
        """transformers' own check, with its KeyError as the one line that a user expects."""
        try:
            with self._parameters_of_its_layers():
                super().validate_rope()
        except KeyError as error:
            raise ValueError(f"rope_parameters={self.rope_parameters}: {error.args[0]}") from None

    @contextmanager
    def _parameters_of_its_layers(self) -> Iterator[None]:
        """rope_parameters by layer type as transformers 5.5 reads them: of the types that there are, and none is None."""
        parameters = self.rope_parameters or {}
        kinds = [kind for kind in LAYER_TYPES if kind in parameters]
        used = [kind for kind in kinds if kind in self.layer_types]
        put_back = {kind: parameters.pop(kind) for kind in kinds if used and kind not in used}
        for kind in used:
            if parameters[kind] is None:
                put_back[kind], parameters[kind] = None, {"rope_type": "default", "rope_theta": self.default_theta}
        try:
            yield
        finally:
            if put_back:
                self.rope_parameters |= put_back

    def rope_parameters_by_layer_type(self) -> dict[str, dict | None]:
        """Layer type -> its rope_parameters."""
        kinds = sorted(set(self.layer_types))
        nested = any(kind in self.rope_parameters for kind in LAYER_TYPES)
        return {kind: self.rope_parameters.get(kind) if nested else self.rope_parameters for kind in kinds}

    def validate_architecture(self):
        """Runs at creation and again whenever the config is saved."""
        check_sizes(self, self._sizes)
        check_heads(self.hidden_size, self.num_attention_heads, self.num_key_value_heads, self.head_dim)
        for name, choices in self._choices.items():
            check_choice(name, getattr(self, name), choices)
        check_numbers(self, self._positive, above=0)
        check_numbers(self, self._not_negative, at_least=0)
        check_numbers(self, self._probabilities, at_least=0, below=1)
        check_special_tokens(self)
        check_positions(self)
        check_zero_init(self)
        check_layer_types(self)
        check_attention_type(self)
