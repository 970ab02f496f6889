"""Limits come from the run's own numbers; every task of a recipe has words about its use."""

import pytest
from models.decoder_grid import make_config

from hf_ext.hub.intended_use import USES, measured_limits, use_of
from hf_ext.hub.usage import USAGE


def said(**given) -> str:
    return " ".join(measured_limits(make_config(), **{"metrics": {}, **given}))


def test_every_task_that_a_card_shows_how_to_use_has_words_about_it():
    assert set(USAGE) <= set(USES)
    assert use_of("translation").out_of_scope
    with pytest.raises(ValueError, match="task='x'"):
        use_of("x")


def test_tokens_a_parameter():
    assert "1.02M tokens of training are 0.33 a parameter" in said(tokens=1_024_000, parameters=3_148_608)
    assert "a parameter" not in said(tokens=21, parameters=1)
    assert "a parameter" not in said()


def test_the_error_of_a_share_of_rows():
    text = said(metrics={"accuracy": 0.817}, num_validation_rows=872)
    assert "of 872 held-out rows" in text
    assert "moves accuracy by 0.01 " in text
    assert "moves exact_match by 1 " in said(metrics={"exact_match": 2.5}, num_validation_rows=229)
    # a perfect score on few rows proves less than a perfect model
    assert "moves accuracy by 0.02 " in said(metrics={"accuracy": 1.0}, num_validation_rows=53)
    assert "moves" not in said(metrics={"bleu": 36.0}, num_validation_rows=1000)


def test_the_longest_row():
    assert "rows of up to 64 tokens" in " ".join(measured_limits(make_config(max_position_embeddings=64), metrics={}))
