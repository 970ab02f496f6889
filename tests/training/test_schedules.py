"""Schedules against transformers' own and against their definitions."""

import pytest
import torch
from transformers import get_scheduler

from hf_ext.training.schedules import cosine, create_schedule, warmup_stable_decay


def rates(schedule, optimizer, steps):
    found = []
    for _ in range(steps):
        found.append([g["lr"] for g in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return torch.tensor(found)


def sgd(*learning_rates):
    return torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in learning_rates])


def test_cosine_is_transformers_own():
    ours, theirs = sgd(1.0, 0.1), sgd(1.0, 0.1)
    mine = create_schedule(ours, name="cosine", num_warmup_steps=7, num_training_steps=50)
    reference = get_scheduler("cosine", theirs, num_warmup_steps=7, num_training_steps=50)
    torch.testing.assert_close(rates(mine, ours, 50), rates(reference, theirs, 50))


def test_linear_decay_is_transformers_own():
    ours, theirs = sgd(1.0), sgd(1.0)
    options = {"decay_fraction": 0.2, "decay_form": "linear"}
    mine = create_schedule(ours, name="warmup_stable_decay", num_warmup_steps=5, num_training_steps=50, **options)
    reference = get_scheduler(
        "warmup_stable_decay",
        theirs,
        num_warmup_steps=5,
        num_training_steps=50,
        scheduler_specific_kwargs={"num_decay_steps": 10, "decay_type": "linear"},
    )
    torch.testing.assert_close(rates(mine, ours, 50), rates(reference, theirs, 50))


def test_shapes():
    steps = {"num_warmup_steps": 10, "num_training_steps": 100}
    assert [cosine(s, **steps) for s in (0, 5, 10)] == [0, 0.5, 1]
    assert cosine(55, **steps, min_lr_ratio=0.2) == pytest.approx(0.6)
    assert cosine(100, **steps, min_lr_ratio=0.2) == pytest.approx(0.2)
    assert [warmup_stable_decay(s, **steps) for s in (5, 10, 60, 80)] == [0.5, 1, 1, 1]
    assert warmup_stable_decay(85, **steps) == pytest.approx(0.5)  # 1 - sqrt(5 / 20)
    assert warmup_stable_decay(100, **steps, min_lr_ratio=0.1) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "cosin"}, "lr_scheduler_type='cosin': must be one of .*; did you mean 'cosine'"),
        ({"num_warmup_steps": 101}, "warmup_steps=101: 100 steps of training can't hold them"),
        ({"name": "warmup_stable_decay", "num_warmup_steps": 90}, "warmup_steps=90: .* and 20 of decay"),
        ({"min_lr_ratio": 1.5}, "min_lr_ratio=1.5: must be a share"),
        ({"decay_fraction": 0.2}, "decay_fraction=0.2: cosine takes min_lr_ratio"),
        ({"name": "warmup_stable_decay", "decay_form": "sqrt"}, "decay_form='sqrt': must be one of 1-sqrt"),
    ],
    ids=str,
)
def test_nonsense_is_refused(options, message):
    given = {"name": "cosine", "num_warmup_steps": 10, "num_training_steps": 100, **options}
    with pytest.raises(ValueError, match=message):
        create_schedule(sgd(1.0), **given)
