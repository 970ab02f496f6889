"""What a run will take, from the command line: python -m hf_ext.training.scaling --help"""

import argparse
import dataclasses
import json
import re
import sys
from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

import hf_ext  # noqa: F401  (registers our architectures)
from hf_ext.models.configuration_choices import check_known, nearest
from hf_ext.models.configuration_limits import check_saved_sizes
from hf_ext.training.recipe import run_recipe_main
from hf_ext.training.recipe_yaml import read_yaml
from hf_ext.training.scaling import report
from hf_ext.training.scaling.compute_optimal import ACCELERATORS, budget, plans, propose_decoder
from hf_ext.training.scaling.fake_model import HEADS, find_head
from hf_ext.training.scaling.flops import count_flops
from hf_ext.training.scaling.kv_cache import cache_size
from hf_ext.training.scaling.layout import CLUSTERS, plan_layout
from hf_ext.training.scaling.memory import OPTIMIZERS, PRECISIONS, estimate_memory
from hf_ext.training.scaling.parameters import count_parameters
from hf_ext.training.scaling.runs import read_runs
from hf_ext.training.scaling.scaling_law import fit_scaling_law


EXAMPLES = """examples:
  python -m hf_ext.training.scaling recipes/pretraining/quickstart.yaml
  python -m hf_ext.training.scaling path/to/config.json --batch 4 --length 4096 --precision bf16_master --zero 3 --ranks 8
  python -m hf_ext.training.scaling --budget 1e20
  python -m hf_ext.training.scaling --hours 24 --accelerators 8 --accelerator h100 --mfu 0.4
  python -m hf_ext.training.scaling --layout 1B 7B 70B 400B --on 1 8 64 1024 --accelerator h100
  python -m hf_ext.training.scaling --fit outputs/small outputs/medium more_runs.csv --budget 1e18 --plot law.png
"""

# what recipes of pretraining take where they don't say
VOCAB_SIZE, ROW_LENGTH, BATCH_SIZE = 32_000, 512, 8
LAYOUT_LENGTH = 4096  # tokens a row of --layout


def main(argv: list[str]) -> None:
    options = parse(argv)
    asked = (options.model, options.fit, options.budget, options.hours, options.layout)
    if all(part is None for part in asked):
        raise ValueError(
            "command line: nothing to do; give a recipe or config.json, --budget, --hours, --layout or --fit, or see --help"
        )
    texts = []
    if options.model is not None:
        texts += describe_model(options)
    law = None
    if options.fit is not None:
        runs = read_runs(options.fit)
        fitted = fit_scaling_law(runs, num_bootstrap=options.bootstrap)
        law = fitted.law
        texts.append(report.fit_table(fitted, len(runs)))
        if options.plot is not None:
            from hf_ext.training.scaling.scaling_plot import draw_scaling_law

            draw_scaling_law(fitted, runs, options.plot)
    if options.budget is not None or options.hours is not None:
        flops = options.budget
        if flops is None:
            flops = budget(
                options.hours,
                accelerators=options.accelerators,
                peak_flops=_number_or_name(options.accelerator),
                utilization=options.mfu,
            )
        texts += describe_budget(flops, law)
    if options.layout is not None:
        texts += [describe_layouts(_count(size), options) for size in options.layout]
    print("\n\n".join(texts))


def describe_model(options: argparse.Namespace) -> list[str]:
    """Tables of a recipe's or configuration's model."""
    config, run = read_model(options.model)
    given = {name: getattr(options, name) for name in run if getattr(options, name) is not None}
    run |= given
    head = find_head(config, options.head)
    length, source = run["length"], options.source_length
    texts = [
        report.parameters_table(count_parameters(config, head=head)),
        report.flops_table(count_flops(config, length, source_length=source, head=head), length),
    ]
    if head in ("causal", "sequence_to_sequence"):
        texts.append(report.cache_table(cache_size(config, length, source_length=source, head=head), length))
    guess = estimate_memory(
        config,
        batch_size=run["batch"],
        length=length,
        source_length=source,
        head=head,
        optimizer=run["optimizer"],
        precision=run["precision"],
        checkpointing=run["checkpointing"],
        accumulation_steps=run["accumulation"],
        zero_stage=options.zero,
        ranks=options.ranks,
    )
    shards = f", ZeRO stage {options.zero} over {options.ranks} ranks" if options.ranks > 1 else ""
    title = (
        f"Memory of a training step: {run['batch']} rows of {length:,} tokens, {run['precision']}, {run['optimizer']}"
        f"{', checkpointing' if run['checkpointing'] else ''}{shards}"
    )
    return [*texts, report.memory_table(guess, title)]


