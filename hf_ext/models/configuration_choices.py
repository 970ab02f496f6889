"""Checks of names in configurations and recipes: what is allowed, and what was probably meant."""

import difflib
from collections.abc import Iterable


def check_choice(name: str, value, choices: Iterable) -> None:
    """Raises ValueError, one line, naming the choices and the nearest one, unless `value` is among them."""
    choices = list(choices)
    if value in choices:
        return
    hint = nearest(str(value), [c for c in choices if c is not None])
    raise ValueError(f"{name}={value!r}: must be one of {', '.join(str(c) for c in choices)}{hint}")


def check_known(section: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raises ValueError, one line, for the first of `names` that isn't `known`, with the nearest one."""
    known = list(known)
    for name in names:
        if name not in known:
            raise ValueError(f"{section}.{name}: no such field{nearest(name, known) or '; --help lists them'}")


def nearest(name: str, known: list[str]) -> str:
    """'; did you mean …?' or nothing."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
