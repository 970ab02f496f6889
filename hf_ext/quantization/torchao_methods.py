"""torchao's: 8 bits by channel, the same with inputs rounded by token, 4 bits by group.

Imported inside functions: torchao is an extra, and takes seconds.
"""

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_ext.quantization.grouping import check_group_size
from hf_ext.quantization.method import TrainableMethod


class TorchaoMethod(TrainableMethod):
    """torchao's `quantize_`, which gives the layers weights of tensor classes of its own.

    Args, besides those of `Method`:
        config: name of its configuration. bits: of the weights.
    """

    package, module = "torchao", "torchao"

    def __init__(self, name, summary, *, config: str, bits: int, **more):
        super().__init__(name, summary, **more)
        self.config, self.bits = config, bits

    def apply(self, model: PreTrainedModel, names: list[str], options: dict, calibration) -> None:
        self._change(model, names, options, self._config(options))

    def why_not_trainable(self) -> str | None:
        return None if self.config == "IntxWeightOnlyConfig" else "torchao knows no training for it"

    def begin_training(self, model: PreTrainedModel, names: list[str], options: dict) -> None:
        from torchao.quantization.qat import QATConfig

        self._change(model, names, options, QATConfig(self._config(options), step="prepare"))

    def end_training(self, model: PreTrainedModel, names: list[str], options: dict) -> None:
        from torchao.quantization.qat import QATConfig

        self._change(model, names, options, QATConfig(self._config(options), step="convert"))

    def _change(self, model: PreTrainedModel, names: list[str], options: dict, config) -> None:
        from torchao.quantization import quantize_

        for name in names if "group_size" in options else []:
            check_group_size(options["group_size"], model.get_submodule(name).in_features, name)
        chosen = set(names)
        quantize_(model, config, filter_fn=lambda module, name: name in chosen)

    def _config(self, options: dict):
        from torchao import quantization
        from torchao.quantization.granularity import PerGroup

        make = getattr(quantization, self.config)
        if self.config != "IntxWeightOnlyConfig":
            return make(version=2)
        return make(weight_dtype=getattr(torch, f"int{self.bits}"), granularity=PerGroup(options["group_size"]))

    def tensors(self, model: PreTrainedModel, names: list[str]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

        state = model.state_dict()
        theirs = {f"{name}.weight": state.pop(f"{name}.weight") for name in names}
        parts, texts = flatten_tensor_state_dict(theirs)
        return state | parts, texts

    def prepare(self, model: PreTrainedModel, names: list[str], options: dict) -> None:
        """Nothing: the layers stay what they are."""

    def load(self, model: PreTrainedModel, names: list[str], tensors: dict[str, torch.Tensor], texts: dict[str, str]):
        from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

        theirs, plain = unflatten_tensor_state_dict(tensors, texts)
        for name in names:
            model.get_submodule(name).weight = nn.Parameter(theirs.pop(f"{name}.weight"), requires_grad=False)
        model.load_state_dict(plain | {f"{n}.weight": model.get_submodule(n).weight for n in names})


TORCHAO_METHODS = (
    TorchaoMethod("torchao_int8", "8 bits, absmax by channel", config="Int8WeightOnlyConfig", bits=8),
    TorchaoMethod(
        "torchao_int8_dynamic",
        "the same, inputs to 8 bits by token",
        config="Int8DynamicActivationInt8WeightConfig",
        bits=8,
    ),
    TorchaoMethod(
        "torchao_int4",
        "4 bits by group, a byte each",
        config="IntxWeightOnlyConfig",
        bits=4,
        defaults={"group_size": 32},
    ),
)
