"""The parametric scaling law of language models, and its fit to runs.

    L(N, D) = E + A / N^alpha + B / D^beta          Hoffmann et al. 2022, arXiv 2203.15556, eq. 2

N parameters, D tokens seen, L loss in nats a token after training whose rate has come down; E what no model could get below.
Under C = 6 N D training FLOPs the loss is least at

    N = G (C / 6)^a,   D = (C / 6)^b / G,   a = beta / (alpha + beta),   b = alpha / (alpha + beta),
    G = (alpha A / (beta B))^(1 / (alpha + beta))                              ibid. eq. 4

Fitted are e, a, b = log E, log A, log B and the exponents, by the Huber loss of what the log of the loss differs by (eq. 3),

    sum over runs of Huber_delta(logsumexp(a - alpha log N, b - beta log D, e) - log L),   delta = 1e-3.
"""

import math
from dataclasses import asdict, dataclass

import torch


# FLOPs of training, a parameter and token
FLOPS = 6
HUBER_DELTA = 1e-3
PARAMETERS = ("E", "A", "B", "alpha", "beta")
MIN_DIFFERENT = 3  # sizes, and numbers of tokens: two give no curve
MIN_RUNS = 6  # one more than there are parameters

# starts of the fit: ibid. appendix D.3
STARTS = {
    "e": (-1.0, -0.5, 0.0, 0.5, 1.0),
    "a": (0.0, 5.0, 10.0, 15.0, 20.0, 25.0),
    "b": (0.0, 5.0, 10.0, 15.0, 20.0, 25.0),
    "alpha": (0.0, 0.5, 1.0, 1.5, 2.0),
    "beta": (0.0, 0.5, 1.0, 1.5, 2.0),
}
NUM_DESCENTS = 12  # from the best of the starts
MAX_ITERATIONS = 400


