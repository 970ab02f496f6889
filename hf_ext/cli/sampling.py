"""The options by which text is chosen, as `generate` and `chat` have them."""

from typing import Annotated

import typer


MaxNewTokens = Annotated[int, typer.Option("--max_new_tokens", min=1, help="Tokens to write at most.")]
Temperature = Annotated[
    float | None, typer.Option("--temperature", min=0.0, help="Draw by probabilities ** (1 / temperature); 0: greedy.")
]
TopK = Annotated[int | None, typer.Option("--top_k", min=1, help="Draw among so many of the likeliest tokens.")]
TopP = Annotated[
    float | None, typer.Option("--top_p", min=0.0, max=1.0, help="Draw among the likeliest that have this probability.")
]
MinP = Annotated[
    float | None,
    typer.Option("--min_p", min=0.0, max=1.0, help="Leave out what is less likely than this share of the best."),
]
RepetitionPenalty = Annotated[
    float | None, typer.Option("--repetition_penalty", min=0.01, help="Above 1: against tokens that are there already.")
]
Seed = Annotated[int, typer.Option("--seed", help="Of the draws.")]


def sampling_options(
    *,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float | None,
) -> dict:
    """Arguments of `generate`: greedy, or drawn where an option for drawing is given.

    Raises:
        ValueError: temperature 0 with another option for drawing.
    """
    drawing = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
    drawing = {name: value for name, value in drawing.items() if value is not None}
    if temperature == 0 and drawing:
        name = next(iter(drawing))
        raise ValueError(
            f"--{name}: has no effect with --temperature 0, which takes the likeliest token; leave one out"
        )
    options = {} if repetition_penalty is None else {"repetition_penalty": repetition_penalty}
    if temperature == 0 or (temperature is None and not drawing):
        return {**options, "do_sample": False}
    # top_k is 50 where generation isn't told; what wasn't asked for is off
    return {
        **options,
        "do_sample": True,
        "temperature": 1.0 if temperature is None else temperature,
        "top_k": 0,
        **drawing,
    }
