"""The main job, as a user types it: the script, its overrides, its resume and its refusals."""

import json
import subprocess
from functools import partial
from pathlib import Path

import pytest
import yaml
from recipes.recipe_runs import ROOT, refusal, run_script


SCRIPT = "recipes/pretraining/train.py"
RECIPES = sorted((ROOT / "recipes" / "pretraining").glob("*.yaml"))


run = partial(run_script, SCRIPT)


def write_recipe(folder: Path, **changes) -> Path:
    """The debug recipe with sections changed, on a small text of our own."""
    recipe = yaml.safe_load((ROOT / "recipes/pretraining/debug.yaml").read_text(encoding="utf-8"))
    recipe["training"]["output_dir"] = str(folder / "run")
    for section, values in changes.items():
        recipe[section] = {**recipe[section], **values}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def write_texts(folder: Path, count: int = 60) -> Path:
    texts = folder / "texts.jsonl"
    lines = [
        {"text": f"Document {i}: the quick brown fox no. {i * 7} jumps over the lazy dog.\n" * 3} for i in range(count)
    ]
    texts.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return texts


def on_texts(folder: Path, **training) -> Path:
    data = {"dataset_name": None, "data_files": str(write_texts(folder)), "validation_fraction": 0.2}
    return write_recipe(folder, data=data, training={"max_steps": 6, "save_steps": 3, "eval_steps": 3, **training})


@pytest.mark.heavy
def test_the_main_job_and_going_on_from_its_checkpoint(tmp_path):
    recipe = on_texts(tmp_path, logging_steps=1)
    done = run(recipe)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "run"
    for name in (
        "README.md",
        "all_results.json",
        "checkpoint-3/trainer_state.json",
        "checkpoint-6/model.safetensors",
        "config.json",
        "eval_results.json",
        "loss.png",
        "model.safetensors",
        "recipe.yaml",
        "tokenizer.json",
        "train_results.json",
        "trainer_state.json",
    ):
        assert (out / name).is_file(), name
    results = json.loads((out / "all_results.json").read_text())
    assert 0 < results["eval_loss"] < 6.3  # ln 512 = 6.24 is a uniform guess
    assert results["eval_bits_per_byte"] > 0
    assert "reloaded in a fresh process: HfxDecoderForCausalLM" in done.stdout
    assert "6/6" in done.stderr  # the progress bar
    card = (out / "README.md").read_text()
    assert f"| perplexity | {results['eval_perplexity']:.4f} |" in card
    assert str(tmp_path) not in card

    # the folder isn't overwritten without a word
    again = run(recipe)
    assert again.returncode == 2
    assert "holds a run already (checkpoint-6)" in again.stderr
    # a finished run keeps its figures and its weights
    weights = (out / "model.safetensors").read_bytes()
    finished = run(recipe, "--resume")
    assert finished.returncode == 0, finished.stderr
    assert (out / "model.safetensors").read_bytes() == weights
    assert not (out / "checkpoint-7").exists()
    assert json.loads((out / "all_results.json").read_text())["train_loss"] == results["train_loss"]

    # another model or tokenizer can't go on from there
    for change, message in (
        (("--model.rope_parameters", "{rope_theta: 5.0}"), "model.rope_parameters="),
        (("--model.hidden_size", 16), "model.head_dim=8: checkpoint-6 was trained with 16"),
        (("--tokenizer.vocab_size", 300), "tokenizer: {"),
    ):
        other = run(recipe, "--resume", *change)
        assert other.returncode == 2
        assert message in other.stderr, other.stderr

    # stopped after 3 of 6 steps and gone on from there: the same weights as in one go
    parts = tmp_path / "parts"
    assert run(recipe, "--training.output_dir", parts).returncode == 0
    for name in ("checkpoint-6", "model.safetensors"):
        subprocess.run(["rm", "-r", str(parts / name)], check=True)
    resumed = run(recipe, "--training.output_dir", parts, "--resume", "auto")
    assert resumed.returncode == 0, resumed.stderr
    assert "(3 steps done)" in resumed.stdout
    assert (parts / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    both = json.loads((parts / "all_results.json").read_text())
    assert both["train_loss"] == pytest.approx(results["train_loss"], rel=1e-4)
    assert both["train_steps"] == 3
    assert "with its evaluations, since the resume at step 3 |" in (parts / "README.md").read_text()


@pytest.mark.heavy
def test_mixed_precision_without_logs_or_checkpoints(tmp_path):
    recipe = on_texts(tmp_path)
    argv = ("--bf16", "true", "--use_cpu", "true", "--logging_steps", 100, "--save_strategy", "no", "--max_steps", 3)
    done = run(recipe, *argv)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "all_results.json").read_text())
    assert 4 < results["train_loss"] < 7  # near ln 512
    again = run(recipe, *argv)  # a finished run without a checkpoint isn't overwritten either
    assert again.returncode == 2
    assert "holds a run already (train_results.json) without a checkpoint" in again.stderr


