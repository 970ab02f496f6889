"""transformers' Trainer with exact resumes, the loss in chunks, our optimizers and schedules, and exact evaluation."""

import copy
import difflib
import math
from collections.abc import Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import datasets
import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, IterableDataset
from transformers import EarlyStoppingCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import nested_detach
from transformers.trainer_utils import seed_worker

from hf_ext.models.language_modeling_head import LanguageModelingHead
from hf_ext.models.scored_tokens import IGNORE_INDEX
from hf_ext.training.arguments import HfxTrainingArguments
from hf_ext.training.balance_experts import BalanceExperts, balanced_routers
from hf_ext.training.checkpoints.checkpointed_trainer import CheckpointedTrainer
from hf_ext.training.distributed import autotp_size, check_engine, is_split, parallelism
from hf_ext.training.float8 import float8_handlers
from hf_ext.training.layer_rates import distances_to_head, set_layer_rates
from hf_ext.training.length_grouped_batches import (
    TokenBatchSampler,
    TokenBatchStream,
    dataset_lengths,
    length_columns,
    row_lengths,
)
from hf_ext.training.non_finite import NonFiniteGuard
from hf_ext.training.optimizers import create_optimizer
from hf_ext.training.schedules import SCHEDULES, create_schedule
from hf_ext.training.tensorboard_log import log_anonymously
from hf_ext.training.text_evaluation import TextEvaluation
from hf_ext.training.weight_average import AverageWeights, WeightAverage


