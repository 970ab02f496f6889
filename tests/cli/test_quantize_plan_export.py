"""`hf-ext quantize`, `plan`, `export`: what the rooms' own functions make, by one command each."""

import json

import pytest
from cli.command_line import hf_ext_command
from cli.saved_models import TEXT, save_tiny_decoder
from transformers import AutoConfig

from hf_ext.quantization import load_quantized
from hf_ext.quantization.methods import METHODS
from hf_ext.training.scaling.parameters import count_parameters


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_decoder(tmp_path_factory.mktemp("quantize") / "model")


def test_quantize_saves_what_loads_and_writes(folder, tmp_path, capsys):
    out = tmp_path / "int8"
    done = hf_ext_command(capsys, "quantize", folder, out, "--exclude", "down_proj")
    assert done.code == 0, done.err
    layers = load_quantized(out).quantized_with["layers"]
    assert layers
    assert not [name for name in layers if name.endswith("down_proj")]
    assert hf_ext_command(capsys, "generate", out, "import", "--max_new_tokens", "2").code == 0
    assert (
        "has no effect on a quantized folder" in hf_ext_command(capsys, "generate", out, "x", "--dtype", "float32").line
    )
    assert hf_ext_command(capsys, "quantize", folder, out).code == 2  # it is there
    assert "did you mean 'int4'" in hf_ext_command(capsys, "quantize", folder, tmp_path / "x", "--method", "int44").line
    assert hf_ext_command(capsys, "quantize", "--methods").out.count("\n") == len(METHODS)
    assert "needs the model's folder" in hf_ext_command(capsys, "quantize", folder).line


@pytest.mark.heavy
def test_quantize_compares(folder, tmp_path, capsys):
    texts = tmp_path / "texts.txt"
    texts.write_text(TEXT.replace("\n", " ") + "\nanother one\n")
    done = hf_ext_command(capsys, "quantize", folder, tmp_path / "q", "--compare", texts)
    assert done.code == 0, done.err
    lines = done.out.splitlines()[-3:]
    assert [line.split()[1] for line in lines] == ["method", "-", "int8"]


def test_plan_counts(folder, capsys):
    done = hf_ext_command(capsys, "plan", folder / "config.json", "--batch", "2", "--length", "32")
    assert done.code == 0, done.err
    assert f"{count_parameters(AutoConfig.from_pretrained(folder)).total:,}" in done.out
    assert "--budget" in hf_ext_command(capsys, "plan", "--list").out


def test_plan_allocates_nothing_for_an_absurd_file(tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "hfx_decoder", "num_hidden_layers": 10**9}))
    done = hf_ext_command(capsys, "plan", path)
    assert (done.code, "num_hidden_layers=1000000000" in done.line) == (2, True)


def test_export_lists_its_targets_and_refuses_others(folder, tmp_path, capsys):
    from hf_ext.export.targets import TARGETS

    listed = hf_ext_command(capsys, "export", "--targets").out
    assert [line.split(":")[0] for line in listed.splitlines()] == [*TARGETS, "gguf"]
    assert "did you mean 'onnx'" in hf_ext_command(capsys, "export", folder, tmp_path / "x", "--to", "onxx").line
    assert "needs the model" in hf_ext_command(capsys, "export", folder, tmp_path / "x").line
    done = hf_ext_command(capsys, "export", folder, tmp_path / "x.gguf", "--to", "gguf", "--task", "text-generation")
    assert "--task text-generation: has no effect with --to gguf" in done.line


def test_export_writes_gguf(folder, tmp_path, capsys):
    pytest.importorskip("gguf")
    out = tmp_path / "model.gguf"
    done = hf_ext_command(capsys, "export", folder, out, "--to", "gguf", "--quantize", "f32")
    assert done.code == 0, done.err
    assert out.read_bytes()[:4] == b"GGUF"


@pytest.mark.heavy
def test_export_writes_what_computes_the_same(folder, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    done = hf_ext_command(capsys, "export", folder, tmp_path / "onnx", "--to", "onnx")
    assert done.code == 0, done.err
    assert list((tmp_path / "onnx").glob("*.onnx"))
    assert hf_ext_command(capsys, "export", folder, tmp_path / "onnx", "--to", "onnx").code == 2  # it is there
    done = hf_ext_command(capsys, "export", "--verify", tmp_path / "onnx")
    assert (done.code, "verified" in done.out) == (0, True)
    done = hf_ext_command(capsys, "export", "--verify", tmp_path / "onnx", "--task", "text-generation")
    assert (done.code, "--verify checks what is there" in done.line) == (2, True)
