"""Bytes that are alive: every tensor that is made within is counted until the last reference to its storage is gone."""

import weakref

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_ext.ops.cross_entropy import workspace_bytes


class LiveStorage(TorchDispatchMode):
    """Counts what operators make, of real tensors or of fake ones, gradients apart from the rest.

    Storages that were there before, such as weights and inputs, are not counted. What an operator takes and gives back
    between its call and its return isn't seen, but that of our chunked cross-entropy, which says how much it is.

    Attributes, bytes:
        now: alive, gradients left out. gradients: of parameters.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.now = self.gradients = 0
        self._most: dict[int, int] = {}  # bytes of gradients -> the most that was alive beside them
        self._alive: dict[int, int] = {}
        self._known = set()
        self._handles = []

    def __enter__(self):
        # what is there already: modules without a gradient give their weights on, and views of them are no new memory
        tensors = [*self.model.parameters(), *self.model.buffers()]
        self._known = {tensor.untyped_storage()._cdata for tensor in tensors}
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                self._handles.append(parameter.register_post_accumulate_grad_hook(self._set_apart))
        return super().__enter__()

    def __exit__(self, *error):
        for handle in self._handles:
            handle.remove()
        return super().__exit__(*error)

    def peak(self, share: float = 1.0, while_backward: int = 0) -> float:
        """The most bytes that were alive at once.

        Args:
            share: of the gradients of parameters that stays. while_backward: bytes to be added once there are any.
        """
        return max(
            (most + share * gradients + (while_backward if gradients else 0) for gradients, most in self._most.items()),
            default=0,
        )

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        if function.name().endswith("::linear_cross_entropy"):
            self._reach(workspace_bytes(*args))
        return output

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._alive or key in self._known:
            return
        self._alive[key] = storage.nbytes()
        weakref.finalize(storage, self._forget, key)
        self.now += storage.nbytes()
        self._reach(0)

    def _forget(self, key: int) -> None:
        self.now -= self._alive.pop(key, 0)

    def _set_apart(self, parameter: nn.Parameter) -> None:
        storage = parameter.grad.untyped_storage()
        self.now -= self._alive.pop(storage._cdata, 0)
        self._known.add(storage._cdata)
        self.gradients += storage.nbytes()

    def _reach(self, further: int) -> None:
        self._most[self.gradients] = max(self._most.get(self.gradients, 0), self.now + further)
