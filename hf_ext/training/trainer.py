"""transformers' Trainer with the loss in chunks, our optimizers and schedules, and exact language-model evaluation."""

import contextlib
import copy
import math
from collections.abc import Mapping

import torch
from accelerate.utils import gather_object
from transformers import Trainer
from transformers.trainer_pt_utils import nested_detach

from hf_ext.models.language_modeling_head import LanguageModelingHead
from hf_ext.models.scored_tokens import IGNORE_INDEX
from hf_ext.training.arguments import HfxTrainingArguments
from hf_ext.training.balance_experts import BalanceExperts, balanced_routers
from hf_ext.training.optimizers import create_optimizer
from hf_ext.training.schedules import SCHEDULES, create_schedule
from hf_ext.training.text_evaluation import TextEvaluation


class HfxTrainer(Trainer):
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
        self.eval_num_bytes = eval_num_bytes
        self.eval_data_collator = eval_data_collator
        self.text_evaluations = dict(text_evaluations or {})
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

    def _innermost_model(self) -> torch.nn.Module:
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def _cache_option(self, use_cache: bool) -> dict[str, bool]:
        return {"use_cache": use_cache} if hasattr(self._innermost_model().config, "use_cache") else {}

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
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
        return super().create_optimizer(model)

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

    def get_eval_dataloader(self, eval_dataset=None):
        with self._evaluation_collator():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset):
        with self._evaluation_collator():
            return super().get_test_dataloader(test_dataset)

    @contextlib.contextmanager
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
        with torch.random.fork_rng(devices=[], enabled=self.eval_data_collator is not None):
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        total, num_tokens = self.accelerator.reduce(self._evaluated.to(self.args.device), "sum").tolist()
        if num_tokens:
            loss = total / num_tokens
            output.metrics[f"{metric_key_prefix}_loss"] = loss
            # exp overflows at 709: a model that bad has no perplexity to speak of
            output.metrics[f"{metric_key_prefix}_perplexity"] = math.exp(loss) if loss < 700 else math.inf
            output.metrics[f"{metric_key_prefix}_tokens"] = int(num_tokens)
            if self.eval_num_bytes:
                bits = total / math.log(2) / self.eval_num_bytes
                output.metrics[f"{metric_key_prefix}_bits_per_byte"] = bits
        if metric_key_prefix in self.text_evaluations:
            scores = self._score_texts(self.text_evaluations[metric_key_prefix])
            output.metrics |= {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        return output

    def _score_texts(self, evaluation: TextEvaluation) -> dict[str, float]:
        model = self.accelerator.unwrap_model(self.model)
        state = self.accelerator
        # what is drawn here is no draw of training's
        with torch.random.fork_rng(devices=[]), self.compute_loss_context_manager():
            return evaluation(
                model,
                self.processing_class,
                share=(state.process_index, state.num_processes),
                gather=gather_object if state.num_processes > 1 else list,
            )
