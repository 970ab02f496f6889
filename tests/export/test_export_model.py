"""A model exported: the same numbers as torch's, a record of it, nothing left where it isn't so, and nonsense refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from models.grid import ALL_FAMILIES
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import hf_ext
from hf_ext.export import (
    ExportOptions,
    HfxExportedModelForCausalLM,
    HfxExportedModelForMaskedLM,
    HfxExportedModelForMultipleChoice,
    HfxExportedModelForQuestionAnswering,
    HfxExportedModelForSequenceClassification,
    HfxExportedModelForTokenClassification,
    ParityError,
    export_model,
    verify,
)
from hf_ext.export.parity import RECORD, TENSORS
from hf_ext.export.targets import TARGETS
from hf_ext.hub.private_strings import check_nothing_private


# fp32, the same products in another order
LOGITS = {"atol": 2e-5, "rtol": 1e-5}
# a graph remembers where in the sources its nodes come from
SOURCES = str(Path(hf_ext.__file__).parent).encode()
HEADS = {
    "text": HfxExportedModelForMaskedLM,
    "sequence": HfxExportedModelForSequenceClassification,
    "token": HfxExportedModelForTokenClassification,
    "question": HfxExportedModelForQuestionAnswering,
    "choice": HfxExportedModelForMultipleChoice,
}


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(3, 97, shape, generator=torch.Generator().manual_seed(5))


def test_a_folder_holds_all_that_runs_it_and_its_record(exported_decoder):
    files = {path.name for path in exported_decoder.iterdir()}
    assert files >= {
        "export.json",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "model.onnx",
        RECORD,
        TENSORS,
    }
    assert not any(name.endswith((".safetensors", ".py")) for name in files - {TENSORS})
    assert not any(SOURCES in path.read_bytes() for path in exported_decoder.iterdir())
    check_nothing_private(exported_decoder, files)
    record = json.loads((exported_decoder / RECORD).read_text())
    assert 0 < record["parts"]["model"]["max_difference"] < 1e-4
    assert record["greedy_same"] == record["greedy_tokens"] == 16
    assert set(record["versions"]) >= {"torch", "transformers", "onnxruntime"}


@torch.no_grad()
@pytest.mark.parametrize(("rows", "cached", "at_hand"), [(1, 0, 1), (1, 0, 20), (4, 3, 1), (2, 11, 7)])
def test_a_decoder_is_the_same_at_any_size(decoder, exported_decoder, rows, cached, at_hand):
    ids = tokens(rows, cached + at_hand)
    expected = decoder(ids).logits
    model = HfxExportedModelForCausalLM.from_pretrained(exported_decoder)
    cache = model(ids[:, :cached]).past_key_values if cached else None
    torch.testing.assert_close(model(ids[:, cached:], past_key_values=cache).logits, expected[:, cached:], **LOGITS)


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
def test_every_head_of_an_encoder(head, tmp_path):
    model = ALL_FAMILIES["encoder"].make(head, "sdpa", num_hidden_layers=1)
    folder = export_model(model, "onnx", tmp_path / "out").folder
    exported = HEADS[head].from_pretrained(folder)
    ids = tokens(3, 4, 11) if head == "choice" else tokens(3, 11)
    mask = torch.ones_like(ids)
    mask[1, ..., 6:] = 0
    expected, got = model(input_ids=ids, attention_mask=mask), exported(input_ids=ids, attention_mask=mask)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        where = mask.bool() if value.shape == mask.shape or value.ndim > mask.ndim else ...
        torch.testing.assert_close(got[name][where], value[where], **LOGITS)


@torch.no_grad()
def test_experts_and_what_lies_in_a_compressed_cache(tmp_path):
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    latent = {
        "attention_type": "latent",
        "kv_lora_rank": 20,
        "qk_nope_head_dim": 6,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
    }
    model = ALL_FAMILIES["decoder"].make("text", "sdpa", num_hidden_layers=1, **experts, **latent)
    exported = HfxExportedModelForCausalLM.from_pretrained(export_model(model, "onnx", tmp_path / "out").folder)
    ids = tokens(3, 11)
    cache = exported(ids[:, :6]).past_key_values
    torch.testing.assert_close(exported(ids[:, 6:], past_key_values=cache).logits, model(ids).logits[:, 6:], **LOGITS)


def test_torch_export(decoder, tmp_path):
    folder = export_model(decoder, "torch-export", tmp_path / "out").folder
    assert SOURCES not in (folder / "model.pt2").read_bytes()
    check_nothing_private(folder, [path.name for path in folder.iterdir()])
    model = HfxExportedModelForCausalLM.from_pretrained(folder, verify=True)
    ids = tokens(2, 13)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, decoder(ids).logits, **LOGITS)


def test_verified_again(exported_decoder):
    found = verify(exported_decoder)
    assert found.differences["model"].max_difference < 1e-4
    assert found.greedy_same == found.greedy_tokens == 16


def test_other_numbers_are_noticed(exported_decoder, tmp_path):
    folder = shutil.copytree(exported_decoder, tmp_path / "copy")
    with (folder / TENSORS).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ParityError, match=r"parity.safetensors: isn't the one"):
        verify(folder)
    wrong = load_file(exported_decoder / TENSORS)
    wrong["model/1/out/logits"] += 0.01
    save_file(wrong, folder / TENSORS)
    record = json.loads((folder / RECORD).read_text())
    from hf_ext.export.parity import sha256_of

    (folder / RECORD).write_text(json.dumps(record | {"inputs_sha256": sha256_of(folder / TENSORS)}))
    with pytest.raises(ParityError, match=r"model: its logits differs from torch's by 0\.01"):
        HfxExportedModelForCausalLM.from_pretrained(folder, verify=True)


def test_outside_of_the_tolerance_nothing_is_left(tmp_path):
    model = ALL_FAMILIES["encoder"].make("sequence", "sdpa", num_hidden_layers=1)
    with pytest.raises(ParityError, match=r"^model: its logits differs from torch's by .* tolerance=1e-12 allows"):
        export_model(model, "onnx", tmp_path / "out", tolerance=1e-12)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("onxx", {}, r"to='onxx': must be one of .*; did you mean 'onnx'"),
        ("torch-export", {"quantize": "int8_dynamic"}, r"quantize='int8_dynamic': torch-export can't; it can none"),
        ("onnx", {"quantize": "int4"}, r"quantize='int4': onnx can't; it can int8_dynamic, int8_static"),
        ("onnx", {"quantize": "int8_static"}, r"quantize='int8_static': needs texts to calibrate on"),
        ("onnx", {"quantize": "int8_dynamic", "calibration": "texts.txt"}, r"calibrates nothing; leave it out"),
        ("onnx", {"quantize": "int8_static", "calibration": "empty.txt"}, r"calibration='empty.txt': holds no text"),
        ("onnx", {"quantize": "int8_static", "calibration": "none.txt"}, r"calibration='none.txt': no such file"),
        ("onnx", {"max_length": 32}, r"max_length=32: onnx takes any; leave it out"),
        ("onnx", {"tolerance": 0.0}, r"tolerance=0.0: must be above 0"),
        ("onnx", {"task": "fill-mask"}, r"task='fill-mask': must be one of"),
        (
            "onnx",
            {"task": "text-classification"},
            r"task='text-classification': the model was saved as a HfxDecoderForCaus",
        ),
        ("onnx", {"options": ExportOptions(), "quantize": "int8_dynamic"}, r"options: given together with quantize"),
    ],
)
def test_nonsense_is_one_line(saved_decoder, tmp_path, monkeypatch, target, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(ValueError, match=message) as caught:
        export_model(saved_decoder, target, tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_models_that_are_not_ready(tmp_path):
    model = ALL_FAMILIES["encoder"].make("sequence", "sdpa")
    with pytest.raises(ValueError, match=r"model: is in training mode; call model.eval\(\) first"):
        export_model(model.train(), "onnx", tmp_path / "out")
    with pytest.raises(ValueError, match=r"model: its weights are bfloat16; export model.float\(\)"):
        export_model(model.eval().bfloat16(), "onnx", tmp_path / "out")


def test_folders_that_are_there_or_hold_something_else(saved_decoder, exported_decoder, tmp_path):
    with pytest.raises(ValueError, match=r"exists already; name another folder"):
        export_model(saved_decoder, "onnx", exported_decoder)
    with pytest.raises(ValueError, match=r"holds no model \(no config.json\)"):
        export_model(tmp_path, "onnx", tmp_path / "out")
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    with pytest.raises(ValueError, match=r"a LlamaForCausalLM is none of hf_ext's"):
        export_model(llama, "onnx", tmp_path / "out")
    llama.save_pretrained(tmp_path / "llama")
    with pytest.raises(ValueError, match=r"its model_type 'llama' is none of hf_ext's"):
        export_model(tmp_path / "llama", "onnx", tmp_path / "out")
    shutil.copytree(saved_decoder, tmp_path / "quantized")
    (tmp_path / "quantized/quantization.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is quantized already"):
        export_model(tmp_path / "quantized", "onnx", tmp_path / "out")
    with pytest.raises(ValueError, match=r"holds no export \(no export.json\)"):
        HfxExportedModelForCausalLM.from_pretrained(saved_decoder)
    with pytest.raises(
        ValueError, match=r"was exported as text-generation, HfxExportedModelForMaskedLM runs fill-mask"
    ):
        HfxExportedModelForMaskedLM.from_pretrained(exported_decoder)


def test_a_target_without_its_packages_is_refused(saved_decoder, tmp_path, monkeypatch):
    monkeypatch.setattr(type(TARGETS["onnx"]), "packages", ("onnx", "no_such_package"))
    with pytest.raises(ValueError, match=r"to='onnx': no_such_package isn't installed; pip install 'hf-ext\[export\]'"):
        export_model(saved_decoder, "onnx", tmp_path / "out")


def test_options_are_those_of_the_command_line():
    import argparse

    from hf_ext.export import add_export_arguments, options_of

    parser = argparse.ArgumentParser()
    add_export_arguments(parser)
    line = "-m model --to onnx --quantize int8_static --calibration texts.txt --tolerance 0.5 --greedy_tokens 8"
    line += " --max_batch_size 3 --max_length 12 out"
    options = options_of(parser.parse_args(line.split()))
    assert dataclasses.asdict(options) == {
        "quantize": "int8_static",
        "calibration": "texts.txt",
        "task": None,
        "tolerance": 0.5,
        "greedy_tokens": 8,
        "max_batch_size": 3,
        "max_length": 12,
    }
