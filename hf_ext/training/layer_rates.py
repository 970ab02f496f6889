"""Layer-wise learning rates: what lies deeper in a pretrained model is general and moves less, what lies near the head more.

With L blocks in a stack, levels run from 0, the embeddings, over 1 to L, the blocks from the bottom, to L + 1, the head:

    rate(level) = learning_rate * decay^(L + 1 - level)

so that the head, which is new, has the learning rate itself. Howard & Ruder 2018 (ULMFiT), arXiv 1801.06146, sec. 3.2
("discriminative fine-tuning", decay 1 / 2.6); under Adam 0.8 to 0.9: Clark et al. 2020 (ELECTRA), arXiv 2003.10555, app. B.
"""

from collections.abc import Iterator

import torch
from torch import nn


def check_layer_rate_decay(decay: float) -> None:
    """Raises ValueError, one line, for a decay that is none."""
    if not 0 < decay <= 1:
        raise ValueError(f"layer_rate_decay={decay}: must be above 0 and at most 1; 1 is one rate for all")


def distances_to_head(model: nn.Module) -> dict[nn.Parameter, int]:
    """L + 1 - level of every parameter, each once: 0 for the head, 1 for a stack's top block, L + 1 for its embeddings.

    A stack is an outermost `ModuleList` of the base model whose items have modules inside. Each module's own stack counts:
    the tower of an encoder-decoder, or of a model that sees, has its own L. Embeddings that several stacks share count from
    the deepest. Of what a base model has besides blocks, embeddings are `nn.Embedding`, convolutions (of patches, of sound)
    and what is named so; final norms and poolers belong to the head, as does all that isn't the base model's. An output
    matrix that is tied to the embeddings is one with them.

    Raises:
        ValueError: there is no stack.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    base = getattr(inner, getattr(inner, "base_model_prefix", "") or "", inner)
    stacks = dict(_stacks(base))
    if not stacks:
        raise ValueError(
            f"layer_rate_decay: {type(inner).__name__} has no stack of blocks to tell layers by; leave it out"
        )
    found = dict.fromkeys(model.parameters(), 0)
    deepest = max(len(stack) for stack in stacks.values())
    for name, module in base.named_modules(remove_duplicate=False):
        if _is_embedding(name, module) and not any(name.startswith(f"{stack}.") for stack in stacks):
            # of one tower, if it lies in one beside a stack; else of all
            depth = max((len(s) for n, s in stacks.items() if _tower(n) and _inside(name, _tower(n))), default=deepest)
            for parameter in module.parameters():
                found[parameter] = max(found[parameter], depth + 1)
    for stack in stacks.values():
        for number, block in enumerate(stack):
            for parameter in block.parameters():
                found[parameter] = len(stack) - number
    _leave_out_head(inner, found)
    return found


def _stacks(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.ModuleList]]:
    """The outermost lists of blocks, with their paths."""
    for name, child in module.named_children():
        here = f"{path}.{name}" if path else name
        if isinstance(child, nn.ModuleList) and len(child) and all(any(item.children()) for item in child):
            yield here, child
        else:
            yield from _stacks(child, here)


def _tower(path: str) -> str:
    """`encoder` of `encoder.layers`, `` of `layers`."""
    return path.rpartition(".")[0]


def _inside(path: str, tower: str) -> bool:
    return path == tower or path.startswith(f"{tower}.")


def _is_embedding(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding | nn.modules.conv._ConvNd) or "embed" in name.rpartition(".")[2].lower()


def _leave_out_head(inner: nn.Module, found: dict[nn.Parameter, int]) -> None:
    """An output matrix of its own is the head, whatever it is called (`embed_out`)."""
    made = getattr(inner, "get_output_embeddings", lambda: None)()
    if made is not None:
        inputs = set(inner.get_input_embeddings().parameters())
        found.update((parameter, 0) for parameter in made.parameters() if parameter not in inputs)


def set_layer_rates(optimizer: torch.optim.Optimizer, model: nn.Module, decay: float) -> None:
    """Cut each group of an optimizer by level and scale its rate, before its first step and before there is a schedule.

    Any optimizer's groups keep what else they say (weight decay, Muon or not, a rate of their own), and schedules scale each
    group's own rate. Groups come from the head down, so that the first, whose rate is logged, is the highest.

    Raises:
        ValueError: the decay is none, or there is no stack of blocks.
    """
    check_layer_rate_decay(decay)
    distances = distances_to_head(model)
    groups = []
    for group in optimizer.param_groups:
        for distance in {distances[parameter] for parameter in group["params"]}:
            cut = [parameter for parameter in group["params"] if distances[parameter] == distance]
            groups.append((distance, {**group, "params": cut, "lr": group["lr"] * decay**distance}))
    # in place: an optimizer may hold the list elsewhere too
    optimizer.param_groups[:] = [group for _, group in sorted(groups, key=lambda pair: pair[0])]
