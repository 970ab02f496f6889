"""`make cards`: which recipes there are, in what order, whose cards are theirs, and that a finished one isn't run again."""

from pathlib import Path

import pytest
import yaml
from recipes.recipe_runs import recipe_of_command

from hf_ext.hub import recipe_cards
from hf_ext.hub.recipe_cards import (
    LATEST_SECTION,
    find_recipes,
    is_card_of,
    keep_card,
    list_cards,
    make_card,
    read_recipe,
)


ROOT = Path(__file__).parents[2]
# stands for a recipe's script: leaves a card, as a run does
SCRIPT = """
import pathlib, sys, yaml
recipe = yaml.safe_load(pathlib.Path(sys.argv[1]).read_text())
if "bad" in sys.argv[1]:
    raise SystemExit(2)
folder = pathlib.Path(recipe["training"]["output_dir"])
folder.mkdir(parents=True, exist_ok=True)
with (folder / "calls").open("a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
(folder / "loss.png").write_bytes(b"picture")
(folder / "config.json").write_text("{}")
(folder / "README.md").write_text(
    "---\\nlicense: mit\\n---\\n![x](loss.png)\\n## Hardware, time, energy\\n```\\npython recipes/task/train.py "
    + sys.argv[1] + " --resume auto\\n```\\n```yaml\\n" + yaml.safe_dump(recipe) + "```\\n"
)
"""


@pytest.fixture
def project(tmp_path):
    """A checkout of one task with three recipes: the second begins with the third's model, the first is for debugging."""
    folder = tmp_path / "recipes" / "task"
    folder.mkdir(parents=True)
    (tmp_path / "cards").mkdir()
    (tmp_path / "data.txt").write_text("x")
    (folder / "train.py").write_text(SCRIPT)
    write_recipe(tmp_path, "debug", output="outputs/debug")
    write_recipe(tmp_path, "after", output="outputs/after", model={"path": "outputs/first"})
    write_recipe(tmp_path, "first", output="outputs/first", model={"hidden_size": 8})
    return tmp_path


def write_recipe(root, name, output, data="data.txt", **sections):
    path = root / "recipes" / "task" / f"{name}.yaml"
    sections |= {"data": {"data_files": data}, "training": {"output_dir": output, "learning_rate": 1e-3}}
    path.write_text(
        f"# about it\n#   python recipes/task/train.py recipes/task/{name}.yaml\n" + yaml.safe_dump(sections)
    )
    return path


def test_a_recipe_comes_after_the_one_it_needs(project):
    assert [recipe.name for recipe in find_recipes(project)] == ["first", "after"]


def test_each_is_run_once_and_its_card_is_kept_with_the_picture(project):
    first, after = find_recipes(project)
    cards = project / "cards"
    assert make_card(after, cards, project) == "left out, outputs/first isn't there"
    assert [make_card(recipe, cards, project) for recipe in (first, after)] == ["made", "made"]
    assert (cards / "first_loss.png").read_bytes() == b"picture"
    assert "![x](first_loss.png)" in (cards / "first.md").read_text()
    assert make_card(first, cards, project) == "there"
    # stopped after the run and before the copy: nothing is run again
    (cards / "first.md").unlink()
    assert make_card(first, cards, project) == "made"
    assert (project / "outputs" / "first" / "calls").read_text() == "recipes/task/first.yaml --resume auto\n"


def test_a_changed_recipe_makes_its_card_stale(project):
    first, _ = find_recipes(project)
    make_card(first, project / "cards", project)
    card = (project / "cards" / "first.md").read_text()
    assert is_card_of(card, first)
    path = write_recipe(project, "first", output="outputs/first", model={"hidden_size": 16})
    assert not is_card_of(card, read_recipe(path, project))
    assert not is_card_of(card.replace(LATEST_SECTION, ""), first)
    path.write_text("# another word about it\n" + path.read_text().replace("hidden_size: 16", "hidden_size: 8.0"))
    assert is_card_of(card, read_recipe(path, project))


def test_what_cannot_be_run_is_said(project, capsys):
    write_recipe(project, "bad", output="outputs/bad")
    write_recipe(project, "far", output="outputs/far", data={"train": {"en": "no/where.txt", "de": "data.txt"}})
    recipes = {recipe.name: recipe for recipe in find_recipes(project)}
    assert make_card(recipes["bad"], project / "cards", project) == "failed with exit code 2"
    assert make_card(recipes["far"], project / "cards", project) == "left out, its data aren't there: no/where.txt"
    assert not list((project / "cards").iterdir())
    make_card(recipes["first"], project / "cards", project)
    list_cards(list(recipes.values()), project / "cards", project)
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "no data: no/where.txt" in lines["far"]
    assert lines["first"].split()[1] == "card"
    assert "no card" in lines["after"]


def test_recipes_without_a_command_or_with_one_folder_are_refused(project):
    write_recipe(project, "twin", output="outputs/first")
    with pytest.raises(ValueError, match=r"twin.yaml: training.output_dir='outputs/first' is another recipe's too"):
        find_recipes(project)
    (project / "recipes" / "task" / "twin.yaml").write_text("training: {output_dir: outputs/twin}\n")
    with pytest.raises(ValueError, match=r"twin.yaml: its first lines don't say its command"):
        find_recipes(project)


def test_a_picture_that_is_not_there_is_no_card(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "README.md").write_text("![x](loss.png)")
    with pytest.raises(FileNotFoundError):
        keep_card(tmp_path / "run", tmp_path)


def test_the_projects_own_recipes():
    recipes = find_recipes()
    names = [recipe.name for recipe in recipes]
    assert len(names) == len(set(names)) > 25
    for recipe in recipes:
        assert (ROOT / recipe.script).is_file()
        for needed in recipe.needs:  # every model that one begins with is made by another
            assert names.index(needed.name) < names.index(recipe.name), recipe.path


def test_every_recipe_knows_its_own_card(monkeypatch):
    """What a run writes into a card is its YAML read, typed and written again."""
    for recipe in find_recipes():
        command = [recipe.script, recipe.path.as_posix(), "--resume", "auto"]
        written = recipe_of_command(command, monkeypatch).to_yaml()
        card = f"{LATEST_SECTION}\n```\npython {' '.join(command)}\n```\n```yaml\n{written}```\n"
        assert is_card_of(card, recipe), recipe.path


def test_an_unknown_name_is_refused(capsys):
    with pytest.raises(SystemExit):
        recipe_cards.main(["model_cards", "--only", "nothing"])
    assert "--only nothing: must be one of " in capsys.readouterr().err
