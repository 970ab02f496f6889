"""Whether a configuration is saved with the code of its model, and who writes that code.

The package cuts it from its own sources (`hf_ext/hub/bundle.py`); what has been loaded from such a bundle copies itself.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from transformers import PretrainedConfig


# config, folder -> config.json's auto_map, after the files that it names have been written; None: no code for this config
CodeWriter = Callable[[PretrainedConfig, Path], dict[str, str] | None]
_writer: list[CodeWriter] = []
_wanted: ContextVar[bool] = ContextVar("hf_ext_bundle", default=True)


def set_code_writer(writer: CodeWriter) -> None:
    """From now on `writer` writes the code."""
    _writer[:] = [writer]


@contextmanager
def saving_code(wanted: bool | None) -> Iterator[None]:
    """Within it configurations are saved with code or without; None leaves it as it was, which is with."""
    token = _wanted.set(_wanted.get() if wanted is None else wanted)
    try:
        yield
    finally:
        _wanted.reset(token)


@contextmanager
def code_beside(config: PretrainedConfig, folder: str | Path) -> Iterator[None]:
    """Write the code into `folder`; within it `config` names it in its `auto_map`, or nothing where none is wanted."""
    before = config.__dict__.pop("auto_map", None)
    auto_map = _writer[0](config, Path(folder)) if _writer and _wanted.get() else None
    if auto_map is not None:
        config.auto_map = auto_map
    try:
        yield
    finally:
        config.__dict__.pop("auto_map", None)
        if before is not None:
            config.auto_map = before


def is_of_these_sources(cls: type) -> bool:
    """Whether `cls` is of the package that this file is of, hf_ext or a bundle's, not a user's class derived from it."""
    return cls.__module__.startswith(f"{__name__.split('.')[0]}.")
