"""Optimum's doors: its command line, and the tasks that it knows our models for."""

import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from optimum.commands.optimum_cli import main
from optimum.exporters.tasks import TasksManager
from setuptools import find_namespace_packages
from transformers import AutoConfig

import hf_ext.export  # noqa: F401  registers the tasks


ROOT = Path(__file__).parents[2]


def run(monkeypatch, *line) -> None:
    monkeypatch.setattr(sys, "argv", ["optimum-cli", *map(str, line)])
    main()


def test_the_command_verifies_what_is_there(exported_decoder, monkeypatch, capsys):
    run(monkeypatch, "export", "hf-ext", "--verify", exported_decoder)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ["text: 16 of 16 tokens are those of torch", f"{exported_decoder}: verified"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["OUT"], "error: -m: missing; say what to export and where to: -m MODEL --to TARGET OUT"),
        (["-m", "MODEL", "--to", "onxx", "OUT"], "error: to='onxx': must be one of"),
        (["--verify", "--to", "onnx", "OUT"], "error: to='onnx': --verify checks what is there; leave it out"),
    ],
)
def test_a_mistake_is_one_line(monkeypatch, capsys, line, message):
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, "export", "hf-ext", *line)
    assert caught.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(message)
    assert "\n" not in error


def test_the_command_is_installed_and_nothing_else_with_it():
    """A folder without `__init__.py` is a package only to who looks for namespaces."""
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg")
    assert settings["options"]["packages"] == "find_namespace:"
    found = {key: value.split() for key, value in settings["options.packages.find"].items()}
    packages = find_namespace_packages(str(ROOT), **found)
    assert "optimum.commands.register" in packages
    assert {name.split(".")[0] for name in packages} == {"hf_ext", "optimum"}
    assert not [name for name in packages if "__pycache__" in name]


def test_the_tasks_of_each_model_type():
    tasks = {
        kind: set(TasksManager.get_supported_tasks_for_model_type(kind, "onnx", library_name="transformers"))
        for kind in ("hfx_decoder", "hfx_encoder", "hfx_encoder_decoder")
    }
    heads = {"feature-extraction", "text-classification", "question-answering"}
    assert tasks["hfx_decoder"] == heads | {"token-classification", "text-generation", "text-generation-with-past"}
    assert tasks["hfx_encoder"] == heads | {"token-classification", "fill-mask", "multiple-choice"}
    assert tasks["hfx_encoder_decoder"] == heads | {"text2text-generation", "text2text-generation-with-past"}


def test_the_inputs_that_optimum_is_told_are_those_of_the_graph(exported_decoder):
    from hf_ext.export import HfxExportedModelForCausalLM

    make = TasksManager.get_exporter_config_constructor(
        "onnx", model_type="hfx_decoder", task="text-generation-with-past", library_name="transformers"
    )
    told = set(make(AutoConfig.from_pretrained(exported_decoder)).inputs)
    taken = set(HfxExportedModelForCausalLM.from_pretrained(exported_decoder).graphs["model"].inputs)
    assert taken - told == {"position_ids", "logits_to_keep"}
    assert told < taken