def data_file(recipe: dict, request) -> Path:
    """The recipe's file in the folder of public data sets, or skip the test."""
    file = request.getfixturevalue("real_data") / Path(recipe["data"]["data_files"]).relative_to("../shared/data")
    if not file.is_file():
        pytest.skip(f"no data set at hand: {file.name} is not in {file.parent}")
    return file


@pytest.mark.heavy
@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_two_steps_of_every_recipe(path, tmp_path, request):
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    sizes = recipe["training"]
    argv = [path, "--training.output_dir", tmp_path / "run", "--max_steps", 2, "--warmup_steps", 0, "--eval_steps", 2]
    argv += ["--logging_steps", 1, "--max_validation_documents", 2, "--max_train_documents", 30]
    if "data_files" in recipe["data"]:
        argv += ["--data.data_files", data_file(recipe, request)]
    done = run(*argv)
    assert done.returncode == 0, done.stderr
    logged = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert [e["step"] for e in logged if "loss" in e] == [1, 2]
    assert sizes["output_dir"].startswith("outputs/")


OBJECTIVES = ["quickstart", "prefix", "fill_in_the_middle", "masked", "span_corruption", "ul2", "denoising"]


@pytest.mark.heavy
@pytest.mark.parametrize(
    "name", [n if n == "span_corruption" else pytest.param(n, marks=pytest.mark.full) for n in OBJECTIVES]
)
def test_every_objective_on_wikitext(name, tmp_path, real_data):
    file = real_data / "wikitext2" / "valid.txt"
    if not file.is_file():
        pytest.skip(f"no data set at hand: {file.name} is not in {file.parent}")
    argv = [ROOT / f"recipes/pretraining/{name}.yaml", "--data.dataset_name", "null", "--data.data_files", file]
    argv += ["--training.output_dir", tmp_path / "run", "--max_steps", 12, "--warmup_steps", 2, "--eval_steps", 6]
    argv += ["--logging_steps", 1, "--max_validation_documents", 40, "--tokenizer.vocab_size", 600]
    argv += ["--packing.row_length", 64, "--save_strategy", "no", "--data.sample_by", "line"]
    done = run(*argv)
    assert done.returncode == 0, done.stderr
    logged = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    held_out = [entry["eval_loss"] for entry in logged if "eval_loss" in entry]
    at_the_end = json.loads((tmp_path / "run" / "eval_results.json").read_text())["eval_loss"]
    assert len(held_out) == 3
    assert held_out[1] < held_out[0]
    assert (
        at_the_end == pytest.approx(held_out[1], rel=1e-6) == held_out[2]
    )  # the same questions asked of the same model
    card = (tmp_path / "run" / "README.md").read_text()
    assert "| objective |" in card


