"""Recipes: a YAML of sections, each read into a dataclass, every field of which the command line can override.

    train.py recipe.yaml --training.learning_rate 3e-4 --max_steps=100 --resume auto --model '{path: outputs/masked}'

What can't be meant is refused in one line before anything else happens: unknown sections and fields (with the nearest
name), values of the wrong type, duplicate keys, broken YAML.
"""

import dataclasses
import difflib
import enum
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path

import yaml
from huggingface_hub.errors import StrictDataclassError
from tqdm import tqdm

from hf_ext.training.checkpoints.fingerprint_groups import CHANGEABLE
from hf_ext.training.non_finite import NonFiniteError


class RecipeError(ValueError):
    """A recipe or command line that can't be meant; the message is one line."""


@dataclasses.dataclass
class Recipe:
    """What a YAML and a command line say together.

    Attributes:
        path: the YAML.
        sections: name -> instance of its dataclass (or dict).
        values: name -> the fields that were given, overrides included.
        resume: None, True (`--resume`), "auto", or a checkpoint's path.
        allow_change: what may differ from the run that is gone on with, `--allow_change data,seed`.
    """

    path: Path
    sections: dict[str, object]
    values: dict[str, dict]
    resume: str | bool | None
    allow_change: tuple[str, ...] = ()

    def __getattr__(self, name: str):
        try:
            return self.__dict__["sections"][name]
        except KeyError:
            raise AttributeError(f"recipe has no section {name!r}") from None

    def to_yaml(self) -> str:
        """The recipe as given, overrides included: it runs the same run again."""
        return yaml.safe_dump(_plain(self.values), sort_keys=False, allow_unicode=True)


def load_recipe(argv: list[str], sections: Mapping[str, type]) -> Recipe:
    """Read a command line.

    Args:
        argv: the YAML's path, then `--section.field value`, `--field value` where one section alone has it, or with `=`;
            a boolean field needs no value. `--section '{field: value}'` replaces a whole section. Also
            `--resume [auto | PATH]`, `--allow_change NAME …` and `--help`.
        sections: name -> dataclass, or `dict` for a mapping that the caller checks.

    Raises:
        RecipeError: see the file's head. SystemExit(0): after `--help`.
    """
    if "--help" in argv or "-h" in argv:
        print(describe(sections))
        raise SystemExit(0)
    paths, options = _split_command_line(argv)
    if len(paths) != 1:
        raise RecipeError(
            f"command line: {len(paths)} recipes given ({', '.join(paths) or 'none'}); name one YAML file"
        )
    path = Path(paths[0])
    given = read_yaml(path)
    for name in given:
        if name not in sections:
            raise RecipeError(f"{path}: no section {name!r}{_nearest(name, sections)}")
    values = {name: dict(given.get(name) or {}) for name in sections}
    hints = {name: _field_types(kind) for name, kind in sections.items()}
    for name, section in values.items():
        if hints[name] is not None:
            for field, value in section.items():
                section[field] = _coerce(value, _field_type(name, field, hints), f"{name}.{field}")

    resume, allowed = None, ()
    for key, raw in options:
        if key == "resume":
            if raw == "":
                raise RecipeError("--resume='': names no checkpoint; give its path, auto, or no value at all")
            resume = True if raw is None else raw
            continue
        if key == "allow_change":
            allowed += _changes(raw, hints)
            continue
        if key in hints:
            values[key] = _whole_section(key, raw, hints)
            continue
        name, field = _locate(key, hints)
        if raw is None and (hints[name] is None or not _accepts(bool, hints[name][field])):
            raise RecipeError(f"--{key}: needs a value")
        is_text = hints[name] is not None and set(_members(hints[name][field])) <= {str, type(None)}
        parsed = True if raw is None else _parse(raw, key, is_text=is_text)
        if hints[name] is None:
            values[name][field] = parsed
        else:
            values[name][field] = _coerce(parsed, hints[name][field], f"--{key}", raw)
    if allowed and resume is None:
        raise RecipeError(
            f"--allow_change {' '.join(allowed)}: has no effect without --resume; give it, or leave this out"
        )
    built = {name: _build(name, kind, values[name]) for name, kind in sections.items()}
    return Recipe(path, built, {k: v for k, v in values.items() if v}, resume, allowed)


def _changes(raw: str | None, hints: dict) -> tuple[str, ...]:
    """What `--allow_change` names: one, or several with commas or spaces between them, in brackets or not."""
    known = list(dict.fromkeys((*CHANGEABLE, *(name for name in hints if name != "training"))))
    names = re.findall(r"[^\s,\[\]'\"]+", raw or "")
    if not names:
        raise RecipeError(
            f"--allow_change: needs the name of what may be another than before; one of {', '.join(known)}"
        )
    for name in names:
        if name not in known:
            raise RecipeError(f"--allow_change {name}: must be one of {', '.join(known)}{_nearest(name, known)}")
    return tuple(names)


