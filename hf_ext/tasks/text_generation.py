"""Text generation: the same model writing by different samplers, side by side, and under constraints.

What `recipes/text_generation/train.py` puts together. A sampler is a set of fields of transformers' `GenerationConfig`. Each
goes on from the same beginnings, and what it writes is measured beside what really followed there: its perplexity under the
model itself, how varied it is, how much it repeats itself, how fast it came.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from hf_ext.data import DataArguments
from hf_ext.metrics import compute
from hf_ext.models.configuration_choices import check_known
from hf_ext.tasks.adapter_section import AdapterArguments
from hf_ext.tasks.constraints import ConstraintArguments
from hf_ext.tasks.pretraining import PackingArguments
from hf_ext.tasks.tokenizer_section import TokenizerArguments
from hf_ext.training.arguments import HfxTrainingArguments


# name -> fields of GenerationConfig; see docs/text_generation.md for the equations
SAMPLERS = {
    "greedy": {},
    "beams": {"num_beams": 4},
    "pure sampling": {"do_sample": True},
    "temperature 0.7": {"do_sample": True, "temperature": 0.7},
    "top-k 40": {"do_sample": True, "top_k": 40},
    "nucleus 0.9": {"do_sample": True, "top_p": 0.9},
    "min-p 0.1": {"do_sample": True, "min_p": 0.1},
    "typical 0.9": {"do_sample": True, "typical_p": 0.9},
    "repetition penalty 1.2": {"repetition_penalty": 1.2},
    "no trigram twice": {"no_repeat_ngram_size": 3},
}
MARKERS = "os^vDP<>X"  # in turn, so that neighbours differ in more than colour
REFERENCE = "held-out text"
# set elsewhere in the recipe, or by the comparison itself
_NOT_A_SAMPLERS = ("max_new_tokens", "max_length", "num_return_sequences", "stop_strings")
COLUMNS = ("perplexity", "distinct_1", "distinct_2", "distinct_3", "repetition_4", "mean_tokens", "tokens_per_second")


@dataclass
class WritingArguments:
    """What is written, and by which samplers."""

    samplers: dict[str, dict] | None = field(
        default=None, metadata={"help": f"Name -> fields of GenerationConfig. Default: {', '.join(SAMPLERS)}."}
    )
    prompts: list[str] = field(
        default_factory=list, metadata={"help": "Beginnings to go on from. Default: beginnings of held-out passages."}
    )
    num_prompts: int = field(default=16, metadata={"help": "Held-out beginnings."})
    prompt_tokens: int = field(default=32, metadata={"help": "Tokens of a held-out beginning."})
    max_new_tokens: int = field(default=64, metadata={"help": "Tokens to write for each at most."})
    batch_size: int = field(default=16, metadata={"help": "Texts at a time."})
    only: bool = field(default=False, metadata={"help": "Don't train: compare the samplers on model.path as it is."})

    def __post_init__(self):
        for name in ("num_prompts", "prompt_tokens", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"writing.{name}={getattr(self, name)}: must be at least 1")
        if not all(self.prompts):
            raise ValueError("writing.prompts: one is empty; give at least a character to go on from")
        known = [name for name in GenerationConfig().to_dict() if name not in _NOT_A_SAMPLERS]
        for name, fields in self.chosen.items():
            if not isinstance(fields, dict):
                raise ValueError(
                    f"writing.samplers: {name!r} must be a mapping of fields of GenerationConfig, is {fields!r}"
                )
            check_known(f"writing.samplers.{name}", fields, known)
            drawn = [one for one in ("temperature", "top_k", "top_p", "min_p", "typical_p") if one in fields]
            if drawn and not fields.get("do_sample"):
                raise ValueError(f"writing.samplers.{name}: {drawn[0]} has no effect without do_sample: true; add it")

    @property
    def chosen(self) -> dict[str, dict]:
        return SAMPLERS if self.samplers is None else self.samplers

    def config(self, sampler: str, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
        """transformers' own, that cuts nothing unless it is asked to (its `top_k` is 50 by default)."""
        fields = dict(self.chosen[sampler])
        if fields.get("do_sample"):
            fields.setdefault("top_k", 0)
        tokens = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id", "bos_token_id")}
        return GenerationConfig(max_new_tokens=self.max_new_tokens, **tokens, **fields)