def test_the_race_keeps_its_rules(request):
    """The usual split by position, rows of 64 characters, 12 a step, 0.82M parameters, every held-out one scored once."""
    from transformers import AutoModelForCausalLM

    from hf_ext.data import load_documents, pack_dataset
    from hf_ext.tasks.model_section import read_model_section
    from hf_ext.tasks.pretraining import SECTIONS
    from hf_ext.tasks.tokenizer_section import get_tokenizer
    from hf_ext.training.recipe import load_recipe

    path = ROOT / "recipes/pretraining/tinyshakespeare_char.yaml"
    file = data_file(yaml.safe_load(path.read_text(encoding="utf-8")), request)
    recipe = load_recipe([str(path), "--data.data_files", str(file)], SECTIONS)
    text = file.read_text(encoding="utf-8")
    train, validation = load_documents(recipe.data, seed=0)
    assert train["text"] == [text[: len(text) * 9 // 10]]
    assert validation["text"] == [text[len(text) * 9 // 10 :]]

    tokenizer = get_tokenizer(recipe.tokenizer, iter(train["text"]), model_max_length=64, checkpoint=None)
    rows = pack_dataset(validation, tokenizer, **vars(recipe.packing))
    assert {len(row) for row in rows["input_ids"]} == {64}
    scored = [label for row in rows["labels"] for label in row if label != -100]
    assert (
        tokenizer.decode(scored[:-1]) == validation["text"][0][1:]
    )  # without the first character, and the end's token

    training = recipe.training
    assert training.train_batch_size * training.gradient_accumulation_steps == 12
    assert training.max_steps == 2000
    model = AutoModelForCausalLM.from_config(read_model_section(recipe.model).config(tokenizer))
    assert model.num_parameters() <= 820_000


# nanoGPT's CPU setting needs 2,000 steps of as many characters for this
RACE_LOSS_AT_500 = 1.88


@pytest.mark.full
@pytest.mark.heavy
def test_the_race_is_won_after_500_steps(tmp_path, request):
    path = ROOT / "recipes/pretraining/tinyshakespeare_char.yaml"
    file = data_file(yaml.safe_load(path.read_text(encoding="utf-8")), request)
    done = run(path, "--data.data_files", file, "--training.output_dir", tmp_path / "run", "--max_steps", 500)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "all_results.json").read_text())["eval_loss"] <= RACE_LOSS_AT_500


@pytest.mark.heavy
def test_other_formats_streaming_and_characters(tmp_path):
    recipe = on_texts(tmp_path)
    rows = [json.loads(line)["text"] for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
    (tmp_path / "texts.txt").write_text("\n".join(r.replace("\n", " ") for r in rows), encoding="utf-8")
    done = run(
        recipe,
        *("--data.data_files", tmp_path / "texts.txt", "--sample_by", "line", "--streaming", "true"),
        *("--tokenizer.kind", "characters", "--model.block_type", "sandwich", "--max_steps", 2),
        *("--training.output_dir", tmp_path / "other", "--matrix_optimizer", "muon"),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "other" / "config.json").read_text())["block_type"] == "sandwich"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--learning_rat", "1"], "--learning_rat: no such option; did you mean 'learning_rate'?"),
        (["--model.hiden_size", "8"], "model.hiden_size: no such field; did you mean 'hidden_size'?"),
        (["--model.model_type", "hfx_decodr"], "model.model_type='hfx_decodr': not known"),
        (["--model.vocab_size", "8"], "model.vocab_size=8: comes from the tokenizer"),
        (["--model.num_attention_heads", "3"], "num_attention_heads=3: must divide hidden_size=32"),
        (["--model.hidden_size", "wide"], "hidden_size"),
        (["--packing.row_length", "65"], "packing.row_length=65: longer than model.max_position_embeddings=64"),
        (["--packing.strategy", "best"], "strategy"),
        (
            ["--objective.name", "masked"],
            "objective.name='masked': a hfx_decoder can't learn it; use one of causal, prefix",
        ),
        (["--objective.name", "prefx"], "did you mean 'prefix'?"),
        (["--objective.fim_rate", "0.5"], "objective.fim_rate: no such field"),
        (["--objective.name", "fill_in_the_middle", "--objective.fim_rte", "1"], "did you mean 'fim_rate'?"),
        (["--tokenizer.kind", "bpe"], "tokenizer.kind='bpe': must be one of byte_level_bpe, characters"),
        (["--tokenizer.vocab_size", "100"], "vocab_size"),
        (["--samples.temperature", "0"], "samples.temperature=0.0: must be above 0"),
        (["--data.data_files", "nowhere.json"], "nowhere.json"),
        (["--data.text_column", "body"], "body"),
        (["--warmup_steps", "7"], "warmup_steps=7: 6 steps of training can't hold them"),
        (["--resume"], "--resume: no checkpoint in"),
        (["--samples.prompts", "['']"], "samples.prompts: one is empty"),
        (["--tokenizer.path", "nowhere"], "tokenizer.vocab_size=512: has no effect with tokenizer.path='nowhere'"),
        (["--training.output_dir", "texts.jsonl/run"], "texts.jsonl is a file; choose another folder"),
        (["--model.rope_parameters", "{rope_type: yarn}"], "rope_parameters={'rope_type': 'yarn'"),
        (["--resume", "nowhere"], "--resume nowhere: not a checkpoint"),
        (["--streaming", "--max_steps", "-1"], "training.max_steps=-1: a streamed data set has no known length"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_nonsense_is_one_line_and_leaves_nothing(argv, message, tmp_path, capsys, monkeypatch):
    """In this process: the script's own main, as `run_recipe_main` calls it."""
    recipe = on_texts(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert message in refusal(SCRIPT, [recipe, *argv], monkeypatch, capsys)
    assert not (tmp_path / "run").exists()


def test_empty_and_missing_files_are_named(tmp_path, capsys, monkeypatch):
    recipe = on_texts(tmp_path)
    (tmp_path / "texts.jsonl").write_text("", encoding="utf-8")
    for argv, message in (
        ([recipe], "texts.jsonl"),
        ([tmp_path / "recpe.yaml"], "no such recipe; there are recipe.yaml"),
    ):
        assert message in refusal(SCRIPT, argv, monkeypatch, capsys)
