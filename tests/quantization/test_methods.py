"""Every method on every family: what is saved comes back bit for bit, and what can't be done is refused in one line."""

import json
from importlib.util import find_spec

import pytest
import torch
from models.grid import ALL_FAMILIES, FAMILIES, asked, padded, scores
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from hf_ext.quantization import METHODS, QuantizedLinear, load_quantized, quantize, quantize_tensor, save_quantized
from hf_ext.quantization.calibration import observe_inputs
from hf_ext.quantization.observers import MinMaxObserver
from hf_ext.quantization.quantizable import quantizable_layers


HERE = [name for name, method in METHODS.items() if method.module not in ("torchao", "gptqmodel")]
# their error in the logits over the logits' own spread, in two to five layers with weights of ten times the usual size;
# outputs that have nothing to do with each other are at 1.41
CLOSE = {"int8": 0.1, "int4": 0.7, "int2": 1.25, "float8": 0.25}
OPTIONS = {"group_size": 16}  # 48 inputs are no multiple of the default


def options_of(method: str) -> dict:
    return {name: value for name, value in OPTIONS.items() if name in METHODS[method].defaults}


def batches(family: str, head: str) -> list[dict]:
    return [padded([asked(document) for document in ALL_FAMILIES[family].documents(head)])]


def quantized(model, method: str, family: str = "decoder", head: str = "text"):
    calibration = batches(family, head) if METHODS[method].calibrates else None
    return quantize(model, method, calibration=calibration, **options_of(method))


def output(model, family: str, head: str) -> torch.Tensor:
    with torch.no_grad():
        return scores(model(**inputs(family, head)))


def inputs(family: str, head: str) -> dict:
    return batches(family, head)[0]


@pytest.mark.parametrize("family", ALL_FAMILIES)
@pytest.mark.parametrize("method", HERE)
def test_what_is_saved_comes_back(method, family, tmp_path):
    head = "text"
    model = ALL_FAMILIES[family].make(head, tie_word_embeddings=True)
    before = output(model, family, head)
    quantized(model, method, family, head)
    after = output(model, family, head)
    error = (after - before).std() / before.std()
    kind = next(kind for kind in CLOSE if kind in method)
    assert 1e-4 < error < CLOSE[kind]
    save_quantized(model, tmp_path / "kept")
    assert not [p for p in (tmp_path / "kept").iterdir() if p.suffix not in (".json", ".safetensors")]
    loaded = load_quantized(tmp_path / "kept")
    assert type(loaded) is type(model)
    assert torch.equal(output(loaded, family, head), after)
    assert loaded.quantized_with == model.quantized_with


HEADS = [
    (f, h) for f, family in ALL_FAMILIES.items() for h in family.heads if h not in ("text", "several labels", "numbers")
]


@pytest.mark.parametrize(("family", "head"), HEADS, ids=lambda value: value)
def test_every_head_comes_back(family, head, tmp_path):
    model = quantize(ALL_FAMILIES[family].make(head), "int8")
    after = output(model, family, head)
    save_quantized(model, tmp_path / "kept")
    loaded = load_quantized(tmp_path / "kept")
    assert type(loaded) is type(model)
    assert torch.equal(output(loaded, family, head), after)


VARIANTS = ("multi-query, post-norm, LayerNorm, GELU, biases", "parallel, ReLU², interleaved partial rotary")


@pytest.mark.parametrize(
    "options", [*(FAMILIES["decoder"].variants[v] for v in VARIANTS), {"attention_type": "latent"}], ids=str
)
def test_other_wirings(options, tmp_path):
    model = quantize(FAMILIES["decoder"].make("text", **options), "int8_dynamic")
    after = output(model, "decoder", "text")
    save_quantized(model, tmp_path / "kept")
    assert torch.equal(output(load_quantized(tmp_path / "kept"), "decoder", "text"), after)


def test_the_files_are_as_small_as_the_bits(tmp_path):
    sizes = {}
    for method in ("int8", "int4", "int2"):
        model = quantized(FAMILIES["decoder"].make("text"), method)
        save_quantized(model, tmp_path / method)
        stored = load_file(tmp_path / method / "model.safetensors")
        sizes[method] = sum(t.numel() for name, t in stored.items() if name.endswith(".integers"))
    assert sizes["int8"] == 2 * sizes["int4"] == 4 * sizes["int2"]


def test_ours_and_quantos_int8_are_the_same_model():
    ours = quantize(FAMILIES["decoder"].make("text"), "int8")
    theirs = quantize(FAMILIES["decoder"].make("text"), "quanto_int8")
    assert ours.quantized_with["layers"] == theirs.quantized_with["layers"]
    for name in ours.quantized_with["layers"]:
        assert torch.equal(ours.get_submodule(name).weight, theirs.get_submodule(name).weight.dequantize())
    # they multiply by integers and scale afterwards
    torch.testing.assert_close(output(ours, "decoder", "text"), output(theirs, "decoder", "text"), atol=2e-4, rtol=1e-4)


def test_generation_and_precision(tmp_path):
    model = quantize(FAMILIES["decoder"].make("text").to(torch.bfloat16), "int4", **OPTIONS)
    save_quantized(model, tmp_path / "kept")
    loaded = load_quantized(tmp_path / "kept")
    assert loaded.dtype == torch.bfloat16
    ids = inputs("decoder", "text")["input_ids"][:1]
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(loaded.generate(ids, **options), model.generate(ids, **options))


