"""What is to be done once a package that nobody may import for it has been imported by someone else."""

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable


def after_import(module: str, then: Callable[[object], None]) -> None:
    """Calls `then(module)` right after `module` is imported; at once where it is already."""
    if module in sys.modules:
        then(sys.modules[module])
        return
    sys.meta_path.insert(0, _Finder(module, then))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module as the others find it, and adds a call to its loader."""

    def __init__(self, module: str, then: Callable[[object], None]):
        self.module, self.then = module, then

    def find_spec(self, fullname, path, target=None):
        if fullname != self.module:
            return None
        sys.meta_path.remove(self)  # first: the search below comes here too
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self.then)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader, then: Callable[[object], None]):
        self.loader, self.then = loader, then

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        self.then(module)
