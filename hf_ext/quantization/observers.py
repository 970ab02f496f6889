"""What range of values a layer reads: observers look at batches of real data and say which range its integers shall cover.

All see flat or shaped floats by `observe` and answer with `range`, low <= 0 <= high. N bins.
"""

import torch

from hf_ext.models.configuration_choices import check_choice
from hf_ext.quantization.zero_point import dequantize_zero_point, quantize_zero_point, zero_point_scale


NUM_BINS = 2048
SHARES_TRIED = 80  # ranges that MseObserver compares


class MinMaxObserver:
    """From the smallest to the largest value seen: nothing is cut off, and one outlier makes all steps coarse."""

    def __init__(self):
        self.low, self.high = 0.0, 0.0

    def observe(self, x: torch.Tensor) -> None:
        self.low = min(self.low, float(x.min()))
        self.high = max(self.high, float(x.max()))

    def range(self, bits: int = 8) -> tuple[float, float]:
        return self.low, self.high


class HistogramObserver(MinMaxObserver):
    """Counts of all values seen, in N bins over their range, which grows in whole bins as larger ones come.

    A base of what looks at how often a value occurs. Growing doubles the bins' width as often as is needed, so that old
    counts fall into new bins whole.
    """

    def __init__(self):
        super().__init__()
        self.counts = torch.zeros(NUM_BINS, dtype=torch.float64)
        self.reach = 0.0  # the bins cover -reach .. reach

    def observe(self, x: torch.Tensor) -> None:
        super().observe(x)
        x = x.detach().float().flatten().cpu()
        largest = float(x.abs().max())
        if self.reach == 0.0:
            self.reach = largest
        while largest > self.reach:
            middle = NUM_BINS // 4
            halves = self.counts.view(-1, 2).sum(dim=1)
            self.counts = torch.zeros_like(self.counts)
            self.counts[middle : middle + NUM_BINS // 2] = halves
            self.reach *= 2
        if self.reach > 0.0:
            self.counts += torch.histc(x, NUM_BINS, -self.reach, self.reach).double()
        else:
            self.counts[NUM_BINS // 2] += x.numel()

    def centers(self) -> torch.Tensor:
        """The middle of each bin, (N,)."""
        edges = torch.linspace(-self.reach, self.reach, NUM_BINS + 1, dtype=torch.float64)
        return (edges[1:] + edges[:-1]) / 2


class PercentileObserver(HistogramObserver):
    """The range that all but a few values lie in, (1 - percentile) / 2 of them cut off on either side.

    Args:
        percentile: share of the values that is kept, as in Wu et al. 2020, arXiv 2004.09602.
    """

    def __init__(self, percentile: float = 0.9999):
        super().__init__()
        self.percentile = percentile

    def range(self, bits: int = 8) -> tuple[float, float]:
        shares = self.counts.cumsum(0) / self.counts.sum()
        cut = (1 - self.percentile) / 2
        width = 2 * self.reach / NUM_BINS
        first = int((shares > cut).nonzero()[0])
        last = int((shares >= 1 - cut).nonzero()[0])
        low, high = -self.reach + width * first, -self.reach + width * (last + 1)
        return max(self.low, min(low, 0.0)), min(self.high, max(high, 0.0))


class MseObserver(HistogramObserver):
    """Of the seen range shrunk in steps, the part that is quantized with the least mean square error: what it cuts off
    costs less than the finer steps gain. Choukroun et al. 2019, arXiv 1902.06822."""

    def range(self, bits: int = 8) -> tuple[float, float]:
        values = self.centers()
        shares = [
            1 - place / (SHARES_TRIED + 1) for place in range(SHARES_TRIED)
        ]  # 1 first: it wins where all are alike
        errors = []
        for share in shares:
            low, high = (torch.tensor(end * share, dtype=torch.float64) for end in (self.low, self.high))
            scale, zero_point = zero_point_scale(low, high, bits)
            back = dequantize_zero_point(quantize_zero_point(values, scale, zero_point, bits), scale, zero_point)
            errors.append(float((self.counts * (back - values).square()).sum()))
        best = shares[errors.index(min(errors))]
        return self.low * best, self.high * best


OBSERVERS = {"minmax": MinMaxObserver, "percentile": PercentileObserver, "mse": MseObserver}


def make_observer(name: str) -> MinMaxObserver:
    """An observer that has seen nothing.

    Raises:
        ValueError: an unknown name.
    """
    check_choice("observer", name, OBSERVERS)
    return OBSERVERS[name]()
