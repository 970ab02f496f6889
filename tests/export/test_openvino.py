"""OpenVINO's graphs: torch's numbers on other shapes than traced, torch's text, fewer bits, memory that is nobody else's."""

import openvino
import pytest
import torch
from models.grid import ALL_FAMILIES, padded, scores, tokens

from hf_ext.export import export_model
from hf_ext.export.dense_experts import dense_experts
from hf_ext.export.exported_generation import HfxExportedModelForCausalLM, HfxExportedModelForSeq2SeqLM
from hf_ext.export.exported_model import HfxExportedModelForTokenClassification
from hf_ext.export.openvino_graph import shape_of
from hf_ext.export.openvino_quantization import quantize_file
from hf_ext.export.openvino_target import OpenVinoTarget
from hf_ext.hub.private_strings import check_nothing_private


# fp32 by other kernels: sums of some hundred numbers of order 10, in another order
CLOSE = {"atol": 5e-5, "rtol": 1e-5}
LENGTHS = (17, 9, 11)  # others than the graphs are traced with
# what rounding the weights of these models, ten times as large as usual, may move their outputs by, over their spread
MOVED = {"int8": 0.15, "int4": 1.0, "int8_static": 0.5}
SEGMENTS = "BERT: segments, learned positions, post-norm, biases"


def rows(side: str) -> dict[str, torch.Tensor]:
    return padded([{"input_ids": tokens(B=1, T=n, seed=n)[0]} for n in LENGTHS], side)


