"""Our Triton kernels as a repository for the library `kernels`: written from the sources here, loaded by path, pushed as is.

    python -m hf_ext.hub.kernel_repository outputs/flash-kernels
    hf upload --repo-type kernel --revision v1 ORG/flash-kernels outputs/flash-kernels

A kernel repository is flat and imports nothing of its own but relatively, so that several versions of it can be loaded
into one process. Layout and fields: https://huggingface.co/docs/kernels/kernel-requirements.
"""

import argparse
import ast
import base64
import hashlib
import json
import re
import shutil
from importlib.metadata import version
from pathlib import Path


NAME = "flash-kernels"  # transformers takes an attention for flash attention by the word in its name
VERSION = 1  # of what the repository offers: raised where a function or layer changes for its callers
LICENSE = "Apache-2.0"
EDITION = 5  # of the format of build.toml
VARIANT = "torch-universal"  # any torch, any device that Triton compiles for
PACKAGE = Path(__file__).parents[1]
# what the repository offers; what these files import of ours comes along
FUNCTIONS, LAYERS = "hf_ext.ops.triton.kernel_functions", "hf_ext.layers.kernel_layers"
NEW_NAMES = {"kernel_layers": "layers"}  # where `kernels` looks for them

# older versions of `kernels` import build/<variant>/<name> instead of build/<variant>
OLD_ENTRANCE = '''"""For versions of `kernels` that look here: what the folder above offers."""

import importlib.util
import sys
from pathlib import Path


_init = Path(__file__).parents[1] / "__init__.py"
_spec = importlib.util.spec_from_file_location(f"{__name__}_above", _init)
_module = sys.modules[_spec.name] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
__all__ = _module.__all__
globals().update({name: getattr(_module, name) for name in __all__})
'''

CARD = """---
license: {license}
library_name: kernels
tags:
- kernels
---

# {name}

Triton kernels for transformers, forward and backward: {functions}.
Generated from the sources of hf_ext {package_version} by `python -m hf_ext.hub.kernel_repository`. They pass the tests under
Triton's interpreter; on a GPU they have not been measured yet.

```python
from kernels import get_kernel

kernel = get_kernel("{repo_id}", version={version}, trust_remote_code=True)
y = kernel.rms_norm(x, weight, eps=1e-6)
```

Layers, for `kernels.LayerRepository`: {layers}.
"""


def write_kernel_repository(folder: str | Path, repo_id: str = f"hf-ext/{NAME}") -> Path:
    """Writes build.toml, torch-ext/, build/torch-universal/ and a card. The same sources give the same bytes.

    Args:
        folder: to write into; what an earlier call wrote there is replaced.
        repo_id: that it will have on the Hub; the kernel has the name of its second part.

    Returns:
        `folder`.

    Raises:
        ValueError: `repo_id` is no name of a repository, or `folder` holds something else.
    """
    folder, name = Path(folder), repo_id.rpartition("/")[2]
    if not re.fullmatch(r"[\w.-]+/[a-z][a-z0-9]*(-[a-z0-9]+)*", repo_id):
        raise ValueError(f"repo_id={repo_id!r}: must be ORG/NAME, NAME of small letters, digits and single dashes")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "build.toml").is_file():
        raise ValueError(f"{folder}: holds something else than a kernel repository; give another folder")
    files = flat_sources()
    functions = _exported(FUNCTIONS)
    layers = sorted(node.name for node in _tree(LAYERS).body if isinstance(node, ast.ClassDef))
    files["__init__.py"] = _init_file(functions)
    module = name.replace("-", "_")
    sources, variant = folder / "torch-ext" / module, folder / "build" / VARIANT
    for part in (sources, variant):
        if part.exists():
            shutil.rmtree(part)
        part.mkdir(parents=True)
        for file, text in files.items():
            (part / file).write_text(text, encoding="utf-8")
    (variant / module).mkdir()
    (variant / module / "__init__.py").write_text(OLD_ENTRANCE, encoding="utf-8")

    digests = {
        path.relative_to(variant).as_posix(): hashlib.sha256(path.read_bytes()).digest()
        for path in sorted(variant.rglob("*.py"))
    }
    metadata = {
        "name": name,
        "id": f"_{module}_{hashlib.sha256(b''.join(digests.values())).hexdigest()[:8]}",
        "version": VERSION,
        "license": LICENSE,
        "python-depends": [],
        "backend": {"type": "cuda"},
        "digest": {
            "algorithm": "sha256",
            "files": {file: base64.b64encode(digest).decode() for file, digest in digests.items()},
        },
    }
    (variant / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    (folder / "build.toml").write_text(
        f'[general]\nname = "{name}"\nversion = {VERSION}\nedition = {EDITION}\nlicense = "{LICENSE}"\n'
        f'backends = ["cuda"]\n\n'
        f'[general.hub]\nrepo-id = "{repo_id}"\n\n[torch-noarch]\n',
        encoding="utf-8",
    )
    (folder / "README.md").write_text(
        CARD.format(
            name=name,
            repo_id=repo_id,
            license=LICENSE.lower(),
            version=VERSION,
            package_version=version("hf-ext"),
            functions=", ".join(f"`{function}`" for function in functions),
            layers=", ".join(f"`{layer}`" for layer in layers),
        ),
        encoding="utf-8",
    )
    return folder


def flat_sources() -> dict[str, str]:
    """File name -> text of every module that the repository needs, with imports of ours made relative."""
    found: dict[str, str] = {}
    waiting = [FUNCTIONS, LAYERS]
    while waiting:
        module = waiting.pop()
        file = f"{_flat_name(module)}.py"
        if file in found:
            continue
        lines = _path(module).read_text(encoding="utf-8").splitlines(keepends=True)
        for node in ast.walk(_tree(module)):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "hf_ext":
                waiting.append(node.module)
                line = node.lineno - 1
                lines[line] = lines[line].replace(
                    f"from {node.module} import", f"from .{_flat_name(node.module)} import"
                )
        found[file] = "".join(lines)
    return dict(sorted(found.items()))


def _init_file(functions: list[str]) -> str:
    imported = "".join(f"    {function},\n" for function in functions)
    offered = "".join(f'    "{name}",\n' for name in sorted([*functions, "layers"]))
    return (
        '"""Triton kernels for transformers: functions, and `layers` that stand in for others."""\n\n'
        f"from . import layers\nfrom .{_flat_name(FUNCTIONS)} import (\n{imported})\n\n\n__all__ = [\n{offered}]\n"
    )


def _exported(module: str) -> list[str]:
    for node in _tree(module).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__":
            return ast.literal_eval(node.value)
    raise AssertionError(f"{module}: no __all__")


def _path(module: str) -> Path:
    return PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py")


def _tree(module: str) -> ast.Module:
    return ast.parse(_path(module).read_text(encoding="utf-8"))


def _flat_name(module: str) -> str:
    name = module.rpartition(".")[2]
    return NEW_NAMES.get(name, name)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Write our Triton kernels as a repository for the library `kernels`.")
    parser.add_argument("folder")
    parser.add_argument("--repo_id", default=f"hf-ext/{NAME}", help="ORG/NAME that it will have on the Hub")
    options = parser.parse_args(arguments)
    try:
        print(write_kernel_repository(options.folder, options.repo_id))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
