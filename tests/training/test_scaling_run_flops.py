"""FLOPs of a run: tokens that its batches hold, times what the equations say of one."""

from types import SimpleNamespace

import pytest
import torch
from models.decoder_grid import make_model

from hf_ext.training.scaling import count_flops
from hf_ext.training.scaling.run_flops import run_flops, tokens_of_batch


def trainer_of(batches, steps=5, **options):
    return SimpleNamespace(
        state=SimpleNamespace(global_step=steps),
        args=SimpleNamespace(gradient_accumulation_steps=2, world_size=3),
        get_train_dataloader=lambda: batches,
        **options,
    )


def padded(*lengths):
    mask = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    return {"input_ids": torch.ones_like(mask), "attention_mask": mask}


def test_tokens_times_the_equations():
    model = make_model()
    batches = [padded(10, 20), padded(30, 12)]
    found = run_flops(trainer_of(batches), model)
    assert (found.tokens, found.length, found.source_length) == (5 * 2 * 3 * 36, 18, None)
    assert found.training == pytest.approx(
        found.tokens * count_flops(model.config, 18, head="causal").training_per_token
    )


def test_weights_that_stay_cost_no_gradient_of_theirs():
    model = make_model()
    whole = run_flops(trainer_of([padded(8, 8)]), model).training
    assert run_flops(trainer_of([padded(8, 8)]), model.requires_grad_(False)).training == pytest.approx(whole * 2 / 3)


def test_a_teacher_costs_its_forward_pass():
    model, teacher = make_model(), make_model(num_hidden_layers=4)
    alone = run_flops(trainer_of([padded(8, 8)]), model)
    both = run_flops(trainer_of([padded(8, 8)], teacher=teacher), model)
    assert both.teacher == pytest.approx(both.tokens * count_flops(teacher.config, 8, head="causal").forward_per_token)
    assert both.training == alone.training + both.teacher


def test_padding_is_no_token_on_either_side():
    labels = torch.tensor([[1, 2, -100], [1, 2, 3]])
    batch = padded(4, 2) | {"labels": labels}
    assert tokens_of_batch(batch, is_pair=True) == (6, 5)
    assert tokens_of_batch(batch, is_pair=False) == (6, 0)
    assert tokens_of_batch({"input_ids": torch.ones(2, 7)}, is_pair=False) == (14, 0)
    assert tokens_of_batch(padded(4, 2) | {"labels": torch.tensor([0, 1])}, is_pair=True) == (6, 6)


def test_before_the_first_step_there_is_nothing():
    assert run_flops(trainer_of([], steps=0), make_model()) is None