def describe_budget(flops: float, law) -> list[str]:
    """What to train with a budget, and a decoder of about that size."""
    found = plans(flops, own=law)
    texts = [report.plans_table(found)]
    wanted = next((plan for plan in found if plan.source in ("own", "epoch")), found[0])
    try:
        config = propose_decoder(wanted.parameters)
    except ValueError as error:
        return [*texts, f"No decoder of that size: {error}"]
    heads = ("num_attention_heads", "num_key_value_heads")
    shown = ("hidden_size", "intermediate_size", "num_hidden_layers", *heads, "vocab_size", "tie_word_embeddings")
    rows = [(name, str(getattr(config, name)).lower()) for name in shown]
    rows.append(("parameters", report.short(count_parameters(config).total)))
    return [*texts, report.table(f"A HfxDecoderConfig of about that size, after {wanted.source!r}", rows)]


def describe_layouts(parameters: float, options: argparse.Namespace) -> str:
    """How a decoder of a size is best laid out over each number of accelerators."""
    config = propose_decoder(parameters, vocab_size=128_256, max_position_embeddings=LAYOUT_LENGTH)
    found = {
        count: plan_layout(
            config, accelerators=count, accelerator=options.accelerator, length=LAYOUT_LENGTH, utilization=options.mfu
        )
        for count in options.on
    }
    tokens = 20 * count_parameters(config).total  # Chinchilla's
    return report.layouts_table(found, config, options.accelerator, tokens)


