"""Optimum's doors: its command line, and the tasks that it knows our models for."""

import sys

import pytest
from optimum.commands.optimum_cli import main
from optimum.exporters.tasks import TasksManager
from transformers import AutoConfig

import hf_ext.export  # noqa: F401  registers the tasks


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
