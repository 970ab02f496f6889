"""transformers' Trainer with checkpoints that are complete or not there, and resumes that are exact or refused."""

from collections.abc import Collection, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch.utils.data import IterableDataset
from transformers import Trainer
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import SaveStrategy, has_length
from transformers.utils import logging

from hf_ext.models.saved_code import saving_code
from hf_ext.training.checkpoints.agreement import agreed
from hf_ext.training.checkpoints.batch_draws import DrawsByBatch
from hf_ext.training.checkpoints.changed_settings import settings_kept
from hf_ext.training.checkpoints.disk_space import check_disk_space
from hf_ext.training.checkpoints.fingerprint import difference, run_fingerprint
from hf_ext.training.checkpoints.folders import (
    CheckpointError,
    begin,
    checkpoints_in,
    finish,
    reason_of_failed_write,
    remove_unfinished,
    rotate,
    sync_tree,
)
from hf_ext.training.checkpoints.manifest import verify
from hf_ext.training.checkpoints.resume import check_states, newest_verified, set_later_aside
from hf_ext.training.checkpoints.split_optimizer import load_part, save_part
from hf_ext.training.checkpoints.stop_request import StoppedBySignal, StopRequest
from hf_ext.training.distributed import as_whole, gathered_weights, load_into_parts
from hf_ext.training.local_paths import without_local_paths


logger = logging.get_logger(__name__)
ARGUMENTS_NAME = "training_args.json"
# in the Trainer's state, beside those of callbacks: how much of the data has been seen
PLACE_NAME = "PlaceInData"