def read_model(path: str) -> tuple[PretrainedConfig, dict]:
    """The configuration of a recipe or config.json, and what the recipe says of a step.

    Raises:
        ValueError: one line, for files that are neither.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "config.json"
    run = {
        "batch": BATCH_SIZE,
        "length": None,
        "optimizer": "adamw",
        "precision": "fp32",
        "checkpointing": False,
        "accumulation": 1,
    }
    if file.suffix in (".yaml", ".yml"):
        sections = read_yaml(file)
        model = dict(sections.get("model") or {})
        if not model:
            raise ValueError(f"{file}: has no model section that describes a configuration; give a config.json")
        vocab_size = (sections.get("tokenizer") or {}).get("vocab_size", VOCAB_SIZE)
        fields = {"vocab_size": vocab_size, **model}
        training = sections.get("training") or {}
        run |= {
            "batch": training.get("per_device_train_batch_size", BATCH_SIZE),
            "length": (sections.get("packing") or {}).get("row_length", ROW_LENGTH),
            "optimizer": training.get("matrix_optimizer") or "adamw",
            "precision": "bf16_autocast"
            if training.get("bf16")
            else "fp16_autocast"
            if training.get("fp16")
            else "fp32",
            "checkpointing": bool(training.get("gradient_checkpointing")),
            "accumulation": training.get("gradient_accumulation_steps", 1),
        }
    elif file.suffix == ".json" and file.is_file():
        try:
            fields = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file}: not JSON: {error}") from None
    else:
        raise ValueError(f"{path}: must be a recipe (.yaml), a config.json, or a folder with one")
    check_saved_sizes(fields, str(file))
    model_type = fields.pop("model_type", "hfx_decoder")
    try:
        config_class = type(AutoConfig.for_model(model_type))
    except ValueError:
        raise ValueError(f"{file}: model_type={model_type!r} is not known to transformers or hf_ext") from None
    if file.suffix != ".json":  # a saved configuration may have fields of another version
        check_known(f"{file}: model", fields, [f.name for f in dataclasses.fields(config_class)])
    config = config_class(**fields)
    longest = getattr(config, "max_position_embeddings", None)
    if run["length"] is None:
        run["length"] = min(longest, 2048) if isinstance(longest, int) else ROW_LENGTH
    return config, run


def parse(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m hf_ext.training.scaling",
        description="What a training run will take, and how large its model should be. Nothing is allocated.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", nargs="?", help="a recipe (.yaml), a config.json, or a folder with one")
    step = parser.add_argument_group("the step; default: what the recipe says")
    step.add_argument("--batch", type=int, help=f"rows on a rank in one forward pass; else {BATCH_SIZE}")
    step.add_argument("--length", type=int, help="tokens a row; else max_position_embeddings, at most 2,048")
    step.add_argument(
        "--source-length", type=int, help="tokens a row of an encoder-decoder's encoder; default --length"
    )
    step.add_argument("--head", help=f"one of {', '.join(HEADS)}; default the family's language model")
    step.add_argument("--optimizer", help=f"one of {', '.join(OPTIMIZERS)}; else adamw")
    step.add_argument("--precision", help=f"one of {', '.join(PRECISIONS)}; else fp32")
    step.add_argument("--checkpointing", action="store_true", default=None, help="keep the blocks' inputs alone")
    step.add_argument("--accumulation", type=int, help="forward passes a step; else 1")
    step.add_argument("--zero", type=int, default=0, help="ZeRO stage, 0 to 3; FSDP is 3")
    step.add_argument("--ranks", type=int, default=1, help="processes that share the shards")
    spend = parser.add_argument_group("a budget")
    spend.add_argument("--budget", type=float, help="training FLOPs, such as 1e20")
    spend.add_argument("--hours", type=float, help="instead: hours of wall clock")
    spend.add_argument("--accelerators", type=int, default=1, help="with --hours: how many")
    spend.add_argument(
        "--accelerator",
        default="h100",
        help=f"with --hours: {', '.join(ACCELERATORS)}, or its FLOP/s; with --layout: {', '.join(CLUSTERS)}",
    )
    spend.add_argument(
        "--mfu", type=float, default=0.4, help="share of the peak that is reached; with --layout, while nothing is sent"
    )
    cluster = parser.add_argument_group("a cluster")
    cluster.add_argument("--layout", nargs="+", metavar="SIZE", help="decoders of so many parameters, such as 7B")
    cluster.add_argument(
        "--on", nargs="+", type=int, default=[1, 8, 64, 1024], help="with --layout: accelerators; else 1 8 64 1024"
    )
    law = parser.add_argument_group("a law of your own")
    law.add_argument("--fit", nargs="+", metavar="RUN", help="folders of runs, or CSVs of parameters, tokens, loss")
    law.add_argument("--bootstrap", type=int, default=100, help="draws for the intervals")
    law.add_argument("--plot", help="with --fit: a PNG to write")
    options = parser.parse_args(argv)
    if options.plot is not None and options.fit is None:
        raise ValueError(f"--plot {options.plot}: has no effect without --fit; leave it out")
    step_options = (
        "batch",
        "length",
        "source_length",
        "head",
        "optimizer",
        "precision",
        "checkpointing",
        "accumulation",
    )
    given = [name for name in step_options if getattr(options, name) is not None]
    if given and options.model is None:
        raise ValueError(f"--{given[0].replace('_', '-')}: has no effect without a recipe or config.json; give one")
    if options.budget is not None and options.hours is not None:
        raise ValueError("--budget, --hours: both say how much there is; give one of them")
    return options


class _Parser(argparse.ArgumentParser):
    """Errors are one line, as those of recipes are."""

    def error(self, message: str):
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        hint = nearest(unknown[1], list(self._option_string_actions)) if unknown else ""
        raise ValueError(f"command line: {message}{hint or '; see --help'}")


def _count(text: str) -> float:
    """7B, 350M or 7e9 as a number."""
    factor = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}.get(text[-1:].upper(), 1)
    try:
        return factor * float(text[:-1] if factor > 1 else text)
    except ValueError:
        raise ValueError(f"--layout {text}: must be a number of parameters, such as 7B or 3.5e8") from None


def _number_or_name(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


if __name__ == "__main__":
    sys.exit(run_recipe_main(main))
