"""Losses and gradients that are not finite: such a step moves nothing, a run of them stops, and NaN is never saved."""

import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from hf_ext.training.arguments import HfxTrainingArguments
from hf_ext.training.non_finite import NonFiniteError
from hf_ext.training.trainer import HfxTrainer


# fp32: AdamW in one tensor or in several
FP32 = {"atol": 1e-7, "rtol": 1e-6}
STEPS = 8


class Line(nn.Module):
    """y = w x with squared error; a row's `poison` multiplies the loss, or the gradient alone."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -0.25]))

    def forward(self, x, poison, labels):
        loss = ((x * self.weight).sum(-1) - labels).square().mean()
        if not math.isfinite(poison[0]):
            loss = loss * poison[0]
        elif poison[0]:
            loss = loss + (self.weight[0] - self.weight[0].detach()).abs().sqrt()  # 0, with an infinite slope
        return {"loss": loss}


def rows(poisoned=(), poison=math.nan, count=STEPS):
    draws = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    return [
        {"x": draw[:2], "labels": draw[2], "poison": torch.tensor(poison if i in poisoned else 0.0)}
        for i, draw in enumerate(draws)
    ]


def make_trainer(folder, data, **arguments):
    given = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        **arguments,
    }
    return HfxTrainer(
        model=Line(),
        args=HfxTrainingArguments(
            output_dir=str(folder),
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
            learning_rate=0.1,
            lr_scheduler_type="linear",
            train_sampling_strategy="sequential",
            **given,
        ),
        train_dataset=data,
    )


def by_hand(data, left_out, accumulated=1):
    """AdamW over the rows in their order, one step a batch, without the steps in `left_out`."""
    model, count = Line(), len(data) // accumulated
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0)
    for step in range(count):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / count)  # goes on through a step that is left out
        if step not in left_out:
            for row in data[step * accumulated : (step + 1) * accumulated]:
                loss = model(*(row[name][None] for name in ("x", "poison", "labels")))["loss"]
                (loss / accumulated).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return model.weight.detach()


@pytest.mark.parametrize("poison", [math.nan, math.inf, 1.0], ids=["loss nan", "loss inf", "gradient alone"])
def test_such_a_step_moves_nothing(tmp_path, poison):
    data = rows(poisoned=(2, 3, 6), poison=poison)
    trainer = make_trainer(tmp_path, data)
    trainer.train()
    torch.testing.assert_close(trainer.model.weight.detach(), by_hand(rows(), {2, 3, 6}), **FP32)
    assert trainer.state.global_step == STEPS
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry.get("skipped_steps", 0) for entry in logged] == [0, 0, 1, 2, 2, 2, 3, 3]
    if poison != 1.0:
        assert [math.isfinite(entry["loss"]) for entry in logged] == [i not in (2, 3, 6) for i in range(STEPS)]


def test_one_batch_of_an_accumulated_step_spoils_the_step(tmp_path):
    trainer = make_trainer(tmp_path, rows(poisoned=(3,)), max_steps=4, gradient_accumulation_steps=2)
    trainer.train()
    torch.testing.assert_close(trainer.model.weight.detach(), by_hand(rows(), {1}, accumulated=2), **FP32)


def test_a_run_of_them_stops_and_says_where_to_go_on(tmp_path):
    trainer = make_trainer(tmp_path, rows(poisoned=(4, 5, 6)), save_strategy="steps", save_steps=3)
    with pytest.raises(NonFiniteError) as caught:
        trainer.train()
    message = str(caught.value)
    last = next(entry["loss"] for entry in trainer.state.log_history if entry["step"] == 4)
    assert message.startswith(
        "step 7: the loss was not finite, 3 times in a row (max_non_finite_losses=3; last finite loss: "
        f"{last:.4g} at step 4); go on from {tmp_path / 'checkpoint-6'} with a lower learning_rate"
    )
    assert "\n" not in message
    # the checkpoint in the middle of the run holds the weights from before it
    saved = make_trainer(tmp_path / "other", rows(), max_steps=6)
    saved._load_from_checkpoint(str(tmp_path / "checkpoint-6"))
    assert saved.model.weight.isfinite().all()
    torch.testing.assert_close(saved.model.weight, trainer.model.weight)


def test_zero_never_stops_and_nonsense_is_refused(tmp_path):
    trainer = make_trainer(tmp_path, rows(poisoned=(4, 5, 6)), max_non_finite_losses=0)
    trainer.train()
    assert trainer.model.weight.isnan().all()  # the stock behaviour, asked for
    with pytest.raises(ValueError, match="max_non_finite_losses=-1: must be a number of steps"):
        HfxTrainingArguments(output_dir=str(tmp_path), max_non_finite_losses=-1)
    with pytest.raises(NonFiniteError, match=r"step 5: the loss was not finite, once .*; start anew"):
        make_trainer(tmp_path / "once", rows(poisoned=(4,)), max_non_finite_losses=1).train()


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    """A step of finite gradients can overflow: the checkpoint before it stays the last."""
    trainer = make_trainer(tmp_path, rows(), save_strategy="steps", save_steps=2, save_total_limit=1)

    class Overflow(torch.optim.SGD):
        def step(self, closure=None):
            if trainer.state.global_step == 3:
                self.param_groups[0]["params"][0].data.fill_(math.inf)

    trainer.optimizer = Overflow(trainer.model.parameters(), lr=0.1)
    with pytest.raises(
        NonFiniteError, match=r"step 4: weight is not finite, nothing was saved; go on from .*checkpoint-2"
    ):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    with pytest.raises(NonFiniteError, match="weight is not finite"):
        trainer.save_model(str(tmp_path / "final"))
    assert not (tmp_path / "final").exists()


@pytest.mark.heavy
def test_a_recipe_prints_one_line_and_has_an_exit_code_of_its_own():
    code = (
        "from hf_ext.training.recipe import run_recipe_main\nfrom hf_ext.training.non_finite import NonFiniteError\n"
        "def main(argv):\n    raise NonFiniteError('step 7: the loss was not finite')\nrun_recipe_main(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (3, "error: step 7: the loss was not finite\n")