SECTIONS = {
    "model": dict,
    "tokenizer": TokenizerArguments,
    "data": DataArguments,
    "packing": PackingArguments,
    "writing": WritingArguments,
    "constraints": ConstraintArguments,
    "adapter": AdapterArguments,
    "training": HfxTrainingArguments,
}


def beginnings(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, arguments: WritingArguments
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids to go on from, and what really follows each: nothing for prompts that the recipe gives.

    Held-out passages of `prompt_tokens` + `max_new_tokens` tokens follow each other without overlap through the texts; of
    these, `num_prompts` at even distances are taken, so that they are the same every time.

    Raises:
        ValueError: the texts are too short for one.
    """
    if arguments.prompts:
        return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in arguments.prompts], []
    length = arguments.prompt_tokens + arguments.max_new_tokens
    passages = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        passages += [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]
    if not passages:
        raise ValueError(
            f"writing.prompt_tokens={arguments.prompt_tokens}: no held-out text has {length} tokens, with those to write; "
            "lower it or max_new_tokens, or give writing.prompts"
        )
    count = min(arguments.num_prompts, len(passages))
    chosen = [passages[number * len(passages) // count] for number in range(count)]
    return [one[: arguments.prompt_tokens] for one in chosen], [one[arguments.prompt_tokens :] for one in chosen]


@torch.no_grad()
def write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    batch_size: int,
    seed: int,
    constraints: ConstraintArguments | None = None,
) -> list[list[int]]:
    """Token ids that the model writes for each prompt, its end token included where it came to one.

    Prompts of one length go together, so nothing is padded. The same seed gives the same texts.
    """
    set_seed(seed)
    model.eval()
    by_length = defaultdict(list)
    for number, prompt in enumerate(prompts):
        by_length[len(prompt)].append(number)
    written: list[list[int]] = [[]] * len(prompts)
    for length, numbers in sorted(by_length.items()):
        for start in range(0, len(numbers), batch_size):
            chosen = numbers[start : start + batch_size]
            ids = torch.tensor([list(prompts[number]) for number in chosen], device=model.device)
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=config,
                logits_processor=constraints and constraints.processors(tokenizer, config.max_new_tokens),
                tokenizer=tokenizer if config.stop_strings else None,
            )
            for number, row in zip(chosen, output[:, length:].tolist(), strict=True):
                written[number] = _until_end(row, tokenizer)
    return written


def _until_end(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if tokenizer.eos_token_id in ids:
        return ids[: ids.index(tokenizer.eos_token_id) + 1]
    while ids and ids[-1] == tokenizer.pad_token_id:  # after a stop string
        ids = ids[:-1]
    return ids


@torch.no_grad()
def log_likelihoods(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], written: Sequence[Sequence[int]], *, batch_size: int
) -> list[list[float]]:
    """log p(x[t] | prompt, x[<t]) in nats of every token that was written, under the model as it is, without a sampler."""
    model.eval()
    rows = [[*prompt, *text] for prompt, text in zip(prompts, written, strict=True)]
    found = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        longest = max(map(len, batch))
        # filled up after the end, which nothing before it sees
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in batch], device=model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch], device=model.device)
        shares = model(ids, attention_mask=mask).logits[:, :-1].float().log_softmax(-1)
        each = shares.gather(-1, ids[:, 1:, None]).squeeze(-1)
        for number, row in enumerate(batch, start=start):
            found.append(each[number - start, len(prompts[number]) - 1 : len(row) - 1].tolist())
    return found


def measure(
    texts: Sequence[str], likelihoods: Sequence[Sequence[float]], seconds: float | None
) -> dict[str, float | None]:
    """The columns of the table; see docs/text_generation.md. seconds: None for a text that nobody wrote here."""
    num_tokens = sum(map(len, likelihoods))
    scores = (
        {"perplexity": compute("perplexity", list(likelihoods))["perplexity"]} if num_tokens else {"perplexity": None}
    )
    scores |= compute("distinct_n", list(texts))
    scores["repetition_4"] = compute("repetition", list(texts))["repetition_4"]
    scores["mean_tokens"] = num_tokens / len(texts)
    scores["tokens_per_second"] = None if seconds is None else num_tokens / seconds
    return scores


def compare(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    followed: Sequence[Sequence[int]],
    arguments: WritingArguments,
    constraints: ConstraintArguments,
    *,
    seed: int,
) -> tuple[dict[str, dict], list[dict]]:
    """sampler -> its measures, with those of what really followed first; and a line for each text that was written."""
    table, lines = {}, []
    options = {"batch_size": arguments.batch_size}
    if followed:
        texts = tokenizer.batch_decode(followed, skip_special_tokens=True)
        table[REFERENCE] = measure(texts, log_likelihoods(model, prompts, followed, **options), None)
    for sampler in arguments.chosen:
        config = constraints.apply(arguments.config(sampler, tokenizer))
        started = time.perf_counter()
        written = write(
            model,
            tokenizer,
            prompts,
            config,
            seed=seed,
            constraints=constraints,
            **options,
        )
        seconds = time.perf_counter() - started
        texts = tokenizer.batch_decode(written, skip_special_tokens=True)
        table[sampler] = measure(texts, log_likelihoods(model, prompts, written, **options), seconds)
        if constraints.given:
            table[sampler]["satisfied"] = sum(map(constraints.satisfied_by, texts)) / len(texts)
        for prompt, text in zip(prompts, texts, strict=True):
            lines.append({"sampler": sampler, "prompt": tokenizer.decode(prompt), "text": text})
    return table, lines


def as_markdown(table: dict[str, dict]) -> str:
    """The table for people."""
    columns = [*COLUMNS, *(["satisfied"] if any("satisfied" in scores for scores in table.values()) else [])]
    lines = [
        f"| sampler | {' | '.join(column.replace('_', ' ') for column in columns)} |",
        "| --- |" + " ---: |" * len(columns),
    ]
    for sampler, scores in table.items():
        cells = ("" if scores.get(column) is None else f"{scores[column]:.3g}" for column in columns)
        lines.append(f"| {sampler} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(table: dict[str, dict], path: Path) -> None:
    """Perplexity against repetition, a point a sampler: good samplers lie near the held-out text, not near zero."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    drawn = {sampler: scores for sampler, scores in table.items() if scores["perplexity"] is not None}
    # named beside the plot, from left to right: where samplers agree, names at the points would lie upon each other
    for number, sampler in enumerate(sorted(drawn, key=lambda sampler: drawn[sampler]["perplexity"])):
        x, y = drawn[sampler]["perplexity"], drawn[sampler]["repetition_4"]
        is_reference = sampler == REFERENCE
        marker, size = ("*", 160) if is_reference else (MARKERS[number % len(MARKERS)], 40)
        axes.scatter(x, y, marker=marker, s=size, label=f"{sampler} ({x:.3g})", zorder=3)
    axes.set(xscale="log", xlabel="perplexity under the model", ylabel="share of 4-grams that are repeated")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)


def check_writing(arguments: WritingArguments, config: PretrainedConfig, path: str | None) -> None:
    """Raises ValueError, one line, for settings that don't fit the model."""
    if arguments.only and path is None:
        raise ValueError("writing.only=True: needs a trained model; set model.path")
    asked = arguments.prompt_tokens + arguments.max_new_tokens
    if not arguments.prompts and asked > config.max_position_embeddings:
        raise ValueError(
            f"writing.prompt_tokens={arguments.prompt_tokens}: with max_new_tokens={arguments.max_new_tokens} above "
            f"model.max_position_embeddings={config.max_position_embeddings}; lower one of the two"
        )


def samples(lines: Sequence[dict]) -> list[dict]:
    """The first text of each sampler, for the card."""
    first = {}
    for line in lines:
        first.setdefault(line["sampler"], line)
    return [{"prompt": line["prompt"], "text": f"({sampler}) {line['text']}"} for sampler, line in first.items()]
