"""ONNX files in 8 bits: which products they compute so, and how far they are off."""

import random
import shutil
from collections import Counter

import onnx
import pytest
from models.grid import ALL_FAMILIES
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_ext.export import HfxExportedModelForCausalLM, export_model
from hf_ext.export.onnx_graph import OnnxGraph
from hf_ext.export.onnx_quantization import quantize_file
from hf_ext.export.parity import TENSORS, ParityError, compare


def operators(path) -> Counter:
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def num_bytes(folder) -> int:
    return sum(path.stat().st_size for path in folder.glob("model.onnx*"))


@pytest.fixture
def expected(exported_decoder):
    return {
        k.removeprefix("model/"): v for k, v in load_file(exported_decoder / TENSORS).items() if k.startswith("model/")
    }


# of each layer: query, key, value, output, gate, up, down; and the head
PRODUCTS = 2 * 7 + 1


@pytest.mark.parametrize("fixed", [False, True], ids=["dynamic", "static"])
def test_every_product_with_a_weight(exported_decoder, expected, tmp_path, fixed):
    folder = shutil.copytree(exported_decoder, tmp_path / "copy")
    path = folder / "model.onnx"
    probes = sorted({name.split("/")[0] for name in expected})
    inputs = [{k.split("/", 2)[2]: v for k, v in expected.items() if k.startswith(f"{n}/in/")} for n in probes]
    quantize_file(path, iter(inputs) if fixed else None)
    found = operators(path)
    if fixed:
        assert found["DequantizeLinear"] >= 2 * PRODUCTS
    else:
        assert found["MatMulInteger"] == PRODUCTS
    difference = compare(OnnxGraph(path), expected)
    assert 1e-3 * difference.largest < difference.max_difference < 0.3 * difference.largest
    assert not [name for name in folder.iterdir() if name.name.startswith(".")]


def test_calibrated_on_texts(decoder, tmp_path):
    """Texts of all words: ranges that were seen on few don't hold for others, and the parity says so."""
    words = [f"w{number}" for number in range(decoder.config.vocab_size)]
    model = models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="w0")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), unk_token="w0")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    draw = random.Random(0)
    texts, few = tmp_path / "texts.txt", tmp_path / "few.txt"
    texts.write_text("".join(" ".join(draw.choices(words, k=12)) + "\n" for _ in range(24)))
    few.write_text("w4 w5\n")
    options = {"quantize": "int8_static", "tokenizer": tokenizer}
    exported = export_model(decoder, "onnx", tmp_path / "out", calibration=texts, **options)
    assert exported.parity.greedy_tokens == 16
    assert operators(exported.folder / "model.onnx")["QuantizeLinear"]
    model = HfxExportedModelForCausalLM.from_pretrained(exported.folder, verify=True)
    assert model.description.quantize == "int8_static"
    with pytest.raises(ParityError, match=r"more than the [0-9.]+ that tolerance=0\.5 allows"):
        export_model(decoder, "onnx", tmp_path / "blind", calibration=few, **options)
    assert not (tmp_path / "blind").exists()


def test_a_classifier_is_smaller_and_close(tmp_path):
    options = {"hidden_size": 128, "intermediate_size": 512, "initializer_range": 0.02, "num_hidden_layers": 1}
    model = ALL_FAMILIES["encoder"].make("sequence", "sdpa", **options)
    exported = export_model(model, "onnx", tmp_path / "small", quantize="int8_dynamic")
    assert num_bytes(exported.folder) < 0.45 * sum(4 * p.numel() for p in model.parameters())
    assert exported.parity.parts["model"]["max_difference"] < 0.05
