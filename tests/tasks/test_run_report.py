"""What the card of any run says of its size, its data and its cost."""

from types import SimpleNamespace

import pytest
from models.decoder_grid import make_model

from hf_ext.data import DataArguments
from hf_ext.tasks.run_costs import RunCosts
from hf_ext.tasks.run_report import base_model_of, compute_rows, data_rows, flops_of, size_rows
from hf_ext.training.scaling import count_flops
from hf_ext.training.scaling.run_flops import RunFlops


def test_size_by_part_and_flops_by_the_second():
    model = make_model()
    count = count_flops(model.config, 16, head="causal")
    flops = RunFlops(count, tokens=1000, length=16, source_length=None, training=2e12, teacher=5e11)
    rows = size_rows(model, flops, seconds=4.0)
    assert "trained parameters" not in rows
    assert rows["weights"].endswith(" MB, float32")
    assert f"attention {count.parameters.by_part['attention']:,}" in rows["parameters by part"]
    assert "2 G in training, in a row of 16 tokens (the mean)" in rows["FLOPs a token"]
    assert rows["FLOPs of the training"] == (
        "2 T for 1,000 tokens, of which 500 G the teacher's; 500 GFLOP/s, evaluations in the time"
    )
    resumed = size_rows(model, flops, seconds=4.0, share=0.25)["FLOPs of the training"]
    assert resumed.startswith("2 T for 1,000 tokens")
    assert "; 125 GFLOP/s" in resumed
    assert "GFLOP/s" not in size_rows(model, flops, seconds=4.0, share=0.0)["FLOPs of the training"]
    assert size_rows(model, "it looks at values", None)["FLOPs"] == "not counted: it looks at values"
    assert "FLOPs" not in str(size_rows(model, None, None))


def test_an_adapters_few_weights_are_named():
    model = make_model().requires_grad_(False)
    model.lm_head.requires_grad_(True)
    assert size_rows(model, None, None)["trained parameters"] == f"{model.lm_head.weight.numel():,}"


def test_what_cannot_be_counted_is_said(monkeypatch):
    def refuse(trainer, model):
        raise ValueError("config:\n  no such head")

    monkeypatch.setattr("hf_ext.tasks.run_report.run_flops", refuse)
    assert flops_of(None, None) == "config: no such head"


def test_each_file_once_of_all_sections(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    data = DataArguments(data_files=str(tmp_path / "a.txt"))
    (row,) = data_rows([data, SimpleNamespace(epochs=1), data])
    assert (row["num_bytes"], row["identity"][:7]) == (1, "sha256 ")


@pytest.mark.parametrize(
    ("timed_from", "seconds", "said"),
    [
        (0, 9.0, "9 s, with its evaluations"),
        (5, 9.0, "9 s, with its evaluations, since the resume at step 5"),
        (0, None, "not known"),
    ],
)
def test_time_says_since_when(tmp_path, timed_from, seconds, said):
    rows = compute_rows(RunCosts(tmp_path, 0, 1), 8, seconds, timed_from)
    assert rows["training"] == said
    assert rows["energy"] == "not measured"
    assert "processor" in rows


def test_a_base_model_is_one_that_others_have(tmp_path):
    assert base_model_of("me/model") == "me/model"
    assert base_model_of(str(tmp_path)) is None
    assert base_model_of(None) is None
    assert base_model_of("outputs/run/checkpoint-5") is None