def assert_same_text(exported, model, **batch) -> None:
    for options in ({}, {"num_beams": 3}):
        asked = {"max_new_tokens": 8, "do_sample": False, **batch, **options}
        assert torch.equal(exported.generate(**asked), model.generate(**asked)), options


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    """A model whose layers see windows and softcaps, and its export."""
    name = "local and global, softcaps, unit offset norms, scaled embeddings"
    model = ALL_FAMILIES["decoder"].make("text", **ALL_FAMILIES["decoder"].variants[name])
    folder = tmp_path_factory.mktemp("decoder") / "export"
    export_model(model, "openvino", folder)
    return model, folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A model that reads segments, and its export."""
    model = ALL_FAMILIES["encoder"].make("token", **ALL_FAMILIES["encoder"].variants[SEGMENTS])
    folder = tmp_path_factory.mktemp("encoder") / "export"
    export_model(model, "openvino", folder)
    return model, folder


@torch.no_grad()
def test_decoder_writes_the_same(decoder):
    model, folder = decoder
    check_nothing_private(folder, [path.name for path in folder.iterdir()])
    exported = HfxExportedModelForCausalLM.from_pretrained(folder)
    batch = rows("left")
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(exported(**batch).logits[real], model(**batch).logits[real], **CLOSE)
    assert_same_text(exported, model, **batch)


@torch.no_grad()
def test_encoder_says_the_same(encoder):
    model, folder = encoder
    exported = HfxExportedModelForTokenClassification.from_pretrained(folder)
    batch = rows("right")
    batch["token_type_ids"] = batch["input_ids"] % 2
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(exported(**batch).logits[real], model(**batch).logits[real], **CLOSE)


@torch.no_grad()
def test_encoder_decoder_writes_the_same(tmp_path):
    family = ALL_FAMILIES["encoder-decoder"]
    small = {"encoder_layers": 1, "num_hidden_layers": 1}
    model = family.make("text", **{**family.variants["T5: relative, scaled output, untied"], **small})
    export_model(model, "openvino", tmp_path / "export")
    exported = HfxExportedModelForSeq2SeqLM.from_pretrained(tmp_path / "export")
    assert_same_text(exported, model, **rows("right"))


@torch.no_grad()
def test_caches_are_not_overwritten(decoder):
    """What a run gives stays what it is in the next, which reads it and writes the longer one elsewhere."""
    model, folder = decoder
    graph = OpenVinoTarget().open(folder / "model.xml")
    prompt = tokens(B=2, T=6)
    cache = model(prompt, use_cache=True).past_key_values
    given = {
        "input_ids": prompt,
        "attention_mask": torch.ones_like(prompt),
        "position_ids": torch.arange(6).expand(2, -1),
        "logits_to_keep": torch.tensor([5]),
    }
    for number in range(len(cache.layers)):
        for kind in ("key", "value"):
            given[f"past_key_values.{number}.{kind}"] = torch.zeros(2, 2, 0, model.config.head_dim)
    first = graph.run(given)
    kept = {name: value.clone() for name, value in first.items()}
    further = {name.replace("present", "past_key_values"): value for name, value in first.items() if "present" in name}
    next_token = {"input_ids": prompt[:, :1], "attention_mask": torch.ones(2, 7, dtype=torch.long)}
    positions = {"position_ids": torch.full((2, 1), 6), "logits_to_keep": torch.tensor([0])}
    second = graph.run(next_token | positions | further)
    for name, value in first.items():
        torch.testing.assert_close(value, kept[name], rtol=0, atol=0)
    assert second["present.0.key"].shape[2] == 7
    torch.testing.assert_close(second["present.0.key"][:, :, :6], first["present.0.key"], rtol=0, atol=0)
    assert shape_of("present.0.key", next_token | further) == tuple(second["present.0.key"].shape)


@pytest.mark.parametrize(
    "name", ["shared experts, sigmoid scores, balance bias, first layer dense", "mixture of experts"]
)
@torch.no_grad()
def test_dense_experts_are_the_same(name):
    model = ALL_FAMILIES["decoder"].make("text", **ALL_FAMILIES["decoder"].variants[name])
    ids = tokens()
    expected = model(ids).logits
    with dense_experts(model):
        torch.testing.assert_close(model(ids).logits, expected, **CLOSE)
    torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=0)


@torch.no_grad()
def test_experts(tmp_path):
    family = ALL_FAMILIES["decoder"]
    model = family.make("text", **family.variants["plain experts, not normalized, parallel"])
    made = export_model(model, "openvino", tmp_path / "export")
    assert made.parity.greedy_same == made.parity.greedy_tokens


def weight_types(path) -> set[str]:
    model = openvino.Core().read_model(path)
    return {op.get_element_type().get_type_name() for op in model.get_ops() if op.get_type_name() == "Constant"}


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@torch.no_grad()
def test_fewer_bits(quantization, decoder, tmp_path):
    model, folder = decoder
    path = copy_of(folder, tmp_path)
    before = path.with_suffix(".bin").stat().st_size
    quantize_file(path, quantization, None)
    assert {"int8": "u8", "int4": "u4"}[quantization] in weight_types(path)
    assert path.with_suffix(".bin").stat().st_size < 0.6 * before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    assert 1e-3 < moved(model, HfxExportedModelForCausalLM.from_pretrained(folder), path, "left") < MOVED[quantization]


@torch.no_grad()
def test_calibrated_inputs(encoder, tmp_path):
    model, folder = encoder
    path = copy_of(folder, tmp_path)
    seen = [rows("right") | {"token_type_ids": rows("right")["input_ids"] % 2}]
    quantize_file(path, "int8_static", seen)
    rounded = [op for op in openvino.Core().read_model(path).get_ops() if op.get_type_name() == "FakeQuantize"]
    assert len(rounded) >= 4 * model.config.num_hidden_layers
    exported = HfxExportedModelForTokenClassification.from_pretrained(folder)
    assert 1e-3 < moved(model, exported, path, "right") < MOVED["int8_static"]


def copy_of(folder, tmp_path):
    for suffix in (".xml", ".bin"):
        (tmp_path / f"model{suffix}").write_bytes((folder / f"model{suffix}").read_bytes())
    return tmp_path / "model.xml"


def moved(model, exported, path, side: str) -> float:
    """How far a quantized graph's outputs are from the model's, over their spread."""
    exported.graphs = {"model": OpenVinoTarget().open(path)}
    batch = rows(side)
    if getattr(model.config, "type_vocab_size", 0):
        batch["token_type_ids"] = batch["input_ids"] % 2
    real = batch["attention_mask"].bool()
    expected = scores(model(**batch))[real]
    return float((scores(exported(**batch))[real] - expected).std() / expected.std())
