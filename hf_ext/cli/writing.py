"""Text as a model writes it, printed token by token."""

import torch
from transformers import TextStreamer, set_seed

from hf_ext.cli.loading import encode


def write(
    model, tokenizer, prompt, *, seed: int, max_new_tokens: int, streamed: bool, num_beams: int = 1, **choice
) -> str:
    """Print what the model writes, and return it.

    Args:
        prompt: a text, or token ids that a chat template made, 1 x tokens. streamed: print it while it is written, which a
            search by beams can't be. choice: further arguments of `generate`.

    Raises:
        ValueError: the prompt and what may be written don't fit into the model.
    """
    given = encode(tokenizer, prompt, return_tensors="pt") if isinstance(prompt, str) else prompt
    inputs = {name: given[name].to(model.device) for name in ("input_ids", "attention_mask") if name in given}
    length = inputs["input_ids"].shape[1]
    config = model.config
    room = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not length:
        raise ValueError("prompt: holds no token; give a text")
    needed = max(length, max_new_tokens) if config.is_encoder_decoder else length + max_new_tokens
    if isinstance(room, int) and needed > room:
        raise ValueError(
            f"prompt of {length:,} tokens, --max_new_tokens {max_new_tokens:,}: the model has {room:,} positions; cut one"
        )
    set_seed(seed)
    beams = num_beams > 1
    streamer = None
    if streamed and not beams:
        streamer = TextStreamer(tokenizer, skip_prompt=not config.is_encoder_decoder, skip_special_tokens=True)
    with torch.no_grad():
        output = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            streamer=streamer,
            **({} if tokenizer.pad_token_id is None else {"pad_token_id": tokenizer.pad_token_id}),
            **choice,
        )[0]
    text = tokenizer.decode(output if config.is_encoder_decoder else output[length:], skip_special_tokens=True)
    if streamer is None:
        print(text)
    return text