class HfxTrainer(CheckpointedTrainer):
    """Trains any model; a language model of ours without ever holding its logits.

    Args, besides the Trainer's:
        eval_num_bytes: UTF-8 bytes of the evaluation text; with it, `eval_bits_per_byte` is reported too.
        eval_data_collator: makes the batches of evaluation; default the training's. Each evaluation has a copy of its own,
            so that one that draws from a seed (a mask, a span) asks the same every time and takes no draw from training.
        text_evaluations: prefix of the metrics ("eval", "test") -> texts to write whenever that is evaluated; what they
            score joins the metrics, so that the best checkpoint may be chosen by it.

    The evaluation loss of a language model is the total negative log-likelihood over the number of scored tokens, not the
    mean of the batches' means.
    """

    args: HfxTrainingArguments

    def __init__(
        self,
        *args,
        eval_num_bytes: int | None = None,
        eval_data_collator=None,
        text_evaluations: Mapping[str, TextEvaluation] | None = None,
        **kwargs,
    ):
        model = kwargs.get("model", args[0] if args else None)
        use_cache = getattr(getattr(model, "config", None), "use_cache", None)
        super().__init__(*args, **kwargs)
        log_anonymously(self)
        self.eval_num_bytes = eval_num_bytes
        self.eval_data_collator = eval_data_collator
        self.text_evaluations = dict(text_evaluations or {})
        if self.args.early_stopping_patience is not None:
            self.add_callback(
                EarlyStoppingCallback(self.args.early_stopping_patience, self.args.early_stopping_threshold)
            )
        self.average: WeightAverage | None = None  # while training
        self.resumed_from: str | None = None
        self.whole_model = None  # after training with weights in parts: what was saved, read again
        self.has_best_weights = self._has_dropped_step = False
        if self.args.ema_decay is not None:
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise ValueError(
                    f"ema_decay={self.args.ema_decay}: not for weights sharded by FSDP or DeepSpeed; leave it out"
                )
            self.add_callback(AverageWeights(self))
        self._guard = None
        if self.args.max_non_finite_losses:
            self._guard = NonFiniteGuard(self.args.max_non_finite_losses, self.args.output_dir, self.accelerator.reduce)
        self._token_sampler: TokenBatchSampler | None = None
        self._has_layer_rates = False
        if self.args.layer_rate_decay is not None:
            self._check_own_optimizer()
            distances_to_head(self.model)  # refused here where there are no layers, before anything else happens
        self.is_language_model = isinstance(self._innermost_model(), LanguageModelingHead)
        if self.is_language_model:
            self.label_smoother = None  # the stock one needs the logits; ours is part of the chunked loss
            if use_cache is not None:
                self.model.config.use_cache = use_cache  # the stock one turns it off for good, in what is saved too
            if balanced_routers(self._innermost_model()):
                self.add_callback(BalanceExperts(self._innermost_model().config.router_balance_rate))
        elif self.args.z_loss_weight:
            raise ValueError(
                f"z_loss_weight={self.args.z_loss_weight}: {type(self._innermost_model()).__name__} has no "
                "language-modelling head of ours; set it to 0"
            )

    def _build_accelerator_args(self, **kwargs) -> dict:
        options = super()._build_accelerator_args(**kwargs)
        if self.args.fp8:
            options["kwargs_handlers"] = float8_handlers(gathers_float8=kwargs.get("fsdp_plugin") is not None)
        split = parallelism(self.args)
        return options if split is None else options | {"parallelism_config": split}

    def _prepare_for_training(self, *args, **kwargs):
        prepared = super()._prepare_for_training(*args, **kwargs)
        check_engine(self)
        return prepared

    def _innermost_model(self) -> torch.nn.Module:
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def _cache_option(self, use_cache: bool) -> dict[str, bool]:
        return {"use_cache": use_cache} if hasattr(self._innermost_model().config, "use_cache") else {}

    def _check_own_optimizer(self) -> None:
        if self.optimizer is not None and not self._has_layer_rates:
            raise ValueError(
                f"layer_rate_decay={self.args.layer_rate_decay}: has no effect on an optimizer made elsewhere; let the "
                "Trainer make it, or leave it out"
            )

    def _set_signature_columns_if_needed(self) -> None:
        """As transformers', and segments where the model has them: our heads hand them on without naming them."""
        missing = self._signature_columns is None
        super()._set_signature_columns_if_needed()
        config = getattr(self._innermost_model(), "config", None)  # a plain module has none
        if missing and (getattr(config, "type_vocab_size", None) or 0) > 1:
            self._signature_columns.append("token_type_ids")

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device):
        """As transformers', and of answers in texts, which aren't called labels, one a row."""
        if batch_samples and "start_positions" in batch_samples[0]:
            answers = [batch["start_positions"] for batch in batch_samples]
            batch_samples = [{"labels": positions, "shift_labels": positions} for positions in answers]
        return super()._get_num_items_in_batch(batch_samples, device)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.args.layer_rate_decay is not None:
            self._check_own_optimizer()
        if self.optimizer is None and self.args.matrix_optimizer is not None:
            self.optimizer = create_optimizer(
                self.model if model is None else model,
                name=self.args.matrix_optimizer,
                learning_rate=self.args.learning_rate,
                matrix_learning_rate=self.args.matrix_learning_rate,
                weight_decay=self.args.weight_decay,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
                momentum=self.args.muon_momentum,
                muon_dtype=self.args.muon_dtype,
                muon_beta2=self.args.muon_beta2,
            )
        if self.args.layer_rate_decay is None or self._has_layer_rates:
            return super().create_optimizer(model)
        optimizer = super().create_optimizer(model)
        set_layer_rates(optimizer, self.model if model is None else model, self.args.layer_rate_decay)
        self._has_layer_rates = True
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        if self.lr_scheduler is None and self.args.lr_scheduler_type.value in SCHEDULES:
            self.lr_scheduler = create_schedule(
                self.optimizer if optimizer is None else optimizer,
                name=self.args.lr_scheduler_type.value,
                num_warmup_steps=self.args.get_warmup_steps(num_training_steps),
                num_training_steps=num_training_steps,
                **(self.args.lr_scheduler_kwargs or {}),
            )
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def _load_callback_state(self) -> None:
        """Beside the stock work, which is off by default: the evaluations that early stopping has waited for."""
        super()._load_callback_state()
        saved = self.state.stateful_callbacks.get("EarlyStoppingCallback", {})
        if self.args.early_stopping_patience is not None and isinstance(saved, dict):
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, EarlyStoppingCallback):
                    # the patience itself is the arguments', which may have been raised to go on for longer
                    callback.early_stopping_patience_counter = saved.get("attributes", {}).get(
                        "early_stopping_patience_counter", 0
                    )

    def _determine_best_metric(self, metrics, trial) -> bool:
        wanted = self.args.metric_for_best_model
        if wanted is not None and f"eval_{wanted.removeprefix('eval_')}" not in metrics:
            there = [name.removeprefix("eval_") for name, value in metrics.items() if isinstance(value, int | float)]
            close = difflib.get_close_matches(wanted.removeprefix("eval_"), there, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"metric_for_best_model={wanted!r}: evaluation gives {', '.join(there)}{hint}")
        return super()._determine_best_metric(metrics, trial)

    def get_train_dataloader(self) -> DataLoader:
        with self._drawing_by_batch():
            return super().get_train_dataloader() if self.args.tokens_per_batch is None else self._token_batches()

    def _token_batches(self) -> DataLoader:
        """Batches of `tokens_per_batch`; each process makes its own share, so that accelerate has nothing to split."""
        dataset, args = self.train_dataset, self.args
        if dataset is None:
            raise ValueError(f"tokens_per_batch={args.tokens_per_batch}: there is no train_dataset")
        if self.get_tp_size() * self.get_cp_size() * self.get_sp_size() > 1:
            raise ValueError(
                f"tokens_per_batch={args.tokens_per_batch}: for data parallelism only, not for rows that several processes "
                "share; leave it out"
            )
        is_stream = isinstance(dataset, IterableDataset)
        first = next(iter(dataset), {}) if is_stream else dataset[0] if len(dataset) else {}
        columns = length_columns(
            list(first),
            length_column=args.length_column_name,
            is_pair=bool(getattr(getattr(self._innermost_model(), "config", None), "is_encoder_decoder", False)),
        )
        options = {
            "tokens_per_batch": args.tokens_per_batch,
            "cost": args.tokens_per_batch_cost,
            "pool_size": args.length_pool_size,
            "seed": args.seed if args.data_seed is None else args.data_seed,
            "num_processes": args.world_size,
            "process_index": args.process_index,
        }
        collator = self.data_collator
        if is_stream:
            dataset = TokenBatchStream(dataset, partial(row_lengths, columns=columns), **options)
            batches = {"batch_size": None}
        else:
            self._token_sampler = TokenBatchSampler(dataset_lengths(dataset, columns), **options)
            batches = {"batch_sampler": self._token_sampler}
        if isinstance(dataset, datasets.Dataset):
            dataset = self._remove_unused_columns(dataset, description="Training")
        else:
            collator = self._get_collator_with_removed_columns(collator, description="Training")
        loader = DataLoader(
            dataset,
            collate_fn=collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            prefetch_factor=args.dataloader_prefetch_factor,
            worker_init_fn=partial(seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index),
            **batches,
        )
        return prepare_data_loader(
            loader,
            self.accelerator.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            dispatch_batches=False,
        )

    def get_tp_size(self) -> int:
        """As transformers', and DeepSpeed's from a launch file too, of which the arguments know nothing."""
        plugin = self.accelerator.state.deepspeed_plugin if self.is_deepspeed_enabled else None
        return max(super().get_tp_size(), autotp_size(plugin))

    def get_total_train_batch_size(self, args) -> int:
        """Rows an optimizer step; of batches by tokens, their mean."""
        if self._token_sampler is None:
            return super().get_total_train_batch_size(args)
        sampler = self._token_sampler
        return round(len(sampler.lengths) / len(sampler) * args.gradient_accumulation_steps)

    def get_eval_dataloader(self, eval_dataset=None):
        with self._evaluation_collator():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset):
        with self._evaluation_collator():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _evaluation_collator(self):
        in_training = self.data_collator
        if self.eval_data_collator is not None:
            self.data_collator = copy.deepcopy(self.eval_data_collator)
        try:
            yield
        finally:
            self.data_collator = in_training

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.is_language_model:
            inputs = {**inputs, **self._cache_option(self.args.use_cache)}
            if model.training:  # what is reported of held-out text is its likelihood alone
                inputs["label_smoothing"] = self.args.label_smoothing_factor
                inputs["z_loss_weight"] = self.args.z_loss_weight
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._guard is not None:
            self._guard.add(loss)
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        """Called once before every optimizer step; one that isn't finite gets no gradients, and so moves nothing."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        if self._guard is not None:
            # a loss scaler has gradients overflow on purpose, and leaves out those steps itself
            has_scaler = self.accelerator.scaler is not None
            finite = self._guard.is_finite(self.state.global_step + 1, None if has_scaler else grad_norm)
            self._has_dropped_step = not finite and not has_scaler
            if self._has_dropped_step:
                model.zero_grad()
                for router in balanced_routers(self._innermost_model()):
                    router.expert_load.zero_()
        return grad_norm

    @property
    def step_was_skipped(self) -> bool:
        """Whether the last optimizer step moved nothing: not finite, or dropped by a loss scaler."""
        return self._has_dropped_step or self.accelerator.optimizer_step_was_skipped

    def train(self, *args, **kwargs):
        self.resumed_from, self.has_best_weights = None, False
        return super().train(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        self.resumed_from = checkpoint

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self.has_best_weights = True
        self._load_average(self.state.best_model_checkpoint)

    def _load_average(self, checkpoint: str) -> None:
        """Where there is an average, it is what counts of a checkpoint."""
        if self.args.ema_decay is not None:
            average = self.average or WeightAverage(self.model, self.args.ema_decay)
            average.load(checkpoint)
            average.copy_to_model()

    def load_finished(self, checkpoint: str) -> None:
        """Take over a run that has nothing left to train: its state, and the weights that it kept (the best, the average).

        Args:
            checkpoint: its last.

        Raises:
            ValueError: it doesn't verify, or is another run's.
        """
        checkpoint = self.checked_checkpoint(checkpoint)
        self.state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
        best = self.state.best_model_checkpoint
        if self.args.load_best_model_at_end and best is not None and Path(best).is_dir():
            self._load_best_model()
        else:
            self._load_from_checkpoint(checkpoint)
            self._load_average(checkpoint)

    def log(self, logs, start_time=None) -> None:
        if self._guard is not None and self._guard.num_skipped and "loss" in logs:
            logs["skipped_steps"] = self._guard.num_skipped
        super().log(logs, start_time)
        if "loss" in logs and self.is_in_train:
            # the stock reset is loss -= loss, which leaves a NaN a NaN in every entry to come
            self._tr_loss.nan_to_num_(0.0, 0.0, 0.0)

    def save_model(self, output_dir=None, _internal_call=False) -> None:
        if self._guard is not None and not (self.is_fsdp_enabled or self.is_deepspeed_enabled or is_split(self.model)):
            self._guard.check_weights(self.model, self.state.global_step)
        is_checkpoint = _internal_call
        with nullcontext() if self.average is None or is_checkpoint else self.average.in_place():
            super().save_model(output_dir, _internal_call)
        if self.average is not None and is_checkpoint and self.args.should_save:
            self.average.save(output_dir)  # a checkpoint has the weights themselves, to go on from exactly

    def save_state(self) -> None:
        """As transformers', with the best checkpoint by its name alone; checkpoints keep the path, to go on from."""
        best = self.state.best_model_checkpoint
        self.state.best_model_checkpoint = best and Path(best).name
        try:
            super().save_state()
        finally:
            self.state.best_model_checkpoint = best

    def create_model_card(self, *args, **kwargs) -> None:
        """The stock card, unless there is one: a recipe's says more, and a push must not write over it."""
        if not (Path(self.args.output_dir) / "README.md").is_file():
            super().create_model_card(*args, **kwargs)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        if not (self.is_language_model and "labels" in inputs):
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs(inputs)
        scored = inputs["labels"][..., 1:] if self._loss_shifts_labels else inputs["labels"]
        num_tokens = (scored != IGNORE_INDEX).sum()
        options = {"skip_logits": prediction_loss_only, "num_items_in_batch": 1, **self._cache_option(False)}
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs, **options, return_dict=True)
        total = outputs["loss"].detach()  # nats, summed: divided by one item
        self._evaluated += torch.tensor([float(total), float(num_tokens)], dtype=torch.float64)
        loss = total / num_tokens.clamp(min=1)
        if prediction_loss_only:
            return loss, None, None
        return loss, nested_detach(outputs["logits"]), inputs["labels"].detach()

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        # total negative log-likelihood (nats) and tokens; fp64, so that the order of the batches doesn't show
        self._evaluated = torch.zeros(2, dtype=torch.float64)
        # a data loader takes a draw whenever it begins; without this, objectives that draw would train otherwise for it
        draws = torch.random.fork_rng(devices=[], enabled=self.eval_data_collator is not None)
        with draws, nullcontext() if self.average is None else self.average.in_place():
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
            if metric_key_prefix in self.text_evaluations:
                scores = self._score_texts(self.text_evaluations[metric_key_prefix])
                output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in scores.items()})
        evaluated = (
            self._evaluated.to(self.args.device) / self.get_tp_size()
        )  # ranks of one matrix have seen the same rows
        total, num_tokens = self.accelerator.reduce(evaluated, "sum").tolist()
        if num_tokens:
            loss = total / num_tokens
            output.metrics[f"{metric_key_prefix}_loss"] = loss
            # exp overflows at 709: a model that bad has no perplexity to speak of
            output.metrics[f"{metric_key_prefix}_perplexity"] = math.exp(loss) if loss < 700 else math.inf
            output.metrics[f"{metric_key_prefix}_tokens"] = round(num_tokens)
            if self.eval_num_bytes:
                bits = total / math.log(2) / self.eval_num_bytes
                output.metrics[f"{metric_key_prefix}_bits_per_byte"] = bits
        return output

    def _score_texts(self, evaluation: TextEvaluation) -> dict[str, float]:
        model = self.accelerator.unwrap_model(self.model)
        number, processes = self.accelerator.process_index, self.accelerator.num_processes
        if is_split(model):  # every process has to take part in every token
            number, processes = 0, 1
        # what is drawn here is no draw of training's
        with torch.random.fork_rng(devices=[]), self.compute_loss_context_manager():
            return evaluation(
                model,
                self.processing_class,
                share=(number, processes),
                gather=gather_object if processes > 1 else list,
            )
