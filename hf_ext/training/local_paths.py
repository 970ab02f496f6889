"""Paths of this machine, cut short where a text is for others: it says what was done, not on whose machine."""

import re
from pathlib import Path

import yaml


# the folders that lead to the last part of an absolute path; not what follows in a URL or in a relative path
LEADING_FOLDERS = re.compile(
    r"(?:(?:file://|(?<![\w./~-])(?:~|[A-Za-z]:)?)/(?:[^\s'\"/]+/)+|(?<![\w./~-])~/)(?=[^\s'\"/])"
)


def without_local_paths(value):
    """Paths below the working folder relative to it, all other absolute ones as their last part, the home as `~`.

    Args:
        value: a text, or lists and mappings of texts and what else there is, which stays.
    """
    if isinstance(value, dict):
        return {name: without_local_paths(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(without_local_paths, value))
    if not isinstance(value, str):
        return value
    for folder in _both_names(Path.cwd()):
        value = re.sub(rf"(?<![\w./~-]){re.escape(folder)}/(?=[^\s'\"/])", "", value)
    for folder in _both_names(Path.home()):
        value = re.sub(rf"(?<![\w./~-]){re.escape(folder)}(?![\w.-])", "~", value)
    return LEADING_FOLDERS.sub("", value)


def public_yaml(text: str) -> str:
    """A recipe's YAML with its values so; the text itself could not be cut, for a `*` that is left would want quotes."""
    return yaml.safe_dump(without_local_paths(yaml.safe_load(text)), sort_keys=False, allow_unicode=True)


def _both_names(folder: Path) -> list[str]:
    """A folder as it is called and as it is without links, the longer first; none for the root."""
    names = {str(name) for name in (folder, folder.resolve()) if name != Path(name.anchor)}
    return sorted(names, key=len, reverse=True)
