"""`hf-ext generate`: what a model writes after a prompt, while it writes it."""

import sys
from typing import Annotated

import typer

from hf_ext.cli import sampling
from hf_ext.cli.loading import Attention, Base, Device, Dtype, ModelName, Revision, Trust
from hf_ext.cli.working import work


EXAMPLE = """Example:

  hf-ext generate outputs/quickstart "import os" --max_new_tokens 50 --temperature 0.8 --top_p 0.9

  echo "import os" | hf-ext generate outputs/quickstart
"""


def add_to(app: typer.Typer) -> None:
    app.command("generate", epilog=EXAMPLE)(generate)


def generate(
    model: ModelName,
    prompt: Annotated[str | None, typer.Argument(help="The text; default what stdin says.")] = None,
    max_new_tokens: sampling.MaxNewTokens = 100,
    temperature: sampling.Temperature = None,
    top_k: sampling.TopK = None,
    top_p: sampling.TopP = None,
    min_p: sampling.MinP = None,
    repetition_penalty: sampling.RepetitionPenalty = None,
    num_beams: Annotated[int, typer.Option("--num_beams", min=1, help="Beams of a search; printed at the end.")] = 1,
    seed: sampling.Seed = 0,
    with_prompt: Annotated[bool, typer.Option("--with_prompt", help="Print the prompt before it.")] = False,
    base: Base = None,
    attn_implementation: Attention = None,
    dtype: Dtype = None,
    device: Device = None,
    revision: Revision = None,
    trust_remote_code: Trust = False,
) -> None:
    """Write on after a prompt (a decoder), or what it becomes (an encoder-decoder), printed as it is written.

    Greedy, unless an option for drawing is given.
    """

    choice = sampling.sampling_options(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty
    )
    text = sys.stdin.read().removesuffix("\n") if prompt is None else prompt
    if not text:
        raise ValueError("prompt: is empty; give a text, as an argument or on stdin")

    def do() -> None:
        from hf_ext.cli.loading import config_source, load_model, load_tokenizer, writing_class
        from hf_ext.cli.writing import write
        from hf_ext.hub.model_source import find_model

        source = find_model(model, revision, trust_remote_code=trust_remote_code)
        auto_class = writing_class(config_source(source, base).config(), model, trusted=trust_remote_code)
        tokenizer = load_tokenizer(source)
        loaded = load_model(
            source, auto_class, base=base, dtype=dtype, device=device, attn_implementation=attn_implementation
        )
        if with_prompt:
            print(text, end="", flush=True)
        write(
            loaded,
            tokenizer,
            text,
            seed=seed,
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            streamed=True,
            **choice,
        )

    work(do)
