"""An export as a folder, which appears whole or not at all.

export.json  config.json  generation_config.json  (the tokenizer's files)  (recipe.yaml)  the graphs' files  parity.json
parity.safetensors
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_ext.training.checkpoints.folders import sync_tree


DESCRIPTION = "export.json"


@dataclass(frozen=True)
class Description:
    """export.json.

    Attributes:
        target, task, quantize: what was asked for. architecture: class of the model.
        parts: name of a graph -> file. cache: see `hf_ext.export.parts.cache_shapes`; empty where there is none.
    """

    target: str
    task: str
    architecture: str
    quantize: str | None
    parts: dict[str, str]
    cache: dict = field(default_factory=dict)


@contextmanager
def new_folder(out: str | Path) -> Iterator[Path]:
    """The folder to write into; it gets the name `out` at the end, or is deleted where something was raised.

    Raises:
        ValueError: `out` exists.
    """
    out = Path(os.path.abspath(out))
    check_new_folder(out)
    partial = out.with_name(f".{out.name}.partial")
    if partial.exists():  # of an export that was killed
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
        sync_tree(partial)
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_new_folder(out: str | Path) -> None:
    """Raises ValueError, one line, for a folder that exists."""
    if Path(out).exists():
        raise ValueError(f"out={str(out)!r}: exists already; name another folder, or remove it")


def write_description(
    folder: Path,
    description: Description,
    config: PretrainedConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
) -> None:
    """All but the graphs and the parity. config: a copy of the model's."""
    (folder / DESCRIPTION).write_text(json.dumps(asdict(description), indent=2) + "\n", encoding="utf-8")
    config.architectures = [description.architecture]
    config.save_pretrained(folder, bundle=False)  # its code reads weights, and there are none
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def read_description(folder: str | Path) -> Description:
    """export.json of a folder.

    Raises:
        ValueError: there is none, or it isn't what `export_model` writes.
    """
    path = Path(folder) / DESCRIPTION
    if not path.is_file():
        raise ValueError(f"folder={str(folder)!r}: holds no export (no {DESCRIPTION}); make one with export_model")
    try:
        return Description(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise ValueError(f"{path.name}: isn't what an export writes; export the model again") from None
