"""`use_kernels=True`: what is swapped into our models, from a folder and from the Hub, keeps the number, and what a kernel
doesn't compute stays the layer's own."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from models.grid import ALL_FAMILIES, LOGITS, assert_same, gradients, padded
from torch import nn


pytest.importorskip("kernels", reason="kernels is not installed")
pytest.importorskip("triton", reason="triton is not installed")
from kernels import Mode, kernelize, use_kernel_mapping
from kernels.layer.layer import _CACHED_LAYER, _validate_layer
from models.liger_interpreted import liger  # noqa: F401  a fixture
from transformers import AutoModelForCausalLM
from transformers.integrations.hub_kernels import get_kernel_mapping_transformers

from hf_ext.hub.kernel_repository import write_kernel_repository
from hf_ext.layers import kernel_layers
from hf_ext.layers.feed_forward import GatedActivation
from hf_ext.layers.kernel_repositories import KERNEL_NAMES, LigerRepository, hub_mapping, local_mapping
from hf_ext.layers.norms import LayerNorm, RMSNorm, UnitOffsetRMSNorm
from hf_ext.layers.rope import Rotation
from hf_ext.ops.hub_kernels import PINNED
from hf_ext.registry import register_kernels


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# one norm after the other, in fp32
FP32 = {"atol": 1e-5, "rtol": 1e-5}
VARIANTS = {
    "SwiGLU": {"num_key_value_heads": 2},
    "GeGLU, unit offsets, sandwich": {
        "block_type": "sandwich",
        "norm_type": "rmsnorm_unit_offset",
        "hidden_act": "gelu_pytorch_tanh",
    },
    "layer norms, ReLU, interleaved": {"norm_type": "layernorm", "hidden_act": "relu", "rope_interleave": True},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_kernel_repository(tmp_path_factory.mktemp("kernels") / "made")


def swapped(model: nn.Module) -> dict[str, set[str]]:
    """Name of a layer -> where its forward comes from."""
    found = {}
    for module in model.modules():
        if type(module) in KERNEL_NAMES:
            found.setdefault(KERNEL_NAMES[type(module)], set()).add(module.forward.__func__.__qualname__.split(".")[-2])
    return found


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_our_own_from_a_folder(options, folder, tmp_path):
    """Loaded so, trained so, and swapped anew where training begins and ends."""
    decoder = ALL_FAMILIES["decoder"]
    reference = decoder.make("text", "eager", **options)
    reference.save_pretrained(tmp_path)
    with use_kernel_mapping(local_mapping(folder, DEVICE)):
        model = AutoModelForCausalLM.from_pretrained(tmp_path, use_kernels=True, attn_implementation="eager").to(DEVICE)
        assert swapped(model)
        assert all(classes == {name} for name, classes in swapped(model).items())
        model.train()
        reference.to(DEVICE).train()
    batch = {name: value.to(DEVICE) for name, value in padded(decoder.documents(lengths=(7, 5))).items()}
    found, logits = [], []
    for each in (reference, model):
        out = each(**batch, skip_logits=False)
        out.loss.backward()
        logits.append(out.logits)
        found.append(gradients(each))
    torch.testing.assert_close(*logits, **LOGITS)
    assert_same(found[1], found[0])


def test_on_a_cpu_nothing_changes(tmp_path):
    """By the mapping that is there from the start: its kernels are for other devices, and none is fetched."""
    reference = ALL_FAMILIES["decoder"].make("text", "eager")
    reference.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, use_kernels=True, attn_implementation="eager")
    assert swapped(model) == {name: {type_.__name__} for type_, name in KERNEL_NAMES.items() if name in swapped(model)}
    ids = torch.arange(3, 12)[None]
    assert torch.equal(model(ids).logits, reference(ids).logits)


class Hub:
    """What the pinned kernel is on the Hub: its `layers` have Liger's functions."""

    def __init__(self, package):
        from liger_kernel.ops.geglu import LigerGELUMulFunction
        from liger_kernel.ops.layer_norm import LigerLayerNormFunction
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction
        from liger_kernel.ops.rope import LigerRopeFunction
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction

        self.layers = SimpleNamespace(
            LigerGELUMulFunction=LigerGELUMulFunction,
            LigerLayerNormFunction=LigerLayerNormFunction,
            LigerRMSNormFunction=LigerRMSNormFunction,
            LigerRopeFunction=LigerRopeFunction,
            LigerSiLUMulFunction=LigerSiLUMulFunction,
        )
        self.asked = []

    def get_kernel(self, repo_id, **pin):
        self.asked.append((repo_id, pin))
        return self


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_ligers_from_the_hub(options, liger, monkeypatch):  # noqa: F811
    hub = Hub(liger)
    monkeypatch.setattr("kernels.get_kernel", hub.get_kernel)
    decoder = ALL_FAMILIES["decoder"]
    model = decoder.make("text", "eager", **options).to(DEVICE).train()
    batch = {name: value.to(DEVICE) for name, value in padded(decoder.documents(lengths=(7, 5))).items()}
    mapping = {name: {DEVICE: devices["cuda"]} for name, devices in hub_mapping().items()}
    found = []
    for prepare in (lambda: None, lambda: kernelize(model, mode=Mode.TRAINING, device=DEVICE)):
        with use_kernel_mapping(mapping):
            prepare()
        model(**batch).loss.backward()
        found.append(gradients(model))
    for repository in list(_CACHED_LAYER):  # of this test's hub
        if isinstance(repository, LigerRepository):
            del _CACHED_LAYER[repository]
    assert all(name.startswith("Liger") for classes in swapped(model).values() for name in classes)
    assert set(map(str, hub.asked)) == {str(("kernels-community/liger-kernels", {"version": 3, "revision": None}))}
    assert_same(found[1], found[0])


