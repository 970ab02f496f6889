"""What new weights are, and that loaded ones stay what they were."""

import pytest
import torch
from models.decoder_grid import make_config, tokens
from transformers import AutoModelForCausalLM

import hf_ext  # noqa: F401  registers the Auto classes
from hf_ext.models import HfxDecoderForCausalLM


OUTPUTS = ("o_proj.weight", "down_proj.weight")


@pytest.mark.parametrize("mlp_type", ["gated", "plain"])
@pytest.mark.parametrize("block_type", ["pre_norm", "post_norm", "parallel", "parallel_two_norms"])
@torch.no_grad()
def test_zero_outputs_make_blocks_the_identity(block_type, mlp_type):
    torch.manual_seed(0)
    model = HfxDecoderForCausalLM(make_config(block_type=block_type, mlp_type=mlp_type, zero_init_residual=True))
    for name, parameter in model.named_parameters():
        assert bool((parameter == 0).all()) == name.endswith(OUTPUTS), name
    if block_type != "post_norm":
        embedded = model.model.embed_tokens(tokens())
        assert torch.equal(model.model(tokens()).last_hidden_state, model.model.norm(embedded))


def test_every_part_learns_within_two_steps():
    """At first only the outputs have a gradient; once they have moved, all have."""
    torch.manual_seed(0)
    model = HfxDecoderForCausalLM(make_config(zero_init_residual=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(tokens(), labels=tokens()).loss.backward()
        optimizer.step()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())


@torch.no_grad()
def test_outputs_that_were_trained_come_back(tmp_path):
    """From a checkpoint, and beside a new head over a loaded body."""
    model = HfxDecoderForCausalLM(make_config(zero_init_residual=True))
    for parameter in model.parameters():
        parameter.add_(1.0)
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert reloaded.config.zero_init_residual is True
    for (name, parameter), (_, expected) in zip(reloaded.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(parameter, expected), name
    model.model.save_pretrained(tmp_path / "body")
    body = HfxDecoderForCausalLM.from_pretrained(tmp_path / "body").model
    for (name, parameter), (_, expected) in zip(body.named_parameters(), model.model.named_parameters(), strict=True):
        assert torch.equal(parameter, expected), name


def test_without_it_outputs_are_drawn():
    model = HfxDecoderForCausalLM(make_config())
    assert all(p.std() > 0.1 for n, p in model.named_parameters() if n.endswith(OUTPUTS))
