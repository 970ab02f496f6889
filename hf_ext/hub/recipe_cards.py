"""Cards of the recipes: run those that have none, one after the other, and keep the card and the curve of each.

    python -m hf_ext.hub.recipe_cards model_cards                     # make cards; from a checkout
    python -m hf_ext.hub.recipe_cards model_cards --list              # what there is, what is missing; runs nothing
    python -m hf_ext.hub.recipe_cards model_cards --only sst2 gsm8k   # by the names of their folders in outputs/

Stopped, it goes on where it was: finished recipes are passed over, and one that was running resumes from its last
checkpoint. Recipes whose data or whose trained models aren't there are left out, and said to be.
"""

import argparse
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from hf_ext.data.files import matching_files
from hf_ext.hub.architecture_cards import write_cards
from hf_ext.hub.bundle import PACKAGE
from hf_ext.hub.folder_checks import IMAGES_OF_A_CARD
from hf_ext.training.local_paths import without_local_paths
from hf_ext.training.recipe import read_yaml


ROOT = PACKAGE.parent
COMMAND = re.compile(r"python (recipes/\w+/\w+\.py) (recipes/\w+/\w+\.yaml)")
# what cards have since they say what a run costs
LATEST_SECTION = "## Hardware, time, energy"


@dataclass(frozen=True)
class RecipeFile:
    """A recipe that trains a model.

    Attributes:
        path: from the project's root. script: that runs it. output: the run's folder; its last part names the card.
        needs: folders of other runs, whose models it begins with. sections: as they are written.
    """

    path: Path
    script: str
    output: Path
    needs: tuple[Path, ...]
    sections: dict = field(repr=False)

    @property
    def name(self) -> str:
        return self.output.name

    def missing_data(self, root: Path) -> list[str]:
        """Names of data files that aren't there."""
        missing = []
        for section in self.sections.values():
            for pattern in _texts((section or {}).get("data_files")):
                try:
                    matching_files(str(root / pattern))
                except FileNotFoundError:
                    missing.append(pattern)
        return missing


def find_recipes(root: Path = ROOT) -> list[RecipeFile]:
    """All that train a model and aren't there only to see that they run, each after those that it needs.

    Raises:
        ValueError: a recipe whose first lines don't say its command, or two with one folder.
    """
    found = {}
    for path in sorted((root / "recipes").glob("*/*.yaml")):
        if not (path.parent / "train.py").is_file() or path.stem.startswith("debug"):
            continue
        recipe = read_recipe(path, root)
        if recipe.sections.get("writing", {}).get("only"):  # a trained model as it is
            continue
        if recipe.output in found:
            raise ValueError(f"{recipe.path}: training.output_dir={str(recipe.output)!r} is another recipe's too")
        found[recipe.output] = recipe
    ordered: list[RecipeFile] = []

    def take(recipe: RecipeFile) -> None:
        for needed in recipe.needs:
            if needed in found:
                take(found[needed])
        if recipe not in ordered:
            ordered.append(recipe)

    for recipe in found.values():
        take(recipe)
    return ordered


def read_recipe(path: Path, root: Path = ROOT) -> RecipeFile:
    """One of them; ValueError where its first lines don't say its command."""
    name = path.relative_to(root).as_posix()
    commands = {yaml_name: script for script, yaml_name in COMMAND.findall(path.read_text(encoding="utf-8"))}
    if name not in commands:
        raise ValueError(f"{name}: its first lines don't say its command; write # python recipes/…/train.py {name}")
    sections = read_yaml(path)
    needs = [Path(sections[s]["path"]) for s in ("model", "teacher") if "path" in (sections.get(s) or {})]
    output = Path(sections["training"]["output_dir"])
    return RecipeFile(path.relative_to(root), commands[name], output, tuple(needs), sections)


def is_card_of(card: str, recipe: RecipeFile) -> bool:
    """Whether a card is of the recipe as it is now, and says all that cards say now."""
    if LATEST_SECTION not in card or f"python {recipe.script} {recipe.path.as_posix()}" not in card:
        return False
    return recipe_in_card(card) == without_local_paths({n: s for n, s in recipe.sections.items() if s})


def recipe_in_card(card: str) -> dict:
    """The recipe that a card shows."""
    return yaml.safe_load(re.search(r"```yaml\n(.*?)```", card, re.DOTALL)[1])


def keep_card(output: Path, cards: Path) -> Path:
    """Copy a run's card with its pictures, named after the run; returns the card.

    Raises:
        FileNotFoundError: a picture that the card shows isn't there.
    """
    text = (output / "README.md").read_text(encoding="utf-8")
    for picture in dict.fromkeys(IMAGES_OF_A_CARD.findall(text)):
        if "://" not in picture:
            kept = f"{output.name}_{Path(picture).name}"
            shutil.copyfile(output / picture, cards / kept)
            text = text.replace(f"]({picture})", f"]({kept})")
    card = cards / f"{output.name}.md"
    card.write_text(text, encoding="utf-8")
    return card


def make_card(recipe: RecipeFile, cards: Path, root: Path = ROOT) -> str:
    """Run a recipe, or go on with it, unless there is its card; says what was done in a few words."""
    card = cards / f"{recipe.name}.md"
    if card.is_file() and is_card_of(card.read_text(encoding="utf-8"), recipe):
        return "there"
    if missing := recipe.missing_data(root):
        return f"left out, its data aren't there: {', '.join(missing)}"
    for needed in recipe.needs:
        if not (root / needed / "config.json").is_file():
            return f"left out, {needed} isn't there"
    finished = root / recipe.output / "README.md"
    if not (finished.is_file() and is_card_of(finished.read_text(encoding="utf-8"), recipe)):
        command = [sys.executable, recipe.script, recipe.path.as_posix(), "--resume", "auto"]
        code = subprocess.run(command, cwd=root, check=False).returncode
        if code:
            return f"failed with exit code {code}"
    keep_card(root / recipe.output, cards)
    return "made"


def list_cards(recipes: list[RecipeFile], cards: Path, root: Path = ROOT) -> None:
    """A line for each recipe."""
    for recipe in recipes:
        card = cards / f"{recipe.name}.md"
        text = card.read_text(encoding="utf-8") if card.is_file() else None
        state = "no card" if text is None else "card" if is_card_of(text, recipe) else "card of an older run"
        missing = recipe.missing_data(root)
        print(f"{recipe.name:36} {state:22} {recipe.path}{', no data: ' + ', '.join(missing) if missing else ''}")


def _texts(value) -> list[str]:
    """All texts in lists and mappings."""
    if isinstance(value, dict | list | tuple):
        return [text for part in (value.values() if isinstance(value, dict) else value) for text in _texts(part)]
    return [] if value is None else [value]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cards", type=Path, help="where the cards are kept")
    parser.add_argument("--list", action="store_true", help="say what there is and run nothing")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these alone")
    options = parser.parse_args(argv)
    recipes = find_recipes()
    names = [recipe.name for recipe in recipes]
    if unknown := sorted(set(options.only or ()) - set(names)):
        parser.error(f"--only {unknown[0]}: must be one of {', '.join(names)}")
    recipes = [recipe for recipe in recipes if options.only is None or recipe.name in options.only]
    if options.list:
        list_cards(recipes, options.cards)
        return 0
    failed = False
    for recipe in recipes:
        done = make_card(recipe, options.cards)
        failed |= done.startswith("failed")
        print(f"{recipe.name}: {done}", flush=True)
    write_cards(options.cards)  # they name the recipes' cards
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
