"""`hf-ext chat`: a conversation, by the template that the tokenizer brings."""

import sys
from typing import Annotated

import typer

from hf_ext.cli import sampling
from hf_ext.cli.loading import Attention, Base, Device, Dtype, ModelName, Revision, Trust
from hf_ext.cli.working import work


EXAMPLE = """Example:

  hf-ext chat outputs/assistant --system "Answer in one sentence." --temperature 0.7

  /new begins a new conversation, /exit (or the end of the input) ends.
"""


def add_to(app: typer.Typer) -> None:
    app.command("chat", epilog=EXAMPLE)(chat)


def chat(
    model: ModelName,
    system: Annotated[
        str | None, typer.Option("--system", help="What the model is told before the conversation.")
    ] = None,
    max_new_tokens: sampling.MaxNewTokens = 256,
    temperature: sampling.Temperature = None,
    top_k: sampling.TopK = None,
    top_p: sampling.TopP = None,
    min_p: sampling.MinP = None,
    repetition_penalty: sampling.RepetitionPenalty = None,
    seed: sampling.Seed = 0,
    base: Base = None,
    attn_implementation: Attention = None,
    dtype: Dtype = None,
    device: Device = None,
    revision: Revision = None,
    trust_remote_code: Trust = False,
) -> None:
    """Talk with a model: each line is a turn, and the model reads the whole conversation by its chat template."""

    def do() -> None:
        choice = sampling.sampling_options(
            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty
        )
        from hf_ext.cli.chat_template import prompt_of
        from hf_ext.cli.loading import config_source, load_model, load_tokenizer, writing_class
        from hf_ext.cli.writing import write
        from hf_ext.hub.model_source import find_model

        source = find_model(model, revision, trust_remote_code=trust_remote_code)
        tokenizer = load_tokenizer(source)
        if not tokenizer.chat_template:
            raise ValueError(
                f"{model}: its tokenizer has no chat template; use hf-ext generate, or set one and save it"
            )
        auto_class = writing_class(config_source(source, base).config(), model, trusted=trust_remote_code)
        loaded = load_model(
            source, auto_class, base=base, dtype=dtype, device=device, attn_implementation=attn_implementation
        )
        start = [] if system is None else [{"role": "system", "content": system}]
        turns = list(start)
        for line in _lines():
            if line in ("/exit", "/quit"):
                return
            if line == "/new":
                turns = list(start)
                continue
            if not line.strip():
                continue
            turns.append({"role": "user", "content": line})
            prompt = prompt_of(tokenizer, turns)
            answer = write(
                loaded,
                tokenizer,
                prompt,
                seed=seed + len(turns),
                max_new_tokens=max_new_tokens,
                streamed=True,
                **choice,
            )
            turns.append({"role": "assistant", "content": answer.strip()})

    work(do)


def _lines():
    """What the user says, line by line, after a sign where a person sits at the terminal."""
    is_person = sys.stdin.isatty()
    while True:
        if is_person:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        yield line.rstrip("\n")