class CheckpointedTrainer(Trainer):
    """What `HfxTrainer` does about checkpoints.

    `train(resume_from_checkpoint=True)` takes the newest checkpoint of the output folder that verifies, and sets the others
    aside; a path must verify. Files are shared by all processes, or with `save_on_each_node` by those of a machine.

    Attributes:
        allow_change: groups of the fingerprint that may differ from the checkpoint's.
        run_sections: the recipe's sections that belong to the fingerprint; None without a recipe.
    """

    allow_change: Collection[str] = ()
    run_sections: Mapping[str, Mapping] | None = None
    _fingerprint: dict[str, dict] | None = None
    _draws: DrawsByBatch | None = None
    _saved_step: int | None = None
    _place = (0, 0)  # epoch, batches of it that this process has trained on

    def __init__(self, *args, **kwargs):
        model = kwargs.get("model", args[0] if args else None)
        arguments = kwargs.get("args", args[1] if len(args) > 1 else None)
        if arguments is None or not getattr(model, "is_distributed_loading_by_transformers", False):
            super().__init__(*args, **kwargs)
            return
        # transformers refuses to save optimizer states of weights in parts, which this class does itself
        asked, arguments.save_only_model = arguments.save_only_model, True
        try:
            super().__init__(*args, **kwargs)
        finally:
            arguments.save_only_model = asked

    @property
    def engine(self) -> str:
        """What joins the processes: "one process", "ddp", "fsdp", "sharded" or "deepspeed zero N"."""
        if self.is_deepspeed_enabled:
            return f"deepspeed zero {self.accelerator.state.deepspeed_plugin.zero_stage}"
        if self.is_fsdp_enabled:
            return "fsdp"
        if getattr(self, "is_distributed_loading_by_transformers", False):
            return "sharded"
        return "ddp" if self.args.world_size > 1 else "one process"

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """As transformers', see the class.

        Raises:
            ValueError: one line: nothing to go on from, a checkpoint that doesn't verify or lacks states, another run's, or
                too little space on the disk.
            CheckpointError: a checkpoint couldn't be written.
            StoppedBySignal: after SIGTERM, when the step that ran is saved.
        """
        self._saved_step = None
        self._fingerprint = run_fingerprint(
            self.model, self.args, self.train_dataset, engine=self.engine, sections=self.run_sections
        )
        checkpoint = self.checked_checkpoint(resume_from_checkpoint) if resume_from_checkpoint else None
        with StopRequest() as self._stop_request:
            return super().train(checkpoint, *args, **kwargs)

    def checked_checkpoint(self, given: str | bool) -> str:
        """The checkpoint to go on from, the same on every process.

        Args:
            given: a path, or True for the newest that verifies.

        Raises:
            ValueError: as `train`.
        """
        if self._fingerprint is None:
            self._fingerprint = run_fingerprint(
                self.model, self.args, self.train_dataset, engine=self.engine, sections=self.run_sections
            )
        return agreed(lambda: self._check(given), here=self.args.should_save)

    def _check(self, given: str | bool) -> str:
        run_folder = Path(self.args.output_dir)
        found, notes = newest_verified(run_folder) if given is True else (Path(given), [])
        for note in notes:
            logger.warning(note)
        if found is None:
            raise ValueError(f"resume_from_checkpoint=True: no checkpoint in {str(run_folder)!r}; start anew")
        manifest = verify(found)
        changed = difference(found.name, manifest.fingerprint, self._fingerprint, self.allow_change)
        if changed is not None:
            raise ValueError(changed)
        check_states(found, manifest, engine=self.engine, world_size=self.args.world_size, allowed=self.allow_change)
        if found.resolve().parent == run_folder.resolve():
            for note in set_later_aside(found):
                logger.warning(note)
        return str(found)

    # ---- saving

    def _save_checkpoint(self, model, trial) -> None:
        """As transformers', but into a folder that gets its name last, and nothing is deleted before that."""
        if self.hp_search_backend is None and trial is None:
            self.store_flos()
        run_folder, step = Path(self._get_output_dir(trial=trial)), self.state.global_step
        final = run_folder / f"checkpoint-{step}"
        self._note_best(run_folder)
        try:
            unfinished = agreed(lambda: begin(final), here=self.args.should_save)
            # without the model's code: it is gone on from where hf_ext is, and each file more is synced and summed
            with saving_code(False):
                self._write_states(unfinished)
            agreed(lambda: sync_tree(unfinished), here=self.args.local_process_index == 0)
            agreed(lambda: finish(unfinished, final, step, self._fingerprint), here=self.args.should_save)
        except (OSError, RuntimeError, SafetensorError) as error:
            if self.args.should_save:
                remove_unfinished(run_folder)
            reason = reason_of_failed_write(error)
            if reason is None:
                raise
            raise CheckpointError(self._failure(final, reason)) from error
        self._saved_step = step
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            kept = {final} if best is None else {final, Path(best)}
            rotate(run_folder, self.args.save_total_limit, kept)

    def _failure(self, final: Path, reason: str) -> str:
        before = [folder for folder in checkpoints_in(final.parent) if folder != final]
        intact = (
            f"{before[-1].name} before it is intact, --resume goes on from there" if before else "there is none yet"
        )
        return f"{final}: couldn't be written ({reason}); {intact}; make space on the disk"

    def _note_best(self, run_folder: Path) -> None:
        """Where the best is, in the state that is saved; it may be the one that is being written."""
        best = self.state.best_global_step
        if best and self.args.save_strategy in (SaveStrategy.STEPS, SaveStrategy.EPOCH, SaveStrategy.BEST):
            folder = run_folder / f"checkpoint-{best}"
            if best == self.state.global_step or folder.is_dir():
                self.state.best_model_checkpoint = str(folder)

    def _write_states(self, folder: Path) -> None:
        def weights() -> None:
            self.save_model(str(folder), _internal_call=True)

        def other_states() -> None:
            self._write_other_states(folder)

        if self.engine in ("one process", "ddp"):
            agreed(weights)
            agreed(other_states)
        elif self.engine == "sharded":
            weights()  # gathered by all, then written by one, on which they agree
            agreed(other_states)
        else:  # engines wait for each other inside, where a process that fails can't tell the others
            weights()
            other_states()
            self.accelerator.wait_for_everyone()  # until what each writes is there, to be synced

    def _write_other_states(self, folder: Path) -> None:
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
            self._save_rng_state(str(folder))
        if self.args.should_save:
            self._save_callbacks_and_state(folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.engine != "sharded":
            super()._save_optimizer_and_scheduler(output_dir)
            return
        save_part(output_dir, self.model, self.optimizer, process_index=self.args.process_index)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _save_callbacks_and_state(self, folder: Path) -> None:
        for callback in (*self.callback_handler.callbacks, self.control):
            if isinstance(callback, ExportableState):
                name, saved = type(callback).__name__, self.state.stateful_callbacks
                if isinstance(saved.get(name), list):
                    saved[name].append(callback.state())
                else:
                    saved[name] = callback.state()
        epoch, num_batches = self._place
        place = {"args": {}, "attributes": {"epoch": epoch, "num_batches": num_batches}}
        self.state.stateful_callbacks[PLACE_NAME] = place
        self.state.save_to_json(str(folder / TRAINER_STATE_NAME))

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.engine == "sharded" and state_dict is None:
            weights, save = gathered_weights(self.model), super()._save
            with as_whole(self.model):
                agreed(lambda: save(output_dir, weights), here=self.args.should_save)
        else:
            super()._save(output_dir, state_dict)
        if self.args.should_save:
            self._arguments_as_json(Path(self.args.output_dir if output_dir is None else output_dir))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        super()._push_from_checkpoint(checkpoint_folder)
        if self.is_world_process_zero():
            self._arguments_as_json(Path(self.args.output_dir))

    def _arguments_as_json(self, folder: Path) -> None:
        """In place of the pickled arguments, which run what they please when they are loaded."""
        pickled = folder / TRAINING_ARGS_NAME
        if pickled.is_file():
            pickled.unlink()
            (folder / ARGUMENTS_NAME).write_text(self.args.to_json_string() + "\n", encoding="utf-8")

    # ---- training

    def _maybe_log_save_evaluate(self, tr_loss, grad_norm, model, trial, *args, **kwargs) -> None:
        """After what is due at the end of a step, the stop that was asked for; the step is saved once."""
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        if not self._stop_request.is_agreed(self.accelerator):
            return
        if self._saved_step != self.state.global_step:
            self._save_checkpoint(model, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        checkpoint = str(Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}")
        stop = StoppedBySignal(checkpoint)
        if self.is_world_process_zero():
            shown = without_local_paths(checkpoint)
            logger.warning(f"SIGTERM: {shown} is saved; --resume goes on from there (exit code {stop.code})")
        raise stop

    def _prepare_for_training(self, *args, **kwargs):
        prepared = super()._prepare_for_training(*args, **kwargs)
        agreed(
            lambda: check_disk_space(self.model, self.optimizer, self.args, self.state, engine=self.engine),
            here=self.args.should_save,
        )
        return prepared

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        is_changed = checkpoint is not None and "optimizer" in self.allow_change and not self.is_deepspeed_enabled
        with settings_kept(self.optimizer, self.lr_scheduler) if is_changed else nullcontext():
            if checkpoint is None or self.engine != "sharded":
                super()._load_optimizer_and_scheduler(checkpoint)
                return
            load_part(checkpoint, self.model, self.optimizer, process_index=self.args.process_index)
            self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        if self.engine == "sharded":
            load_into_parts(self.model, resume_from_checkpoint, self.args)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        agreed(lambda: verify(best), here=self.args.should_save)
        if self.engine == "sharded":
            self._load_from_checkpoint(best)
        else:
            super()._load_best_model()

    @contextmanager
    def _drawing_by_batch(self):
        """Loaders made inside collate with draws that belong to the batch, not to when it is fetched."""
        collator, args = self.data_collator, self.args
        seed = args.seed if args.data_seed is None else args.data_seed
        self._draws = self.data_collator = DrawsByBatch(collator, seed=seed, process_index=args.process_index)
        try:
            yield
        finally:
            self.data_collator = collator

    def _init_training_state(self, *args, **kwargs) -> tuple[int, int]:
        """Epochs and batches to leave out. The stock count takes a stream for one that holds all steps in one pass."""
        counted = super()._init_training_state(*args, **kwargs)
        place = self.state.stateful_callbacks.get(PLACE_NAME)
        if place is None or self.args.ignore_data_skip or has_length(self.train_dataset):
            return counted
        return place["attributes"]["epoch"], place["attributes"]["num_batches"]

    def _run_epoch(self, **given):
        is_resumed = given["resume_from_checkpoint"] is not None and given["epoch"] == given["epochs_trained"]
        num_seen = given["steps_trained_in_current_epoch"] if is_resumed else 0
        self._place = (given["epoch"], num_seen)
        if self._draws is not None:
            # a stream is read again from its start, and its batches are made again
            is_stream = isinstance(given["train_dataloader"].dataset, IterableDataset)
            self._draws.begin(given["epoch"], 0 if is_stream else num_seen)
        return super()._run_epoch(**given)

    def training_step(self, *args, **kwargs):
        epoch, num_batches = self._place
        self._place = (epoch, num_batches + 1)
        return super().training_step(*args, **kwargs)
