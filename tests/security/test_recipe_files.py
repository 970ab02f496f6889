"""A recipe may be a stranger's: each of these is refused in one line, before anything is read, built or fetched."""

import time

import pytest

from hf_ext.data import DataArguments, resolve_data_files
from hf_ext.tasks.model_section import read_model_section
from hf_ext.tasks.text_classification import SECTIONS
from hf_ext.training import recipe_yaml
from hf_ext.training.recipe import RecipeError, load_recipe
from hf_ext.training.recipe_yaml import read_yaml


LAUGHS = "a0: &a0 {x: 1}\n" + "\n".join(
    f"a{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' for j in range(9))}}}" for i in range(1, 12)
)
FILES = {
    # PyYAML's loaders that make objects: CVE-2017-18342, CVE-2020-1747, CVE-2020-14343
    "object": ("model: !!python/object/apply:os.system ['touch ran']", "could not determine a constructor for the tag"),
    "name": ("model: {a: !!python/name:os.system }", "could not determine a constructor for the tag"),
    "module": ("!!python/object/new:os.system ['touch ran']", "could not determine a constructor for the tag"),
    "billion laughs": (LAUGHS, "aliases stand for .* values"),
    "alias into itself": ("model: &m {a: *m}", "an alias leads into the value that it is part of"),
    "deep": ("model: " + "[" * 3000, "levels deep"),
    "long number": ("model: {vocab_size: " + "9" * 5000 + "}", "not YAML"),
    "large": ("model: {a: " + "x" * recipe_yaml.MAX_BYTES + "}", "bytes, above"),
    "trust": ("model: {path: someone/model, trust_remote_code: true}", "only your own command may"),
    "trust, deep": ("model: {a: [{b: {trust_remote_code: 1}}]}", "only your own command may"),
    "kernel": ("model: {attn_implementation: someone/kernel}", "names code on the Hub"),
    "kernel of a branch": ("model: {attn_implementation: 'someone/kernel@main:attend'}", "names code on the Hub"),
    "kernel, deep": ("model: {text_config: {_attn_implementation_internal: someone/kernel}}", "names code on the Hub"),
    "kernels by part": ("model: {attn_implementation: {text_config: someone/kernel}}", "names code on the Hub"),
    "binary": ("\x00\x01\x02", "not YAML"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_malicious_recipe_is_refused_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, said = FILES[name]
    path = tmp_path / "recipe.yaml"
    path.write_text(content, encoding="utf-8")
    begun = time.process_time()
    with pytest.raises(RecipeError, match=said) as caught:
        load_recipe([str(path)], SECTIONS)
    assert time.process_time() - begun < 5
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_aliases_that_recipes_have_are_taken(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("model: &m {hidden_size: 64}\nteacher: {<<: *m, path: outputs/x}\nother: *m\n")
    assert read_yaml(path)["teacher"] == {"hidden_size": 64, "path": "outputs/x"}


def test_the_command_line_may_name_a_kernel(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("data: {data_files: x.csv}\ntraining: {output_dir: out}\nmodel: {}\n")
    recipe = load_recipe([str(path), "--model.attn_implementation", "kernels-community/flash-attn2"], SECTIONS)
    assert read_model_section(recipe.model).loading == {"attn_implementation": "kernels-community/flash-attn2"}


@pytest.mark.parametrize(
    "section",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": -1},
        {"hidden_size": 10**12},
        {"num_labels": 10**9},
        {"hidden_size": 10**6, "num_attention_heads": 1000, "num_hidden_layers": 1000, "intermediate_size": 10**6},
    ],
)
def test_a_model_of_absurd_size_is_refused_before_it_is_described(section):
    begun = time.process_time()
    with pytest.raises(ValueError, match=r"HF_EXT_CONFIG_LIMITS"):
        read_model_section({"model_type": "hfx_decoder", **section}).config(vocab_size=100)
    assert time.process_time() - begun < 1


@pytest.mark.parametrize(
    "path",
    ["https://example.com/rows.csv", "hf://datasets/x/y.csv", "s3://bucket/rows.csv", "zip://a.csv::https://x/y.zip"],
)
def test_data_files_are_of_this_machine(path):
    with pytest.raises(FileNotFoundError, match="paths are local"):
        resolve_data_files(DataArguments(data_files=path))


def test_variables_of_the_environment_are_not_put_in(tmp_path, monkeypatch):
    """What a path or a field says reaches no server and no file by way of a variable's value."""
    monkeypatch.setenv("SECRET_FOLDER", str(tmp_path))
    (tmp_path / "rows.csv").write_text("text\na\n")
    with pytest.raises(FileNotFoundError, match=r"\$SECRET_FOLDER/rows.csv"):
        resolve_data_files(DataArguments(data_files="$SECRET_FOLDER/rows.csv"))
    path = tmp_path / "recipe.yaml"
    path.write_text("data: {data_files: x.csv}\ntraining: {output_dir: '${SECRET_FOLDER}/x'}\n")
    assert load_recipe([str(path)], SECTIONS).training.output_dir == "${SECRET_FOLDER}/x"
