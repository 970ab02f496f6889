"""Whether an export writes what its model writes: the likeliest tokens one after the other, from one prompt."""

import torch
from transformers import GenerationConfig, PreTrainedModel

from hf_ext.export.exported_generation import HfxExportedModelForCausalLM, HfxExportedModelForSeq2SeqLM


WRITING = {model.task: model for model in (HfxExportedModelForCausalLM, HfxExportedModelForSeq2SeqLM)}
PROMPT_TOKENS = 5
SEED = 1


def prompt_of(vocab_size: int) -> torch.Tensor:
    """(1, 5) int64."""
    return torch.randint(0, vocab_size, (1, PROMPT_TOKENS), generator=torch.Generator().manual_seed(SEED))


@torch.no_grad()
def write(model: PreTrainedModel, prompt: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """(num_tokens,) int64: the tokens after the prompt; an end of text doesn't end it."""
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
        use_cache=True,
        pad_token_id=0,
    )
    if model.config.is_encoder_decoder:
        config.decoder_start_token_id = model.config.decoder_start_token_id
    written = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
    return written[0, -num_tokens:]


def tokens_alike(first: torch.Tensor, second: torch.Tensor) -> int:
    """How many, from the first on, are the same."""
    return int((first == second).long().cumprod(dim=0).sum())
