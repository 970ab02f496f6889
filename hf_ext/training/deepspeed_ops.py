"""DeepSpeed's compiled operators, made once, before a run needs them: python -m hf_ext.training.deepspeed_ops [NAME …]

On a CPU the first ZeRO run would compile the operator of its collectives, for minutes and in every process at once; its
optimizer for offloaded states is another. A compile that is killed leaves a lock, for which every later run would wait for
ever: `remove_stale_locks` takes away those that nobody holds.
"""

import os
import sys
import time
from pathlib import Path

import psutil


# name of the built operator -> its builder, as DeepSpeed's accelerator knows it
OPERATORS = {"deepspeed_shm_comm": "ShareMemCommBuilder", "cpu_adam": "CPUAdamBuilder"}
# seconds that a lock may be there before its compiler has started
STARTING = 5


def build_folder(name: str) -> Path:
    """Where torch builds an operator: in TORCH_EXTENSIONS_DIR, else in the cache of its version."""
    from torch.utils.cpp_extension import _get_build_directory

    return Path(_get_build_directory(name, verbose=False))


def is_built(name: str) -> bool:
    """Whether a run finds the operator ready."""
    return (build_folder(name) / f"{name}.so").is_file()


def remove_stale_locks() -> list[str]:
    """Remove the locks of compiles that no process goes on with; their operators' names."""
    removed = []
    for name in OPERATORS:
        folder = build_folder(name)
        lock = folder / "lock"
        if lock.exists() and time.time() - lock.stat().st_mtime > STARTING and not _is_worked_on(folder):
            lock.unlink(missing_ok=True)
            removed.append(name)
    return removed


def _is_worked_on(folder: Path) -> bool:
    """Whether a compiler runs in the folder."""
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()) == folder.resolve():
                return True
        except (psutil.Error, OSError):
            continue
    return False


def main(names: list[str]) -> None:
    """Build what is missing of the operators named, or of all, one file at a time."""
    if unknown := set(names) - set(OPERATORS):
        sys.exit(f"error: {', '.join(unknown)}: no such operator, there are {', '.join(OPERATORS)}")
    os.environ.setdefault("MAX_JOBS", "1")
    for name in remove_stale_locks():
        print(f"{name}: removed the lock of a compile that was killed")
    from deepspeed.accelerator import get_accelerator

    if get_accelerator().device_name() != "cpu":
        print("an accelerator is here: its operators are compiled when they are first used")
        return
    for name in names or OPERATORS:
        if not is_built(name):
            print(f"{name}: compiling, some minutes")
            get_accelerator().create_op_builder(OPERATORS[name]).load(verbose=False)
        print(f"{name}: ready in {build_folder(name).name}")


if __name__ == "__main__":
    main(sys.argv[1:])
