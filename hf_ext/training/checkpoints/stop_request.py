"""SIGTERM, the request to end: training saves at the end of the step that runs, and exits with a code of its own."""

import signal
import threading

import torch


# sysexits.h's EX_TEMPFAIL, "try again later": 143, which shells report for SIGTERM, would also mean that nothing was saved
STOPPED_EXIT_CODE = 75


class StoppedBySignal(SystemExit):
    """Training was asked to end, and has saved; ends the process with `STOPPED_EXIT_CODE` unless it is caught.

    Attributes:
        checkpoint: the folder that was saved.
    """

    def __init__(self, checkpoint: str):
        super().__init__(STOPPED_EXIT_CODE)
        self.checkpoint = checkpoint


class StopRequest:
    """Inside the `with`, SIGTERM is noted and nothing else happens; outside it is what it was before.

    Python hands signals to the main thread only: in another this notes nothing.
    """

    def __init__(self):
        self.is_set = False
        self._before = None

    def __enter__(self):
        self.is_set = False
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *exception) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _note(self, number, frame) -> None:
        self.is_set = True

    def is_agreed(self, accelerator) -> bool:
        """Whether any process was asked: all of them get the same answer, at the same step. They wait for each other."""
        if accelerator.num_processes == 1:
            return self.is_set
        asked = torch.tensor(float(self.is_set), device=accelerator.device)
        return bool(accelerator.reduce(asked, "sum").item())
