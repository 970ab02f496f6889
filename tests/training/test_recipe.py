"""YAML and command line: what is read, and how what can't be meant is refused."""

import dataclasses
import enum
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import yaml

from hf_ext.tasks import writing_run
from hf_ext.training.arguments import HfxTrainingArguments
from hf_ext.training.recipe import RecipeError, describe, load_recipe


ROOT = Path(__file__).parents[2]
# the other YAMLs in there are accelerate's
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name != "accelerate")


@dataclasses.dataclass
class Data:
    files: str | list[str] | None = None
    column: str = "text"
    fraction: float = 0.1
    streaming: bool = False
    kind: Literal["a", "b"] = "a"
    size: int | None = None


@dataclasses.dataclass
class Needs:
    path: str
    column: str = "x"
    sizes: dict[str, int] = dataclasses.field(default_factory=dict)


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Kinds:
    folder: Path | None = None
    colour: Colour | None = None
    shape: tuple[int, ...] = ()
    name: str = "x"


SECTIONS = {"model": dict, "data": Data, "needs": Needs, "training": HfxTrainingArguments}

GOOD = """
model: {model_type: hfx_decoder, hidden_size: 64}
data: {files: [a.txt, b.txt], fraction: 3e-4, size: 1_000}
needs: {path: here, sizes: {a: 1}}
training: {output_dir: OUT, learning_rate: 1e-3, max_steps: 7, use_cpu: true}
"""


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD.replace("OUT", str(tmp_path / "out")), encoding="utf-8")
    return path


def test_values_types_and_defaults(recipe_file):
    recipe = load_recipe([str(recipe_file)], SECTIONS)
    assert recipe.model == {"model_type": "hfx_decoder", "hidden_size": 64}
    assert recipe.data == Data(files=["a.txt", "b.txt"], fraction=3e-4, size=1000)
    assert recipe.needs == Needs(path="here", sizes={"a": 1})
    assert isinstance(recipe.training, HfxTrainingArguments)
    assert (recipe.training.learning_rate, recipe.training.max_steps) == (1e-3, 7)
    assert recipe.resume is None


def test_overrides(recipe_file):
    argv = "--learning_rate 5e-4 --training.max_steps=9 --data.column body --streaming --data.files null"
    argv += " --model.hidden_size 128 --model.rope_theta 1e4 --fraction=0.5 --kind b --resume auto --path 2024"
    recipe = load_recipe([str(recipe_file), *argv.split()], SECTIONS)
    assert (recipe.training.learning_rate, recipe.training.max_steps) == (5e-4, 9)
    assert recipe.data == Data(files=None, column="body", fraction=0.5, streaming=True, kind="b", size=1000)
    assert recipe.model == {"model_type": "hfx_decoder", "hidden_size": 128, "rope_theta": 1e4}
    assert recipe.needs.path == "2024"
    assert recipe.resume == "auto"
    assert load_recipe(["--resume", str(recipe_file)], SECTIONS).resume is True
    for words in (["data,seed"], ["data", "seed"], ["[data, seed]"], ["data", "--allow_change", "seed"]):
        changed = load_recipe([str(recipe_file), "--resume", "--allow_change", *words], SECTIONS)
        assert changed.allow_change == ("data", "seed")
    assert load_recipe(["--resume", "--allow_change", "needs", str(recipe_file)], SECTIONS).allow_change == ("needs",)
    assert load_recipe([str(recipe_file), "--data.files", "[x.txt, y.txt]"], SECTIONS).data.files == ["x.txt", "y.txt"]


def test_resolved_recipe_runs_the_same_again(recipe_file, tmp_path):
    recipe = load_recipe([str(recipe_file), "--fraction", "0.25", "--model.qk_norm", "head"], SECTIONS)
    again_file = tmp_path / "again.yaml"
    again_file.write_text(recipe.to_yaml(), encoding="utf-8")
    again = load_recipe([str(again_file)], SECTIONS)
    assert again.values == recipe.values
    assert again.data == recipe.data
    assert again.model["qk_norm"] == "head"


