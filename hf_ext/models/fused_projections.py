"""Fused projections: query, key and value, gate and up of a whole model, each group in one product for inference.

The layers say themselves which of their matrices read the same states (`same_input`); how they share a product and yet stay
the parameters that they are: `layers/joint_projections.py`.
"""

from collections.abc import Iterator

from torch import nn

from hf_ext.layers.joint_projections import lay_apart, lay_side_by_side, why_not_joint


class FusedProjectionsMixin:
    """`fuse_projections` and its undoing, for models of our layers."""

    _projections_are_fused = False

    def fuse_projections(self) -> int:
        """Let matrices that read the same states be multiplied at once wherever no gradient is computed.

        For generation and evaluation in eager mode. Parameters keep their names, values and gradients; saving, training,
        adapters, quantization afterwards work as without. The weights move once: a group of them is held twice meanwhile.
        After `to(dtype)` or `to(device)` they are laid side by side again.

        Returns:
            How many products stand for several: groups of matrices.

        Raises:
            ValueError: a layer isn't a plain matrix (quantized, split over devices, with an adapter), and nothing has been
                moved. Groups of which only some have a bias are passed over: no product would give both.
        """
        groups = dict(groups_of_same_input(self))
        joinable = []
        for names, layers in groups.items():
            reason = why_not_joint(layers)
            if reason is None:
                joinable.append(layers)
            elif "bias" not in reason:
                place, reason = reason.split(": ", 1)
                raise ValueError(
                    f"fuse_projections: {names[int(place)]} {reason}; fuse plain weights, or generate without"
                )
        for layers in joinable:
            lay_side_by_side(layers)
        self._projections_are_fused = True
        return len(joinable)

    def unfuse_projections(self) -> None:
        """Give each matrix a storage of its own again."""
        for _, layers in groups_of_same_input(self):
            lay_apart(layers)
        self._projections_are_fused = False

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        if self._projections_are_fused:  # each parameter was copied to a storage of its own
            for _, layers in groups_of_same_input(self):
                if why_not_joint(layers) is None and layers[0].weight.device.type != "meta":
                    lay_side_by_side(layers)
        return self


def groups_of_same_input(model: nn.Module) -> Iterator[tuple[tuple[str, ...], tuple[nn.Module, ...]]]:
    """Names in `model`, and modules, of each group of matrices that read the same states."""
    for prefix, module in model.named_modules():
        for group in getattr(module, "same_input", ()):
            if all(name in module._modules for name in group):
                yield tuple(f"{prefix}.{name}" for name in group), tuple(module._modules[name] for name in group)
