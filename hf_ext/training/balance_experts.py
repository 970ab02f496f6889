"""Keeps experts busy without a loss: after each step the routers' biases move towards those that were given too little."""

from torch import distributed, nn
from transformers import TrainerCallback

from hf_ext.layers.mixture_of_experts import Router


class BalanceExperts(TrainerCallback):
    """Moves the balance biases of a model's routers after every optimizer step; Wang et al. 2024, arXiv 2408.15664, alg. 1.

    `HfxTrainer` adds it where a model has such routers; another Trainer needs it among its callbacks.

    Args:
        rate: what is added to, or taken from, a bias in a step.
    """

    def __init__(self, rate: float):
        self.rate = rate

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        for router in balanced_routers(model):
            if distributed.is_available() and distributed.is_initialized():
                distributed.all_reduce(router.expert_load)  # each rank has counted its own tokens
            router.rebalance(self.rate)


def balanced_routers(model: nn.Module) -> list[Router]:
    """The routers of a model that balance by a bias."""
    return [m for m in model.modules() if isinstance(m, Router) and m.e_score_correction_bias is not None]
