"""What `hf-ext run` lets each interpreter do when it starts: once transformers is imported, import hf_ext.

Nothing is imported before the program asks for it, so one without transformers starts as fast as ever, and what it sets
before that (devices, threads) still counts.
"""

import importlib.abc
import importlib.util
import os
import sys


HERE = os.path.dirname(os.path.abspath(__file__))
MODULE = "transformers"


class Finder(importlib.abc.MetaPathFinder):
    """Finds transformers as the others find it, and imports hf_ext after it."""

    def find_spec(self, fullname, path, target=None):
        if fullname != MODULE:
            return None
        sys.meta_path.remove(self)  # first: the search below comes here too
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = Loader(spec.loader)
        return spec


class Loader(importlib.abc.Loader):
    def __init__(self, loader):
        self.loader = loader

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        importlib.import_module("hf_ext")  # fails aloud in an interpreter that hasn't got it


def import_the_next_one() -> None:
    """The sitecustomize that this one stands before, if there is another: an installation's own."""
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or os.curdir) != HERE]
    this = sys.modules.pop("sitecustomize", None)
    if importlib.util.find_spec("sitecustomize") is not None:
        importlib.import_module("sitecustomize")
    elif this is not None:
        sys.modules["sitecustomize"] = this


sys.meta_path.insert(0, Finder())
import_the_next_one()
