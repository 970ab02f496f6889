"""GPTQ through gptqmodel's interface. gptqmodel isn't installed here: what it gives comes from a stand-in of the paper's
algorithm behind the calls that the method makes, and without that the method is refused."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from models.grid import ALL_FAMILIES, asked, padded, scores
from torch import nn

from hf_ext.quantization import QuantizedLinear, load_quantized, quantize, save_quantized
from hf_ext.quantization.gptq_methods import as_integers, by_block
from hf_ext.quantization.grouping import in_groups
from hf_ext.quantization.methods import find_trainable_method
from hf_ext.quantization.quantized_tensor import Quantization
from hf_ext.quantization.zero_point import (
    dequantize_zero_point,
    quantize_zero_point,
    zero_point_range,
    zero_point_scale,
)


GROUP = 16
HOW = Quantization(4, "zero_point", "group", GROUP)


class StandIn:
    """Frantar et al. 2023, arXiv 2210.17323, alg. 1, without its blocks: in floats of 64 bits, a group with the scale it has
    when its first column comes."""

    def __init__(self, layer: nn.Linear, qcfg: SimpleNamespace):
        assert (qcfg.sym, qcfg.desc_act, qcfg.act_group_aware) == (False, False, False)
        self.layer, self.bits = layer, qcfg.bits
        self.quantizer = SimpleNamespace(configure=lambda **options: None)
        self.hessian = torch.zeros(layer.in_features, layer.in_features, dtype=torch.float64)

    def add_batch(self, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        rows = inputs.flatten(0, -2).double()
        assert outputs.shape[:-1] == inputs.shape[:-1]
        self.hessian += 2 * rows.T @ rows

    def fasterquant(self, percdamp: float, group_size: int, actorder: bool):
        assert not actorder
        H = self.hessian + percdamp * self.hessian.diagonal().mean() * torch.eye(len(self.hessian), dtype=torch.float64)
        factor = torch.linalg.cholesky(torch.linalg.inv(H), upper=True)
        W = self.layer.weight.detach().double().clone()
        scales, zeros = [], []
        for column in range(W.shape[1]):
            if column % group_size == 0:
                scale, zero = zero_point_scale(*zero_point_range(W[:, column : column + group_size]), self.bits)
                scales.append(scale)
                zeros.append(zero)
            x = W[:, column : column + 1].clone()
            W[:, column : column + 1] = dequantize_zero_point(
                quantize_zero_point(x, scale, zero, self.bits), scale, zero
            )
            error = (x - W[:, column : column + 1]) / factor[column, column]
            W[:, column + 1 :] -= error * factor[column, column + 1 :]
        self.layer.weight.data = W.to(self.layer.weight.dtype)
        return torch.cat(scales, dim=1), torch.cat(zeros, dim=1), None, 0.0, 0.0, percdamp

    def free(self) -> None:
        del self.hessian


@pytest.fixture
def gptqmodel(monkeypatch):
    """A package of that name whose GPTQ is the stand-in."""
    package, inner = ModuleType("gptqmodel"), ModuleType("gptqmodel.quantization")
    package.__spec__ = SimpleNamespace(name="gptqmodel")
    package.QuantizeConfig = lambda **options: SimpleNamespace(**options)
    inner.GPTQ = StandIn
    monkeypatch.setitem(sys.modules, "gptqmodel", package)
    monkeypatch.setitem(sys.modules, "gptqmodel.quantization", inner)
    monkeypatch.setattr("hf_ext.quantization.saving.version", lambda name: "of the tests")


def batches(family: str) -> list[dict]:
    return [padded([asked(document) for document in ALL_FAMILIES[family].documents("text")])]


def test_it_is_refused_where_gptqmodel_is_missing():
    model = ALL_FAMILIES["decoder"].make("text")
    with pytest.raises(ValueError, match=r"^method='gptq_int4': gptqmodel isn't installed; pip install gptqmodel, or"):
        quantize(model, "gptq_int4", calibration=batches("decoder"))


def test_integers_are_those_that_were_found():
    torch.manual_seed(0)
    layer = nn.Linear(32, 8)
    scale, zero = torch.rand(8, 2) + 0.1, torch.randint(0, 16, (8, 2))
    q = torch.randint(0, 16, (8, 32))
    expected = dequantize_zero_point(q.view(-1, GROUP), scale.view(-1, 1), zero.view(-1, 1)).view(8, 32)
    layer.weight.data = expected.clone()
    made = as_integers(layer, HOW, scale, zero)
    assert torch.equal(made.weight, expected)
    x = torch.randn(3, 32)
    torch.testing.assert_close(made(x), layer(x))


def test_layers_of_a_block_go_together():
    names = ["model.layers.0.mlp.up_proj", "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"]
    names += ["model.encoder.layers.0.mlp.up_proj", "model.layers.10.mlp.up_proj"]
    assert by_block(names) == [names[:2], names[2:3], names[3:4], names[4:]]


@pytest.mark.parametrize("family", ALL_FAMILIES)
@torch.no_grad()
def test_errors_are_made_up_for(family, gptqmodel, tmp_path, monkeypatch):
    batch = batches(family)[0]
    model, rounded = (ALL_FAMILIES[family].make("text") for _ in range(2))
    expected = scores(model(**batch))
    quantize(rounded, "int4", group_size=GROUP)
    quantize(model, "gptq_int4", group_size=GROUP, calibration=batches(family))
    got = scores(model(**batch))
    assert 0 < (got - expected).square().mean() < 0.8 * (scores(rounded(**batch)) - expected).square().mean()
    assert all(isinstance(model.get_submodule(name), QuantizedLinear) for name in model.quantized_with["layers"])
    save_quantized(model, tmp_path / "kept")
    monkeypatch.undo()  # what it has made is read without the package
    assert torch.equal(scores(load_quantized(tmp_path / "kept")(**batch)), got)


@torch.no_grad()
def test_a_layer_moves_least_on_what_it_has_read(gptqmodel):
    torch.manual_seed(0)
    model = ALL_FAMILIES["decoder"].make("text", num_hidden_layers=1)
    layer, seen = model.model.layers[0].mlp.down_proj, []
    hook = layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    model(**batches("decoder")[0])
    hook.remove()
    weight = layer.weight.clone()
    quantize(model, "gptq_int4", group_size=GROUP, calibration=batches("decoder"))
    made = model.model.layers[0].mlp.down_proj
    groups = in_groups(weight, "group", GROUP)
    scale, zero = zero_point_scale(*zero_point_range(groups), 4)
    nearest = dequantize_zero_point(quantize_zero_point(groups, scale, zero, 4), scale, zero).view_as(weight)
    read, said = seen[0]
    assert (made(read) - said).square().mean() < 0.7 * (read @ nearest.T - said).square().mean()
    assert (made.weight - weight).square().mean() > (nearest - weight).square().mean()


def test_nothing_is_trained_towards_it(gptqmodel):
    with pytest.raises(
        ValueError, match=r"^method='gptq_int4': can't be trained towards, it rounds after training alone"
    ):
        find_trainable_method("gptq_int4")
