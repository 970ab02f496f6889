"""Early stopping by two fields: it stops where it should, goes on exactly after a resume, and refuses what can't work."""

import pytest
import torch
from torch import nn

from hf_ext.training.arguments import HfxTrainingArguments
from hf_ext.training.trainer import HfxTrainer


STOPPING = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}


class Line(nn.Module):
    """Someone else's model: one weight, squared error."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x, labels):
        return {"loss": (self.weight * x - labels).square().mean(), "logits": self.weight * x}


def make_trainer(folder, scores, **arguments):
    """A trainer whose evaluations score what is listed, one after the other."""
    scores = iter(scores)
    data = [{"x": torch.tensor(1.0), "labels": torch.tensor(2.0)}] * 4
    return HfxTrainer(
        model=Line(),
        args=HfxTrainingArguments(
            output_dir=str(folder), use_cpu=True, disable_tqdm=True, report_to="none", **{"max_steps": 10, **arguments}
        ),
        train_dataset=data,
        eval_dataset=data,
        compute_metrics=lambda prediction: {"score": next(scores)},
    )


@pytest.mark.parametrize(
    ("patience", "threshold", "stopped_at", "best_at"),
    [(2, 0.0, 5, 3), (3, 0.0, 10, 8), (2, 0.25, 3, 3)],  # the first evaluation always counts
)
def test_stops_after_so_many_evaluations_without_a_better_one(tmp_path, patience, threshold, stopped_at, best_at):
    scores = [0.1, 0.2, 0.3, 0.3, 0.2, 0.35, 0.3, 0.6, 0.5, 0.4]
    trainer = make_trainer(
        tmp_path,
        scores,
        metric_for_best_model="score",
        early_stopping_patience=patience,
        early_stopping_threshold=threshold,
        **STOPPING,
    )
    trainer.train()
    assert (trainer.state.global_step, trainer.state.best_global_step) == (stopped_at, best_at)
    best = torch.load(tmp_path / f"checkpoint-{best_at}" / "optimizer.pt", weights_only=True)
    assert best["state"][0]["step"] == best_at


def test_a_resumed_run_remembers_how_long_it_has_waited(tmp_path):
    options = {"metric_for_best_model": "score", "early_stopping_patience": 3, **STOPPING}
    scores = [0.5, 0.4, 0.4, 0.4, 0.4, 0.4]
    make_trainer(tmp_path, scores, **options, max_steps=3).train()
    trainer = make_trainer(tmp_path, scores[3:], **options)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", True),
        ("loss", False),
        ("eval_perplexity", False),
        ("bits_per_byte", False),
        ("wer", False),
        ("parameter", True),
    ],
)
def test_which_way_a_metric_is_better(tmp_path, name, expected):
    args = HfxTrainingArguments(output_dir=str(tmp_path), metric_for_best_model=name)
    assert args.greater_is_better is expected
    flipped = HfxTrainingArguments(output_dir=str(tmp_path), metric_for_best_model=name, greater_is_better=not expected)
    assert flipped.greater_is_better is not expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"early_stopping_threshold": 0.1}, "early_stopping_threshold=0.1: has no effect without"),
        ({"early_stopping_patience": 0, **STOPPING}, "early_stopping_patience=0: must be at least 1"),
        (
            {"early_stopping_patience": 1, "early_stopping_threshold": -1.0, **STOPPING},
            "early_stopping_threshold=-1.0: must not be negative",
        ),
        ({"early_stopping_patience": 1}, "early_stopping_patience=1: nothing is evaluated"),
        (
            {"early_stopping_patience": 2, **STOPPING, "load_best_model_at_end": False},
            "early_stopping_patience=2: the model kept would be the last, 2 evaluations past the best",
        ),
    ],
)
def test_nonsense_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        HfxTrainingArguments(output_dir=str(tmp_path), **options)
    assert "\n" not in str(caught.value)


def test_a_metric_that_there_isn_t_is_named_with_the_nearest(tmp_path):
    trainer = make_trainer(tmp_path, [0.1] * 3, metric_for_best_model="scor", **STOPPING)
    with pytest.raises(ValueError, match=r"metric_for_best_model='scor': evaluation gives .*did you mean 'score'\?"):
        trainer.train()
