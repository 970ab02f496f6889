"""How large a model to train, on how many tokens, with the FLOPs that there are; Hoffmann et al. 2022, arXiv 2203.15556."""

import itertools
import math
from dataclasses import dataclass
from types import MappingProxyType

from hf_ext.models import HfxDecoderConfig
from hf_ext.training.scaling.scaling_law import FLOPS, ScalingLaw


# The paper's constants are rounded and, as Besiroglu et al. 2024, arXiv 2404.10102, found, no minimum of its own cost: the
# second fit its runs, read from a figure, and agree with its two other approaches.
LAWS = MappingProxyType(
    {
        "chinchilla": ScalingLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28),  # eq. 10
        "epoch": ScalingLaw(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658),  # arXiv 2404.10102, eq. 4
    }
)

# The paper's tables 3 and A3: parameters -> FLOPs and tokens at which they are optimal, by the envelope of training curves
# (approach 1) and by profiles of one budget (approach 2).
TABLES = MappingProxyType(
    {
        "approach 1": (
            (400e6, 1.92e19, 8.0e9),
            (1e9, 1.21e20, 20.2e9),
            (10e9, 1.23e22, 205.1e9),
            (67e9, 5.76e23, 1.5e12),
            (175e9, 3.85e24, 3.7e12),
            (280e9, 9.90e24, 5.9e12),
            (520e9, 3.43e25, 11.0e12),
            (1e12, 1.27e26, 21.2e12),
            (10e12, 1.30e28, 216.2e12),
        ),
        "approach 2": (
            (400e6, 1.84e19, 7.7e9),
            (1e9, 1.20e20, 20.0e9),
            (10e9, 1.32e22, 219.5e9),
            (67e9, 6.88e23, 1.7e12),
            (175e9, 4.54e24, 4.3e12),
            (280e9, 1.18e25, 7.1e12),
            (520e9, 4.19e25, 13.4e12),
            (1e12, 1.59e26, 26.5e12),
            (10e12, 1.75e28, 292.0e12),
        ),
    }
)

# dense FLOP/s of one accelerator in bf16 (V100: fp16), as its maker gives it
ACCELERATORS = MappingProxyType(
    {
        "v100": 125e12,
        "a100": 312e12,
        "l40s": 362e12,
        "h100": 989e12,
        "h200": 989e12,
        "b200": 2250e12,
        "mi250x": 383e12,
        "mi300x": 1307e12,
    }
)


@dataclass(frozen=True)
class Plan:
    """How to spend `flops`: parameters N, tokens D, loss in nats a token, or None where the source gives none.

    source: a law of `LAWS`, a table of `TABLES`, or "own".
    """

    source: str
    flops: float
    parameters: float
    tokens: float
    loss: float | None


def compute_optimal(flops: float, law: ScalingLaw, source: str = "own") -> Plan:
    """The model and the tokens for which `law` gives the least loss with a budget of `flops`, 6 N D of which are spent.

    Raises:
        ValueError: a budget that is no positive number.
    """
    _check_positive(flops=flops)
    parameters = law.optimal_parameters(flops)
    tokens = flops / (FLOPS * parameters)
    return Plan(source, flops, parameters, tokens, law.loss(parameters, tokens))


def tabulated(flops: float, table: str) -> Plan | None:
    """What a table of the paper says, between its rows on logarithmic scales; None beyond them."""
    _check_positive(flops=flops)
    rows = TABLES[table]
    for (N0, C0, D0), (N1, C1, D1) in itertools.pairwise(rows):
        if C0 <= flops <= C1:
            share = math.log(flops / C0) / math.log(C1 / C0)
            return Plan(table, flops, N0 * (N1 / N0) ** share, D0 * (D1 / D0) ** share, None)
    return None


def plans(flops: float, own: ScalingLaw | None = None) -> list[Plan]:
    """What each source says of a budget: the user's own law first, if there is one."""
    laws = ({"own": own} if own is not None else {}) | dict(LAWS)
    found = [compute_optimal(flops, law, name) for name, law in laws.items()]
    return found + [plan for plan in (tabulated(flops, table) for table in TABLES) if plan is not None]


