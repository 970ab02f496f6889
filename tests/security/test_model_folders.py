"""Folders that an attacker made are refused in one line, and nothing in them has run."""

import shutil

import pytest
import torch
from cli.command_line import hf_ext_command
from cli.saved_models import save_tiny_decoder
from security.malicious_folders import FOLDERS, REFUSED_BY_LIBRARIES, Payload, make

from hf_ext.hub.model_source import find_model
from hf_ext.hub.untrusted_folder import check_loadable
from hf_ext.tasks.model_section import read_model_section


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_tiny_decoder(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def folder(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved, tmp_path / "model")
    return tmp_path / "model"


def test_the_folder_loads_as_it_is(folder, capsys):
    find_model(str(folder))
    done = hf_ext_command(capsys, "generate", folder, "import", "--max_new_tokens", "2")
    assert done.code == 0


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_malicious_folder_is_refused_in_one_line(kind, folder, tmp_path):
    said = make(kind, folder)
    with pytest.raises(ValueError, match=said) as caught:
        find_model(str(folder))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "kind", ["weights are a pickle", "code by its plain name", "a shard outside", "a million layers"]
)
def test_a_recipe_that_names_one_is_refused_too(kind, folder, tmp_path):
    said = make(kind, folder)
    with pytest.raises(ValueError, match=said):
        read_model_section({"path": str(folder)})
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["weights are a pickle", "code of a model", *REFUSED_BY_LIBRARIES])
def test_the_command_line_ends_with_one_line(kind, folder, tmp_path, capsys):
    said = make(kind, folder)
    done = hf_ext_command(capsys, "generate", folder, "import", "--max_new_tokens", "2")
    assert done.code == 2
    assert done.line.startswith("error: ")
    assert said in done.line
    assert not (tmp_path / "ran").exists()


def test_the_payload_would_run(tmp_path, monkeypatch):
    """Else the tests above would prove nothing."""
    monkeypatch.chdir(tmp_path)
    torch.save(Payload(), "x.bin")
    torch.load("x.bin", weights_only=False)
    assert (tmp_path / "ran").exists()


def test_pickles_beside_safetensors_are_left_alone(folder, tmp_path, capsys):
    """As the stock Trainer's training_args.bin: it is not read."""
    torch.save(Payload(), folder / "training_args.bin")
    torch.save({"a": Payload()}, folder / "pytorch_model.bin")
    done = hf_ext_command(capsys, "generate", folder, "import", "--max_new_tokens", "2")
    assert done.code == 0
    assert not (tmp_path / "ran").exists()


class TestTrust:
    """Code runs with the user's own word for it, a commit's on the Hub, and no other code with it."""

    def test_of_a_folder(self, folder, tmp_path):
        make("code of a model", folder)
        source = find_model(str(folder), trust_remote_code=True)
        assert source.options["trust_remote_code"] is True
        assert find_model.__kwdefaults__["trust_remote_code"] is False

    def test_no_other_repositorys(self, folder):
        make("code of a model", folder)
        text = (folder / "config.json").read_text().replace("evil.Config", "someone/else--evil.Config")
        (folder / "config.json").write_text(text)
        with pytest.raises(ValueError, match="code of another repository"):
            check_loadable(folder, trust_remote_code=True)

    @pytest.mark.parametrize("revision", [None, "main", "v1", "abcdef1", "f" * 39])
    def test_on_the_hub_a_commit_is_needed(self, revision):
        with pytest.raises(ValueError, match="--revision with its 40 digits"):
            find_model("someone/model", revision, trust_remote_code=True)

    def test_a_revision_of_a_folder_means_nothing(self, folder):
        with pytest.raises(ValueError, match="has no effect for a folder"):
            find_model(str(folder), "main")


def test_an_adapter_loads_beside_the_model_that_the_user_names(folder, tmp_path, capsys):
    """What its file says is the base isn't fetched."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    peft.get_peft_model(model, peft.LoraConfig(r=2)).save_pretrained(tmp_path / "adapter")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path / "adapter")
    done = hf_ext_command(capsys, "generate", tmp_path / "adapter", "import")
    assert done.code == 2
    assert "name that model: --base" in done.line
    done = hf_ext_command(capsys, "generate", tmp_path / "adapter", "import", "--base", folder, "--max_new_tokens", "2")
    assert done.code == 0
