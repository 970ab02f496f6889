"""Whether this process was started as the command line: it shows its help before torch and transformers are loaded."""

from collections.abc import Sequence
from pathlib import PurePath


PROGRAM, PACKAGE = "hf-ext", "hf_ext"
# options of the interpreter whose value may be the next word
_WITH_VALUE = ("-W", "-X")


def is_command_line(words: Sequence[str]) -> bool:
    """Whether an interpreter that was started so runs `hf-ext` or `python -m hf_ext`.

    Args:
        words: `sys.orig_argv`, interpreter first; `sys.argv` of a process of `multiprocessing` is its parent's.
    """
    rest = iter(words[1:])
    for word in rest:
        if word in _WITH_VALUE:
            next(rest, None)
        elif word == "-m":
            return next(rest, None) == PACKAGE
        elif word.startswith("-m"):
            return word == f"-m{PACKAGE}"
        elif word.startswith("-c"):
            return False
        elif not word.startswith("-") or word == "-":
            return PurePath(word).name.removesuffix(".exe").removesuffix("-script.py") == PROGRAM
    return False
