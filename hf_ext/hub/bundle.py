"""A model's code as one flat folder of files, so that it loads where transformers is installed and hf_ext is not.

`from hf_ext.layers.attention import …` becomes `from .attention import …`, for transformers' loader takes only files that
lie side by side. One file more, named after the model_type, is what config.json's auto_map names: it takes hf_ext's own
classes where hf_ext is installed. `save_pretrained` and `push_to_hub` write all of it; see docs/hub.md.
"""

import ast
import json
import os
import re
import subprocess
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

from transformers import PretrainedConfig
from transformers.utils import logging

from hf_ext.hub.defined_names import defined_names
from hf_ext.registry import FAMILIES


logger = logging.get_logger(__name__)

PACKAGE = Path(__file__).parents[1]
ENTRY = Path(__file__).with_name("bundle_entry.txt")
KERNELS = "hf_ext.ops.triton."
# as transformers' loader looks for files: by lines, in docstrings too
LOADED_BY = re.compile(r"^\s*(?:import\s+\.(\S+)\s*$|from\s+\.(\S+)\s+import)", re.MULTILINE)


def write_bundle(config: PretrainedConfig, folder: Path) -> dict[str, str] | None:
    """Write the code of a configuration and of every model of its family into `folder`.

    Returns:
        config.json's auto_map; None for a class that is not ours, whose code its author must save
        (`register_for_auto_class`).
    """
    if type(config) not in FAMILIES:
        logger.warning_once(f"{type(config).__name__}: not a class of hf_ext, saved without its code")
        return None
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in bundle_of(type(config)).items():
        # moved into place, for a reader of the folder may be about
        unfinished = folder / f".{name}.{os.getpid()}"
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(folder / name)
    return auto_map(type(config))


def auto_map(config_class: type[PretrainedConfig]) -> dict[str, str]:
    """Auto class -> file.class, for the configuration and each head of its family."""
    models = {auto_class.__name__: model_class for auto_class, model_class in FAMILIES[config_class]}
    named = {"AutoConfig": config_class, **models}
    return {auto_class: f"{config_class.model_type}.{cls.__name__}" for auto_class, cls in named.items()}


@cache
def bundle_of(config_class: type[PretrainedConfig]) -> dict[str, str]:
    """File name -> text of a family's bundle, checked; the same for the same sources."""
    classes = [config_class, *(model_class for _, model_class in FAMILIES[config_class])]
    modules = sorted(_with_imports({cls.__module__ for cls in classes}))
    files = {f"{_flat(module)}.py": _stamp(_path(module)) + _flattened(module) for module in modules}
    assert len(files) == len(modules), f"two files of one name among {modules}"
    entry = f"{config_class.model_type}.py"
    assert entry not in files, entry
    files[entry] = _stamp(ENTRY) + _entry(config_class, classes, modules)
    check_bundle(files)
    return files


def check_bundle(files: dict[str, str]) -> None:
    """Whether every file parses, imports only what is there, and names its siblings as transformers' loader finds them.

    Args:
        files: file name -> text.

    Raises:
        ValueError: one line.
    """
    for name, text in files.items():
        siblings = set()
        for node in _imports(text, name):
            imported = {alias.name for alias in node.names}
            if isinstance(node, ast.ImportFrom) and node.level:
                file = f"{node.module}.py"
                if node.level > 1 or file not in files:
                    raise ValueError(f"{name}: imports {'.' * node.level}{node.module}, which is not in the bundle")
                missing = imported - _defined(files[file], file) - {"*"}
                if missing:
                    raise ValueError(f"{name}: imports {sorted(missing)[0]}, which {file} does not define")
                siblings.add(node.module)
            elif any(other.split(".")[0] == "hf_ext" for other in [*imported, getattr(node, "module", "")]):
                raise ValueError(f"{name}: imports hf_ext in line {node.lineno}; a bundle must do without it")
        found = {match[1] or match[2] for match in LOADED_BY.finditer(text)}
        if found != siblings:
            raise ValueError(
                f"{name}: transformers' loader would look for {sorted(found)}, it imports {sorted(siblings)}; "
                "a line of a docstring must not look like an import"
            )


@cache
def _parsed(text: str, name: str) -> ast.Module:  # families share most of their files
    try:
        return ast.parse(text)
    except SyntaxError as error:
        raise ValueError(f"{name}: not Python in line {error.lineno}, {error.msg}") from None


