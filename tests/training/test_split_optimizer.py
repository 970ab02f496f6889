"""Optimizer states by process: the same bits again, and one line where they aren't this run's. On several processes:
tests/training/distributed/test_engines.py and tests/training/test_checkpoint_kills.py."""

from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DeviceMesh, Shard, distribute_tensor

from hf_ext.training.checkpoints.fingerprint import difference
from hf_ext.training.checkpoints.manifest import Manifest
from hf_ext.training.checkpoints.resume import check_states
from hf_ext.training.checkpoints.split_optimizer import PARTS_NAME, load_part, part_name, save_part


def stepped(model: nn.Module, steps: int = 2, optimizer_class=torch.optim.AdamW, **options):
    optimizer = optimizer_class(model.parameters(), lr=0.1, **options)
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.full((1, 3), 1.0 + step)).sum().backward()
        optimizer.step()
    return optimizer


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 4)


def test_the_same_bits_and_settings(tmp_path):
    model = linear()
    optimizer = stepped(model, betas=(0.5, 0.75))
    save_part(tmp_path, model, optimizer, process_index=0)
    again = torch.optim.AdamW(model.parameters(), lr=0.3)
    load_part(tmp_path, model, again, process_index=0)
    for parameter, states in optimizer.state.items():
        assert again.state[parameter].keys() == states.keys()
        assert all(torch.equal(again.state[parameter][key], value) for key, value in states.items())
    assert again.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


def test_states_that_are_numbers_and_weights_without_any(tmp_path):
    model = linear()
    model.bias.requires_grad_(False)  # so that it gets no state
    optimizer = stepped(model, optimizer_class=torch.optim.SGD, momentum=0.5)
    optimizer.state[model.weight] |= {"seen": 2, "rms": 0.1, "buffer": None}
    save_part(tmp_path, model, optimizer, process_index=0)
    again = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    load_part(tmp_path, model, again, process_index=0)
    assert set(again.state) == {model.weight}
    assert again.state[model.weight]["seen"] == 2
    assert again.state[model.weight]["rms"] == 0.1
    assert torch.equal(again.state[model.weight]["momentum_buffer"], optimizer.state[model.weight]["momentum_buffer"])


def test_what_is_not_this_run_s(tmp_path):
    model = linear()
    save_part(tmp_path, model, stepped(model), process_index=0)
    alone = torch.optim.AdamW([model.weight])
    with pytest.raises(ValueError, match="holds optimizer states of other parameters than are trained now"):
        load_part(tmp_path, model, alone, process_index=0)
    wider = nn.Linear(3, 5)
    with pytest.raises(ValueError, match=r"weight has shape \[5, 3\], its optimizer states were saved with \[4, 3\]"):
        load_part(tmp_path, wider, torch.optim.AdamW(wider.parameters()), process_index=0)
    text = (tmp_path / PARTS_NAME).read_text()
    (tmp_path / PARTS_NAME).write_text(text.replace('"format": 1', '"format": 9'))
    with pytest.raises(ValueError, match=r"optimizer_parts\.json is of format 9, this version reads 1"):
        load_part(tmp_path, model, torch.optim.AdamW(model.parameters()), process_index=0)


@pytest.mark.parametrize(("state", "kind"), [(object(), "object"), (nn.Parameter(torch.ones(2)), "Parameter")])
def test_states_that_no_part_can_hold(tmp_path, state, kind):
    model = linear()
    optimizer = stepped(model)
    optimizer.state[model.weight]["own"] = state
    with pytest.raises(ValueError, match=rf"^optim: its .* is a {kind}.*save_only_model: true \(no resume\)$"):
        save_part(tmp_path, model, optimizer, process_index=0)


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield DeviceMesh("cpu", [0], mesh_dim_names=("fsdp",))
    dist.destroy_process_group()


def test_another_way_to_divide_is_refused(tmp_path, mesh):
    def split(dim: int) -> nn.Linear:
        model = linear()
        model.bias = None
        model.weight = nn.Parameter(distribute_tensor(model.weight.detach(), mesh, [Shard(dim)]))
        return model

    def stepped_split(model):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
        return optimizer

    model = split(0)
    optimizer = stepped_split(model)
    save_part(tmp_path, model, optimizer, process_index=0)
    again = torch.optim.AdamW(model.parameters(), lr=0.1)
    load_part(tmp_path, model, again, process_index=0)
    states = again.state[model.weight]
    assert states["exp_avg"].placements == (Shard(0),)
    assert torch.equal(states["exp_avg"].to_local(), optimizer.state[model.weight]["exp_avg"].to_local())
    other = split(1)
    with pytest.raises(
        ValueError, match=r"weight has placements \['Shard\(dim=1\)'\], .* set tp_size and fsdp_size back"
    ):
        load_part(tmp_path, other, torch.optim.AdamW(other.parameters()), process_index=0)
    optimizer.state[model.weight]["exp_avg"] = torch.zeros_like(other.weight)
    with pytest.raises(
        ValueError, match=r"its state 'exp_avg' of weight is a DTensor that isn't divided as the weight is"
    ):
        save_part(tmp_path, model, optimizer, process_index=0)


def test_other_sizes():
    split, whole = {"split": {"sizes": "tp_size=2, fsdp_size=1"}}, {"split": {}}
    other = {"split": {"sizes": "tp_size=1, fsdp_size=2"}}
    for saved, now, message in (
        (split, other, "tp_size=1, fsdp_size=2: checkpoint-4 was trained with tp_size=2, fsdp_size=1; set it back"),
        (split, whole, "tp_size=1, fsdp_size=1: checkpoint-4 was trained with tp_size=2, fsdp_size=1; set it back"),
        ({}, split, "tp_size=2, fsdp_size=1: checkpoint-4 was trained with tp_size=1, fsdp_size=1; set it back"),
    ):
        found = difference("checkpoint-4", saved, now)
        assert found.startswith(message)
        assert "--allow_change" not in found
    assert difference("checkpoint-4", {}, whole) is None  # what older versions have saved


@pytest.mark.parametrize("missing", [None, "model.safetensors", PARTS_NAME, part_name(1), "rng_state_1.pth"])
def test_a_checkpoint_without_a_part(tmp_path, missing):
    files = [
        "model.safetensors",
        "trainer_state.json",
        "scheduler.pt",
        PARTS_NAME,
        "rng_state_0.pth",
        "rng_state_1.pth",
    ]
    there = {name: {} for name in [*files, part_name(0), part_name(1)] if name != missing}
    expected = pytest.raises(
        ValueError, match=r"^checkpoint-4: holds no file of .* so that training can't go on exactly"
    )
    with nullcontext() if missing is None else expected:
        check_states(tmp_path / "checkpoint-4", Manifest(4, there, {}), engine="sharded", world_size=2)
