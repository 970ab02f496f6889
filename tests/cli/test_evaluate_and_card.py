"""`hf-ext train`, `evaluate` and `card` on a run of a recipe: the scores of the held-out rows are the run's."""

import json
from pathlib import Path

import pytest
from cli.command_line import hf_ext_command
from cli.saved_models import TEXT, save_tiny_decoder, tiny_tokenizer
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_ext import HfxEncoderConfig, HfxEncoderForTokenClassification
from hf_ext.cli.main import main
from hf_ext.data import RowArguments, load_rows
from hf_ext.tasks import text_classification
from hf_ext.tasks.saved_model_evaluation import evaluate_saved


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the debug recipe, started as a user does; and the rows that it held out."""
    folder = tmp_path_factory.mktemp("run")
    data = ROOT / "recipes" / "text_classification" / "debug.jsonl"
    recipe = ROOT / "recipes" / "text_classification" / "debug.yaml"
    words = ["--data.data_files", str(data), "--training.output_dir", "outputs/verdicts", "--max_steps", "6"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with pytest.raises(SystemExit) as ended:
            main(["train", str(recipe), *words, "--warmup_steps", "0"])
    assert not ended.value.code
    assert [path.name for path in folder.iterdir()] == ["outputs"]  # nothing lies beside the chosen folder
    assert [path.name for path in (folder / "outputs").iterdir()] == ["verdicts"]
    section = load_recipe_data(folder / "outputs" / "verdicts")
    rows = load_rows(RowArguments(**section), text_classification.COLUMNS, text_classification.OPTIONAL_COLUMNS)
    held_out = folder / "held_out.jsonl"
    # under the names that the recipe says the data has
    rows["validation"].rename_columns(section["columns"]).to_json(held_out)
    return folder / "outputs" / "verdicts", held_out


def load_recipe_data(folder: Path) -> dict:
    from hf_ext.training.recipe_yaml import read_yaml

    return read_yaml(folder / "recipe.yaml")["data"]


@pytest.mark.heavy
class TestOfARun:
    def test_the_scores_are_the_runs(self, run, capsys, tmp_path):
        folder, held_out = run
        words = ["--json", "--predictions", tmp_path / "p.jsonl"]
        done = hf_ext_command(capsys, "evaluate", folder, held_out, *words)
        assert done.code == 0, done.err
        scores, results = json.loads(done.out), json.loads((folder / "all_results.json").read_text())
        assert scores["accuracy"] == pytest.approx(results["eval_accuracy"])
        assert scores["loss"] == pytest.approx(results["eval_loss"], abs=1e-5)
        lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
        of_run = [json.loads(line) for line in (folder / "validation_predictions.jsonl").read_text().splitlines()]
        assert [line["prediction"] for line in lines] == [line["prediction"] for line in of_run]
        done = hf_ext_command(capsys, "evaluate", folder, held_out, "--predictions", tmp_path / "p.jsonl")
        assert (done.code, "is there already" in done.line) == (2, True)

    def test_columns_of_other_names(self, run, capsys, tmp_path):
        folder, held_out = run
        rows = [json.loads(line) for line in held_out.read_text().splitlines()]
        other = tmp_path / "other.jsonl"
        other.write_text(
            "".join(json.dumps({"review": row["text"], "verdict": row["sentiment"]}) + "\n" for row in rows)
        )
        expected = json.loads(hf_ext_command(capsys, "evaluate", folder, held_out, "--json").out)
        words = ["--columns", "text=review", "--columns", "label=verdict", "--json"]
        assert json.loads(hf_ext_command(capsys, "evaluate", folder, other, *words).out) == pytest.approx(
            expected, rel=1e-5
        )
        assert "is not among the columns" in hf_ext_command(capsys, "evaluate", folder, other).line
        assert "must be the task's name" in hf_ext_command(capsys, "evaluate", folder, other, "--columns", "text").line

    def test_a_card_gets_a_later_evaluation(self, run, capsys, tmp_path):
        folder, held_out = run
        before = ModelCard.load(folder / "README.md")
        scores = tmp_path / "scores.json"
        scores.write_text(hf_ext_command(capsys, "evaluate", folder, held_out, "--json", "--max_rows", "5").out)
        done = hf_ext_command(capsys, "card", folder, "--results", scores, "--dataset", "later.csv")
        assert done.code == 0, done.err
        card = ModelCard.load(folder / "README.md")
        later = [entry for entry in card.data.eval_results if entry.dataset_name == "later.csv"]
        assert {entry.metric_type for entry in later} == set(json.loads(scores.read_text()))
        assert card.text.startswith(before.text.rstrip())
        assert hf_ext_command(capsys, "card", folder, "--results", scores, "--dataset", "later.csv").code == 0
        assert ModelCard.load(folder / "README.md").content == card.content  # not twice
        assert "give both" in hf_ext_command(capsys, "card", folder, "--results", scores).line

    def test_a_card_that_is_not_there_is_written(self, run, capsys):
        folder, _ = run
        (folder / "README.md").unlink()
        done = hf_ext_command(capsys, "card", folder)
        assert done.code == 0, done.err
        card = ModelCard.load(folder / "README.md")
        assert card.data.pipeline_tag == "text-classification"
        results = json.loads((folder / "all_results.json").read_text())
        accuracy = next(entry for entry in card.data.eval_results if entry.metric_type == "accuracy")
        assert accuracy.metric_value == pytest.approx(results["eval_accuracy"], abs=1e-5)
        changed = results | {"eval_accuracy": 0.25}
        (folder / "all_results.json").write_text(json.dumps(changed))
        assert "1 numbers brought up to date" in hf_ext_command(capsys, "card", folder).out


def test_a_language_models_texts(tmp_path, capsys):
    """Loss and perplexity are the model's own on the packed texts."""
    folder = save_tiny_decoder(tmp_path / "model")
    texts = tmp_path / "texts.txt"
    texts.write_text(TEXT * 3)
    done = hf_ext_command(capsys, "evaluate", folder, texts, "--json")
    assert done.code == 0, done.err
    scores = json.loads(done.out)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer(TEXT * 3, return_tensors="pt").input_ids
    end = ids.new_tensor([[tokenizer.eos_token_id]])
    import torch

    ids = torch.cat([ids, end], dim=1)
    losses, total = 0.0, 0
    for start in range(0, ids.shape[1], 64):
        row = ids[:, start : start + 64]
        if row.shape[1] > 1:
            losses += model(row, labels=row).loss.item() * (row.shape[1] - 1)
            total += row.shape[1] - 1
    assert scores["loss"] == pytest.approx(losses / total, rel=1e-4)
    assert scores["tokens"] == total
    (folder / "recipe.yaml").write_text("writing: {}\n")  # a text generation recipe's are its language model's
    assert json.loads(hf_ext_command(capsys, "evaluate", folder, texts, "--json").out) == scores


def test_what_cannot_be_evaluated(tmp_path, capsys):
    folder = save_tiny_decoder(tmp_path / "model")
    texts = tmp_path / "texts.txt"
    texts.write_text(TEXT)
    (folder / "recipe.yaml").write_text("model: !!python/object/apply:os.system ['true']\n")
    assert "could not determine a constructor" in hf_ext_command(capsys, "evaluate", folder, texts).line
    (folder / "recipe.yaml").unlink()
    assert "does not exist" in hf_ext_command(capsys, "evaluate", folder, tmp_path / "no.txt").line


def test_a_tag_that_the_model_has_not(tmp_path):
    labels = {0: "O", 1: "B-PERSON", 2: "I-PERSON"}
    model = HfxEncoderForTokenClassification(
        HfxEncoderConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, id2label=labels)
    )
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"tokens": ["Oslo"], "tags": ["B-PLACE"]}) + "\n")
    with pytest.raises(ValueError, match=r"^tags='B-PLACE': must be one of O, B-PERSON, I-PERSON"):
        evaluate_saved(model.eval(), tiny_tokenizer(), {}, str(rows))
