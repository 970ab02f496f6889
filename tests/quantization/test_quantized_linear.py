"""Layers that compute from integers, and that are trained towards them."""

import pytest
import torch
from torch import nn

from hf_ext.layers.linear import Linear
from hf_ext.quantization import FakeQuantizedLinear, Quantization, QuantizedLinear, quantize_tensor
from hf_ext.quantization.activations import DynamicActivation, StaticActivation
from hf_ext.quantization.fake_quantization import fake_quantize_weight
from hf_ext.quantization.training import finish_training, leave_training, prepare_training


HOWS = [Quantization(), Quantization(4, "zero_point", "group", 8), Quantization(2, "absmax", "tensor")]


def layer(bias: bool = True) -> Linear:
    torch.manual_seed(0)
    return Linear(24, 10, bias=bias)


def inputs() -> torch.Tensor:
    return torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("how", HOWS, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_forward_multiplies_by_the_dequantized_weight(how, bias):
    plain = layer(bias)
    made = QuantizedLinear.from_linear(plain, how)
    weight = quantize_tensor(plain.weight.detach(), how).dequantize()
    torch.testing.assert_close(made(inputs()), nn.functional.linear(inputs(), weight, plain.bias))
    assert not torch.equal(made(inputs()), plain(inputs()))
    fresh = QuantizedLinear(24, 10, how, bias=bias)
    fresh.load_state_dict(made.state_dict())
    assert torch.equal(fresh(inputs()), made(inputs()))


def test_dynamic_inputs_are_rounded_token_by_token():
    x = inputs()
    x[0, 0] *= 1000  # a loud token doesn't change the others
    made = QuantizedLinear.from_linear(layer(), Quantization(), "dynamic")
    alone = made(x[1:])
    assert torch.equal(made(x)[1:], alone)
    scale = x.abs().amax(-1, keepdim=True) / 127
    torch.testing.assert_close(DynamicActivation()(x), (x / scale).round() * scale)


def test_static_inputs_are_torchs_fake_quantization():
    rounds, x = StaticActivation(-1.0, 2.0), inputs()
    theirs = torch.fake_quantize_per_tensor_affine(x, float(rounds.scale), int(rounds.zero_point), 0, 255)
    torch.testing.assert_close(rounds(x), theirs)
    assert x.max() > 2
    assert rounds(x).max() < 2.01


def test_half_precision_keeps_the_range():
    rounds = StaticActivation(-1.0, 2.0)
    before = rounds.scale.clone()
    assert torch.equal(rounds.to(torch.bfloat16).scale, before)
    assert rounds(inputs().bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_gradients_go_straight_through(how):
    weight = layer().weight.detach().requires_grad_()
    rounded = fake_quantize_weight(weight, how)
    assert torch.equal(rounded, quantize_tensor(weight.detach(), how).dequantize())
    up = torch.randn(10, 24, generator=torch.Generator().manual_seed(3))
    (rounded * up).sum().backward()
    assert torch.equal(weight.grad, up)


def test_gradients_of_inputs_are_torchs():
    ours, theirs = inputs().requires_grad_(), inputs().requires_grad_()
    rounds = StaticActivation(-1.0, 2.0)
    rounds(ours).square().sum().backward()
    torch.fake_quantize_per_tensor_affine(
        theirs, float(rounds.scale), int(rounds.zero_point), 0, 255
    ).square().sum().backward()
    edge = (theirs.grad == 0) != (ours.grad == 0)  # they round before they look whether a value is outside
    assert edge.float().mean() < 0.01
    torch.testing.assert_close(ours.grad[~edge], theirs.grad[~edge])
    assert (ours.grad == 0).float().mean() > 0.1  # what is cut off gets none


@pytest.mark.parametrize("how", HOWS, ids=str)
@pytest.mark.parametrize("activation", [None, "dynamic"])
def test_what_is_trained_is_what_is_kept(how, activation):
    trained = FakeQuantizedLinear.from_linear(layer(), how, activation)
    kept = trained.quantized()
    assert torch.equal(kept(inputs()), trained(inputs()))


def test_training_towards_two_bits_learns_what_rounding_loses():
    """Two layers that shall compute what a third does: rounded after training, and trained rounded."""
    how = Quantization(2, "zero_point")
    torch.manual_seed(0)
    target = nn.Sequential(Linear(24, 16), nn.Tanh(), Linear(16, 4))
    x = torch.randn(256, 24)
    with torch.no_grad():
        y = target(x)

    def loss_of(model: nn.Module) -> torch.Tensor:
        return (model(x) - y).square().mean()

    rounded = nn.Sequential(
        QuantizedLinear.from_linear(target[0], how), nn.Tanh(), QuantizedLinear.from_linear(target[2], how)
    )
    trained = nn.Sequential(
        FakeQuantizedLinear.from_linear(target[0], how), nn.Tanh(), FakeQuantizedLinear.from_linear(target[2], how)
    )
    optimizer = torch.optim.Adam(trained.parameters(), lr=3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        loss_of(trained).backward()
        optimizer.step()
    assert loss_of(trained) < 0.5 * loss_of(rounded)


def test_a_whole_model_is_prepared_and_finished(tmp_path):
    from models.grid import FAMILIES, tokens

    from hf_ext.quantization import load_quantized, save_quantized

    model = FAMILIES["decoder"].make("text")
    before = model(tokens()).logits
    prepare_training(model, "int4", group_size=16)
    rounded = model(tokens()).logits
    assert not torch.equal(before, rounded)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        model(tokens(), labels=tokens()).loss.backward()
        optimizer.step()
    trained = model.eval()(tokens()).logits
    assert not torch.equal(trained, rounded)
    finish_training(model)
    assert torch.equal(model(tokens()).logits, trained)
    save_quantized(model, tmp_path / "kept")
    assert torch.equal(load_quantized(tmp_path / "kept")(tokens()).logits, trained)


def test_leaving_training_gives_the_plain_model_back():
    from models.grid import FAMILIES, tokens

    model = FAMILIES["decoder"].make("text")
    before, names = model(tokens()).logits, list(model.state_dict())
    prepare_training(model, "int2", group_size=16)
    assert list(model.state_dict()) == names  # so that checkpoints load as the plain model
    leave_training(model)
    assert torch.equal(model(tokens()).logits, before)
    assert type(model.model.layers[0].mlp.up_proj) is Linear


def test_training_nonsense():
    from models.grid import FAMILIES

    with pytest.raises(ValueError, match=r"^method='quanto_int8': can't be trained towards"):
        prepare_training(FAMILIES["decoder"].make("text"), "quanto_int8")
    with pytest.raises(ValueError, match=r"^method='int8_static': .* calibrat"):
        prepare_training(FAMILIES["decoder"].make("text"), "int8_static")
    with pytest.raises(ValueError, match=r"^model: .* isn't prepared"):
        finish_training(FAMILIES["decoder"].make("text"))