def test_what_is_quantized_and_what_is_not():
    model = FAMILIES["decoder"].make("text", tie_word_embeddings=True)
    head, kept = model.lm_head.weight, model.model.layers[0].self_attn.o_proj.weight.clone()
    quantize(model, "int8", exclude=["o_proj"])
    assert model.lm_head.weight is head is model.model.embed_tokens.weight
    assert torch.equal(model.model.layers[0].self_attn.o_proj.weight, kept)
    layer = model.model.layers[1].mlp.down_proj
    assert isinstance(layer, QuantizedLinear)
    plain = FAMILIES["decoder"].make("text", tie_word_embeddings=True).model.layers[1].mlp.down_proj.weight
    assert torch.equal(layer.weight, quantize_tensor(plain.detach(), layer.how).dequantize())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_calibrated_ranges_are_those_of_the_inputs():
    model = FAMILIES["decoder"].make("text")
    names = quantizable_layers(model)
    seen = observe_inputs(model, names, MinMaxObserver, batches("decoder", "text"))
    quantize(model, "int8_static", calibration=batches("decoder", "text"))
    for name in names:
        low, high = seen[name].range()
        assert low < 0 < high
        assert model.get_submodule(name).input_quantizer.scale.item() == pytest.approx((high - low) / 255)
    assert not model.get_submodule(names[0])._forward_pre_hooks  # the observers are gone


def test_a_quantized_folder_is_not_loaded_as_a_plain_one(tmp_path):
    save_quantized(quantize(FAMILIES["decoder"].make("text"), "int8"), tmp_path / "kept")
    with pytest.raises(ValueError, match="not a checkpoint of this HfxDecoderForCausalLM"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "kept")


def make():
    return FAMILIES["decoder"].make("text")


REFUSED = {
    r"^method='int9': must be one of .*; did you mean": lambda: quantize(make(), "int9"),
    r"^model: a LlamaForCausalLM is none of hf_ext's": lambda: quantize(
        LlamaForCausalLM(LlamaConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)), "int8"
    ),
    r"^num_experts=4: the experts' stacked matrices": lambda: quantize(
        FAMILIES["decoder"].make("text", num_experts=4), "int8"
    ),
    r"^group_size: method='int8' takes no options": lambda: quantize(make(), "int8", group_size=32),
    r"^method int4.group_sise: no such field; did you mean 'group_size'": lambda: quantize(
        make(), "int4", group_sise=8
    ),
    r"^group_size=32: must divide the 48 inputs of model.layers.0.mlp.down_proj": lambda: quantize(make(), "int4"),
    r"^calibration: method='int8_static' needs batches": lambda: quantize(make(), "int8_static"),
    r"^calibration: an empty set of batches": lambda: quantize(make(), "int8_static", calibration=[]),
    r"^calibration: an empty set of batches, no": lambda: quantize(make(), "quanto_int8_static", calibration=iter(())),
    r"^calibration: has no effect with method='int8'": lambda: quantize(make(), "int8", calibration=[]),
    r"^observer='mean': must be one of": lambda: quantize(
        make(), "int8_static", calibration=batches("decoder", "text"), observer="mean"
    ),
    r"^exclude: 'o_poj' is no linear layer here": lambda: quantize(make(), "int8", exclude=["o_poj"]),
    r"^model: has no linear layer left to quantize": lambda: quantize(quantize(make(), "int8"), "int8"),
    r"^model: its .* is a .*QLinear; quantize the plain": lambda: quantize(quantize(make(), "quanto_int8"), "int8"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_nonsense(message):
    with pytest.raises(ValueError, match=message) as error:
        REFUSED[message]()
    assert "\n" not in str(error.value)


def test_what_is_refused_is_left_as_it_was():
    for method in ("int8_static", "quanto_int8_static"):
        model = make()
        with pytest.raises(ValueError, match="empty set"):
            quantize(model, method, calibration=[])
        assert len(quantizable_layers(model)) == 14
    with pytest.raises(ValueError, match="group_size"):
        quantize(model, "int4")
    assert len(quantizable_layers(model)) == 14


def test_a_save_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr("hf_ext.quantization.saving.save_file", full)
    with pytest.raises(OSError, match="No space"):
        save_quantized(quantize(make(), "int8"), tmp_path / "kept")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(find_spec("torchao") is not None, reason="torchao is there: nothing is missing")
def test_a_library_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"^method='torchao_int8': torchao isn't installed; pip install torchao"):
        quantize(make(), "torchao_int8")


def test_folders(tmp_path):
    model = quantize(make(), "int8")
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match=r"^folder='.*there': exists already"):
        save_quantized(model, tmp_path / "there")
    with pytest.raises(ValueError, match=r"^model: this HfxDecoderForCausalLM isn't quantized"):
        save_quantized(make(), tmp_path / "new")
    with pytest.raises(ValueError, match=r"^folder='.*there': holds no quantized model"):
        load_quantized(tmp_path / "there")
    save_quantized(model, tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "there"]  # nothing half-written
    weights = load_file(tmp_path / "new" / "model.safetensors")
    weights.pop("model.layers.0.mlp.up_proj.scale")
    save_file(weights, tmp_path / "new" / "model.safetensors")
    with pytest.raises(ValueError, match=r"^folder='.*new': its weights aren't those of its config: .*up_proj.scale"):
        load_quantized(tmp_path / "new")
    description = json.loads((tmp_path / "new" / "quantization.json").read_text())
    assert description["method"] == "int8"
    assert description["versions"]["torch"]
