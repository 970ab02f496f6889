"""A run of a recipe, whatever its task: refuse, train or go on, evaluate, and leave everything in one folder.

run = Run(recipe, "recipes/text_classification/train.py", argv)     # the folder is free, or there is a checkpoint
model = run.build(AutoModelForSequenceClassification, config, tokenizer)
trainer = HfxTrainer(model=model, args=run.training, …)
run.train(trainer)                                                  # or --resume
scores = run.evaluate(trainer, {"eval": rows})
run.finish(trainer, RunFacts(…), probe_text="…")                    # curves, card, proof, push
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sized
from contextlib import suppress
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from hf_ext.data.provenance import name_of_file
from hf_ext.hub import RunFacts, model_card
from hf_ext.hub.intended_use import LANGUAGE_MODELING, measured_limits
from hf_ext.hub.private_strings import PrivateStrings
from hf_ext.tasks.adapter_section import AdapterArguments, add_adapter
from hf_ext.tasks.model_section import ModelSection, read_model_section
from hf_ext.tasks.reload_check import differences, probe
from hf_ext.tasks.run_costs import RunCosts
from hf_ext.tasks.run_folder import (
    check_same_run,
    check_writable,
    find_checkpoint,
    is_complete,
    sections_of_a_run,
    steps_done,
    whole_training_loss,
)
from hf_ext.tasks.run_push import take_over_push
from hf_ext.tasks.run_report import base_model_of, compute_rows, data_rows, flops_of, size_rows, summary_of
from hf_ext.training.arguments import HfxTrainingArguments
from hf_ext.training.distributed import check_adapter, is_split, load_whole, plain_class, split_model
from hf_ext.training.float8 import plain_products
from hf_ext.training.local_paths import without_local_paths
from hf_ext.training.loss_curve import draw_loss_curve
from hf_ext.training.recipe import Recipe
from hf_ext.training.scaling.run_flops import RunFlops
from hf_ext.training.schedules import SCHEDULES, check_schedule
from hf_ext.training.trainer import HfxTrainer


# our split -> what its scores begin with, as the Trainer has it
PREFIXES = {"validation": "eval", "test": "test"}


class Run:
    """One run of a recipe.

    Args:
        recipe: with sections `model`, `training` and, where adapters are offered, `adapter`.
        script: the recipe's script, as a user types it. argv: its arguments.

    Attributes:
        output: the run's folder. checkpoint: what to go on from, or None. model_section: the recipe's.

    Raises:
        ValueError: one line; nothing has been written then.
    """

    def __init__(self, recipe: Recipe, script: str, argv: list[str]):
        self.recipe, self.training = recipe, recipe.training
        self.command = shlex.join(["python", script, *map(str, argv)])
        _refuse_secrets(recipe, self.command)
        self.output = Path(self.training.output_dir)
        self.model_section: ModelSection = read_model_section(recipe.model)
        self.adapter = recipe.sections.get("adapter") or AdapterArguments()
        if self.adapter.method is not None and self.model_section.path is None:
            raise ValueError(f"adapter.method={self.adapter.method!r}: needs a trained model; set model.path")
        tokenizer = recipe.values.get("tokenizer")
        if self.model_section.path is not None and tokenizer and tokenizer.get("path") is None:
            raise ValueError(
                f"tokenizer: {tokenizer} trains a new one; model.path={self.model_section.path!r} has its own: leave it out"
            )
        if self.adapter.method is not None:
            check_adapter(self.adapter.method, self.training)
            self._check_base_is_public()
        _check_schedule(self.training)
        self.checkpoint = find_checkpoint(self.training, recipe.resume)
        check_writable(self.training.output_dir)
        self.costs = RunCosts(self.output, steps_done(self.checkpoint), self.training.world_size)
        self.push = take_over_push(self.training, recipe.values.get("training", {}))
        set_seed(self.training.seed)

    def _check_base_is_public(self) -> None:
        """Raises ValueError where an adapter alone is to be pushed and nobody else could load what it is for."""
        alone = self.training.push_to_hub and not self.adapter.merges
        if alone and base_model_of(self.model_section.path) is None:
            raise ValueError(
                f"training.push_to_hub: pushes the adapter alone, and model.path={self.model_section.path!r} is on this "
                "machine only; push that first, and give its name on the Hub"
            )

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files: the first of those that train together."""
        return self.training.process_index == 0

    def tokenizer_arguments(self) -> dict:
        """For `get_tokenizer`: a trained model's own tokenizer, unless the recipe names another."""
        return {"checkpoint": self.checkpoint, "model_path": self.model_section.path}

    def build(self, auto_class, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase):
        """The model, with its adapter where the recipe has one; prints its size.

        Raises:
            ValueError: the checkpoint to go on from is another model's or another recipe's.
        """
        self._check_same_run(config)
        known = config.vocab_size
        model = self.model_section.build(auto_class, config, tokenizer)
        model = add_adapter(model, self.adapter, auto_class, new_tokens=range(known, model.config.vocab_size))
        if self.adapter.method is None:
            model = split_model(model, self.training)
        return self.take(model, tokenizer)

    def take(self, model, tokenizer: PreTrainedTokenizerBase):
        """A model made elsewhere; prints its size and returns it."""
        if self.adapter.method is None:
            self._check_same_run(model.config)
        total, trained = (
            # ZeRO 3 leaves a process its part, and the whole's size
            sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad or not t)
            for t in (False, True)
        )
        share = "" if trained == total else f", {trained:,} of them trained"
        if self.is_main:
            print(f"{plain_class(_inner(model)).__name__}: {total:,} parameters{share}, vocabulary {len(tokenizer):,}")
        return model

    def _check_same_run(self, config: PretrainedConfig) -> None:
        check_same_run(self.checkpoint, config, self.recipe.values, self.recipe.allow_change)

    def train(self, trainer: HfxTrainer) -> dict:
        """Train, or go on; saves model, tokenizer, state and metrics of the whole run, and returns the metrics."""
        if self.is_main:
            self.output.mkdir(parents=True, exist_ok=True)
            (self.output / "recipe.yaml").write_text(self.recipe.to_yaml(), encoding="utf-8")
            if self.checkpoint is not None:
                shown = without_local_paths(str(self.checkpoint))
                print(f"going on from {shown} ({steps_done(self.checkpoint)} steps done)")
        trainer.allow_change = self.recipe.allow_change
        trainer.run_sections = sections_of_a_run(self.recipe.values)
        try:
            metrics = _train(trainer, self.checkpoint)
        finally:  # of one that is stopped, too
            with suppress(OSError):  # a full disk, of which what was raised tells
                self._note_costs(trainer)
        self._save(trainer)
        trainer.log_metrics("train", metrics)
        trainer.save_metrics("train", metrics)
        trainer.save_state()
        return metrics

    def _note_costs(self, trainer: HfxTrainer) -> None:
        if self.is_main:
            self.costs.note(trainer.state.global_step)

    def _save(self, trainer: HfxTrainer) -> None:
        """The model for `from_pretrained`; an adapter that can be is added into it, and kept beside it."""
        if not self.adapter.merges:
            trainer.save_model()
            if self.adapter.method is not None and self.is_main:
                self._save_config_of_new_head(trainer)
            return
        with_adapter = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        if self.is_main:
            with_adapter.save_pretrained(self.output / "adapter")
            merged = with_adapter.merge_and_unload()
            merged.save_pretrained(self.output)
            trainer.processing_class.save_pretrained(self.output)
            trainer.model = trainer.model_wrapped = merged

    def _save_config_of_new_head(self, trainer: HfxTrainer) -> None:
        """Of a new head peft keeps the weights alone, and its labels must be known. Where there is none, the base says what
        the model is: an adapter beside a config.json is taken by transformers for a part of a model that lies there too."""
        with_adapter = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        if with_adapter.peft_config[with_adapter.active_adapter].modules_to_save:
            trained_model(trainer).config.save_pretrained(self.output)

    def evaluate(self, trainer: HfxTrainer, splits: Mapping[str, object]) -> tuple[dict[str, float], dict[str, object]]:
        """Scores of the splits that weren't trained on, and what the model predicted on them; printed, logged and saved.

        Args:
            splits: "validation", whose scores are called `eval_…`, and "test", `test_…`; "train" is left out.

        Returns:
            The scores of all; split -> the Trainer's predictions (None with `prediction_loss_only`).
        """
        scores, predicted = {}, {}
        for split, rows in splits.items():
            if split == "train":
                continue
            prefix = PREFIXES[split]
            output = trainer.predict(rows, metric_key_prefix=prefix)
            trainer.log(dict(output.metrics))
            trainer.log_metrics(prefix, output.metrics)
            trainer.save_metrics(prefix, output.metrics)
            scores |= output.metrics
            predicted[split] = output.predictions
        trainer.save_state()
        return scores, predicted

    def report(self, trainer: HfxTrainer, split: str, scores: Mapping[str, float]) -> dict[str, float]:
        """Print, log and save further scores of a split beside those of `evaluate`; returns them under its prefix."""
        named = {f"{PREFIXES[split]}_{name}": value for name, value in scores.items()}
        trainer.log(dict(named))
        trainer.log_metrics(PREFIXES[split], named)
        trainer.save_metrics(f"{PREFIXES[split]}_further", named)
        trainer.save_state()
        return named

    @property
    def dataset_name(self) -> str:
        """What the card calls the data: its name, or the first file and its folder's name, never a path of this machine."""
        data = self.recipe.data
        if data.dataset_name is not None:
            return Path(data.dataset_name).name if Path(data.dataset_name).exists() else data.dataset_name
        files = data.data_files
        while not isinstance(files, str):
            files = next(iter(files.values())) if isinstance(files, dict) else files[0]
        return name_of_file(files)

    def describe_rows(self, splits: Mapping[str, Sized]) -> str:
        """One sentence for the card."""
        return (
            f"`{self.dataset_name}`: "
            + ", ".join(f"{len(rows):,} rows for {split}" for split, rows in splits.items())
            + "."
        )

    @staticmethod
    def reported(scores: Mapping[str, float]) -> dict[str, float]:
        """The numbers that say something about the model: `accuracy` of what was held out, `test_accuracy`, …"""
        timing = ("runtime", "per_second", "model_preparation_time", "epoch")
        return {
            name.removeprefix("eval_"): value
            for name, value in scores.items()
            if isinstance(value, int | float) and not name.endswith(timing)
        }

    def write_lines(self, name: str, rows) -> None:
        """A file of one JSON object a line in the run's folder: predictions, n-best lists."""
        if self.is_main:
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            with (self.output / name).open("w", encoding="utf-8") as file:
                file.writelines(lines)

    def rows_seen(self, trainer: HfxTrainer) -> int:
        """Rows that the steps so far took, on all processes together."""
        return trainer.state.global_step * trainer.get_total_train_batch_size(self.training)

    def facts(
        self, trainer: HfxTrainer, trained: Mapping[str, float], rows: Mapping[str, Sized] | None = None, **given
    ) -> RunFacts:
        """What the card says of every run, with what the task gives on top; see `RunFacts`.

        Args:
            trained: what `train` returned. rows: of each split; None where they are described otherwise.
            given: facts by name; `training` and `limits` are added to those of every run.
        """
        model, training, step = trained_model(trainer), self.training, trainer.state.global_step
        self._note_costs(trainer)
        seconds, flops = trained.get("train_runtime"), flops_of(trainer, model)
        timed = trained.get("train_steps", step)  # in those seconds: a process counts from where it resumed
        is_new = self.model_section.path is None and given.get("task", "text-generation") in LANGUAGE_MODELING
        counted = flops if is_new and isinstance(flops, RunFlops) else None
        limits = measured_limits(
            model.config,
            metrics=given["metrics"],
            num_validation_rows=len(rows["validation"]) if rows else None,
            tokens=counted and counted.tokens,
            parameters=counted and model.num_parameters(),
        )
        if rows is not None:
            given.setdefault("dataset_summary", self.describe_rows(rows))
        table = {
            "steps": f"{step:,}",
            "rows seen": f"{self.rows_seen(trainer):,}",
            "training loss": f"{trained['train_loss']:.4f}",
            "seed": str(training.seed),
            "optimizer": f"{training.matrix_optimizer or training.optim.value}, learning rate {training.learning_rate:g}",
            **given.pop("training", {}),
        }
        return RunFacts(
            **{
                "title": self.output.name,
                "summary": summary_of(model, self.output, self.model_section.path),
                "limits": (*given.pop("limits", ()), *limits),
                "data": data_rows(self.recipe.sections.values()),
                "training": table,
                "size": size_rows(model, flops, seconds, share=timed / step if step else 0),
                "compute": compute_rows(self.costs, step, seconds, step - timed),
                "base_model": base_model_of(self.model_section.path),
                "command": self.command,
                "recipe": self.recipe.to_yaml(),
                "curve": "loss.png",
                **given,
            }
        )

    def print_where(self) -> None:
        """Where the run's files are, in a line that may be shown to others: no folder that leads there from the root."""
        output = str(self.output)
        name = without_local_paths(output)
        print(f"everything is in {name}" + ("" if name == output else ", the folder of training.output_dir"))

    def finish(
        self,
        trainer: HfxTrainer,
        facts: RunFacts,
        probe_text: str,
        *,
        before_push: Callable[[], None] = lambda: None,
    ) -> None:
        """Curves, card, the proof that a fresh process computes the same, and the push where it was asked for.

        Args:
            probe_text: what both processes read. before_push: what else belongs into the folder, made from the saved model
                or for its card; the first process calls it.

        Raises:
            RuntimeError: the saved model computes something else. ValueError, HubError: of `push`; the folder is whole then.
        """
        if self.is_main:
            draw_loss_curve(
                trainer.state.log_history,
                self.output / "loss.png",
                best_step=trainer.state.best_global_step,
                unit="nats a token" if trainer.is_language_model else "nats",
            )
            model = trained_model(trainer)
            model_card(model, self.output, facts).save(self.output / "README.md")
            prove_reload(model, trainer.processing_class, self.output, probe_text)
            self.print_where()
            before_push()
            if self.push is not None:
                self.push.run(self.output)


