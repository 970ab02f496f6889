"""The optimizer's states of weights that lie in parts (FSDP2, tensor parallelism): every process writes the part it holds.

    optimizer_<rank>.safetensors    "<parameter>/<state>": this process's part, or what it has whole (a step count)
    optimizer_parts.json            of each parameter its shape, the mesh and how it is placed; states that are numbers;
                                    the settings of the groups. Written by the first process, the same for all

A part is read by the process that wrote it, so nothing is sent, and nothing is rounded: the states are the same to the bit.
Another number of processes, or another way to divide them, has other parts; it is refused.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor


PARTS_NAME = "optimizer_parts.json"
PARTS_FORMAT = 1
# what a state of a parameter is: placed as the parameter is, the process's own, or a number
IN_PARTS, OWN = "in parts", "own"


def part_name(process_index: int) -> str:
    """The file of a process's part."""
    return f"optimizer_{process_index}.safetensors"


def save_part(folder: str | Path, model: nn.Module, optimizer, *, process_index: int) -> None:
    """Write this process's part, and from the first process what is the same for all. Waits for nobody.

    Args:
        model: with the parameters that `optimizer` (a `torch.optim.Optimizer`, or accelerate's around it) steps.

    Raises:
        ValueError: a state that is neither a tensor placed as its parameter is, nor a plain tensor, nor a number.
    """
    names = _names(model)
    tensors, described = {}, {}
    for parameter, states in optimizer.state.items():
        name = names[parameter]
        described[name] = {**_layout(parameter), "tensors": {}, "values": {}}
        for key, value in states.items():
            if isinstance(value, torch.Tensor):
                described[name]["tensors"][key] = _kind(name, key, value, parameter)
                own = value.to_local() if isinstance(value, DTensor) else value
                tensors[f"{name}/{key}"] = own.detach().contiguous()
            else:
                described[name]["values"][key] = _plain(f"{key} of {name}", value)
    save_file(tensors, Path(folder) / part_name(process_index))
    if process_index == 0:
        groups = [
            {"params": [names[parameter] for parameter in group["params"]]}
            | {key: _plain(key, value) for key, value in group.items() if key != "params"}
            for group in optimizer.param_groups
        ]
        content = {"format": PARTS_FORMAT, "groups": groups, "states": described}
        (Path(folder) / PARTS_NAME).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load_part(folder: str | Path, model: nn.Module, optimizer, *, process_index: int) -> None:
    """Take over what `save_part` wrote.

    Raises:
        ValueError: it is of another version, of other parameters, or they were divided otherwise.
    """
    folder = Path(folder)
    content = json.loads((folder / PARTS_NAME).read_text(encoding="utf-8"))
    if content["format"] != PARTS_FORMAT:
        raise ValueError(
            f"{folder.name}: {PARTS_NAME} is of format {content['format']}, this version reads {PARTS_FORMAT}; start anew "
            "in another folder"
        )
    names, parts = _names(model), load_file(folder / part_name(process_index))
    groups, states, number = [], {}, 0
    if len(content["groups"]) != len(optimizer.param_groups):
        raise ValueError(_other_parameters(folder, f"{len(content['groups'])} groups"))
    for saved, group in zip(content["groups"], optimizer.param_groups, strict=True):
        if saved["params"] != [names[parameter] for parameter in group["params"]]:
            raise ValueError(_other_parameters(folder, f"{saved['params'][0]}, …"))
        for parameter in group["params"]:
            name = names[parameter]
            if name in content["states"]:  # a frozen one, or one without a gradient so far, has none
                states[number] = _states_of(folder, name, content["states"][name], parts, parameter)
            number += 1
        first = number - len(group["params"])
        groups.append({**_settings(saved, group), "params": list(range(first, number))})
    optimizer.load_state_dict({"state": states, "param_groups": groups})


def _states_of(folder: Path, name: str, saved: dict, parts: dict, parameter: torch.Tensor) -> dict:
    layout = _layout(parameter)
    for field, now in layout.items():
        if saved[field] != now:
            raise ValueError(
                f"{folder.name}: {name} has {field} {now}, its optimizer states were saved with {saved[field]}; set "
                "tp_size and fsdp_size back, or start anew in another folder"
            )
    states = dict(saved["values"])
    for key, kind in saved["tensors"].items():
        own = parts[f"{name}/{key}"]
        if kind == IN_PARTS:
            states[key] = torch.empty_like(parameter, dtype=own.dtype, requires_grad=False)
            states[key].to_local().copy_(own)
        else:
            states[key] = own
    return states


def _names(model: nn.Module) -> dict[torch.Tensor, str]:
    """Parameter -> its name, the first of those that it has.

    Not from `named_parameters`: what FSDP2 keeps gathered after an evaluation is another tensor there than the optimizer's;
    asking for the states puts the parts back.
    """
    names = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(tensor, name)
    return names


def _layout(parameter: torch.Tensor) -> dict:
    """How a parameter lies over the processes, as JSON gives it back."""
    layout = {"shape": list(parameter.shape), "mesh": {}, "placements": []}
    if isinstance(parameter, DTensor):
        mesh = parameter.device_mesh
        layout["mesh"] = dict(zip(mesh.mesh_dim_names or map(str, range(mesh.ndim)), mesh.shape, strict=True))
        layout["placements"] = [repr(placement) for placement in parameter.placements]
    return layout


def _kind(name: str, key: str, value: torch.Tensor, parameter: torch.Tensor) -> str:
    if type(value) is torch.Tensor:
        return OWN
    if isinstance(value, DTensor) and type(value.to_local()) is torch.Tensor and _layout(value) == _layout(parameter):
        return IN_PARTS
    raise ValueError(
        f"optim: its state {key!r} of {name} is a {type(value).__name__} that isn't divided as the weight is, so that it "
        "can't be saved in parts; set optim: adamw_torch, or save_only_model: true (no resume)"
    )


def _plain(what: str, value):
    if isinstance(value, tuple | list):
        return [_plain(what, item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        f"optim: its {what} is a {type(value).__name__}, which can't be saved in parts; set optim: adamw_torch, or "
        "save_only_model: true (no resume)"
    )


def _settings(saved: dict, group: dict) -> dict:
    """A group's settings, as tuples where they are tuples now."""
    return {
        key: tuple(value) if isinstance(value, list) and isinstance(group.get(key), tuple) else value
        for key, value in saved.items()
        if key != "params"
    }


def _other_parameters(folder: Path, what: str) -> str:
    return (
        f"{folder.name}: holds optimizer states of other parameters than are trained now ({what}); start anew in another "
        "folder"
    )
