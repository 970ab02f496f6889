"""Which kernels stand in for which of our layers where a model is loaded with `use_kernels=True`.

The library `kernels` looks a layer's name up in a mapping, by device, and binds the forward of the class that it finds
there. Our names begin with Hfx: transformers has a mapping of its own, in which `RMSNorm` is one without unit offset.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from hf_ext.layers.feed_forward import GatedActivation
from hf_ext.layers.liger_layers import LigerFunctions, liger_layers
from hf_ext.layers.norms import LayerNorm, RMSNorm, UnitOffsetRMSNorm
from hf_ext.layers.rope import Rotation
from hf_ext.ops.hub_kernels import PINNED, HubKernel


# layer -> its name in a mapping, which is that of the class in `kernel_layers.py` too
KERNEL_NAMES: dict[type[nn.Module], str] = {
    RMSNorm: "HfxRMSNorm",
    UnitOffsetRMSNorm: "HfxUnitOffsetRMSNorm",
    LayerNorm: "HfxLayerNorm",
    GatedActivation: "HfxGatedActivation",
    Rotation: "HfxRotation",
}


@dataclass(frozen=True)
class LigerRepository:
    """One layer by Liger's kernels on the Hub, as the library `kernels` asks a repository for it."""

    kernel: HubKernel
    layer_name: str

    def load(self) -> type[nn.Module]:
        """The class whose forward is bound; fetches the kernels where they aren't in the cache."""
        layers = self.kernel.load().layers
        functions = LigerFunctions(
            layers.LigerRMSNormFunction,
            layers.LigerLayerNormFunction,
            layers.LigerSiLUMulFunction,
            layers.LigerGELUMulFunction,
            layers.LigerRopeFunction,
        )
        return liger_layers(functions)[self.layer_name]


def hub_mapping() -> dict[str, dict]:
    """The pinned kernels of the Hub, on CUDA and ROCm devices."""
    return {
        name: dict.fromkeys(("cuda", "rocm"), LigerRepository(PINNED["liger"], name)) for name in KERNEL_NAMES.values()
    }


def local_mapping(repository: str | Path, device: str = "cuda") -> dict[str, dict]:
    """Our own kernels from a folder that `python -m hf_ext.hub.kernel_repository` wrote.

    Args:
        device: that they are taken on; "cpu" for Triton's interpreter.

    Raises:
        ValueError: there is no kernel repository.
    """
    from kernels import LocalLayerRepository

    folder = Path(repository)
    if not list(folder.glob("build/*/metadata.json")):
        raise ValueError(
            f"{folder}: no kernel repository (no build/*/metadata.json); write one with python -m "
            "hf_ext.hub.kernel_repository"
        )
    return {name: {device: LocalLayerRepository(folder, layer_name=name)} for name in KERNEL_NAMES.values()}