def test_paths_and_choices_are_written_and_read_again(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("kinds: {folder: /a/b, colour: red, shape: [2, 3]}\n", encoding="utf-8")
    recipe = load_recipe([str(path)], {"kinds": Kinds})
    assert recipe.kinds == Kinds(folder=Path("/a/b"), colour=Colour.RED, shape=(2, 3))
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe([str(path)], {"kinds": Kinds}).kinds == recipe.kinds


def test_numbers_of_a_free_section_are_numbers_and_quoted_text_is_text(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("model: {a: 1e4, b: {c: -2E-3, d: '1e4'}, e: 5}\n", encoding="utf-8")
    argv = ["--model.f", "1e6", "--model.g", "'12'", "--model.h", "inf"]
    model = load_recipe([str(path), *argv], {"model": dict}).model
    assert model == {"a": 1e4, "b": {"c": -2e-3, "d": "1e4"}, "e": 5, "f": 1e6, "g": "12", "h": "inf"}


def test_merge_keys_are_merged(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("model: &m {a: 1, b: 2}\nother:\n  <<: *m\n  b: 3\n", encoding="utf-8")
    assert load_recipe([str(path)], {"model": dict, "other": dict}).other == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    ("change", "argv", "message"),
    [
        ("data: {file: x}", "", "data.file: no such field; did you mean 'files'?"),
        ("dta: {}", "", "no section 'dta'; did you mean 'data'?"),
        ("data: {learning_rate: 1}", "", "data.learning_rate: no such field; it belongs to training"),
        ("data: {fraction: lots}", "", "data.fraction='lots': must be float"),
        ("data: {streaming: 1}", "", "data.streaming=1: must be bool"),
        ("data: {size: 1.5}", "", "data.size=1.5: must be int or null"),
        ("data: {kind: c}", "", "data.kind='c': must be"),
        ("data: {column: [a]}", "", r"data.column=\['a'\]: must be str"),
        ("data: 3", "", "section 'data' must be a mapping of fields, is 3"),
        ("data: {column: a, column: b}", "", "line 1: 'column' stands twice"),
        ("data: {column: a", "", "line 2, column 1: not YAML"),
        ("data: {[a]: 1}", "", "line 1: a list or mapping can't name a field"),
        ("- a", "", "must be a mapping of sections, is list"),
        (None, "--resume=", "--resume='': names no checkpoint"),
        (
            None,
            "--resume --allow_change",
            "--allow_change: needs the name of what may be another than before; one of",
        ),
        (None, "--resume --allow_change sed", "--allow_change sed: must be one of model, .*; did you mean 'seed'?"),
        (None, "--resume --allow_change training", "--allow_change training: must be one of"),
        (None, "--allow_change seed", "--allow_change seed: has no effect without --resume"),
        ("training: {max_steps: 1}", "", "needs.path: is missing"),
        (None, "--learning_rat 1", "--learning_rat: no such option; did you mean 'learning_rate'?"),
        (None, "--column x", "--column: is in several sections; write --data.column or --needs.column"),
        (None, "--dat.column x", "--dat.column: no section 'dat'; did you mean 'data'?"),
        (None, "--data.colum x", "data.colum: no such field; did you mean 'column'?"),
        (None, "--fraction", "--fraction: needs a value"),
        (None, "--fraction many", "--fraction='many': must be float"),
        (None, "--hidden_size 3", "--hidden_size: no such option; for a field of the model write --model.hidden_size"),
        (None, "other.yaml", "2 recipes given"),
        (None, "--training.matrix_optimizer adam", "matrix_optimizer='adam': must be 'muon'"),
        (None, "--matrix_learning_rate 0.1", "matrix_learning_rate=0.1: has no effect without matrix_optimizer"),
        (None, "--muon_dtype float32", "muon_dtype='float32': has no effect without matrix_optimizer"),
        (None, "--matrix_optimizer muon --muon_dtype half", "muon_dtype='half': must be float32, bfloat16, auto"),
        (None, "--muon_beta2 0.9", "muon_beta2=0.9: has no effect without matrix_optimizer"),
        (None, "--matrix_optimizer muon --muon_beta2 1", "muon_beta2=1.0: must be at least 0 and below 1"),
        (None, "--z_loss_weight -1", "z_loss_weight=-1.0: must not be negative"),
        (None, "--per_device_train_batch_size 0", "per_device_train_batch_size=0: must be at least 1"),
    ],
)
def test_what_can_t_be_meant_is_refused(recipe_file, change, argv, message):
    if change is not None:
        recipe_file.write_text(change + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        load_recipe([str(recipe_file), *argv.split()], SECTIONS)
    assert "\n" not in str(caught.value)


def test_missing_file_names_those_beside_it(recipe_file):
    with pytest.raises(RecipeError, match=r"recip.yaml: no such recipe; there are recipe.yaml"):
        load_recipe([str(recipe_file.with_name("recip.yaml"))], SECTIONS)


def test_yaml_can_t_run_code(recipe_file):
    recipe_file.write_text("data: !!python/object/apply:os.system ['true']\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="not YAML"):
        load_recipe([str(recipe_file)], SECTIONS)


def test_help_names_every_field(capsys):
    with pytest.raises(SystemExit) as caught:
        load_recipe(["--help"], SECTIONS)
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text.strip() == describe(SECTIONS).strip()
    for name in ("--data.fraction (float, 0.1)", "--needs.path (str, required)", "--training.matrix_optimizer"):
        assert name in text


def test_main_prints_one_line_and_keeps_real_tracebacks(tmp_path):
    def run(body: str, *argv: str):
        code = f"from hf_ext.training.recipe import run_recipe_main\ndef main(argv):\n    {body}\nrun_recipe_main(main)"
        command = [sys.executable, "-c", code, *argv]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(tmp_path))

    mistake = run("raise ValueError('data.size=-1:\\n must be positive')")
    assert (mistake.returncode, mistake.stderr) == (2, "error: data.size=-1: must be positive\n")
    assert "Traceback" in run("raise ValueError('x')", "--traceback").stderr
    bug = run("raise KeyError('x')")
    assert bug.returncode == 1
    assert "Traceback" in bug.stderr


class ReadError(Exception):
    """A script has read its recipe, and goes no further."""


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_recipe_parses_under_the_command_that_it_names(path, tmp_path, monkeypatch):
    """Its head says which script runs it; every field is one that the script knows, every path is there to be made."""
    monkeypatch.chdir(ROOT)
    name = str(path.relative_to(ROOT))
    command = re.search(rf"python (recipes/\S+\.py) {re.escape(name)}", path.read_text(encoding="utf-8"))
    assert command, f"{name}: its head doesn't say by which command it runs"
    main = runpy.run_path(command.group(1))["main"]
    reader = main.__globals__ if "load_recipe" in main.__globals__ else vars(writing_run)
    read = []

    def load(argv, sections):
        read.append(load_recipe([*argv, "--training.output_dir", str(tmp_path / "out")], sections))
        raise ReadError

    monkeypatch.setitem(reader, "load_recipe", load)
    with pytest.raises(ReadError):
        main([name])
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert given["training"]["output_dir"].startswith("outputs/")
    assert set(given) <= set(read[0].sections)


def test_no_two_recipes_write_into_one_folder():
    folders = [yaml.safe_load(path.read_text(encoding="utf-8"))["training"]["output_dir"] for path in RECIPES]
    assert len(set(folders)) == len(folders), sorted(f for f in folders if folders.count(f) > 1)


def test_a_whole_section_takes_the_recipes_place(recipe_file):
    recipe = load_recipe(
        [str(recipe_file), "--model", "{path: there}", "--data={size: 3}", "--model.dtype", "bfloat16"], SECTIONS
    )
    assert recipe.model == {"path": "there", "dtype": "bfloat16"}
    assert recipe.values["data"] == {"size": 3}
    assert recipe.data.fraction == 0.1
    for argv, message in (
        (["--model"], "--model: must be a mapping such as"),
        (["--data", "5"], "--data='5': must be a mapping such as"),
        (["--data", "{sise: 5}"], "data.sise: no such field; did you mean 'size'"),
        (["--data", "{size: five}"], "data.size='five': must be int or null"),
    ):
        with pytest.raises(RecipeError) as caught:
            load_recipe([str(recipe_file), *argv], SECTIONS)
        assert message in str(caught.value)


def test_text_that_is_no_yaml_is_text(recipe_file):
    recipe = load_recipe([str(recipe_file), "--data.column", "[a-z ]{3,9}", "--needs.path", "a: [b"], SECTIONS)
    assert (recipe.data.column, recipe.needs.path) == ("[a-z ]{3,9}", "a: [b")
    with pytest.raises(RecipeError, match="is not a YAML value"):
        load_recipe([str(recipe_file), "--data.files", "[a, b"], SECTIONS)
