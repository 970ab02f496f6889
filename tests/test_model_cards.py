"""Every card in model_cards/ is valid, shows what is there, and, of a recipe, is that recipe's as it is now."""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from recipes.recipe_runs import recipe_of_command

from hf_ext.hub.folder_checks import IMAGES_OF_A_CARD
from hf_ext.hub.private_strings import ABSOLUTE_PATH, TOKEN
from hf_ext.hub.recipe_cards import COMMAND, recipe_in_card
from hf_ext.registry import FAMILIES
from hf_ext.training.local_paths import without_local_paths


ROOT = Path(__file__).parents[1]
CARDS = sorted((ROOT / "model_cards").glob("*.md"))
RUNS = [card for card in CARDS if card.stem not in {c.model_type for c in FAMILIES}]


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.stem)
def test_metadata_are_valid_and_come_back_as_they_are(card):
    """What `huggingface_hub` checks without a network: YAML, the fields' types, the model-index both ways."""
    content = card.read_text(encoding="utf-8")
    read = ModelCard(content, ignore_metadata_errors=False)
    values = read.data.to_dict()
    assert values["library_name"] == ("peft" if "\nAn adapter (" in content else "transformers")
    assert values["license"] == "apache-2.0"
    again = ModelCardData(**values)
    assert again.to_dict() == values
    if card in RUNS:
        assert find_spec(f"huggingface_hub.inference._generated.types.{values['pipeline_tag'].replace('-', '_')}")
        name, results = model_index_to_eval_results(values["model-index"])
        assert name == card.stem
        assert results
        assert eval_results_to_model_index(name, results) == values["model-index"]
        for result in results:
            assert isinstance(result.metric_value, float)
            assert result.task_type == values["pipeline_tag"]
            assert all((result.dataset_type, result.dataset_name, result.metric_type))


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.stem)
def test_pictures_and_links_are_there_and_nothing_is_of_a_machine(card):
    content = card.read_text(encoding="utf-8")
    for link in [*IMAGES_OF_A_CARD.findall(content), *re.findall(r"\]\((?!http)([^)#]+)\)", content)]:
        assert (card.parent / link).exists(), link
    assert not TOKEN.search(content.encode())
    words = re.sub(r"~~~~text.*?~~~~", "", content, flags=re.DOTALL)  # what a model writes may look like a path
    assert not ABSOLUTE_PATH.findall(words.encode())


@pytest.mark.parametrize("card", RUNS, ids=lambda card: card.stem)
def test_a_cards_command_gives_the_recipe_that_it_shows(card, monkeypatch):
    """The recipe as it is now, with what the command changes in it."""
    content = card.read_text(encoding="utf-8")
    (line,) = [line for line in content.splitlines() if COMMAND.match(line)]
    recipe = recipe_of_command(shlex.split(line)[1:], monkeypatch)
    assert recipe_in_card(content) == without_local_paths(recipe_in_card(f"```yaml\n{recipe.to_yaml()}```"))
