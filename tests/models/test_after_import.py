"""What waits for another's import: once, in either order, and the module is none the wiser."""

import importlib
import sys

import pytest

from hf_ext.models.after_import import after_import


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A module that nobody has imported yet."""
    (tmp_path / "imported_late.py").write_text("TABLE = {}\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "imported_late"
    sys.modules.pop("imported_late", None)


def test_after_the_import(package):
    seen, finders = [], len(sys.meta_path)
    after_import(package, lambda module: seen.append(dict(module.TABLE)))
    assert not seen
    module = importlib.import_module(package)
    assert seen == [{}]
    assert len(sys.meta_path) == finders
    assert module.__spec__.loader is module.__loader__
    importlib.reload(module)
    assert len(seen) == 1


def test_at_once_where_it_is_there(package):
    module, seen = importlib.import_module(package), []
    after_import(package, seen.append)
    assert seen == [module]


def test_a_module_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    after_import("no_such_module_anywhere", pytest.fail)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_module_anywhere")
