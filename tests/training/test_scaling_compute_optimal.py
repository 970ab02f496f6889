"""Budgets, sizes that were published for them, and decoders of such a size."""

import pytest

from hf_ext.training.scaling import LAWS, budget, compute_optimal, count_parameters, plans, propose_decoder
from hf_ext.training.scaling.compute_optimal import TABLES, tabulated


# tokens and FLOPs of the tables are rounded to two or three digits
ROUNDING = 0.06
# how near a depth of whole layers comes, for models of a few layers and of many
NEAREST = {1e6: 0.05, 1e8: 0.03, 1e9: 0.03, 7e9: 0.02, 7e10: 0.01, 4e11: 0.01}


@pytest.mark.parametrize("table", TABLES)
def test_tables_obey_six_n_d(table):
    for parameters, flops, tokens in TABLES[table]:
        assert 6 * parameters * tokens == pytest.approx(flops, rel=ROUNDING)
        assert tabulated(flops, table).parameters == pytest.approx(parameters)
    assert tabulated(1e17, table) is None


def test_chinchilla_itself():
    """70B on 1.4T tokens: the budget of Gopher, for which the paper trained it."""
    flops = 6 * 70e9 * 1.4e12
    epoch = compute_optimal(flops, LAWS["epoch"])
    assert epoch.parameters == pytest.approx(70e9, rel=0.1)
    assert epoch.tokens == pytest.approx(1.4e12, rel=0.1)
    # the published constants contradict it, which is what the second fit was made for
    assert compute_optimal(flops, LAWS["chinchilla"]).parameters < 40e9


@pytest.mark.parametrize(("name", "exponent"), [("chinchilla", 0.452), ("epoch", 0.513)])
def test_exponents(name, exponent):
    assert LAWS[name].parameters_exponent == pytest.approx(exponent, abs=5e-4)


def test_a_plan_spends_its_budget():
    for plan in plans(1e20, own=LAWS["epoch"]):
        assert 6 * plan.parameters * plan.tokens == pytest.approx(1e20, rel=ROUNDING)
    assert [plan.source for plan in plans(1e20)] == ["chinchilla", "epoch", "approach 1", "approach 2"]
    assert plans(1e20, own=LAWS["epoch"])[0].source == "own"


def test_hours():
    assert budget(2, accelerators=8, peak_flops=1e15, utilization=0.5) == 2 * 3600 * 8 * 1e15 * 0.5
    assert budget(1, peak_flops="A100", utilization=1) == 3600 * 312e12


@pytest.mark.parametrize("parameters", NEAREST)
def test_decoders_of_a_size(parameters):
    config = propose_decoder(parameters, vocab_size=512 if parameters < 1e7 else 32_000)
    assert count_parameters(config).total == pytest.approx(parameters, rel=NEAREST[parameters])
    assert 30 <= config.hidden_size / config.num_hidden_layers <= 140
    assert config.head_dim in (64, 128)
    assert config.tie_word_embeddings == (parameters < 1e9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plans(0), "flops=0: must be a number above 0"),
        (lambda: plans(float("nan")), "flops=nan: must be a number above 0"),
        (lambda: budget(1, peak_flops="h1000"), "peak_flops='h1000': must be one of v100, "),
        (lambda: budget(1, utilization=40), "utilization=40: must be above 0 and at most 1"),
        (lambda: budget(-1), "hours=-1: must be a number above 0"),
        (lambda: propose_decoder(1e5), "with vocab_size=32000 the smallest has 2,"),
    ],
)
def test_nonsense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
