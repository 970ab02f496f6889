"""What a trained language model writes: a text gone on with, masks filled in, or an output for an input."""

from dataclasses import dataclass, field

import torch
from transformers import GenerationConfig, set_seed


@dataclass
class SampleArguments:
    """Texts to write once the model is trained."""

    prompts: list[str] = field(
        default_factory=list,
        metadata={"help": "Beginnings to go on from; texts with mask tokens, or inputs, where the model is for these."},
    )
    max_new_tokens: int = field(default=100, metadata={"help": "Tokens to write for each."})
    temperature: float = field(default=0.8, metadata={"help": "Of the softmax that tokens are drawn from."})
    top_k: int = field(default=50, metadata={"help": "Draw among the so many likeliest; 0 for all."})
    top_p: float = field(default=0.95, metadata={"help": "Draw among the likeliest that hold so much probability."})

    def __post_init__(self):
        if not all(self.prompts):
            raise ValueError("samples.prompts: one is empty; give at least a character to go on from")
        if self.max_new_tokens < 1:
            raise ValueError(f"samples.max_new_tokens={self.max_new_tokens}: must be at least 1")
        if self.temperature <= 0:
            raise ValueError(f"samples.temperature={self.temperature}: must be above 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"samples.top_p={self.top_p}: must be above 0 and at most 1")
        if self.top_k < 0:
            raise ValueError(f"samples.top_k={self.top_k}: must not be negative")


@torch.no_grad()
def write_samples(
    model, tokenizer, arguments: SampleArguments, *, seed: int, sees_prefix: bool = False
) -> list[dict[str, str]]:
    """What the model makes of each prompt: [{"prompt", "text"}]; the same seed gives the same texts.

    Args:
        sees_prefix: whether it reads the prompt in both directions, as a prefix language model does.
    """
    model.eval()
    if not model.can_generate():
        return [{"prompt": prompt, "text": fill_masks(model, tokenizer, prompt)} for prompt in arguments.prompts]
    config = GenerationConfig(
        max_new_tokens=arguments.max_new_tokens,
        do_sample=True,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
    )
    samples = []
    for prompt in arguments.prompts:
        set_seed(seed)
        inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
        prefix = {"prefix_mask": inputs.attention_mask.bool()} if sees_prefix else {}
        output = model.generate(
            inputs.input_ids, attention_mask=inputs.attention_mask, generation_config=config, **prefix
        )[0]
        if model.config.is_encoder_decoder:  # sentinels say which span a text belongs to
            ends = (tokenizer.pad_token, tokenizer.eos_token)
            text = tokenizer.decode([token for token in output.tolist() if tokenizer.decode(token) not in ends])
        else:
            text = tokenizer.decode(output[inputs.input_ids.shape[1] :], skip_special_tokens=True)
        samples.append({"prompt": prompt, "text": text})
    return samples


@torch.no_grad()
def fill_masks(model, tokenizer, text: str) -> str:
    """The likeliest token for each mask of the text, joined by " | "; where there is none, for one after its end."""
    if tokenizer.mask_token not in text:
        text += tokenizer.mask_token
    inputs = tokenizer(text, return_tensors="pt").to(model.device)
    logits = model(inputs.input_ids, attention_mask=inputs.attention_mask).logits
    found = logits[inputs.input_ids == tokenizer.mask_token_id].argmax(dim=-1)
    return " | ".join(tokenizer.decode(token) for token in found.tolist())