def _refuse_secrets(recipe: Recipe, command: str) -> None:
    """Raises ValueError for a token or key in a recipe or command, which the run's folder and its card would keep."""
    private = PrivateStrings.of_this_machine()
    for name, section in recipe.values.items():
        for field, value in section.items():
            if private.holds_secret(str(value)) and field != "hub_token":  # refused with its own remedy
                raise ValueError(
                    f"{name}.{field}: holds a token or key, which would stand in the recipe that is kept and in the card; "
                    "take it out, and give it by the environment (HF_TOKEN)"
                )
    if private.holds_secret(command) and not recipe.values.get("training", {}).get("hub_token"):
        raise ValueError(
            "command line: holds a token or key, which would stand in the card; give it by the environment"
        )


def _check_schedule(training: HfxTrainingArguments) -> None:
    schedule = training.lr_scheduler_type.value
    if training.max_steps > 0 and schedule in SCHEDULES:
        check_schedule(
            schedule,
            num_warmup_steps=training.get_warmup_steps(training.max_steps),
            num_training_steps=training.max_steps,
            **(training.lr_scheduler_kwargs or {}),
        )


def _inner(model) -> PreTrainedModel:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def trained_model(trainer: HfxTrainer) -> PreTrainedModel:
    """The model that was trained, on its device, without the mixed precision or engine that training wrapped around it.

    Where no process has all its weights, it is what was saved, read again by each.
    """
    model = _inner(trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False))
    if not is_split(model):
        return plain_products(model).eval()
    if trainer.whole_model is None:
        trainer.accelerator.wait_for_everyone()  # until it is written
        trainer.whole_model = load_whole(model, trainer.args.output_dir)
    return trainer.whole_model.eval()


