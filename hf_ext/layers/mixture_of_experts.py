"""Mixture of experts: a router sends each token to a few of many feed-forwards, and adds up what they return.

    s     = softmax(W x)  or  sigmoid(W x)                       a score for each expert
    S     = the k experts with the largest  s + b                b: see below
    MoE(x) = sum over i in S of  g_i E_i(x)  +  shared experts   g_i = s_i, or s_i / sum over S of s

Shazeer et al. 2017, arXiv 1701.06538; Mixtral, arXiv 2401.04088 (softmax, normalized); DeepSeek-V3, arXiv 2412.19437, eq. 12
to 16 (sigmoid, shared experts, b). Parameters are named as in transformers' Mixtral and DeepSeek-V3.

Experts that get no tokens learn nothing. Three ways to keep them all busy, each additive over documents, so that whole,
accumulated and packed batches give the same number:
- `load_balancing_loss`, by document: DeepSeek-V3, eq. 17 to 20; over a batch it is Switch's, arXiv 2101.03961, eq. 4;
- `router_z_loss`, which keeps the logits small: ST-MoE, arXiv 2202.08906, eq. 5;
- b, moved by `Router.rebalance` after each step instead of any loss: Wang et al. 2024, arXiv 2408.15664, alg. 1.

N tokens, E experts, k of them a token, d d_model, I intermediate_size.
"""

import torch
from torch import nn

from hf_ext.layers.feed_forward import ACTIVATIONS, FEED_FORWARDS, GatedActivation
from hf_ext.ops.grouped_matmul import grouped_matmul


ROUTER_SCORES = ("softmax", "sigmoid")


class Router(nn.Module):
    """Chooses `top_k` experts for each token and weighs them; in fp32 whatever the states are.

    Args:
        d_model, num_experts: d, E. top_k: k.
        scores: "softmax" over the experts, or a "sigmoid" of each.
        normalize: whether a token's k weights are divided by their sum. scaling_factor: on the weights.
        balance_bias: whether there is a b that chooses, but doesn't weigh.
    """

    def __init__(
        self,
        d_model: int,
        num_experts: int,
        top_k: int,
        *,
        scores: str = "softmax",
        normalize: bool = True,
        scaling_factor: float = 1.0,
        balance_bias: bool = False,
    ):
        super().__init__()
        self.top_k = top_k
        self.scores = scores
        self.normalize = normalize
        self.scaling_factor = scaling_factor
        self.weight = nn.Parameter(torch.empty(num_experts, d_model).normal_(std=0.02))
        zeros = torch.zeros(num_experts, dtype=torch.float32) if balance_bias else None
        self.register_buffer("e_score_correction_bias", zeros)
        # tokens that each expert was given since the last `rebalance`
        self.register_buffer("expert_load", None if zeros is None else zeros.clone(), persistent=False)

    def _apply(self, fn, recurse: bool = True):
        # to(bfloat16) must not round the bias: a step of 1e-3 would be lost, and a count stands still at 256
        super()._apply(fn, recurse)
        for name in ("e_score_correction_bias", "expert_load"):
            buffer = getattr(self, name)
            if buffer is not None and buffer.dtype != torch.float32:
                setattr(self, name, buffer.float())
        return self

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(N, d) -> logits (N, E) fp32, weights (N, k) fp32, experts (N, k) int64."""
        logits = fp32_linear(hidden_states, self.weight)
        scores = self.score(logits)
        experts = self.choose(scores)
        weights = scores.gather(-1, experts)
        if self.normalize:
            # sigmoids may all be 0; a softmax's largest can't
            weights = weights / (weights.sum(dim=-1, keepdim=True) + torch.finfo(weights.dtype).tiny)
        return logits, weights * self.scaling_factor, experts

    def score(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.softmax(dim=-1) if self.scores == "softmax" else logits.sigmoid()

    def choose(self, scores: torch.Tensor) -> torch.Tensor:
        """(N, k): experts of the largest score, the balance bias added."""
        if self.e_score_correction_bias is not None:
            scores = scores + self.e_score_correction_bias
        return scores.topk(self.top_k, dim=-1).indices

    @torch.no_grad()
    def count(self, logits: torch.Tensor, counted: torch.Tensor) -> None:
        """Add the choices of the tokens with `counted` (N,) bool to `expert_load`."""
        experts = self.choose(self.score(logits))
        self.expert_load.index_add_(
            0, experts.flatten(), counted.to(self.expert_load.dtype).repeat_interleave(self.top_k)
        )

    @torch.no_grad()
    def rebalance(self, rate: float) -> None:
        """b_i += rate * sign(mean load - load_i), and count anew; arXiv 2408.15664, alg. 1."""
        self.e_score_correction_bias.add_(torch.sign(self.expert_load.mean() - self.expert_load), alpha=rate)
        self.expert_load.zero_()


def fp32_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x W^T in fp32, also where autocast would round it: which expert is chosen hangs on the last bits."""
    if not torch.is_autocast_enabled(x.device.type):
        return nn.functional.linear(x.float(), weight.float())
    with torch.autocast(x.device.type, enabled=False):
        return nn.functional.linear(x.float(), weight.float())