def _whole_section(name: str, raw: str | None, hints: dict) -> dict:
    """A section given as one: it takes the place of the recipe's."""
    section = None if raw is None else _parse(raw, name)
    if not isinstance(section, dict):
        given = f"--{name}" if raw is None else f"--{name}={raw!r}"
        raise RecipeError(f"{given}: must be a mapping such as '{{field: value}}'; for a field write --{name}.field")
    return _coerce_section(name, section, hints)


def _coerce_section(name: str, section: dict, hints: dict) -> dict:
    if hints[name] is None:
        return section
    return {f: _coerce(value, _field_type(name, f, hints), f"{name}.{f}") for f, value in section.items()}


def run_recipe_main(main: Callable[[list[str]], None]) -> None:
    """Run a script's main; a user's mistake is one line on stderr and exit code 2, a loss that isn't finite code 3.

    `--traceback`, or HF_EXT_TRACEBACK=1, shows where it was noticed.
    """
    argv = [a for a in sys.argv[1:] if a != "--traceback"]
    if len(argv) < len(sys.argv) - 1 or os.environ.get("HF_EXT_TRACEBACK") == "1":
        return main(argv)
    try:
        main(argv)
    except KeyboardInterrupt:
        tqdm.write("interrupted; --resume goes on from the last checkpoint", file=sys.stderr)
        raise SystemExit(130) from None
    except NonFiniteError as error:
        tqdm.write(f"error: {error}", file=sys.stderr)
        raise SystemExit(3) from None
    except (ValueError, StrictDataclassError, OSError) as error:
        tqdm.write(f"error: {' '.join(str(error).split())}", file=sys.stderr)  # on a line of its own, below the bars
        raise SystemExit(2) from None


def describe(sections: Mapping[str, type]) -> str:
    """The help: every section's fields with type, default and meaning."""
    lines = [
        "usage: train.py RECIPE.yaml [--section.field VALUE ...] [--section '{…}'] [--resume [auto | CHECKPOINT]]",
        "                [--allow_change NAME ...]",
        "  --section '{…}' replaces the recipe's whole section; --traceback shows where a mistake was noticed",
        "  --resume goes on from the last checkpoint that verifies, and fails where there is none; auto starts anew there",
        "  --allow_change names what may be another than before: " + ", ".join(CHANGEABLE) + ", or a section",
    ]
    for name, kind in sections.items():
        lines.append(f"\n{name}:")
        if kind is dict:
            lines.append("  the fields of the configuration that its model_type names")
            continue
        types_ = _field_types(kind)
        for field in dataclasses.fields(kind):
            if field.init:
                text = " ".join(str(field.metadata.get("help", "")).split())
                lines.append(f"  --{name}.{field.name} ({_name(types_[field.name])}, {_default(field)})  {text}")
    return "\n".join(lines)


def _split_command_line(argv: list[str]) -> tuple[list[str], list[tuple[str, str | None]]]:
    paths, options, index = [], [], 0
    while index < len(argv):
        word = argv[index]
        index += 1
        if not word.startswith("--"):
            paths.append(word)
            continue
        key, equals, value = word[2:].partition("=")
        if not equals:
            value = None
            # a YAML right after --resume is the recipe, not a checkpoint
            if index < len(argv) and not argv[index].startswith("--"):
                is_recipe = key == "resume" and argv[index].endswith((".yaml", ".yml"))
                if not is_recipe:
                    value = argv[index]
                    index += 1
            while key.replace("-", "_") == "allow_change" and index < len(argv) and _is_name(argv[index]):
                value = f"{value} {argv[index]}"
                index += 1
        options.append((key.replace("-", "_"), value))
    return paths, options


def _is_name(word: str) -> bool:
    return not word.startswith("--") and not word.endswith((".yaml", ".yml"))


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


def read_yaml(path: Path) -> dict:
    """A recipe as it is written, section by section; RecipeError where it is none."""
    if not path.is_file():
        beside = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        there = f"; there are {', '.join(beside)}" if beside else ""
        raise RecipeError(f"{path}: no such recipe{there}")
    try:
        with path.open(encoding="utf-8") as file:
            content = yaml.load(file, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise RecipeError(f"{path}: {where}not YAML: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: must be a mapping of sections, is {type(content).__name__}")
    for name, section in content.items():
        if section is not None and not isinstance(section, dict):
            raise RecipeError(f"{path}: section {name!r} must be a mapping of fields, is {section!r}")
    return content


def _field_types(kind: type) -> dict[str, object] | None:
    """Field -> type; None for a free mapping."""
    if kind is dict:
        return None
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind) if f.init}


def _field_type(section: str, field: str, hints: dict):
    if field not in hints[section]:
        elsewhere = [n for n, fields in hints.items() if fields and field in fields]
        hint = f"; it belongs to {elsewhere[0]}" if elsewhere else _nearest(field, hints[section])
        raise RecipeError(f"{section}.{field}: no such field{hint}")
    return hints[section][field]


