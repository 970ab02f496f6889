"""A recipe's script, whose second process is killed once, after a step: killed_once.py MARKER STEP SCRIPT [ARGUMENT …]"""

import os
import runpy
import signal
import sys
from pathlib import Path

from transformers import TrainerCallback

from hf_ext.training.trainer import HfxTrainer


marker, step = Path(sys.argv[1]), int(sys.argv[2])
sys.argv = sys.argv[3:]


class KillOnce(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == step and args.process_index == 1 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


make = HfxTrainer.__init__


def make_and_watch(self, *args, **kwargs):
    make(self, *args, **kwargs)
    self.add_callback(KillOnce())


HfxTrainer.__init__ = make_and_watch
runpy.run_path(sys.argv[0], run_name="__main__")
