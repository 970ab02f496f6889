"""Text generation as a user types it: the debug recipe whole, its model compared again, Shakespeare in short, refusals."""

import json
from functools import partial

import pytest
from recipes.recipe_runs import read_lines, run_script, use_as_the_card_says

from hf_ext.tasks.text_generation import REFERENCE, SAMPLERS


FOLDER = "recipes/text_generation"


run = partial(run_script, f"{FOLDER}/train.py")


@pytest.mark.heavy
def test_the_debug_recipe_and_its_model_compared_again(tmp_path):
    out = tmp_path / "run"
    done = run(f"{FOLDER}/debug.yaml", "--training.output_dir", out)
    assert done.returncode == 0, done.stderr
    table = json.loads((out / "samplers.json").read_text())
    assert list(table) == [REFERENCE, *SAMPLERS]
    assert table["greedy"]["perplexity"] < table[REFERENCE]["perplexity"]
    assert len(read_lines(out / "samplers.jsonl")) == 4 * len(SAMPLERS)
    card = (out / "README.md").read_text().partition("## Samplers\n\n")[2]
    assert card.startswith((out / "samplers.md").read_text() + "\n![Perplexity by repetition](samplers.png)\n")
    assert use_as_the_card_says(out)
    for name in ("samplers.md", "samplers.png", "loss.png", "README.md", "model.safetensors"):
        assert (out / name).is_file(), name
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    losses = [line["loss"] for line in history if "loss" in line]
    assert losses[-1] < losses[0]
    assert "reloaded in a fresh process: HfxDecoderForCausalLM" in done.stdout

    # the saved model, without training, by samplers and constraints of the user's own
    argv = ["--model.path", out, "--training.output_dir", tmp_path / "again", "--packing.row_length", 64]
    argv += ["--data.max_validation_documents", 3, "--writing.num_prompts", 4]
    argv += ["--writing.samplers", "{greedy: {}, drawn: {do_sample: true, top_p: 0.8}}"]
    argv += ["--writing.prompt_tokens", 16, "--writing.max_new_tokens", 24, "--constraints.pattern", "[a-z ]{3,9}"]
    again = run(f"{FOLDER}/compare.yaml", *argv)
    assert again.returncode == 0, again.stderr
    compared = json.loads((tmp_path / "again" / "samplers.json").read_text())
    assert list(compared) == [REFERENCE, "greedy", "drawn"]
    assert compared["drawn"]["satisfied"] == 1
    # the same model and beginnings
    assert compared[REFERENCE]["perplexity"] == pytest.approx(table[REFERENCE]["perplexity"], rel=1e-4)


@pytest.mark.heavy
def test_shakespeare_in_short(tmp_path, real_data):
    argv = ["--max_steps", 30, "--eval_steps", 30, "--save_steps", 30, "--warmup_steps", 3, "--logging_steps", 5]
    argv += ["--data.data_files", real_data / "tinyshakespeare/input.txt", "--report_to", "none"]
    argv += ["--model.hidden_size", 64, "--model.num_hidden_layers", 2, "--model.intermediate_size", 128]
    argv += ["--tokenizer.vocab_size", 600, "--packing.row_length", 64, "--packing.overlap", 8]
    argv += ["--num_prompts", 2, "--max_new_tokens", 16, "--prompt_tokens", 8]
    argv += ["--samplers", "{greedy: {}, nucleus: {do_sample: true, top_p: 0.9}}"]
    done = run(f"{FOLDER}/tinyshakespeare.yaml", "--training.output_dir", tmp_path, *argv)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "all_results.json").read_text())
    assert results["eval_perplexity"] < 300  # of 600 tokens
    assert 0 < results["eval_bits_per_byte"] < 5
    assert len(read_lines(tmp_path / "samplers.jsonl")) == 4


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--writing.only", "true"), "writing.only=True: needs a trained model"),
        (("--writing.only", "true", "--push_to_hub"), "training.push_to_hub=True: no model comes out of writing.only"),
        (("--constraints.pattern", "(["), "no regular expression"),
        (("--writing.max_new_tokens", 60), "lower one of the two"),
    ],
)
def test_nonsense_is_one_line(argv, message, tmp_path):
    done = run(f"{FOLDER}/debug.yaml", "--training.output_dir", tmp_path / "run", *argv)
    assert done.returncode == 2
    assert done.stderr.strip().startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert message in done.stderr
