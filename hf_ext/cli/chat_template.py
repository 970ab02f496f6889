"""A conversation as a prompt, by a template that came with the model: it is a program, and gets little time and memory.

transformers renders templates in Jinja's sandbox, which keeps them from Python's objects, and not from loops without end or
texts without bounds.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError


SECONDS = 5.0
MEMORY = 2**30  # bytes beyond what the process has


def prompt_of(tokenizer, turns: list[dict[str, str]]):
    """Token ids of the conversation, 1 x tokens, with what makes the model answer, and their attention mask.

    Raises:
        ValueError: the template refuses the conversation, breaks, or takes more than `SECONDS` or `MEMORY`.
    """
    try:
        with bounded(SECONDS, MEMORY):
            return tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
    except SecurityError as error:
        raise ValueError(
            f"chat_template: reaches for what templates may not have ({error}); take another model"
        ) from None
    except (TemplateError, TypeError, ArithmeticError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"chat_template: can't make a prompt of this conversation ({said})") from None
    except (TimeoutError, MemoryError):
        raise ValueError(
            f"chat_template: took more than {SECONDS:g} s or {MEMORY:,} bytes for one conversation; take another model"
        ) from None


@contextmanager
def bounded(seconds: float, memory: int) -> Iterator[None]:
    """Inside, TimeoutError comes after `seconds` and MemoryError with more than `memory` bytes, where the system can say so.

    Seconds: POSIX, in the main thread. Bytes: Linux.
    """
    timed = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGALRM, _ring) if timed else None
    limits = _lower_memory(memory) if sys.platform == "linux" else None
    try:
        if timed:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        if timed:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        if limits is not None:
            import resource

            resource.setrlimit(resource.RLIMIT_AS, limits)


def _ring(number, frame) -> None:
    raise TimeoutError


def _lower_memory(memory: int) -> tuple[int, int]:
    """Sets the address space that the process may have to what it has and `memory`; returns what it was."""
    import resource

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + memory
    most = before[1] if before[1] != resource.RLIM_INFINITY else wanted
    resource.setrlimit(resource.RLIMIT_AS, (min(wanted, most), before[1]))
    return before
