"""ExecuTorch, in an environment of its own (`make test-executorch`): torch's numbers, torch's text, limits, refusals."""

import json

import pytest
import torch
from models.grid import ALL_FAMILIES, padded, tokens

from hf_ext.export import HfxExportedModelForCausalLM, HfxExportedModelForSeq2SeqLM, export_model, verify
from hf_ext.export.parity import TENSORS
from hf_ext.hub.private_strings import check_nothing_private


DECODERS = (
    "llama",
    "local and global, softcaps, unit offset norms, scaled embeddings",
    "attention sinks, sliding window",
    "learned positions",
    "parallel, ReLU², interleaved partial rotary",
    "latent, queries too, interleaved",
    "llama3",
    "shared experts, sigmoid scores, balance bias, first layer dense",
)
ENCODER_DECODERS = ("BART: learned positions", "T5: relative, scaled output, untied")
HEADS = (
    ("encoder", "text", "sandwich, GeGLU, QK-norm by projection, softcap, tied"),
    ("encoder", "body", "sinusoidal positions"),
    ("encoder", "choice", "longrope"),
    ("encoder", "sequence", "BERT: segments, learned positions, post-norm, biases"),
    ("encoder", "token", "ModernBERT: local and global, no first norm, mean, head on tokens"),
    ("encoder", "question", "relative bias, sliding and global"),
    ("decoder", "sequence", "llama"),
    ("encoder-decoder", "sequence", "rope"),
    ("encoder-decoder", "body", "rope"),
)
LENGTHS = (17, 9, 11)
LIMITS = {"max_batch_size": 4, "max_length": 32}


def made(family: str, head: str, name: str):
    return ALL_FAMILIES[family].make(head, **ALL_FAMILIES[family].variants[name])


def rows(side: str) -> dict[str, torch.Tensor]:
    return padded([{"input_ids": tokens(B=1, T=n, seed=n)[0]} for n in LENGTHS], side)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """The model, and the folder of its export."""
    model = made("decoder", "text", "llama")
    folder = tmp_path_factory.mktemp("exported") / "llama"
    return model, export_model(model, "executorch", folder, **LIMITS).folder


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_write_the_same(name, tmp_path):
    model = made("decoder", "text", name)
    exported = HfxExportedModelForCausalLM.from_pretrained(
        export_model(model, "executorch", tmp_path / "out", **LIMITS).folder
    )
    for options in ({}, {"num_beams": 4}):
        batch = rows("left") if not options else {"input_ids": tokens(B=1, T=9)}
        asked = {"max_new_tokens": 8, "do_sample": False, **batch, **options}
        assert torch.equal(exported.generate(**asked), model.generate(**asked)), options


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_encoder_decoders_write_the_same(name, tmp_path):
    model = made("encoder-decoder", "text", name)
    exported = HfxExportedModelForSeq2SeqLM.from_pretrained(
        export_model(model, "executorch", tmp_path / "out", **LIMITS).folder
    )
    asked = {"max_new_tokens": 8, "do_sample": False, **rows("right")}
    assert torch.equal(exported.generate(**asked), model.generate(**asked))


@pytest.mark.parametrize(("family", "head", "name"), HEADS)
def test_heads(family, head, name, tmp_path):
    """The comparison is the export's own: 1e-4 of the largest output, or no folder."""
    exported = export_model(made(family, head, name), "executorch", tmp_path / "out", **LIMITS)
    assert all(part["max_difference"] < 1e-4 * max(1, part["largest"]) for part in exported.parity.parts.values())


def test_proof_is_there_and_is_checked_again(llama):
    model, folder = llama
    assert all(parameter.requires_grad for parameter in model.parameters())
    record = json.loads((folder / "parity.json").read_text())
    assert record["greedy_same"] == record["greedy_tokens"] == 16
    assert "executorch" in record["versions"]
    assert json.loads((folder / "model.json").read_text())["inputs"][0] == "input_ids"
    check_nothing_private(folder, [path.name for path in folder.iterdir()])
    verify(folder)
    with (folder / TENSORS).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(ValueError, match="isn't the one that"):
        verify(folder)


def test_more_than_there_is_memory_for(llama):
    model, folder = llama
    exported = HfxExportedModelForCausalLM.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"input_ids: shape \(5, 3\) is above \(4, 32\).*max_batch_size"):
        exported(tokens(B=5, T=3))
    with pytest.raises(ValueError, match=r"input_ids: shape \(1, 33\) is above \(4, 32\)"):
        exported(tokens(B=1, T=33))
    longest = tokens(B=4, T=32)
    with torch.no_grad():
        torch.testing.assert_close(exported(longest).logits, model(longest).logits, atol=5e-5, rtol=1e-5)


def test_the_least_memory(tmp_path):
    """What is compared fits into it, the text too."""
    folder = export_model(
        made("decoder", "text", "llama"), "executorch", tmp_path / "out", max_batch_size=3, max_length=12
    ).folder
    record = json.loads((folder / "parity.json").read_text())
    assert 0 < record["greedy_same"] == record["greedy_tokens"] < 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "int8"}, "quantize='int8': executorch can't; it can none at all"),
        ({"max_batch_size": 2}, "max_batch_size=2: must be at least 3"),
        ({"max_length": 4096}, "max_length=4096: the model has 64 positions; give that or less"),
    ],
)
def test_refusals(options, message, tmp_path):
    with pytest.raises(ValueError, match="^" + message):
        export_model(made("decoder", "text", "llama"), "executorch", tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())
