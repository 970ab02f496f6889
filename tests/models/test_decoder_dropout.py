"""Dropout: in training and nowhere else, and every probability reaches its place."""

import pytest
import torch
from models.decoder_grid import ATTENTIONS, make_model, tokens

from hf_ext.layers import BLOCKS


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("place", ["attention_dropout", "hidden_dropout", "embedding_dropout"])
def test_changes_training_and_not_evaluation(place, attention):
    model, plain = make_model(attention, **{place: 0.5}), make_model(attention)
    assert torch.equal(model(tokens()).logits, plain(tokens()).logits)
    model.train()
    torch.manual_seed(0)
    first, second = (model(tokens(), labels=tokens(), skip_logits=False).logits for _ in range(2))
    assert (first - second).abs().max() > 0.1
    torch.manual_seed(0)
    assert torch.equal(model(tokens(), labels=tokens(), skip_logits=False).logits, first)


@pytest.mark.parametrize("name", BLOCKS)
def test_both_sublayers_of_every_block_are_dropped(name):
    """With all that a sublayer adds dropped, the stream passes unchanged (or normed, where the norm comes after)."""

    class Attention(torch.nn.Module):
        def forward(self, hidden_states, **kwargs):
            return torch.randn_like(hidden_states), None

    class MLP(torch.nn.Module):
        def forward(self, hidden_states):
            return torch.randn_like(hidden_states)

    block = BLOCKS[name](Attention(), MLP(), torch.nn.Identity, dropout=1.0)
    states = torch.randn(2, 3, 8)
    assert torch.equal(block.train()(states), states)
    assert not torch.equal(block.eval()(states), states)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_checkpointing_drops_the_same(attention):
    results = []
    for checkpointed in (False, True):
        model = make_model(attention, attention_dropout=0.3, hidden_dropout=0.2).train()
        if checkpointed:
            model.gradient_checkpointing_enable()
        torch.manual_seed(3)
        model(tokens(), labels=tokens()).loss.backward()
        results.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
