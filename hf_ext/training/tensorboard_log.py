"""TensorBoard's files, without the machine in them: transformers and tensorboard name folders and files after the host."""

from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

from transformers import Trainer
from transformers.integrations import TensorBoardCallback


class AnonymousTensorBoardCallback(TensorBoardCallback):
    """As transformers', in `runs/<date and time>` of the run's folder, the files' names without that of the host.

    The arguments that it writes are those of `HfxTrainingArguments.to_dict`, whose paths are cut.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        self._choose_folder(args)
        super().on_train_begin(args, state, control, **kwargs)

    def on_log(self, args, state, control, **kwargs):
        self._choose_folder(args)
        super().on_log(args, state, control, **kwargs)

    def _choose_folder(self, args) -> None:
        if self.logging_dir is None:
            self.logging_dir = str(Path(args.output_dir, "runs", datetime.now().strftime("%Y-%m-%d_%H-%M-%S")))

    def _init_summary_writer(self, args) -> None:
        with _host_called("host"):
            super()._init_summary_writer(args)


@contextmanager
def _host_called(name: str):
    """tensorboard asks for the host when it makes a file, and has no argument that says otherwise."""
    from tensorboard.summary.writer import event_file_writer

    before = event_file_writer.socket
    event_file_writer.socket = SimpleNamespace(gethostname=lambda: name)
    try:
        yield
    finally:
        event_file_writer.socket = before


def log_anonymously(trainer: Trainer) -> None:
    """Put ours in the place of transformers' TensorBoard callback, where a trainer has it."""
    callbacks = trainer.callback_handler.callbacks
    for place, callback in enumerate(callbacks):
        if type(callback) is TensorBoardCallback:
            callbacks[place] = AnonymousTensorBoardCallback(callback.tb_writer)
