"""A decoder written as GGUF and read back by transformers, which has its own idea of what the file says."""

import copy
import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, Qwen3Config

from hf_ext.data.tokenizer_training import train_tokenizer
from hf_ext.export.gguf import export_gguf
from hf_ext.export.gguf_architecture import choose_architecture, fields_not_read
from hf_ext.models import HfxDecoderConfig, HfxDecoderForCausalLM, HfxEncoderConfig, HfxEncoderModel


gguf = pytest.importorskip("gguf", reason="gguf isn't installed: pip install 'hf-ext[export]'")

# fp32, the same products in another order
LOGITS = {"atol": 2e-5, "rtol": 1e-5}
SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
QWEN2 = {"attention_bias": True, "attention_output_bias": False}
# the reader of transformers takes a Qwen3's head for 128 dims, a Gemma2's scaling for that of 256 dims and its softcaps for
# 50 and 30, whatever the file says
QWEN3 = {"qk_norm": "head", "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 128}
GEMMA2 = {
    "block_type": "sandwich",
    "norm_type": "rmsnorm_unit_offset",
    "hidden_act": "gelu_pytorch_tanh",
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention"],
    "embedding_multiplier": 8.0,
    "tie_word_embeddings": True,
}
CASES = {
    "llama": ("llama", {}),
    "llama, tied, own head size and angles": (
        "llama",
        {"tie_word_embeddings": True, "head_dim": 32, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ),
    "llama, neighbours turn together": ("llama", {"rope_interleave": True}),
    "qwen2": ("qwen2", QWEN2),
    "qwen2, neighbours turn together": ("qwen2", {**QWEN2, "rope_interleave": True, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", QWEN3),
    "qwen3, neighbours turn together": ("qwen3", {**QWEN3, "rope_interleave": True}),
    "gemma2": ("gemma2", GEMMA2),
}


def make(**options) -> HfxDecoderForCausalLM:
    torch.manual_seed(0)
    model = HfxDecoderForCausalLM._from_config(
        HfxDecoderConfig(**{**SIZES, **options}), attn_implementation="eager"
    ).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms of one and biases of zero would hide what is left out or out of order
            torch.nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.3)
    return model


def read(folder, **options):
    return AutoModelForCausalLM.from_pretrained(
        folder, gguf_file="model.gguf", dtype=torch.float32, attn_implementation="eager", **options
    ).eval()


def ids(T: int = 11) -> torch.Tensor:
    return torch.randint(2, SIZES["vocab_size"], (2, T), generator=torch.Generator().manual_seed(0))


def rounded(model, kind: str):
    """The model with its matrices as the file's type holds them."""
    kind = gguf.GGMLQuantizationType[kind.upper()]
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            stored = gguf.quants.quantize(parameter.detach().numpy(), kind)
            parameter.data = torch.from_numpy(gguf.quants.dequantize(stored, kind).copy())
    return model


@pytest.mark.parametrize("case", CASES)
def test_transformers_reads_the_same_model(case, tmp_path):
    architecture, options = CASES[case]
    model = make(**options)
    assert choose_architecture(model.config) == architecture
    export_gguf(model, tmp_path / "model.gguf", type="f16")
    read_back = read(tmp_path)
    assert type(read_back).__module__.startswith("transformers.models." + architecture)
    same = rounded(model, "f16")
    torch.testing.assert_close(read_back(ids()).logits, same(ids()).logits, **LOGITS)
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "attention_mask": torch.ones_like(ids())}
    assert torch.equal(read_back.generate(ids(), **options), same.generate(ids(), **options))
    assert same(ids()).logits.std() > 0.5  # not logits of nothing
    # what 11 bits of mantissa cost
    torch.testing.assert_close(same(ids()).logits, model(ids()).logits, atol=2e-2, rtol=0)


def test_f32_is_the_model_itself(tmp_path):
    model = make()
    export_gguf(model, tmp_path / "model.gguf", type="f32")
    torch.testing.assert_close(read(tmp_path)(ids()).logits, model(ids()).logits, **LOGITS)


def test_q8_0(tmp_path):
    model = make()
    export_gguf(model, tmp_path / "model.gguf", type="q8_0")
    logits = read(tmp_path)(ids()).logits
    torch.testing.assert_close(logits, rounded(model, "q8_0")(ids()).logits, **LOGITS)
    exact = model(ids()).logits
    # 8 bits: steps of 1/254 of a block's range, relative errors add up over two layers to about 1 %
    assert 0 < (logits - exact).std() < 0.03 * exact.std()
    export_gguf(model, tmp_path / "half.gguf", type="f16")
    sizes = [(tmp_path / name).stat().st_size for name in ("model.gguf", "half.gguf")]
    assert sizes[0] < 0.62 * sizes[1]  # 8.5 of 16 bits, and metadata


def test_what_the_reader_of_transformers_misses_is_said():
    gemma2 = HfxDecoderConfig(**{**SIZES, **GEMMA2, "head_dim": 32, "attn_logit_softcapping": 20.0})
    assert fields_not_read(gemma2, "gemma2") == {"query_pre_attn_scalar": 32, "attn_logit_softcapping": 20.0}
    assert fields_not_read(HfxDecoderConfig(**{**SIZES, **QWEN3, "head_dim": 32}), "qwen3") == {"head_dim": 32}
    for architecture, options in CASES.values():
        assert fields_not_read(HfxDecoderConfig(**{**SIZES, **options}), architecture) == {}


def test_another_head_size_is_in_the_file(tmp_path):
    """The reader of transformers doesn't look; told by a config, it finds the weights that it expects."""
    model = make(qk_norm="head", head_dim=32)
    export_gguf(model, tmp_path / "model.gguf", type="f32")
    field = gguf.GGUFReader(tmp_path / "model.gguf").fields["qwen3.attention.key_length"]
    assert int(field.parts[field.data[0]][0]) == 32
    told = Qwen3Config(
        **{k: v for k, v in SIZES.items() if k != "initializer_range"},
        head_dim=32,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    torch.testing.assert_close(read(tmp_path, config=told)(ids()).logits, model(ids()).logits, **LOGITS)


TEXTS = [
    "The quick brown fox jumps over the lazy dog's 1234 bones.",
    "def f(x):\n\treturn x  +  1\n\n\n# größer, 東京 and 🙂",
    "  leading, trailing  ",
]


def test_tokenizer(tmp_path):
    tokenizer = train_tokenizer(TEXTS * 3, vocab_size=300, model_max_length=64, extra_tokens=["<|user|>"])
    model = make(vocab_size=320, eos_token_id=0, pad_token_id=1)  # more embeddings than tokens
    export_gguf(model, tmp_path / "model.gguf", tokenizer)
    read_back = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    for text in [*TEXTS, "<|user|>hello<|endoftext|>", "something else: \u00e9\u0301 \x00"]:
        expected = tokenizer(text).input_ids
        assert read_back(text).input_ids == expected
        assert read_back.decode(expected) == tokenizer.decode(expected)
    assert read_back.eos_token == tokenizer.eos_token
    assert read(tmp_path).config.vocab_size == 320


def test_what_a_text_is_wrapped_in_is_said(tmp_path):
    tokenizer = train_tokenizer(TEXTS, vocab_size=268, model_max_length=64, bos_token="<|cls|>", wraps=True)
    export_gguf(make(vocab_size=268), tmp_path / "model.gguf", tokenizer)
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    for name in ("add_bos_token", "add_eos_token"):
        field = fields[f"tokenizer.ggml.{name}"]
        assert bool(field.parts[field.data[0]][0])


REFUSED = {
    "num_experts": {"num_experts": 4},
    "num_nextn_predict_layers": {"num_nextn_predict_layers": 1},
    "attention_type": {"attention_type": "latent", "num_key_value_heads": 4},
    "mlp_type": {"mlp_type": "plain"},
    "mlp_bias": {"mlp_bias": True},
    "lm_head_bias": {"lm_head_bias": True},
    "embedding_norm": {"embedding_norm": True},
    "attention_sinks": {"attention_sinks": True},
    "attention_output_gate": {"attention_output_gate": "headwise"},
    "value_residual": {"value_residual": True},
    "position_embedding_type": {"position_embedding_type": "alibi"},
    "attention_bias": {"attention_bias": True},
    "attention_output_bias": {"attention_output_bias": True},
    "block_type": {"block_type": "parallel"},
    "norm_type": {"norm_type": "layernorm"},
    "hidden_act": {"hidden_act": "gelu"},
    "sliding_window": {"sliding_window": 4},
    "embedding_multiplier": {"embedding_multiplier": 2.0},
    "final_logit_softcapping": {"final_logit_softcapping": 30.0},
    "qk_norm": {"qk_norm": "projection"},
    "query_pre_attn_scalar": {"query_pre_attn_scalar": 24},
    "rope_parameters": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    "head_dim": {**QWEN2, "head_dim": 32},
    "tie_word_embeddings": {**GEMMA2, "tie_word_embeddings": False},
    "layer_types": {**GEMMA2, "layer_types": ["full_attention", "sliding_attention"]},
    "attn_logit_softcapping": {**GEMMA2, "attn_logit_softcapping": None},
}


@pytest.mark.parametrize("field", REFUSED)
def test_what_llama_cpp_has_not_is_refused_by_name(field):
    with pytest.raises(ValueError, match=rf"^{field}=.*: can't be written as GGUF") as error:
        choose_architecture(HfxDecoderConfig(**{**SIZES, **REFUSED[field]}))
    assert "\n" not in str(error.value)


def test_every_option_is_accounted_for():
    """A field that is added to the configuration must be looked at here."""
    known = {
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "norm_eps", "rope_interleave", "max_position_embeddings"),  # in the metadata
        *("pad_token_id", "bos_token_id", "eos_token_id"),
        *("norm_bias", "sinusoidal_interleave", "relative_attention_num_buckets", "relative_attention_max_distance"),
        *("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),  # of what is refused
        *("num_experts_per_tok", "moe_intermediate_size", "num_shared_experts", "mlp_layer_types", "router_scores"),
        *("norm_topk_prob", "routed_scaling_factor", "router_aux_loss_coef", "router_z_loss_coef"),
        *("router_balance_bias", "router_balance_rate", "output_router_logits", "mtp_loss_weight", "rope_grid_width"),
        *("attention_dropout", "hidden_dropout", "embedding_dropout", "activation_dropout", "use_cache"),  # of training
        *("initializer_range", "zero_init_residual"),
    }
    ours, inherited = ({f.name for f in dataclasses.fields(c)} for c in (HfxDecoderConfig, PretrainedConfig))
    ours -= inherited - {"tie_word_embeddings"}
    assert ours - known - set(REFUSED) == set()


def test_nonsense(tmp_path):
    model = make()
    (tmp_path / "there.gguf").touch()
    encoder = HfxEncoderModel(HfxEncoderConfig(**SIZES))
    words = train_tokenizer(TEXTS, vocab_size=267, model_max_length=64, reads_words=True)
    letters = train_tokenizer(TEXTS, kind="characters", vocab_size=50, model_max_length=64)
    many = train_tokenizer(TEXTS, vocab_size=267, model_max_length=64)
    big = make()
    big.model.layers[1].mlp.up_proj.weight.data[0, 0] = 1e5
    cases = {
        r"^path='.*there.gguf': exists": (model, "there.gguf", None, {}),
        r"^path='.*x.bin': must end": (model, "x.bin", None, {}),
        r"^model: a HfxEncoderModel can't": (encoder, "new.gguf", None, {}),
        r"^type='q4_k': must be one of f32, f16, q8_0": (model, "new.gguf", None, {"type": "q4_k"}),
        r"^hidden_size=48: q8_0 has blocks of 32": (make(hidden_size=48), "new.gguf", None, {"type": "q8_0"}),
        r"^tokenizer: puts a space before": (make(vocab_size=300), "new.gguf", words, {}),
        r"^tokenizer: a WordLevel after": (model, "new.gguf", letters, {}),
        r"^tokenizer: has 267 tokens, the model has vocab_size=96": (model, "new.gguf", many, {}),
        r"^type='f16': blk.1.ffn_up.weight holds 1e\+05": (big, "new.gguf", None, {}),
        r"^eos_token_id=\[1, 2\]: GGUF ends": (make(eos_token_id=[1, 2]), "new.gguf", None, {}),
    }
    for message, (given, name, tokenizer, options) in cases.items():
        with pytest.raises(ValueError, match=message):
            export_gguf(given, tmp_path / name, tokenizer, **options)
        assert [p.name for p in tmp_path.iterdir()] == ["there.gguf"], message  # nothing half-written
