"""Which script trains a recipe: one of those that come with hf_ext, never one that a YAML or its folder brings along."""

import difflib
import re
from importlib.metadata import distribution
from pathlib import Path


# in a checkout recipes/ lies beside the package
CHECKOUT = Path(__file__).parents[2] / "recipes"
# the first lines of a recipe that comes with hf_ext say how to start it
_NAMED = re.compile(r"^#.*\brecipes/(?P<task>\w+)/(?P<script>\w+)\.py\b(?P<rest>.*)$", re.MULTILINE)
_HEAD_CHARACTERS = 4000


def recipes_folder() -> Path:
    """The folder of all tasks.

    Raises:
        ValueError: neither of the places has it.
    """
    if (CHECKOUT / "pretraining" / "train.py").is_file():
        return CHECKOUT
    if (installed := installed_folder()) is not None:
        return installed
    raise ValueError("train: hf_ext was installed without its recipes; install it from its wheel, or run a checkout's")


def installed_folder() -> Path | None:
    """Where pip put the recipes, share/hf_ext/recipes of an environment, a --prefix or a --user; None where it didn't."""
    for file in distribution("hf-ext").files or ():
        if file.as_posix().endswith("share/hf_ext/recipes/pretraining/train.py"):
            return Path(file.locate()).resolve().parents[1]
    return None


def scripts(folder: Path) -> dict[str, Path]:
    """Task -> its script: `translation` is translation/train.py, `summarization/extractive` another one of that task."""
    found = {}
    for path in sorted(folder.glob("*/*.py")):
        if path.stem == "train":
            found[path.parent.name] = path
    for path in sorted(folder.glob("*/*.py")):
        if path.stem != "train" and path.parent.name in found:
            found[f"{path.parent.name}/{path.stem}"] = path
    return found


def find_script(words: list[str]) -> tuple[Path, list[str]]:
    """The script that a command line means, and what is left of the line for it.

    A task or script that the line begins with; else what the recipe's head comment names among hf_ext's own, or the
    folder that the recipe lies in, if it has a task's name.

    Args:
        words: `[TASK | SCRIPT.py] RECIPE.yaml [--field value …]`.

    Raises:
        ValueError: no recipe, no such task, or none that can be known from the recipe.
    """
    first = words[0] if words else ""
    if first.endswith(".py"):
        if not Path(first).is_file():
            raise ValueError(f"train: {first}: no such script")
        return Path(first), words[1:]
    known = scripts(recipes_folder())
    if first in known:
        return known[first], words[1:]
    if not first.endswith((".yaml", ".yml")):
        close = difflib.get_close_matches(first, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"tasks are {', '.join(known)}"
        raise ValueError(f"train: {first!r} is neither a task nor a recipe (.yaml); {hint}")
    recipe = Path(first)
    if not recipe.is_file():
        raise ValueError(f"train: {first}: no such recipe")
    task = _named_in(recipe, known) or (recipe.resolve().parent.name if recipe.resolve().parent.name in known else None)
    if task is None:
        beside = recipe.parent / "train.py"
        own = f", or the script: hf-ext train {beside} {first}" if beside.is_file() else ""
        raise ValueError(
            f"train: {first} doesn't say of which task it is; name it: hf-ext train TASK {first}{own}; tasks are "
            f"{', '.join(known)}"
        )
    return known[task], words


def _named_in(recipe: Path, known: dict[str, Path]) -> str | None:
    """The task that the recipe's head names. Where it names several, as that of a teacher too: the one of the folder that
    the recipe lies in, else the one beside the recipe's own name; None where neither is one alone."""
    with recipe.open(encoding="utf-8", errors="replace") as file:
        head = file.read(_HEAD_CHARACTERS)
    named = []
    for match in _NAMED.finditer(head):
        task = match["task"] if match["script"] == "train" else f"{match['task']}/{match['script']}"
        if task in known:
            named.append((task, Path(match["rest"].strip().split(" ")[0]).name))
    folder = recipe.resolve().parent.name
    for chosen in (
        {task for task, _ in named},
        {task for task, _ in named if task.split("/")[0] == folder},
        {task for task, name in named if name == recipe.name},
    ):
        if len(chosen) == 1:
            return chosen.pop()
    return None
