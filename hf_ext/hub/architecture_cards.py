"""Reference cards of our architectures, from the code: options, sizes, whose models they are, how to train them, limits.

    python -m hf_ext.hub.architecture_cards model_cards     # from a checkout; writes one file an architecture

A test compares what lies there with what this writes.
"""

import argparse
import ast
import dataclasses
import inspect
import re
import shutil
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, ModelCardData
from transformers import PretrainedConfig

from hf_ext.hub.bundle import PACKAGE
from hf_ext.hub.model_card import TEMPLATE
from hf_ext.models.configuration_transformer import HfxTransformerConfig
from hf_ext.registry import FAMILIES
from hf_ext.training.scaling import count_flops


ROOT = PACKAGE.parent
# a package has no folder beside it, so its own template is inside; this is for people
TEMPLATE_COPY = "template.md.jinja"
# fields whose meaning is transformers' own
TRANSFORMERS_FIELDS = {field.name for field in dataclasses.fields(PretrainedConfig)} | {
    *("pad_token_id", "bos_token_id", "eos_token_id"),
}
SIZES = (
    {},
    {"hidden_size": 256, "num_hidden_layers": 4},
    {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
)
ROW = 512  # tokens, of which FLOPs are counted

# what no field or table says
LIMITS = {
    "hfx_decoder": (
        "A cache can't be gone on from where the rotary rule `dynamic` or `longrope` changes its frequencies: `generate` "
        "then passes all tokens again.",
        "Further tokens (`num_nextn_predict_layers`) are predicted in training, and not drafted from in `generate`.",
        "DeepSeek-V3 is expressed with one group of experts; routing limited to groups is not there.",
        "Softcapped scores and sinks are refused by `sdpa`, ALiBi and the relative bias by flash-attn, each by name; "
        "`hf_ext.models.attention_report(model)` says which implementation runs and why.",
    ),
    "hfx_encoder": (
        "No mixture of experts.",
        "Left out are BERT's next-sentence head, and the further dropouts of RoBERTa's and DistilBERT's heads.",
        "Compiled and exported graphs compute padding; otherwise nothing is computed for it.",
    ),
    "hfx_encoder_decoder": (
        "No mixture of experts, no multi-token prediction, no parallel blocks.",
        "Both stacks have one width: models whose layers differ in width between them are not expressed.",
        "Rows of several pairs and padded sources are refused under flash attention kernels, whose cross-attention can't "
        "tell them; resizing the embeddings is refused with two vocabularies.",
        "Compiled and exported graphs compute padding; otherwise nothing is computed for it.",
    ),
}
USES = {
    "hfx_decoder": "Language models that write: from scratch on text of any kind, or with other models' weights; "
    "classifiers, taggers and readers by their heads.",
    "hfx_encoder": "Models that read: masked language models, then classifiers, taggers, readers, choices, sentence "
    "embeddings.",
    "hfx_encoder_decoder": "Models that write one text from another: translations, summaries, answers, texts mended.",
}


def architecture_card(config_class: type[PretrainedConfig]) -> str:
    """The card's text.

    Raises:
        ValueError: a field that its configuration's docstring doesn't explain.
    """
    name = config_class.model_type
    data = ModelCardData(license="apache-2.0", library_name="transformers", tags=["hf_ext", name])
    heads = "\n".join(f"| `{auto.__name__}` | `{model.__name__}` |" for auto, model in FAMILIES[config_class])
    limits = "\n".join(f"- {limit}" for limit in LIMITS[name])
    return f"""---
{data.to_yaml()}
---

# {name}

{_summary(config_class)}

This is the card of the architecture. It has no weights of its own: the cards of trained models are below.

## Intended use

{USES[name]} No model of it knows anything before it is trained; what it then may be used for, its own card says.

## Auto classes

After `import hf_ext`, or from a saved folder with its code and `trust_remote_code=True` ([hub](../docs/hub.md)):

| Auto class | class |
| --- | --- |
| `AutoConfig` | `{config_class.__name__}` |
{heads}

```python
import hf_ext
from transformers import AutoConfig, {FAMILIES[config_class][1][0].__name__}

model = {FAMILIES[config_class][1][0].__name__}.from_config(AutoConfig.for_model("{name}", hidden_size=256))
```

## Options

{_options(config_class)}

## Wiring, by name

{_named_parts(config_class)}

## Sizes

Vocabulary of {config_class().vocab_size:,}, rows of {ROW} tokens; other fields as they are by default.

{_sizes(config_class)}

`python -m hf_ext.training.scaling` says it of any configuration or recipe, with memory ([scaling](../docs/scaling.md)).

## Parity with transformers' own models

{_parity(name)}

## Train it

{_recipes(name)}

## Limits

{limits}
"""


def write_cards(folder: Path) -> list[Path]:
    """A file for each architecture, and the template of runs' cards beside them; returns all."""
    paths = [folder / TEMPLATE_COPY]
    shutil.copyfile(TEMPLATE, paths[0])
    for config_class in FAMILIES:
        text = architecture_card(config_class)
        ModelCard(text)  # valid metadata, or it raises
        paths.append(folder / f"{config_class.model_type}.md")
        paths[-1].write_text(text, encoding="utf-8")
    return paths


def meanings(config_class: type[PretrainedConfig]) -> dict[str, str]:
    """Field -> what the docstrings of the configuration and of its base say of it."""
    fields = {field.name for field in dataclasses.fields(config_class)}
    found = {}
    for cls in (HfxTransformerConfig, config_class):
        found |= _explained(inspect.getdoc(cls), fields)
    # some are explained where another is that they belong to
    for field in sorted(fields - set(found) - TRANSFORMERS_FIELDS):
        owner = next((name for name, text in found.items() if re.search(rf"\b{field}\b", text)), None)
        if owner is not None:
            found[field] = f"see `{owner}`"
    return found


def _explained(docstring: str, fields: set[str]) -> dict[str, str]:
    """Of an Args section in which `one, other (default so): meaning.` follow each other."""
    block = re.search(r"^Args[^\n]*:\n(.*?)(?:^\S|\Z)", docstring, re.MULTILINE | re.DOTALL)[1]
    # an entry begins a line of its own, or follows another's full stop
    text = " ".join(re.sub(r"^ {4}(?=\S)", "\x00", block, flags=re.MULTILINE).split())
    name = r"\w+(?: \([^)]*\))?"
    entries = [
        match
        for match in re.finditer(rf"(?:(?<=\. )|\x00)({name}(?:, {name})*): ", text)
        if set(_names(match[1])) <= fields
    ]
    found = {}
    for entry, following in zip(entries, [*entries[1:], None], strict=True):
        meaning = text[entry.end() : following.start() if following else len(text)].replace("\x00", "").strip()
        for part in re.findall(name, entry[1]):
            default = re.search(r"\((.*)\)", part)
            found[part.split(" ")[0]] = f"{meaning.rstrip('.')}{f'; {default[1]}' if default else ''}"
    return found


def _names(listed: str) -> list[str]:
    return re.findall(r"\w+", re.sub(r"\([^)]*\)", "", listed))


def _summary(config_class: type[PretrainedConfig]) -> str:
    first = inspect.getdoc(config_class).split("\n\nArgs")[0]
    return " ".join(first.split())


def _options(config_class: type[PretrainedConfig]) -> str:
    known, rows = meanings(config_class), ["| field | default | values | |", "| --- | --- | --- | --- |"]
    for field in dataclasses.fields(config_class):
        if field.name in TRANSFORMERS_FIELDS - set(known):
            continue
        if field.name not in known:
            raise ValueError(f"{config_class.__name__}.{field.name}: its docstring doesn't say what it is")
        default = getattr(config_class, field.name, None)
        choices = config_class._choices.get(field.name)
        values = ", ".join(f"`{choice}`" for choice in choices) if choices else _values(config_class, field)
        meaning = known[field.name].replace("|", "\\|")
        rows.append(f"| `{field.name}` | `{default}` | {values} | {meaning} |")
    return "\n".join(rows)


def _values(config_class: type[PretrainedConfig], field: dataclasses.Field) -> str:
    annotation = inspect.formatannotation(field.type)
    if "bool" in annotation:
        return "`True`, `False`"
    for names, said in (
        (config_class._probabilities, "from 0 to below 1"),
        (config_class._sizes, "whole, from 1"),
        (config_class._positive, "above 0"),
        (config_class._not_negative, "from 0"),
    ):
        if field.name in names:
            return said
    return ""


def _named_parts(config_class: type[PretrainedConfig]) -> str:
    """The classes that a choice picks, with the equations that they begin with."""
    rows = ["| field | name | |", "| --- | --- | --- |"]
    for field in ("block_type", "norm_type", "mlp_type"):
        for name, part in config_class._choices[field].items():
            equation = inspect.getdoc(part).splitlines()[0].replace("|", "\\|")
            rows.append(f"| `{field}` | `{name}` | {equation} |")
    return "\n".join(rows)


def _sizes(config_class: type[PretrainedConfig]) -> str:
    rows = ["| fields | parameters | FLOPs a token, in training |", "| --- | --- | --- |"]
    for fields in SIZES:
        counted = count_flops(config_class(**fields), ROW)
        said = ", ".join(f"`{name}={value}`" for name, value in fields.items()) or "defaults"
        rows.append(f"| {said} | {counted.parameters.total / 1e6:,.1f}M | {counted.training_per_token / 1e9:.3f} G |")
    return "\n".join(rows)


def _parity(name: str) -> str:
    """What the test imports of transformers to compare with."""
    test = ROOT / "tests/models" / f"test_{name.removeprefix('hfx_')}_expresses.py"
    tree = ast.parse(test.read_text(encoding="utf-8"))
    imported = [
        alias.name.removesuffix("Config")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "transformers"
        for alias in node.names
        if alias.name.endswith("Config") and alias.name != "GenerationConfig"
    ]
    return (
        f"From the same weights it computes what transformers' {', '.join(sorted(imported))} compute: logits to 1e-5 in "
        f"fp32, gradients, and texts where they write (`tests/models/{test.name}`)."
    )


def _recipes(name: str) -> str:
    """The recipes of this architecture, with their cards where they have been run."""
    rows = []
    for recipe in sorted((ROOT / "recipes").glob("*/*.yaml")):
        content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
        model = content.get("model") or {}
        if model.get("model_type") != name or recipe.stem.startswith("debug"):
            continue
        run = Path(content["training"]["output_dir"]).name
        card = f"[card]({run}.md)" if (ROOT / "model_cards" / f"{run}.md").is_file() else ""
        rows.append(f"| `{recipe.relative_to(ROOT).as_posix()}` | {card} |")
    return "\n".join(
        ["One command each ([recipes](../docs/recipes.md)).", "", "| recipe | trained |", "| --- | --- |", *rows]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the cards go")
    for path in write_cards(parser.parse_args().folder):
        print(path)


if __name__ == "__main__":
    main()
