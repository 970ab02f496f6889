"""The YAML of a recipe, which may be a stranger's: plain values, of bounded size, that take no decision of the user's."""

import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from hf_ext.models.code_by_name import check_names_no_code


MAX_BYTES = 2**20
# values of a recipe once its aliases are written out; ten lines of them can stand for billions
MAX_VALUES = 100_000


class RecipeError(ValueError):
    """A recipe or command line that can't be meant; the message is one line."""


class _Loader(yaml.SafeLoader):
    """SafeLoader, but 3e-4 is a number, as in YAML 1.2, and a key stands once: it would take the last without a word."""

    def compose_mapping_node(self, anchor):
        # here rather than where the mapping is built, since there `<<: *anchor` has been merged in already
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            where = f"{key.start_mark.name}: line {key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise RecipeError(f"{where}: a list or mapping can't name a field; write a word")
            if (key.tag, key.value) in seen:
                raise RecipeError(f"{where}: {key.value!r} stands twice; keep one of them")
            seen.add((key.tag, key.value))
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _read(stream):
    loader = _Loader(stream)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def read_yaml(path: Path) -> dict:
    """A recipe as it is written, section by section; RecipeError where it is none."""
    if not path.is_file():
        beside = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        there = f"; there are {', '.join(beside)}" if beside else ""
        raise RecipeError(f"{path}: no such recipe{there}")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise RecipeError(f"{path}: {size:,} bytes, above {MAX_BYTES:,}; is it a recipe?")
    try:
        with path.open(encoding="utf-8") as file:
            content = _read(file)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise RecipeError(f"{path}: {where}not YAML: {error.problem}") from None
    except RecipeError:
        raise
    except (yaml.YAMLError, ValueError) as error:  # also of bytes that are no text, and numbers of thousands of digits
        raise RecipeError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise RecipeError(f"{path}: has lists or mappings hundreds of levels deep; no recipe has") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: must be a mapping of sections, is {type(content).__name__}")
    _check_size(path, content)
    for name, section in content.items():
        if section is not None and not isinstance(section, dict):
            raise RecipeError(f"{path}: section {name!r} must be a mapping of fields, is {section!r}")
    return content


def _check_size(path: Path, content: dict) -> None:
    """Raises RecipeError for aliases that lead into themselves, or stand for more values than a recipe has."""
    sizes: dict[int, int | None] = {}  # None: of a value that is being counted

    def count(value) -> int:
        if not isinstance(value, Mapping | list):
            return 1
        if id(value) not in sizes:
            sizes[id(value)] = None
            sizes[id(value)] = 1 + sum(map(count, value.values() if isinstance(value, Mapping) else value))
        size = sizes[id(value)]
        if size is None:
            raise RecipeError(f"{path}: an alias leads into the value that it is part of; write that out")
        return size

    if (total := count(content)) > MAX_VALUES:
        raise RecipeError(f"{path}: its aliases stand for {total:,} values, above {MAX_VALUES:,}; no recipe has")


def check_file_decides_nothing(path: Path, content: dict) -> None:
    """Raises RecipeError where a recipe names code to run or says that code may be trusted: the command line may."""
    try:
        check_names_no_code(content, str(path))
    except ValueError as error:
        raise RecipeError(str(error)) from None


def parse_value(raw: str, key: str, *, is_text: bool = False):
    """The YAML value that a word is; a field of text alone takes as it is what is none, such as a pattern `[a-z]+`."""
    try:
        return _read(raw)
    except yaml.YAMLError:
        if is_text:
            return raw
        raise RecipeError(f"--{key}: {raw!r} is not a YAML value; quote it") from None
