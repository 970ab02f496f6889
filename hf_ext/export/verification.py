"""An export checked again where it is: the numbers that torch gave, and the tokens that it wrote."""

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from hf_ext.export.exported_folder import read_description
from hf_ext.export.greedy_text import WRITING, tokens_alike, write
from hf_ext.export.parity import TENSORS, Difference, ParityError, read_record, verify_graphs


@dataclass(frozen=True)
class Verified:
    """differences: by graph. greedy_tokens, greedy_same: as in parity.json."""

    differences: dict[str, Difference]
    greedy_tokens: int | None
    greedy_same: int | None


def verify(folder: str | Path) -> Verified:
    """Run an export on the inputs beside it.

    Raises:
        ValueError: see `verify_graphs`.
        ParityError: other numbers, or other tokens than when it was made.
    """
    folder = Path(folder)
    description, differences = read_description(folder), verify_graphs(folder)
    if description.task not in WRITING:
        return Verified(differences, None, None)
    record, tensors = read_record(folder), load_file(folder / TENSORS)
    model = WRITING[description.task].from_pretrained(folder)
    expected = tensors["greedy/out/tokens"]
    same = tokens_alike(write(model, tensors["greedy/in/input_ids"], len(expected)), expected)
    if same < (record.greedy_same or 0):
        raise ParityError(
            f"greedy text: {same} of {len(expected)} tokens are torch's here, {record.greedy_same} were when it was made; "
            "export the model again with the versions that are installed"
        )
    return Verified(differences, len(expected), same)
