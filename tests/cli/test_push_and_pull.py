"""`hf-ext push`, `pull`, and models by their name on the Hub: a loopback Hub, the real client."""

import json

import pytest
from cli.command_line import hf_ext_command
from cli.saved_models import save_tiny_decoder
from hub.loopback_hub import File, reachable_hub


NAME = "me/tiny"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_tiny_decoder(tmp_path_factory.mktemp("push") / "tiny")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with reachable_hub(monkeypatch) as running:
        yield running


def test_there_and_back(hub, saved, tmp_path, capsys):
    done = hf_ext_command(capsys, "push", saved, NAME, "--tag", "v1", "--message", "first")
    assert done.code == 0, done.err
    commit = done.out.split()[-1]
    assert hub.repository(NAME).branches["main"] == commit
    done = hf_ext_command(capsys, "pull", NAME, tmp_path / "pulled", "--revision", "v1")
    assert done.code == 0, done.err
    assert commit in done.out
    assert {p.name: p.read_bytes() for p in (tmp_path / "pulled").iterdir()} == {
        p.name: p.read_bytes() for p in saved.iterdir()
    }
    done = hf_ext_command(capsys, "pull", NAME, tmp_path / "other", "--revision", "v2")
    assert (done.code, "has no such branch" in done.line) == (2, True)


def test_what_is_refused_is_one_line(hub, saved, tmp_path, capsys):
    import shutil

    broken = shutil.copytree(saved, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"x" * 40)
    done = hf_ext_command(capsys, "push", broken, NAME)
    assert done.code == 2
    assert "is no whole safetensors file" in done.line
    done = hf_ext_command(capsys, "pull", "me/none", tmp_path / "none")
    assert (done.code, "me/none" in done.line) == (2, True)
    assert not (tmp_path / "none").exists()


def test_a_model_by_name_is_one_commit_and_looked_through(hub, saved, capsys):
    commit = hf_ext_command(capsys, "push", saved, NAME).out.split()[-1]
    done = hf_ext_command(capsys, "generate", NAME, "import", "--max_new_tokens", "2")
    assert done.code == 0, done.err
    assert f"{NAME}: commit {commit}" in done.err
    repository = hub.repository(NAME)
    files = repository.commits[commit]
    config = json.loads((saved / "config.json").read_text()) | {"attn_implementation": "someone/kernel"}
    content = json.dumps(config).encode()
    later = repository.commit("main", files | {"config.json": File(len(content), content)}, "evil")
    done = hf_ext_command(capsys, "generate", NAME, "import", "--max_new_tokens", "2")
    assert (done.code, "names code on the Hub" in done.line) == (2, True)
    assert hf_ext_command(capsys, "generate", NAME, "import", "--revision", commit, "--max_new_tokens", "2").code == 0
    done = hf_ext_command(capsys, "generate", NAME, "import", "--revision", later, "--trust_remote_code")
    assert "names code on the Hub" in done.line
    done = hf_ext_command(capsys, "generate", NAME, "import", "--trust_remote_code")
    assert "--revision with its 40 digits" in done.line


def test_code_of_a_commit_runs_with_the_users_word(hub, saved, tmp_path, monkeypatch, capsys):
    """And another commit's, or none, without it."""
    monkeypatch.chdir(tmp_path)
    commit = hf_ext_command(capsys, "push", saved, NAME).out.split()[-1]
    repository = hub.repository(NAME)
    code = (
        b"open('ran', 'w')\nfrom hf_ext import HfxDecoderConfig, HfxDecoderForCausalLM\n"
        b"class Config(HfxDecoderConfig):\n    model_type = 'own_decoder'\n"
        b"class Model(HfxDecoderForCausalLM):\n    config_class = Config\n"
    )
    auto_map = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    config = json.loads((saved / "config.json").read_text()) | {"model_type": "own_decoder", "auto_map": auto_map}
    content = json.dumps(config | {"architectures": ["Model"]}).encode()
    files = repository.commits[commit] | {"config.json": File(len(content), content), "own.py": File(len(code), code)}
    commit = repository.commit("main", files, "own code")
    done = hf_ext_command(capsys, "generate", NAME, "import")
    assert (done.code, "is known by its own code only" in done.line) == (2, True)
    assert not (tmp_path / "ran").exists()
    words = ["--trust_remote_code", "--revision", commit, "--max_new_tokens", "2"]
    done = hf_ext_command(capsys, "generate", NAME, "import", *words)
    assert done.code == 0, done.err
    assert (tmp_path / "ran").exists()