@dataclass(frozen=True)
class ScalingLaw:
    """E, in nats a token; A, B, of a unit that suits N and D in ones; alpha, beta, exponents."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def __post_init__(self):
        for name, value in asdict(self).items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}={value}: must be a number above 0")

    def loss(self, parameters, tokens):
        """Nats a token of a model of N `parameters` after D `tokens`; numbers or arrays."""
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta

    @property
    def parameters_exponent(self) -> float:
        """a: the optimal N grows as C^a."""
        return self.beta / (self.alpha + self.beta)

    def optimal_parameters(self, flops: float) -> float:
        """N at which a budget of C `flops` gives the least loss."""
        G = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        return G * (flops / FLOPS) ** self.parameters_exponent

    def flops_of_optimal(self, parameters: float) -> float:
        """The budget C for which N `parameters` are optimal."""
        return FLOPS * (parameters / self.optimal_parameters(FLOPS)) ** (1 / self.parameters_exponent)


@dataclass(frozen=True)
class Run:
    """parameters: N. tokens: D. loss: nats a token on held-out text. name: where it is from."""

    parameters: float
    tokens: float
    loss: float
    name: str = ""

    def __post_init__(self):
        where = f"{self.name}: " if self.name else ""
        for field in ("parameters", "tokens", "loss"):
            value = getattr(self, field)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{where}{field}={value}: must be a number above 0")

    @property
    def flops(self) -> float:
        return FLOPS * self.parameters * self.tokens


@dataclass(frozen=True)
class FittedLaw:
    """law: the best fit. intervals: parameter -> the bounds between which so many of the bootstrap's fits lie. samples:
    their laws. error: root mean square of log(predicted / measured loss)."""

    law: ScalingLaw
    intervals: dict[str, tuple[float, float]]
    samples: list[ScalingLaw]
    error: float


def fit_scaling_law(runs: list[Run], *, num_bootstrap: int = 100, confidence: float = 0.8, seed: int = 0) -> FittedLaw:
    """The law of some runs, with intervals by drawing as many runs again, with repetition.

    Args:
        runs: at least `MIN_RUNS`, of three model sizes and three numbers of tokens or more.
        num_bootstrap: draws; 0 gives no intervals. confidence: share of them between the bounds.
        seed: of the draws.

    Raises:
        ValueError: too few or too similar runs, or options out of range.
    """
    if len(runs) < MIN_RUNS:
        raise ValueError(
            f"runs: {len(runs)} are too few for the {len(PARAMETERS)} numbers of the law; give {MIN_RUNS} or more"
        )
    for field in ("parameters", "tokens"):
        different = len({getattr(run, field) for run in runs})
        if different < MIN_DIFFERENT:
            raise ValueError(f"runs: {different} different {field}; a power law needs {MIN_DIFFERENT} or more")
    if num_bootstrap < 0:
        raise ValueError(f"num_bootstrap={num_bootstrap}: must not be negative")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: must be between 0 and 1; 0.8 is usual")
    logs = torch.tensor(
        [[math.log(r.parameters), math.log(r.tokens), math.log(r.loss)] for r in runs], dtype=torch.float64
    )
    _, best = min((_descend(start, logs) for start in _starts(logs)), key=lambda found: found[0])
    law = _law(best)

    thetas = []
    generator = torch.Generator().manual_seed(seed)
    while len(thetas) < num_bootstrap:
        drawn = logs[torch.randint(len(runs), (len(runs),), generator=generator)]
        # of fewer sizes there is nothing to be known of an exponent
        if min(len(drawn[:, column].unique()) for column in (0, 1)) >= MIN_DIFFERENT:
            thetas.append(_descend(best, drawn)[1])
    intervals, samples = {}, []
    if thetas:
        values = torch.stack(thetas)
        values = torch.cat((values[:, :3].exp(), values[:, 3:]), dim=-1)
        bounds = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
        low, high = values.quantile(bounds, dim=0)
        intervals = {name: (float(low[i]), float(high[i])) for i, name in enumerate(PARAMETERS)}
        samples = [ScalingLaw(*value) for value in values.tolist() if min(value) > 0 and max(value) < math.inf]
    error = float(_residuals(best, logs).square().mean().sqrt())
    return FittedLaw(law, intervals, samples, error)


def _residuals(theta: torch.Tensor, logs: torch.Tensor) -> torch.Tensor:
    """log(predicted / measured). theta: (..., 5) e, a, b, alpha, beta. logs: (R, 3) of N, D, L. -> (..., R)."""
    e, a, b, alpha, beta = (theta[..., i, None] for i in range(5))
    N, D, L = logs.unbind(dim=-1)
    terms = torch.stack(torch.broadcast_tensors(e, a - alpha * N, b - beta * D), dim=-1)
    return terms.logsumexp(dim=-1) - L


def _cost(theta: torch.Tensor, logs: torch.Tensor) -> torch.Tensor:
    """The Huber loss, in units of delta: a plain one is so small that descents end before they should, which Besiroglu et
    al. 2024, arXiv 2404.10102, suppose of the paper's."""
    residuals = _residuals(theta, logs) / HUBER_DELTA
    return torch.nn.functional.huber_loss(residuals, torch.zeros_like(residuals), reduction="none").sum(dim=-1)


def _starts(logs: torch.Tensor) -> torch.Tensor:
    """(NUM_DESCENTS, 5): those of the grid that begin lowest."""
    grid = torch.cartesian_prod(*(torch.tensor(values, dtype=torch.float64) for values in STARTS.values()))
    return grid[_cost(grid, logs).argsort()[:NUM_DESCENTS]]


def _descend(start: torch.Tensor, logs: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Cost and theta where L-BFGS comes to rest; Liu & Nocedal 1989, as ibid. has it."""
    theta = start.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [theta],
        max_iter=MAX_ITERATIONS,
        history_size=20,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-6,
        tolerance_change=1e-10,
    )

    def closure():
        optimizer.zero_grad()
        cost = _cost(theta, logs)
        cost.backward()
        return cost

    optimizer.step(closure)
    theta = theta.detach()
    return float(_cost(theta, logs)), theta


def _law(theta: torch.Tensor) -> ScalingLaw:
    e, a, b, alpha, beta = theta.tolist()
    if alpha <= 0 or beta <= 0:
        raise ValueError(
            f"runs: the fit gives alpha={alpha:.3g}, beta={beta:.3g}, so that more parameters or tokens would not lower "
            "the loss; add runs of other sizes and lengths"
        )
    return ScalingLaw(math.exp(e), math.exp(a), math.exp(b), alpha, beta)
