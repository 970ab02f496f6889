"""`hf-ext doctor`: what it says is so, and what is wrong changes the exit code."""

import json

import torch
from cli.command_line import hf_ext_command

from hf_ext.cli import examination


def test_what_is_installed_and_computed(capsys):
    done = hf_ext_command(capsys, "doctor", "--json")
    found = json.loads(done.out)
    assert (done.code, found["problems"]) == (0, [])
    assert found["packages"]["torch"] == torch.__version__
    assert found["attention"]["default"] == "sdpa"
    assert found["attention"]["others"]["hfx_tiled"] == "could be taken"
    assert found["attention"]["others"]["hfx_ulysses"] == "needs several processes"
    if not torch.cuda.is_available():
        assert found["processors"]["accelerator"].startswith("none")


def test_the_page_says_the_same(capsys):
    done = hf_ext_command(capsys, "doctor")
    assert done.code == 0
    for part in (f"torch {torch.__version__}", "Attention: sdpa", "hfx_ulysses", "no problem found"):
        assert part in done.out


def test_kernels_that_cannot_be_taken_are_a_problem(capsys, monkeypatch):
    monkeypatch.setenv("HF_EXT_KERNELS", "cuda")
    done = hf_ext_command(capsys, "doctor")
    assert done.code == 1
    assert "problem: HF_EXT_KERNELS='cuda': must be one of torch, triton" in done.out
    monkeypatch.setenv("HF_EXT_KERNELS", "triton")
    monkeypatch.setattr(examination, "triton_missing", lambda: "no CUDA device here")
    assert "problem: HF_EXT_KERNELS='triton': no CUDA device here; choose torch" in hf_ext_command(capsys, "doctor").out


def test_what_needs_a_device_is_not_said_to_be_there(capsys, monkeypatch):
    monkeypatch.setattr(examination, "triton_missing", lambda: "no CUDA device here")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = json.loads(hf_ext_command(capsys, "doctor", "--json").out)["kernels"]
    assert found["use_liger_kernel"] == "no CUDA device here"
    assert found["use_kernels"].startswith("no CUDA device here")


def test_what_is_missing_or_old_is_a_problem(capsys, monkeypatch):
    asked = ["torch>=99.0", "no-such-package>=1.0", "peft>=99; extra == 'peft'", "other-thing; extra == 'other'"]
    monkeypatch.setattr(examination, "requires", lambda name: asked)
    done = hf_ext_command(capsys, "doctor", "--json")
    found = json.loads(done.out)
    assert done.code == 1
    assert [line.split(":")[0].split()[0] for line in found["problems"]] == ["no-such-package", "peft", "torch"]
    assert found["packages"]["other-thing"] is None


def test_a_version_with_a_known_hole_is_noted(monkeypatch):
    monkeypatch.setitem(examination.MENDED, "torch", ("99.0", "CVE-0: a test"))
    assert any("torch" in note and "CVE-0" in note for note in examination.examine()["notes"])


def test_attention_that_differs_is_a_problem(monkeypatch):
    from hf_ext.ops import backends

    monkeypatch.setattr(backends, "flash_attention", lambda query, key, value, **_: torch.zeros_like(query))
    assert any(line.startswith("attention hfx_tiled differs") for line in examination.examine()["problems"])
