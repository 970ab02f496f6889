"""Tables for the terminal, of what this room computes."""

from transformers import PretrainedConfig

from hf_ext.training.scaling.compute_optimal import Plan
from hf_ext.training.scaling.flops import FlopCount
from hf_ext.training.scaling.kv_cache import CacheSize
from hf_ext.training.scaling.layout import Layout
from hf_ext.training.scaling.memory import MemoryEstimate
from hf_ext.training.scaling.parameters import ParameterCount
from hf_ext.training.scaling.scaling_law import FittedLaw


UNITS = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")
COUNT_UNITS = ("", "K", "M", "B", "T")
BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def short(count: float) -> str:
    """1.2B, 350M: a count of parameters or tokens."""
    return _scaled(count, 1000, COUNT_UNITS)


def flops(count: float) -> str:
    """1.5 GFLOP."""
    return f"{_scaled(count, 1000, UNITS, ' ')}FLOP"


def size(count: float) -> str:
    """1.5 GiB."""
    return _scaled(count, 1024, BYTE_UNITS, " ")


def _scaled(value: float, step: int, units: tuple[str, ...], space: str = "") -> str:
    power = 0
    while abs(value) >= step * 0.9995 and power < len(units) - 1:
        value, power = value / step, power + 1
    digits = 0 if power == 0 and float(value).is_integer() else 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f}{space}{units[power]}"


def table(title: str, rows: list[tuple[str, ...]]) -> str:
    """Rows of cells beneath a title: the first cell to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    lines = [title]
    for row in rows:
        cells = [row[0].ljust(widths[0])] + [cell.rjust(widths[i]) for i, cell in enumerate(row[1:], start=1)]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def parameters_table(count: ParameterCount) -> str:
    rows = [(part.replace("_", " "), f"{n:,}", f"{n / count.total:.1%}") for part, n in count.by_part.items()]
    rows.append(("all", f"{count.total:,}", short(count.total)))
    if count.active != count.total:
        rows.append(
            (
                f"active, {count.experts_per_token} of {count.num_experts} experts",
                f"{count.active:,}",
                short(count.active),
            )
        )
    return table(f"Parameters{', output matrix tied to the embedding' if count.is_tied else ''}", rows)


def flops_table(count: FlopCount, length: int) -> str:
    whole, of_pairs = sum(count.forward.values()), count.tokens != length
    rows = [(part.replace("_", " "), flops(n / count.tokens), f"{n / whole:.1%}") for part, n in count.forward.items()]
    rule = count.rule_per_token
    rows += [
        ("forward", flops(count.forward_per_token), ""),
        ("training, forward and backward", flops(count.training_per_token), ""),
        ("training with checkpointing", flops(count.checkpointed_per_token), ""),
        (f"rule of thumb, 6 N{' of both stacks' * of_pairs}", flops(rule), f"{rule / count.training_per_token:.1%}"),
    ]
    if count.decoding is not None:
        rows.append((f"the next token after {length:,}", flops(count.decoding), ""))
    tokens = f"{count.tokens - length:,} tokens of source and {length:,}" if of_pairs else f"{length:,} tokens"
    return table(f"FLOPs a token, rows of {tokens}", rows)


def cache_table(cache: CacheSize, length: int) -> str:
    rows = [("a further token", size(cache.growth)), (f"{length:,} tokens", size(cache.own))]
    if cache.source:
        rows.append(("the source", size(cache.source)))
    return table("Keys and values in the cache, bf16, a sequence", rows)


def memory_table(guess: MemoryEstimate, title: str) -> str:
    rows = [
        ("weights", size(guess.weights)),
        ("gradients", size(guess.gradients)),
        ("optimizer states", size(guess.optimizer)),
        ("fp32 master weights", size(guess.master)),
        ("activations", size(guess.activations)),
        ("gathered blocks", size(guess.gathered)),
        ("working memory", size(guess.working)),
        ("at its fullest", size(guess.peak)),
    ]
    return table(title, [row for row in rows if not row[1].startswith("0 ")])


def plans_table(plans: list[Plan]) -> str:
    rows = [("", "parameters", "tokens", "tokens a parameter", "loss")]
    for plan in plans:
        loss = "" if plan.loss is None else f"{plan.loss:.3f}"
        rows.append(
            (plan.source, short(plan.parameters), short(plan.tokens), f"{plan.tokens / plan.parameters:.1f}", loss)
        )
    return table(f"Compute-optimal for {plans[0].flops:.3g} FLOPs", rows)


def layouts_table(found: dict[int, list[Layout]], config: PretrainedConfig, accelerator: str, tokens: float) -> str:
    """The fastest layout of a model for each number of accelerators, and what it would take for `tokens`."""
    parameters = next((layouts[0].parameters for layouts in found.values() if layouts), None)
    rows = [
        ("on", "engine", "checkpointing", "rows · passes", "memory", "sends a step", "computes", "step", "MFU", "days"),
    ]
    for count, layouts in found.items():
        if not layouts:
            rows.append((f"{count:,}", "doesn't fit"))
            continue
        best = layouts[0]
        asked = best.arrangement
        rows.append(
            (
                f"{count:,}",
                asked.engine,
                "yes" if asked.checkpointing else "no",
                f"{asked.rows} · {asked.passes}",
                size(best.held),
                size(best.sent_data + best.sent_tensor),
                f"{best.compute_seconds:.3g} s",
                f"{best.seconds:.3g} s",
                f"{best.utilization:.0%}",
                f"{best.days(tokens):,.3g}",
            )
        )
    shape = f"{config.num_hidden_layers} layers of {config.hidden_size:,}"
    of = "" if parameters is None else f"{short(parameters)} parameters, "
    return table(f"{of}{shape}, on {accelerator}, {short(tokens)} tokens to learn", rows)


def fit_table(fitted: FittedLaw, num_runs: int) -> str:
    rows = [("", "fit", "80 % of the bootstrap")] if fitted.intervals else [("", "fit")]
    for name in ("E", "A", "B", "alpha", "beta"):
        row = (name, f"{getattr(fitted.law, name):.4g}")
        if fitted.intervals:
            row += ("{:.4g} to {:.4g}".format(*fitted.intervals[name]),)
        rows.append(row)
    rows.append(("N grows as C to the", f"{fitted.law.parameters_exponent:.3f}"))
    rows.append(("error of a loss", f"{fitted.error:.2%}"))
    return table(f"L = E + A / N^alpha + B / D^beta, {num_runs} runs", rows)
