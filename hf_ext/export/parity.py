"""Whether an exported graph computes what the model did: the same inputs through both, differences, and a record.

parity.json         differences by graph, greedy tokens, versions, when
parity.safetensors  the inputs and torch's outputs, by which it can be checked again anywhere
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from hf_ext.export.exported_folder import Description, read_description
from hf_ext.export.parts import MOST_ROWS, Part, Tokens, flat
from hf_ext.export.target import Graph
from hf_ext.export.targets import TARGETS


RECORD, TENSORS = "parity.json", "parity.safetensors"
SEED = 0


class ParityError(ValueError):
    """An export that computes something else than its model; the message is one line."""


@dataclass(frozen=True)
class Difference:
    """Of a graph's outputs from torch's over all inputs.

    max_difference, mean_difference: absolute. largest: of torch's numbers. output: where max_difference is.
    """

    max_difference: float
    mean_difference: float
    largest: float
    output: str


def probe_tokens(part: Part, task: str, vocab_size: int, decoder_vocab_size: int | None) -> list[Tokens]:
    """What a graph is compared on: one token alone, rows with padding, and with a cache one further token and several.

    Args:
        vocab_size: of what is read first. decoder_vocab_size: of an encoder-decoder's decoder.
    """
    generator = torch.Generator().manual_seed(SEED)

    def rows(size: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, size, shape, generator=generator)

    def padded(batch: int, tokens: int, padding_left: bool) -> torch.Tensor:
        mask = torch.ones(batch, tokens, dtype=torch.long)
        for row in range(1, batch):
            gap = min(2 * row, tokens - 1)
            mask[row, :gap] = 0 if padding_left else 1
            mask[row, tokens - gap :] = 1 if padding_left else 0
        return mask

    probes = []
    # rows, tokens at hand, tokens of the cache, tokens of the source
    for batch, tokens, cached, source in [(1, 1, 0, 1), (MOST_ROWS, 9, 0, 8), (MOST_ROWS, 1, 9, 8), (2, 4, 6, 5)]:
        if decoder_vocab_size is not None:
            if part.goes_on != bool(cached):
                continue
            mask = padded(batch, source, padding_left=False)
            own = rows(decoder_vocab_size, batch, cached + tokens)
            probes.append(Tokens(rows(vocab_size, batch, source), mask, own, cached))
        elif part.goes_on or not cached:
            choices = (2,) if task == "multiple-choice" else ()
            mask = padded(batch, cached + tokens, padding_left=part.goes_on)
            shape = (batch, *choices, cached + tokens)
            mask = mask.unsqueeze(1).expand(shape).contiguous() if choices else mask
            probes.append(Tokens(rows(vocab_size, *shape), mask, cached=cached))
    return probes


@torch.no_grad()
def reference(part: Part, probes: list[Tokens]) -> dict[str, torch.Tensor]:
    """ "NUMBER/in/NAME" and "NUMBER/out/NAME" -> what torch is given and gives, for each probe."""
    found = {}
    for number, tokens in enumerate(probes):
        inputs = part.inputs_of(tokens)
        given = {name: value.clone() for name, value in flat(inputs).items()}
        outputs = flat(part.module(**inputs))
        found |= {f"{number}/in/{name}": value.contiguous() for name, value in given.items()}
        found |= {f"{number}/out/{name}": value.clone().contiguous() for name, value in outputs.items()}
    return found


def compare(graph: Graph, expected: Mapping[str, torch.Tensor]) -> Difference:
    """A graph against what `reference` has found."""
    worst, output, total, count, largest = 0.0, "", 0.0, 0, 0.0
    for number in sorted({name.split("/")[0] for name in expected}):
        given = {k.split("/", 2)[2]: v for k, v in expected.items() if k.startswith(f"{number}/in/")}
        wanted = {k.split("/", 2)[2]: v for k, v in expected.items() if k.startswith(f"{number}/out/")}
        outputs = graph.run(given)
        for name, value in wanted.items():
            if name not in outputs or outputs[name].shape != value.shape:
                found = tuple(outputs[name].shape) if name in outputs else "nothing"
                raise ParityError(f"output {name}: {found} instead of {tuple(value.shape)}; export it again")
            if not value.numel():
                continue
            differences = (outputs[name].double() - value.double()).abs()
            most = float(differences.max())
            if not most <= worst:  # NaN is the worst
                worst, output = most, name
            total, count = total + float(differences.sum()), count + value.numel()
            largest = max(largest, float(value.double().abs().max()))
    return Difference(worst, total / max(count, 1), largest, output)


def check_difference(part: str, found: Difference, tolerance: float) -> None:
    """Raises ParityError, one line, where it is more than `tolerance` times the largest output."""
    allowed = tolerance * max(1.0, found.largest)
    if not found.max_difference <= allowed:
        raise ParityError(
            f"{part}: its {found.output} differs from torch's by {found.max_difference:.3g}, more than the {allowed:.3g} "
            f"that tolerance={tolerance:g} allows; raise it if that will do, or quantize less"
        )


@dataclass(frozen=True)
class Parity:
    """parity.json.

    Attributes:
        inputs_sha256: of parity.safetensors. tolerance: see `check_difference`. parts: by graph.
        greedy_tokens, greedy_same: how many were written by both, and how many of them, from the first on, are the same;
            None where the model writes nothing.
        versions: of what took part. time: UTC.
    """

    inputs_sha256: str
    tolerance: float
    parts: dict[str, dict]
    greedy_tokens: int | None
    greedy_same: int | None
    versions: dict[str, str]
    time: str


def write_parity(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    tolerance: float,
    parts: Mapping[str, Difference],
    greedy: tuple[int, int] | None,
    packages: tuple[str, ...],
) -> Parity:
    """The record, beside the graphs.

    Args:
        tensors: "PART/…" as in `reference`. greedy: tokens compared, and how many are the same.
    """
    save_file(dict(tensors), folder / TENSORS)
    names = ("hf-ext", "torch", "transformers", *packages)
    record = Parity(
        sha256_of(folder / TENSORS),
        tolerance,
        {name: asdict(found) for name, found in parts.items()},
        *(greedy or (None, None)),
        {name: version(name) for name in names},
        datetime.now(UTC).isoformat(timespec="seconds"),
    )
    (folder / RECORD).write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
    return record


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_record(folder: Path) -> Parity:
    """parity.json.

    Raises:
        ValueError: there is none, or it isn't that of the inputs beside it.
    """
    for name in (RECORD, TENSORS):
        if not (folder / name).is_file():
            raise ValueError(f"folder={str(folder)!r}: has no {name}; export the model again")
    record = Parity(**json.loads((folder / RECORD).read_text(encoding="utf-8")))
    if sha256_of(folder / TENSORS) != record.inputs_sha256:
        raise ParityError(f"{TENSORS}: isn't the one that {RECORD} was written for; export the model again")
    return record


def verify_graphs(folder: str | Path) -> dict[str, Difference]:
    """Run an export's graphs here on the inputs beside them: name -> difference from what torch gave then.

    Raises:
        ValueError: no export, or one without its record, or whose record isn't that of its inputs.
        ParityError: more than the tolerance that it was made with.
    """
    folder = Path(folder)
    description, record = read_description(folder), read_record(folder)
    return compare_parts(folder, description, load_file(folder / TENSORS), record.tolerance)


def compare_parts(
    folder: Path, description: Description, tensors: Mapping[str, torch.Tensor], tolerance: float
) -> dict[str, Difference]:
    """Every graph of a folder against "PART/…" as in `reference`; ParityError where one is outside the tolerance."""
    found = {}
    for name, file in description.parts.items():
        graph = TARGETS[description.target].open(folder / file)
        expected = {k.removeprefix(f"{name}/"): v for k, v in tensors.items() if k.startswith(f"{name}/")}
        found[name] = compare(graph, expected)
        check_difference(name, found[name], tolerance)
    return found