class Experts(nn.Module):
    """E feed-forwards, their matrices stacked; gated (SwiGLU) or plain."""

    def __init__(self, d_model: int, intermediate_size: int, num_experts: int, *, activation: str, gated: bool):
        super().__init__()
        self.num_experts = num_experts
        self.gated = gated
        self.activation = GatedActivation(activation) if gated else ACTIVATIONS[activation]
        first = torch.empty(num_experts, (2 if gated else 1) * intermediate_size, d_model).normal_(std=0.02)
        self.register_parameter("gate_up_proj" if gated else "up_proj", nn.Parameter(first))
        self.down_proj = nn.Parameter(torch.empty(num_experts, d_model, intermediate_size).normal_(std=0.02))

    def forward(self, hidden_states: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """(N, d), experts and weights (N, k) -> (N, d): the weighted sum of each token's experts.

        The order is that of transformers' experts, whose parallel styles wrap this call; they set num_experts to the number
        of experts that this process has.
        """
        top_k = experts.shape[1]
        order = experts.flatten().argsort(stable=True)  # expert by expert, tokens in order within each
        tokens = order // top_k
        stops = torch.searchsorted(
            experts.flatten()[order], torch.arange(self.down_proj.shape[0], device=experts.device), right=True
        )
        x = hidden_states[tokens]
        if self.gated:
            gate, up = grouped_matmul(x, self.gate_up_proj, stops).chunk(2, dim=-1)
            x = self.activation(gate, up)
        else:
            x = self.activation(grouped_matmul(x, self.up_proj, stops))
        x = grouped_matmul(x, self.down_proj, stops) * weights.flatten()[order, None].to(x.dtype)
        return torch.zeros_like(hidden_states).index_add(0, tokens, x)


class MixtureOfExperts(nn.Module):
    """The feed-forward of a block as a mixture of experts.

    Args:
        d_model: d. intermediate_size: I, of each expert.
        num_experts, top_k, scores, normalize, scaling_factor, balance_bias: see `Router`.
        num_shared_experts: experts that every token goes through, as one feed-forward of so many times I.
        activation: name in `ACTIVATIONS`. mlp_type: "gated" or "plain".
    """

    def __init__(
        self,
        d_model: int,
        intermediate_size: int,
        num_experts: int,
        top_k: int,
        *,
        num_shared_experts: int = 0,
        activation: str = "silu",
        mlp_type: str = "gated",
        scores: str = "softmax",
        normalize: bool = True,
        scaling_factor: float = 1.0,
        balance_bias: bool = False,
    ):
        super().__init__()
        self.gate = Router(
            d_model,
            num_experts,
            top_k,
            scores=scores,
            normalize=normalize,
            scaling_factor=scaling_factor,
            balance_bias=balance_bias,
        )
        self.experts = Experts(
            d_model, intermediate_size, num_experts, activation=activation, gated=mlp_type == "gated"
        )
        self.shared_experts = None
        if num_shared_experts:
            self.shared_experts = FEED_FORWARDS[mlp_type](
                d_model, num_shared_experts * intermediate_size, activation=activation
            )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, T, d) -> (B, T, d)."""
        flat = hidden_states.flatten(0, -2)
        _, weights, experts = self.gate(flat)
        output = self.experts(flat, experts, weights).view_as(hidden_states)
        return output if self.shared_experts is None else output + self.shared_experts(hidden_states)


def load_balancing_loss(
    logits: torch.Tensor,
    router: Router,
    documents: torch.Tensor,
    scored: torch.Tensor,
    num_items: torch.Tensor | int,
) -> torch.Tensor:
    """sum over documents of (scored tokens / num_items) * sum_i f_i P_i; 1 where all experts are used alike. 0-d fp32.

    f_i is E / k times the share of a document's scored tokens that are sent to expert i, P_i the mean of its share of their
    scores. Padding is not scored and has no say.

    Args:
        logits: (N, E) of `router`.
        documents: (N,) int64, which document each token is of, below N.
        scored: (N,) bool, tokens that the loss is taken over. num_items: those of the whole (accumulated) batch.
    """
    scores = router.score(logits)
    # sigmoids may all be 0, and padding that isn't scored with them: 0 / 0 would be its say
    shares = scores / (scores.sum(dim=-1, keepdim=True) + torch.finfo(scores.dtype).tiny)
    chosen = torch.zeros_like(scores).scatter(-1, router.choose(scores), 1.0)  # (N, E)
    counted = scored.to(scores.dtype)[:, None]
    empty = torch.zeros_like(scores)  # as many buckets as there could be documents: no shape depends on the data
    lengths = empty[:, :1].index_add(0, documents, counted).clamp(min=1)
    f = empty.index_add(0, documents, chosen * counted) / lengths * (logits.shape[-1] / router.top_k)
    P = empty.index_add(0, documents, shares * counted) / lengths
    by_document = (f.detach() * P).sum(dim=-1)
    return (by_document[documents] * scored).sum() / num_items


def router_z_loss(logits: torch.Tensor, scored: torch.Tensor, num_items: torch.Tensor | int) -> torch.Tensor:
    """sum over scored tokens of log(sum_i exp(logit_i))² / num_items. Args: as in `load_balancing_loss`."""
    return (logits.logsumexp(dim=-1).square() * scored).sum() / num_items
