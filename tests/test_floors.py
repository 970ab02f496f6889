"""The house: imports point down, no cycles, basenames that the Hub bundle can flatten."""

import ast
from collections import Counter
from pathlib import Path

import pytest


PACKAGE = Path(__file__).parents[1] / "hf_ext"

# From the ground up; a room imports from lower floors only, rooms on one floor don't import each other.
# hub/ stands below tasks/, for every recipe fills a model card; hf_ext/__init__.py is the roof, __main__.py its chimney.
FLOORS = [
    {"ops"},
    {"layers"},
    {"models"},
    {"registry"},
    {"interop"},
    {"data", "objectives", "metrics"},
    {"training"},
    {"hub"},
    {"tasks"},
    {"quantization", "export"},
    {"cli"},
    {"__init__"},
    {"__main__"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> dict[str, Path]:
    return {
        ".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): p
        for p in sorted(PACKAGE.rglob("*.py"))
    }


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports_of(path: Path, names: set[str]) -> set[str]:
    """Modules of ours that `path` imports anywhere, functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write hf_ext.…"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in found if name in names and name.startswith("hf_ext.")}


def graph() -> dict[str, set[str]]:
    names = modules()
    return {name: imports_of(path, set(names)) - {name} for name, path in names.items()}


def test_every_room_has_a_floor():
    unknown = {room_of(name) for name in modules()} - set(FLOOR_OF)
    assert not unknown, f"rooms without a floor: {unknown}"


def test_imports_point_down():
    wrong = []
    for name, imported in graph().items():
        for other in imported:
            here, there = room_of(name), room_of(other)
            if here != there and FLOOR_OF[there] >= FLOOR_OF[here]:
                wrong.append(f"{name} imports {other}")
    assert not wrong, "; ".join(wrong)


def test_no_cycles():
    # a package's __init__ only gathers what its files export, so it is no node of its own here
    edges = {n: {o for o in i if modules()[o].name != "__init__.py"} for n, i in graph().items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for other in edges[name]:
                visit(other, (*path, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def test_ops_know_torch_only():
    for name, path in modules().items():
        if room_of(name) != "ops":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            imported = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            imported += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not [
                i for i in imported if i.split(".")[0] in ("transformers", "datasets", "accelerate", "numpy")
            ], name


def test_only_the_registry_registers():
    touching = [
        name
        for name, path in modules().items()
        if any(
            word in path.read_text(encoding="utf-8") for word in ("AttentionInterface.register", "AutoConfig.register")
        )
    ]
    assert touching == ["hf_ext.registry"]


@pytest.mark.parametrize("rooms", [("ops", "layers", "models")])
def test_basenames_are_unique_where_the_bundle_flattens(rooms):
    names = Counter(p.name for r in rooms for p in (PACKAGE / r).rglob("*.py") if p.name != "__init__.py")
    assert not [n for n, count in names.items() if count > 1]


def test_no_junk_rooms():
    for path in PACKAGE.rglob("*.py"):
        assert path.stem not in {"utils", "helpers", "common", "misc", "base2"}, path
