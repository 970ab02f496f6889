"""Chain of thought as a user types it: the debug recipe whole, resumed, as a chat; gsm8k in short; refusals."""

import json
import subprocess
from functools import partial

import pytest
from recipes.recipe_runs import read_lines, run_script, use_as_the_card_says
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import hf_ext  # noqa: F401  registers our architectures
from hf_ext.data import RowArguments, load_rows
from hf_ext.tasks import chain_of_thought
from hf_ext.tasks.saved_model_evaluation import evaluate_saved
from hf_ext.training.recipe_yaml import read_yaml


FOLDER = "recipes/chain_of_thought"


run = partial(run_script, f"{FOLDER}/train.py")


@pytest.mark.heavy
def test_the_debug_recipe_learns_and_resumes(tmp_path):
    out = tmp_path / "run"
    argv = (f"{FOLDER}/debug.yaml", "--training.output_dir", out)
    done = run(*argv)
    assert done.returncode == 0, done.stderr
    results = json.loads((out / "all_results.json").read_text())
    assert results["eval_answer_accuracy"] > 0.6
    assert results["eval_voted_accuracy"] > 0.6
    assert "reloaded in a fresh process: HfxDecoderForCausalLM" in done.stdout
    lines = read_lines(out / "validation_predictions.jsonl")
    right = sum(line["prediction"] == line["answer"] for line in lines) / len(lines)
    assert right == pytest.approx(results["eval_answer_accuracy"])
    assert all(sum(line["votes"].values()) == len(line["drawn"]) == 5 for line in lines)
    assert use_as_the_card_says(out)

    # scored again, as `hf-ext evaluate` does
    sections = read_yaml(out / "recipe.yaml")
    held_out = tmp_path / "held_out.jsonl"
    load_rows(RowArguments(**sections["data"]), chain_of_thought.COLUMNS)["validation"].to_json(held_out)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out).eval(), AutoTokenizer.from_pretrained(out)
    found = evaluate_saved(model, tokenizer, sections, str(held_out), batch_size=sections["generation"]["batch_size"])
    assert {f"eval_{name}": value for name, value in found.scores.items()}.items() <= results.items()
    assert found.predictions == lines

    # stopped half-way and gone on: the same weights
    weights = (out / "model.safetensors").read_bytes()
    subprocess.run(["rm", "-r", str(out / "checkpoint-200"), str(out / "model.safetensors")], check=True)
    resumed = run(*argv, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert (out / "model.safetensors").read_bytes() == weights


@pytest.mark.heavy
def test_a_chat_is_answered_by_the_pipeline(tmp_path):
    argv = ("--max_steps", 100, "--prompts.format", "chat", "--num_samples", 0, "--save_total_limit", 1)
    done = run(f"{FOLDER}/debug.yaml", "--training.output_dir", tmp_path, *argv)
    assert done.returncode == 0, done.stderr
    assert "<|assistant|>" in AutoTokenizer.from_pretrained(tmp_path).chat_template
    (line,) = read_lines(tmp_path / "validation_predictions.jsonl")[:1]
    said = [{"role": "user", "content": line["question"]}]
    writer = pipeline("text-generation", model=str(tmp_path))
    answer = writer(said, max_new_tokens=48, do_sample=False)[0]["generated_text"][-1]
    assert answer["role"] == "assistant"
    assert "####" in answer["content"]


@pytest.mark.heavy
def test_gsm8k_in_short(tmp_path, real_data):
    argv = ["--max_steps", 12, "--warmup_steps", 2, "--data.data_files", real_data / "gsm8k/train.jsonl"]
    argv += ["--max_train_rows", 600, "--max_validation_rows", 4, "--max_new_tokens", 24, "--num_samples", 2]
    argv += ["--model.hidden_size", 64, "--model.num_hidden_layers", 2, "--model.intermediate_size", 128]
    argv += ["--tokenizer.vocab_size", 1000, "--logging_steps", 3, "--report_to", "none"]
    done = run(f"{FOLDER}/gsm8k.yaml", "--training.output_dir", tmp_path, *argv)
    assert done.returncode == 0, done.stderr
    history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    losses = [line["loss"] for line in history if "loss" in line]
    assert losses[-1] < losses[0] - 0.5
    results = json.loads((tmp_path / "all_results.json").read_text())
    assert 0 <= results["eval_without_answer"] <= 1
    assert len(read_lines(tmp_path / "validation_predictions.jsonl")) == 4


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--num_samples", 1), "voting.num_samples=1: one vote is no vote"),
        (("--prompts.template", "no place"), "must have {prompt} once"),
        (("--data.columns", "{question: text}"), "'text' (the task's 'question') is not among the columns"),
    ],
)
def test_nonsense_is_one_line(argv, message, tmp_path):
    done = run(f"{FOLDER}/debug.yaml", "--training.output_dir", tmp_path / "run", *argv)
    assert done.returncode == 2
    lines = [line for line in done.stderr.strip().splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0], done.stderr
    assert not (tmp_path / "run").exists()
