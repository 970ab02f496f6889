"""Which script `hf-ext train` runs: ours by task, or one that the user names; never one that a YAML brings along."""

import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackagePath
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from cli.command_line import hf_ext_command

from hf_ext.cli import recipe_scripts
from hf_ext.cli.recipe_scripts import find_script, scripts


ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*/*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_recipe_says_its_script(path):
    if path.parent.name in ("accelerate", "deepspeed"):
        with pytest.raises(ValueError, match="doesn't say of which task it is"):
            find_script([str(path)])
        return
    script, rest = find_script([str(path), "--max_steps", "3"])
    named = [
        line for line in path.read_text().splitlines() if line.startswith("#") and str(path.relative_to(ROOT)) in line
    ]
    assert str(script.relative_to(ROOT)) in named[0]
    assert rest == [str(path), "--max_steps", "3"]


def test_a_task_a_script_or_a_folder_of_its_name(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("model: {}\n")
    assert find_script(["translation", str(recipe)]) == (RECIPES / "translation" / "train.py", [str(recipe)])
    assert find_script(["summarization/extractive", "x.yaml"])[0] == RECIPES / "summarization" / "extractive.py"
    (tmp_path / "translation").mkdir()
    inside = tmp_path / "translation" / "own.yaml"
    inside.write_text("model: {}\n")
    assert find_script([str(inside)])[0] == RECIPES / "translation" / "train.py"
    own = tmp_path / "own.py"
    own.write_text("")
    assert find_script([str(own), str(recipe)]) == (own, [str(recipe)])


def test_a_recipe_runs_no_code_that_lies_beside_it(tmp_path):
    """A downloaded folder with a recipe and a train.py: the script is run if the user names it, and only then."""
    (tmp_path / "train.py").write_text("raise SystemExit('ran')")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {}\n")
    with pytest.raises(ValueError, match=r"name it: hf-ext train TASK .*, or the script: hf-ext train .*train.py"):
        find_script([str(recipe)])
    recipe.write_text(
        "# python recipes/../../evil/train.py\n#  recipes/no_such_task/train.py recipes/evil.py\nmodel: {}\n"
    )
    with pytest.raises(ValueError, match="doesn't say"):
        find_script([str(recipe)])


def test_a_head_that_names_another_recipe_too(tmp_path):
    recipe = tmp_path / "mine.yaml"
    head = "# first: recipes/pretraining/train.py base.yaml\n#   python recipes/translation/train.py mine.yaml\nmodel: {}\n"
    recipe.write_text(head)
    assert find_script([str(recipe)])[0] == RECIPES / "translation" / "train.py"
    recipe.write_text(head.replace("mine.yaml", "another.yaml"))
    with pytest.raises(ValueError, match="doesn't say"):
        find_script([str(recipe)])


def test_what_there_is_not(tmp_path):
    with pytest.raises(ValueError, match=r"no.yaml: no such recipe"):
        find_script(["no.yaml"])
    with pytest.raises(ValueError, match=r"no.py: no such script"):
        find_script(["no.py", "x.yaml"])
    with pytest.raises(ValueError, match="did you mean 'pretraining'"):
        find_script(["pretrain", "x.yaml"])


def test_the_recipes_of_an_installation(tmp_path, monkeypatch, capsys):
    class Installed:
        files: ClassVar[list] = []

    installed = tmp_path / "share" / "hf_ext" / "recipes"
    for name in ("pretraining", "translation"):
        (installed / name).mkdir(parents=True)
        (installed / name / "train.py").write_text("")
    monkeypatch.setattr(recipe_scripts, "CHECKOUT", tmp_path / "none")
    monkeypatch.setattr(recipe_scripts, "distribution", lambda name: Installed)
    with pytest.raises(ValueError, match="without its recipes"):
        recipe_scripts.recipes_folder()
    done = hf_ext_command(capsys, "train", "--help")
    assert (done.code, "Tasks: train: hf_ext was installed without its recipes" in done.out) == (0, True)
    file = PackagePath("../../share/hf_ext/recipes/pretraining/train.py")
    file.dist = SimpleNamespace(locate_file=lambda path: tmp_path / "lib" / "site-packages" / path)
    (tmp_path / "lib" / "site-packages").mkdir(parents=True)
    Installed.files = [PackagePath("hf_ext/__init__.py"), file]
    assert set(scripts(recipe_scripts.recipes_folder())) == {"pretraining", "translation"}


@pytest.mark.parametrize(
    ("ending", "code"), [("SystemExit(75)", 75), ("NonFiniteError('loss')", 3), ("ValueError('x: no')", 2)]
)
def test_exit_codes_are_the_scripts(tmp_path, capsys, ending, code):
    script = tmp_path / "own.py"
    script.write_text(
        "import sys\nfrom hf_ext.training.recipe import run_recipe_main\n"
        "from hf_ext.training.non_finite import NonFiniteError\n"
        f"def main(argv):\n    print(argv)\n    raise {ending}\nrun_recipe_main(main)\n"
    )
    before = list(sys.argv)
    done = hf_ext_command(capsys, "train", script, "x.yaml", "--a", "b")
    assert done.code == code
    assert done.out == "['x.yaml', '--a', 'b']\n"
    assert sys.argv == before


def test_help_of_a_recipe_is_its_scripts(capsys):
    done = hf_ext_command(capsys, "train", RECIPES / "translation" / "debug.yaml", "--help")
    assert done.code == 0
    assert "--translation.directions" in done.out


@pytest.mark.heavy
def test_the_wheel_brings_the_recipes_and_what_run_needs(tmp_path):
    """What somebody has who installed hf_ext without a checkout."""
    source = tmp_path / "source"
    left = shutil.ignore_patterns(".git", ".venv", "outputs", "build", "*.egg-info", "__pycache__", "tests", "shared")
    shutil.copytree(ROOT, source, ignore=left)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        tmp_path,
        source,
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    shared = {name.split("/data/share/hf_ext/")[1] for name in names if "/data/share/hf_ext/" in name}
    asked = {
        str(path.relative_to(ROOT)) for kind in ("py", "yaml", "jsonl", "json") for path in RECIPES.glob(f"*/*.{kind}")
    }
    assert shared == asked
    assert "hf_ext/cli/registering/sitecustomize.py" in names
