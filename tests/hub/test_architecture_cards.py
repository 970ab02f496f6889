"""The architectures' cards are what the code says now, and say all of it."""

import dataclasses
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hf_ext.hub.architecture_cards import TEMPLATE_COPY, TRANSFORMERS_FIELDS, _options, architecture_card, meanings
from hf_ext.hub.model_card import TEMPLATE
from hf_ext.models import HfxDecoderConfig
from hf_ext.registry import FAMILIES


CARDS = Path(__file__).parents[2] / "model_cards"


@pytest.mark.parametrize("config_class", FAMILIES, ids=lambda c: c.model_type)
def test_what_lies_there_is_what_would_be_written(config_class):
    text = (CARDS / f"{config_class.model_type}.md").read_text(encoding="utf-8")
    assert text == architecture_card(config_class), "stale: python -m hf_ext.hub.architecture_cards model_cards"
    assert ModelCard(text).data.tags == ["hf_ext", config_class.model_type]


def test_the_template_beside_them_is_the_one_that_runs_fill():
    assert (CARDS / TEMPLATE_COPY).read_bytes() == TEMPLATE.read_bytes()


@pytest.mark.parametrize("config_class", FAMILIES, ids=lambda c: c.model_type)
def test_every_field_is_explained(config_class):
    own = {field.name for field in dataclasses.fields(config_class)} - TRANSFORMERS_FIELDS
    known = meanings(config_class)
    assert own <= set(known)
    assert all(known.values())


def test_a_meaning_is_the_docstrings():
    known = meanings(HfxDecoderConfig)
    assert known["hidden_size"] == "width of the residual stream"
    # several in a line, a default of their own, the text of another
    assert known["norm_eps"] == "added to the mean square or variance"
    assert known["attention_output_bias"] == "biases of the matrices; default attention_bias"
    assert known["router_balance_rate"] == "see `router_balance_bias`"
    assert known["num_experts_per_tok"] == "chosen for a token"


def test_a_field_that_no_docstring_explains_is_refused():
    @dataclasses.dataclass
    class Unexplained(HfxDecoderConfig):
        """A decoder.

        Args:
            num_experts: as there.
        """

        brand_new: int = 1

    with pytest.raises(ValueError, match=r"Unexplained\.\w+: its docstring doesn't say what it is"):
        _options(Unexplained)
