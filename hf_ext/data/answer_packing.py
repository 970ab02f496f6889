"""Pack prompts with their answers into rows for a decoder, in which only the answers are learnt and examples stay apart.

An example is a prompt and the answer that goes on from it, one segment: position ids restart at 0 with every prompt, and the
attention reads the borders from them (`attention_mask=None`). Labels are the answer's tokens and -100 elsewhere:

    L = -(1/N) * sum over examples, over t in the answer, of log p(x[t] | prompt, x[.. t-1] of the answer)
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

from hf_ext.data.packing import IGNORED_LABEL, best_fit


def pack_answers(
    examples: Iterable[Mapping[str, Sequence[int]]],
    *,
    row_length: int,
    packing: bool = True,
    learn_prompts: bool = False,
    buffer_size: int = 1000,
) -> Iterator[dict[str, list[int]]]:
    """Yield rows `{"input_ids", "position_ids", "labels"}` of at most `row_length` tokens, as `CausalCollator` takes them.

    Whole examples only: among `buffer_size` of them the longest come first, each into the row with the least space that
    still holds it (best fit). Nothing is padded here, the collator does that. In memory: `buffer_size` examples.

    Args:
        examples: `prompt` and `answer`, token ids; the answer with its end token.
        packing: False gives each example a row of its own.
        learn_prompts: the prompts are predicted too, from their second token on.

    Raises:
        ValueError: a size below 1, at the call; an empty side, or an example that no row holds, when it is reached.
    """
    for name, size in (("row_length", row_length), ("buffer_size", buffer_size)):
        if size < 1:
            raise ValueError(f"{name}: {size} must be at least 1")
    return _packed(iter(examples), row_length, packing, learn_prompts, buffer_size)


def _packed(
    examples: Iterator[Mapping], row_length: int, packing: bool, learn_prompts: bool, buffer_size: int
) -> Iterator[dict]:
    first = 0
    while buffer := list(islice(examples, buffer_size)):
        lengths = [_checked_length(example, number, row_length) for number, example in enumerate(buffer, start=first)]
        first += len(buffer)
        rows = best_fit(lengths, row_length) if packing else [[number] for number in range(len(buffer))]
        for row in rows:
            yield _row([buffer[number] for number in row], learn_prompts)


def _checked_length(example: Mapping, number: int, row_length: int) -> int:
    for side in ("prompt", "answer"):
        if len(example[side]) == 0:
            raise ValueError(f"{side}: of example {number} is empty; drop the example")
    length = len(example["prompt"]) + len(example["answer"])
    if length > row_length:
        raise ValueError(
            f"row_length: {row_length} is below the {length} tokens of example {number}; drop the example or raise it"
        )
    return length


def _row(examples: list[Mapping], learn_prompts: bool) -> dict[str, list[int]]:
    row = {"input_ids": [], "position_ids": [], "labels": []}
    for example in examples:
        prompt, answer = list(example["prompt"]), list(example["answer"])
        # a prompt's first token would have to be predicted by the example before
        learnt = [IGNORED_LABEL, *prompt[1:]] if learn_prompts else [IGNORED_LABEL] * len(prompt)
        row["input_ids"] += prompt + answer
        row["position_ids"] += range(len(prompt) + len(answer))
        row["labels"] += learnt + answer
    return row