@cache
def _imports(text: str, name: str) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(_parsed(text, name)) if isinstance(node, ast.Import | ast.ImportFrom)]


@cache
def _defined(text: str, name: str) -> set[str]:
    return defined_names(_parsed(text, name))


def _path(module: str) -> Path:
    return PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py")


def _flat(module: str) -> str:
    return module.rpartition(".")[2]


@cache
def _own_imports(module: str) -> list[ast.ImportFrom]:
    """The lines `from hf_ext.… import …` of a file, those inside functions too."""
    nodes = ast.walk(ast.parse(_path(module).read_text(encoding="utf-8")))
    return [
        node for node in nodes if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hf_ext"
    ]


def _with_imports(modules: set[str]) -> set[str]:
    found: set[str] = set()
    todo = list(modules)
    while todo:
        module = todo.pop()
        if module not in found:
            assert _path(module).is_file(), f"{module}: a bundle takes files, import from the file that defines it"
            found.add(module)
            todo += [node.module for node in _own_imports(module) if not node.module.startswith(KERNELS)]
    return found


def _flattened(module: str) -> str:
    """The text of a file, with imports of its siblings; all else, comments too, as it was."""
    lines = _path(module).read_text(encoding="utf-8").splitlines(keepends=True)
    for node in _own_imports(module):
        first, last = node.lineno - 1, node.end_lineno - 1
        if node.module.startswith(KERNELS):  # never reached: `triton_missing` says so before
            indent = lines[first][: node.col_offset]
            lines[first : last + 1] = [
                f'{indent}raise ImportError("{node.module}: comes with hf_ext, which is not installed")\n',
                *[""] * (last - first),  # so that the numbers of the lines after it stay
            ]
        else:
            lines[first] = re.sub(r"from\s+hf_ext[\w.]*", f"from .{_flat(node.module)}", lines[first], count=1)
    return "".join(lines)


def _entry(config_class: type, classes: list[type], modules: list[str]) -> str:
    auto_models = sorted(auto_class.__name__ for auto_class, _ in FAMILIES[config_class])
    classes_of = {}
    for cls in classes:
        classes_of.setdefault(_flat(cls.__module__), []).append(cls.__name__)
    values = {
        "model_type": config_class.model_type,
        "version": distribution("hf-ext").version,
        "config_class": config_class.__name__,
        "auto_models": _indented(f"{name}," for name in auto_models),
        "auto_map": _indented(f'"{name}": "{reference}",' for name, reference in auto_map(config_class).items()),
        "imports_of_all": _indented(f"from .{name} import *" for name in sorted(map(_flat, modules))),
        "installed_classes": _indented(f"{cls.__name__} = hf_ext.{cls.__name__}" for cls in classes),
        "own_classes": _indented(f"from .{file} import {', '.join(names)}" for file, names in classes_of.items()),
    }
    return ENTRY.read_text(encoding="utf-8").format_map(values)


def _indented(lines) -> str:
    return "\n".join(f"    {line}" for line in lines)


def _stamp(source: Path) -> str:
    commit = source_commit()
    where = f"{source.relative_to(PACKAGE.parent).as_posix()}{f' at {commit}' if commit else ''}"
    return (
        f"# SPDX-License-Identifier: Apache-2.0\n# Part of hf_ext {distribution('hf-ext').version}: {where}\n"
        "# Written by save_pretrained; the original is the place for changes.\n"
    )


@cache
def source_commit() -> str | None:
    """The commit that hf_ext's files are of: its checkout's, or the one that pip installed it from; None if unknown."""
    # both at once: where hf_ext is installed somewhere inside another project's checkout, that commit says nothing of it
    asked = _git("rev-parse", "HEAD", "HEAD:./__init__.py")
    if asked is not None:
        changed = _git("status", "--porcelain", "--", ".")
        return asked.split()[0] + (", changed since" if changed else "")
    origin = distribution("hf-ext").read_text("direct_url.json")
    return json.loads(origin).get("vcs_info", {}).get("commit_id") if origin else None


def _git(*arguments: str) -> str | None:
    # without a lock, which a run that is killed here would leave in the checkout
    command = ["git", "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(command, cwd=PACKAGE, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git here
        return None
    return done.stdout if done.returncode == 0 else None