def budget(hours: float, *, accelerators: int = 1, peak_flops: float | str = "h100", utilization: float = 0.4) -> float:
    """FLOPs that so many hours of wall clock give.

    Args:
        peak_flops: FLOP/s of one accelerator, or its name in `ACCELERATORS`.
        utilization: share of the peak that training reaches, MFU; 0.3 to 0.5 is usual.

    Raises:
        ValueError: an unknown name, or numbers out of range.
    """
    if isinstance(peak_flops, str):
        if peak_flops.lower() not in ACCELERATORS:
            known = ", ".join(ACCELERATORS)
            raise ValueError(f"peak_flops={peak_flops!r}: must be one of {known}, or a number of FLOP/s")
        peak_flops = ACCELERATORS[peak_flops.lower()]
    _check_positive(hours=hours, accelerators=accelerators, peak_flops=peak_flops)
    if not 0 < utilization <= 1:
        raise ValueError(f"utilization={utilization}: must be above 0 and at most 1; 0.4 is usual")
    return hours * 3600 * accelerators * peak_flops * utilization


# width to depth that models of a size have, from GPT-3's and Llama's tables: wider as they grow
SMALLEST_RATIO, LARGEST_RATIO = 32, 128

# from 1,024 on all have a multiple of four heads
WIDTHS = (*range(64, 1024, 64), *range(1024, 2048, 256), *range(2048, 32_768 + 1, 512))


def propose_decoder(
    parameters: float, *, vocab_size: int = 32_000, max_position_embeddings: int = 2048
) -> HfxDecoderConfig:
    """A decoder of about so many parameters, embeddings included.

    Gated feed-forward, heads of 64 or 128 dims, four queries to a key where heads allow, embeddings tied below a billion.

    Raises:
        ValueError: smaller than the embeddings of a narrow model.
    """
    _check_positive(parameters=parameters, vocab_size=vocab_size)
    tied = parameters < 1e9
    candidates = []
    for width in WIDTHS:
        shape = _shape(width)
        # the depth that comes nearest
        layers = round((parameters - _outside(width, vocab_size, tied)) / _block(**shape))
        if layers >= 2:
            size = _outside(width, vocab_size, tied) + layers * _block(**shape)
            ratio = min(max(12 * parameters**0.1, SMALLEST_RATIO), LARGEST_RATIO)
            off = abs(math.log(size / parameters)) + 0.2 * abs(math.log(width / layers / ratio))
            candidates.append((off, layers, shape))
    if not candidates:
        smallest = _outside(64, vocab_size, tied) + 2 * _block(**_shape(64))
        raise ValueError(
            f"parameters={parameters:.3g}: with vocab_size={vocab_size} the smallest has {smallest:,}; lower vocab_size"
        )
    _, layers, shape = min(candidates, key=lambda candidate: candidate[0])
    return HfxDecoderConfig(
        **shape,
        num_hidden_layers=layers,
        vocab_size=vocab_size,
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=tied,
    )


def _shape(width: int) -> dict[str, int]:
    heads = width // (128 if width >= 2048 else 64)
    return {
        "hidden_size": width,
        "intermediate_size": -(-width * 8 // 3 // 64) * 64,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 4 if heads % 4 == 0 else heads,
    }


def _block(hidden_size: int, intermediate_size: int, num_attention_heads: int, num_key_value_heads: int) -> int:
    """Parameters of a block."""
    keys_and_values = 2 * hidden_size * hidden_size * num_key_value_heads // num_attention_heads
    return 2 * hidden_size**2 + keys_and_values + 3 * hidden_size * intermediate_size + 2 * hidden_size


def _outside(width: int, vocab_size: int, tied: bool) -> int:
    """Parameters outside of the blocks."""
    return width * (1 + vocab_size * (1 if tied else 2))


def _check_positive(**numbers: float) -> None:
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name}={value!r}: must be a number above 0")