def test_names_are_ours_alone():
    """transformers maps a name for whoever has it; a norm with unit offset that was called RMSNorm would be another."""
    assert not set(KERNEL_NAMES.values()) & set(get_kernel_mapping_transformers())
    for layer, name in KERNEL_NAMES.items():
        assert layer.kernel_layer_name == name
        _validate_layer(check_cls=layer, cls=getattr(kernel_layers, name), repo=name)
    assert hub_mapping().keys() == set(KERNEL_NAMES.values())


def test_every_kernel_is_pinned():
    for kernel in PINNED.values():
        assert (kernel.version is None) != (kernel.revision is None)


def test_what_a_kernel_does_not_take_the_layer_computes(folder):
    """Another activation, another dtype, nothing at all."""
    angles = (torch.ones(1, 3, 4), torch.ones(1, 3, 4))
    layers = {
        RMSNorm(8): (torch.randn(3, 8, dtype=torch.float64),),
        UnitOffsetRMSNorm(8).double(): (torch.randn(3, 8, dtype=torch.float64),),
        LayerNorm(8, bias=False): (torch.randn(3, 8),),
        GatedActivation("relu2"): (torch.randn(3, 8), torch.randn(3, 8)),
        GatedActivation("silu"): (torch.randn(0, 8), torch.randn(0, 8)),
        Rotation(interleaved=True): (torch.randn(1, 2, 3, 8), torch.randn(1, 1, 3, 8), *angles),
    }
    for layer, inputs in layers.items():
        layer, inputs = layer.to(DEVICE), [x.to(DEVICE) for x in inputs]
        expected = layer(*inputs)
        with use_kernel_mapping(local_mapping(folder, DEVICE)):
            kernelize(layer, mode=Mode.INFERENCE, device=DEVICE)
        assert layer.forward.__func__ is not type(layer).forward
        torch.testing.assert_close(layer(*inputs), expected, **FP32)


def test_a_compiler_sees_the_layer_itself(folder):
    layer = RMSNorm(8).to(DEVICE)
    with use_kernel_mapping(local_mapping(folder, DEVICE)):
        kernelize(layer, mode=Mode.INFERENCE, device=DEVICE)
    x = torch.randn(3, 8, device=DEVICE)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x), **FP32)


def test_a_folder_without_kernels_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no kernel repository") as caught:
        register_kernels(tmp_path)
    assert "\n" not in str(caught.value)


def test_import_fetches_nothing():
    """Sockets forbidden; a repository that is not loaded has nothing to say yet."""
    script = """
import socket
socket.socket.connect = socket.create_connection = None
import hf_ext
from kernels.importer import get_loaded_kernels
from kernels.layer.globals import _KERNEL_MAPPING
assert "HfxRMSNorm" in _KERNEL_MAPPING.get() and not get_loaded_kernels()
"""
    subprocess.run([sys.executable, "-c", script], check=True)
