"""What keeps the experts of a model busy in training: its auxiliary losses, and the counts behind its balance biases."""

import torch
from torch import nn

from hf_ext.layers.mixture_of_experts import Router, load_balancing_loss, router_z_loss
from hf_ext.models.scored_tokens import ScoredTokens


def routers_of(model: nn.Module) -> list[Router]:
    """The routers of a model, layer by layer."""
    return [module for module in model.modules() if isinstance(module, Router)]


def expert_loss(
    routers: list[Router], router_logits: tuple[torch.Tensor, ...], tokens: ScoredTokens, *, balance: float, z: float
) -> torch.Tensor:
    """balance * load-balancing loss + z * router z-loss, the mean over the layers, 0-d fp32.

    Args:
        router_logits: (B * T, E) of each router. balance, z: their coefficients.
    """
    documents, scored = tokens.documents.flatten(), tokens.scored.flatten()
    total = router_logits[0].new_zeros(())
    for router, logits in zip(routers, router_logits, strict=True):
        if balance:
            total = total + balance * load_balancing_loss(logits, router, documents, scored, tokens.num_items)
        if z:
            total = total + z * router_z_loss(logits, scored, tokens.num_items)
    return total / len(routers)


def count_choices(routers: list[Router], router_logits: tuple[torch.Tensor, ...], tokens: ScoredTokens) -> None:
    """Add a training batch's scored tokens to the loads of the routers that balance by a bias."""
    for router, logits in zip(routers, router_logits, strict=True):
        if router.expert_load is not None:
            router.count(logits, tokens.scored.flatten())