def _locate(key: str, hints: dict) -> tuple[str, str]:
    """Section and field that an option means."""
    section, dot, field = key.partition(".")
    if dot:
        if section not in hints:
            raise RecipeError(f"--{key}: no section {section!r}{_nearest(section, hints)}")
        if hints[section] is not None:
            _field_type(section, field, hints)
        return section, field
    owners = [name for name, fields in hints.items() if fields and key in fields]
    if len(owners) > 1:
        raise RecipeError(f"--{key}: is in several sections; write {' or '.join(f'--{o}.{key}' for o in owners)}")
    if not owners:
        known = ["resume", "allow_change", *(f for fields in hints.values() if fields for f in fields)]
        free = next((n for n, fields in hints.items() if fields is None), None)
        # where a section's fields aren't known here, what is only somewhat like an option is rather one of those
        hint = _nearest(key, known, likeness=0.75 if free else 0.6)
        hint = hint or (f"; for a field of the {free} write --{free}.{key}" if free else "")
        raise RecipeError(f"--{key}: no such option{hint}")
    return owners[0], key


def _build(name: str, kind: type, values: dict):
    if kind is dict:
        return dict(values)
    for field in dataclasses.fields(kind):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if field.init and required and field.name not in values:
            raise RecipeError(f"{name}.{field.name}: is missing; give it in the recipe or as --{name}.{field.name}")
    return kind(**values)


def _parse(raw: str, key: str, *, is_text: bool = False):
    """The YAML value that a word is; a field of text alone takes as it is what is none, such as a pattern `[a-z]+`."""
    try:
        return yaml.load(raw, Loader=_Loader)
    except yaml.YAMLError:
        if is_text:
            return raw
        raise RecipeError(f"--{key}: {raw!r} is not a YAML value; quote it") from None


def _plain(value):
    """`value` of what YAML has words for."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, enum.Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value


def _number(value):
    """The number that a text spells, where a field takes numbers only."""
    if isinstance(value, str):
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
    return value


def _coerce(value, annotation, where: str, raw: str | None = None):
    """`value` as `annotation` has it, or RecipeError. `raw`: the word on the command line, for fields that take text."""
    for candidate in _members(annotation):
        converted = _convert(value, candidate)
        if converted is not _NO:
            return converted
    if raw is not None and str in _members(annotation):
        return raw
    raise RecipeError(f"{where}={value!r}: must be {_name(annotation)}")


_NO = object()


def _members(annotation) -> list:
    """The alternatives of a union; those that need no conversion first."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = [m for a in typing.get_args(annotation) for m in _members(a)]
        return sorted(members, key=lambda m: m is str)  # a number given as text is a number where one is allowed
    return [annotation]


def _accepts(kind: type, annotation) -> bool:
    return kind in _members(annotation)


def _convert(value, kind):
    origin = typing.get_origin(kind) or kind
    if kind is typing.Any or kind is object:
        return value
    if kind in (None, type(None)):
        return value if value is None else _NO
    if origin is typing.Literal:
        return value if value in typing.get_args(kind) else _NO
    if kind is bool:
        return value if isinstance(value, bool) else _NO
    if kind is int:
        number = _number(value)
        whole = isinstance(number, int) or (isinstance(number, float) and number.is_integer())
        return int(number) if whole and not isinstance(value, bool) else _NO
    if kind is float:
        number = _number(value)
        return float(number) if isinstance(number, int | float) and not isinstance(value, bool) else _NO
    if kind is str:
        return value if isinstance(value, str) else _NO
    if isinstance(kind, type) and issubclass(kind, Path):
        return Path(value) if isinstance(value, str) else _NO
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return next((member for member in kind if value in (member, member.value)), _NO)
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            return _NO
        inner = typing.get_args(kind)[:1]
        items = [_first(v, inner[0]) if inner else v for v in value]
        return _NO if any(i is _NO for i in items) else origin(items)
    if origin is dict:
        if not isinstance(value, dict):
            return _NO
        inner = typing.get_args(kind)
        items = {k: _first(v, inner[1]) if len(inner) == 2 else v for k, v in value.items()}
        return _NO if any(i is _NO for i in items.values()) else items
    return value if isinstance(origin, type) and isinstance(value, origin) else _NO


def _first(value, annotation):
    return next((c for c in (_convert(value, m) for m in _members(annotation)) if c is not _NO), _NO)


def _name(annotation) -> str:
    names = ["null" if m in (None, type(None)) else getattr(m, "__name__", str(m)) for m in _members(annotation)]
    names = [str(m) if typing.get_args(m) else n for m, n in zip(_members(annotation), names, strict=True)]
    return " or ".join(dict.fromkeys(names))


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        default = field.default.value if isinstance(field.default, enum.Enum) else field.default
        return "null" if default is None else str(default)
    return "required" if field.default_factory is dataclasses.MISSING else repr(field.default_factory())


def _nearest(name, known, likeness: float = 0.6) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=likeness)
    return f"; did you mean {close[0]!r}?" if close else ""
