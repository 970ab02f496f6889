"""Ranges of activations, against sorting and trying by hand."""

import pytest
import torch

from hf_ext.quantization.observers import NUM_BINS, make_observer


def batches() -> list[torch.Tensor]:
    """Larger and larger, so that the bins must grow; the last has outliers."""
    g = torch.Generator().manual_seed(0)
    made = [torch.randn(4, 500, generator=g) * scale for scale in (0.01, 1.0, 2.0)]
    made[2][0, 0], made[2][1, 1] = 300.0, -40.0
    return made


def seen(name: str, xs: list[torch.Tensor]):
    observer = make_observer(name)
    for x in xs:
        observer.observe(x)
    return observer


def test_min_max():
    assert seen("minmax", batches()).range() == (-40.0, 300.0)
    assert seen("minmax", [torch.ones(3)]).range() == (0.0, 1.0)  # zero is always in it


def test_every_value_is_counted_once():
    observer = seen("percentile", batches())
    assert observer.counts.sum() == 6000
    width = 2 * observer.reach / NUM_BINS
    everything = torch.cat([x.flatten() for x in batches()])
    # the counts at the middles of the bins are the values to half a bin, or two after the bins have been joined
    mean = (observer.counts * observer.centers()).sum() / 6000
    assert abs(mean - everything.double().mean()) < 2 * width


def test_percentile_is_the_sorted_values():
    xs = [torch.randn(10_000, generator=torch.Generator().manual_seed(1)), torch.tensor([90.0, -70.0])]
    observer = seen("percentile", xs)
    observer.percentile = 0.98
    everything = torch.cat(xs).sort().values
    width = 2 * observer.reach / NUM_BINS
    low, high = observer.range()
    assert abs(low - float(everything[100])) < 2 * width
    assert abs(high - float(everything[-100])) < 2 * width


def test_mse_cuts_what_costs_less_than_it_gains():
    plain = torch.rand(4000, generator=torch.Generator().manual_seed(2)) * 2 - 1
    low, high = seen("mse", [plain]).range()
    assert high > 0.97  # evenly spread: nothing is worth cutting
    outlier = torch.cat([torch.randn(20_000, generator=torch.Generator().manual_seed(3)), torch.tensor([12.0])])
    low, high = seen("mse", [outlier]).range(bits=4)
    assert 2 < high < 8
    assert low < -0.5

    def error(low: float, high: float) -> float:
        scale = (high - low) / 15
        zero_point = round(-low / scale)
        q = ((outlier / scale).round() + zero_point).clamp(0, 15)
        return float(((q - zero_point) * scale - outlier).square().sum())

    tried = {share: error(-float(-outlier.min()) * share, 12.0 * share) for share in (1.0, 0.8, 0.6, 0.4, 0.2, 0.1)}
    assert error(low, high) <= min(tried.values()) * 1.02  # bins for values


def test_zeros_alone():
    for name in ("minmax", "percentile", "mse"):
        assert seen(name, [torch.zeros(5)]).range() == (0.0, 0.0)


def test_nonsense():
    with pytest.raises(ValueError, match=r"^observer='min_max': must be one of minmax, percentile, mse; did you mean"):
        make_observer("min_max")