def _train(trainer: HfxTrainer, checkpoint: str | None) -> dict:
    """Train, or go on, and return the metrics of the whole run; a run that is complete already keeps its own."""
    if is_complete(checkpoint, trainer.args):  # the stock Trainer would train one step more
        trainer.load_finished(checkpoint)
        saved = Path(trainer.args.output_dir) / "train_results.json"
        if saved.is_file():
            return json.loads(saved.read_text(encoding="utf-8"))
        done = trainer.state.global_step
        return {"train_loss": whole_training_loss(trainer.state.log_history, 0.0, done, done)}
    resumed_at = steps_done(checkpoint)  # asked before, for `save_total_limit` may delete the checkpoint on the way
    result = trainer.train(resume_from_checkpoint=checkpoint)
    last = trainer.state.global_step
    # its sum: what the stock mean is divided by depends on the version
    loss = whole_training_loss(trainer.state.log_history, trainer._total_loss_scalar, resumed_at, last)
    return {**result.metrics, "train_loss": loss, "train_steps": last - resumed_at}


def prove_reload(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, text: str) -> None:
    """See that a fresh process, which knows the folder only, computes the same; prints one line.

    Raises:
        RuntimeError: it doesn't, or the folder doesn't load.
    """
    with torch.no_grad():
        here = probe(model, tokenizer, text)
    command = [sys.executable, "-m", "hf_ext.tasks.reload_check", str(folder), f"--prompt={text}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{folder}: doesn't load in a fresh process: {done.stderr.strip().splitlines()[-1:]}")
    there = json.loads(done.stdout.strip().splitlines()[-1])
    if different := differences(here, there):
        raise RuntimeError(f"{folder}: a fresh process computes something else: {different}")
    print(f"\nreloaded in a fresh process: {there['class']}, weights {there['weights'][:12]}, same output")
