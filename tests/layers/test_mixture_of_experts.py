"""The mixture against a loop over tokens and experts, and its balancing against the papers' equations."""

import pytest
import torch
from torch import nn

from hf_ext.layers import MixtureOfExperts
from hf_ext.layers.mixture_of_experts import Router, load_balancing_loss, router_z_loss


N, E, k, d, I = 11, 5, 2, 8, 6  # noqa: E741


def mixture(**options) -> MixtureOfExperts:
    torch.manual_seed(0)
    model = MixtureOfExperts(d, I, E, k, **options)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def states(*shape):
    return torch.randn(*shape, d, generator=torch.Generator().manual_seed(1))


def token_by_token(model: MixtureOfExperts, x: torch.Tensor) -> torch.Tensor:
    """The equation, one token and one expert at a time."""
    logits = x @ model.gate.weight.T
    scores = logits.softmax(-1) if model.gate.scores == "softmax" else logits.sigmoid()
    bias = model.gate.e_score_correction_bias
    rows = []
    for token, score in zip(x, scores, strict=True):
        chosen = (score if bias is None else score + bias).topk(k).indices
        weights = score[chosen] / (score[chosen].sum() if model.gate.normalize else 1.0) * model.gate.scaling_factor
        row = torch.zeros(d)
        for weight, expert in zip(weights, chosen, strict=True):
            if model.experts.gated:
                gate, up = (model.experts.gate_up_proj[expert] @ token).chunk(2)
                inner = nn.functional.silu(gate) * up
            else:
                inner = nn.functional.silu(model.experts.up_proj[expert] @ token)
            row = row + weight * (model.experts.down_proj[expert] @ inner)
        rows.append(row if model.shared_experts is None else row + model.shared_experts(token))
    return torch.stack(rows)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mlp_type": "plain", "normalize": False},
        {"scores": "sigmoid", "scaling_factor": 2.5, "num_shared_experts": 2, "balance_bias": True},
    ],
    ids=str,
)
def test_is_the_equation(options):
    model, x = mixture(**options), states(N).requires_grad_()
    if model.gate.e_score_correction_bias is not None:
        model.gate.e_score_correction_bias.copy_(torch.linspace(-0.4, 0.4, E))
    expected, got = token_by_token(model, x), model(x[None])[0]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    inputs = [x, *model.parameters()]
    for a, b in zip(
        torch.autograd.grad(got.sin().sum(), inputs), torch.autograd.grad(expected.sin().sum(), inputs), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_a_token_s_output_doesn_t_depend_on_its_neighbours():
    model, x = mixture(), states(2, N)
    together = model(x)
    for b in range(2):
        torch.testing.assert_close(model(x[b : b + 1, :4])[0], together[b, :4], atol=1e-6, rtol=1e-5)


def test_bias_chooses_but_does_not_weigh():
    model = mixture(balance_bias=True)
    model.gate.e_score_correction_bias[3] = 100.0
    _, weights, experts = model.gate(states(N))
    assert bool((experts == 3).any(dim=-1).all())
    torch.testing.assert_close(weights.sum(-1), torch.ones(N))
    assert float(weights.detach().max()) < 1  # 100 in the weights would have left nothing to the others


def test_rebalancing_moves_towards_the_idle():
    router = mixture(balance_bias=True).gate
    logits = torch.full((N, E), -5.0)
    logits[:, :k] = 5.0  # all tokens to the first two
    router.count(logits, torch.arange(N) < 7)  # of which 7 are no padding
    assert router.expert_load.tolist() == [7.0, 7.0, 0.0, 0.0, 0.0]
    router.rebalance(0.25)
    assert router.e_score_correction_bias.tolist() == [-0.25, -0.25, 0.25, 0.25, 0.25]
    assert not router.expert_load.any()


def test_rebalancing_ends_at_even_loads():
    """Tokens that all like the same experts are spread after some hundred steps; arXiv 2408.15664, fig. 2."""
    torch.manual_seed(0)
    router = Router(d, E, k, scores="sigmoid", balance_bias=True)
    shift = torch.linspace(1.0, -1.0, E)
    worst = []
    for _ in range(300):
        logits = torch.randn(200, E) + shift
        router.count(logits, torch.ones(200, dtype=torch.bool))
        worst.append(float(router.expert_load.max() / router.expert_load.mean()))
        router.rebalance(0.01)
    assert worst[0] > 1.6
    assert max(worst[-10:]) < 1.3


def switch_loss(logits: torch.Tensor) -> torch.Tensor:
    """Switch's eq. 4 with k choices, on one document, as DeepSeek-V3 scales it."""
    shares = logits.softmax(-1)
    f = nn.functional.one_hot(shares.topk(k).indices, E).sum(1).double().mean(0) * E / k
    return (f * shares.mean(0)).sum()


def test_load_balancing_by_document_is_additive():
    router = Router(d, E, k)
    logits = torch.randn(N, E, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    documents = torch.tensor([0] * 4 + [1] * 5 + [2] * 2)
    scored = torch.ones(N, dtype=torch.bool)
    scored[0] = scored[5] = False
    whole = load_balancing_loss(logits, router, documents, scored, 9)
    expected = sum(switch_loss(logits[(documents == i) & scored]) * scored[documents == i].sum() / 9 for i in range(3))
    torch.testing.assert_close(whole, expected)
    parts = [
        load_balancing_loss(logits[s], router, documents[s] - documents[s].min(), scored[s], 9)
        for s in (slice(0, 4), slice(4, N))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_padding_has_no_say():
    router = Router(d, E, k)
    logits = torch.randn(N, E, generator=torch.Generator().manual_seed(2))
    scored = torch.arange(N) < 6
    zeros = torch.zeros(N, dtype=torch.int64)
    padded = load_balancing_loss(logits, router, zeros, scored, 6)
    alone = load_balancing_loss(logits[:6], router, zeros[:6], scored[:6], 6)
    torch.testing.assert_close(padded, alone)


def test_an_even_router_costs_1_and_a_collapsed_one_more():
    router, one = Router(d, E, k), torch.ones(N, dtype=torch.bool)
    zeros = torch.zeros(N, dtype=torch.int64)
    even = load_balancing_loss(torch.zeros(N, E), router, zeros, one, N)
    assert float(even) == pytest.approx(1.0)
    collapsed = torch.zeros(N, E)
    collapsed[:, :k] = 20.0
    assert float(load_balancing_loss(collapsed, router, zeros, one, N)) == pytest.approx(E / k, rel=1e-4)


def test_z_loss():
    logits, scored = torch.randn(N, E), torch.arange(N) < 4
    expected = sum(float(torch.log(torch.exp(row).sum()) ** 2) for row in logits[:4]) / 4
    assert float(router_z_loss(logits, scored, 4)) == pytest.approx(expected, rel=1e-5)


def test_router_is_exact_under_autocast_and_in_bf16():
    router, x = mixture(balance_bias=True).gate, states(N)
    expected = router(x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(router(x)[0], expected)
    router.to(torch.bfloat16)
    assert router.e_score_correction_bias.dtype == router.expert_load.dtype == torch.float32
    assert router(x.bfloat16())[0].dtype == torch.float32


def test_scores_that_are_all_zero_have_no_say():
    """A sigmoid of -120 is 0: of padding, 0 / 0 times 0 was the loss."""
    router = Router(8, 4, 2, scores="sigmoid")
    logits = torch.randn(3, 4)
    documents, scored = torch.zeros(3, dtype=torch.long), torch.tensor([True, True, False])
    expected = load_balancing_loss(logits, router, documents, scored, 2)
    logits[2] = -120
    assert load_balancing_loss(logits, router, documents, scored, 2) == expected
