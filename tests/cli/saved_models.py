"""Tiny models on disk, for the command line to load."""

from pathlib import Path

import torch

from hf_ext import HfxDecoderConfig, HfxDecoderForCausalLM
from hf_ext.data import TOKENIZER_KINDS, train_tokenizer


TEXT = "import os\n\ndef first(items):\n    return items[0]\n"
CHAT_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def tiny_tokenizer():
    """Byte-level BPE of 300 tokens at most."""
    texts = iter([TEXT] * 20)
    return train_tokenizer(texts, kind=TOKENIZER_KINDS[0], vocab_size=300, min_frequency=2, model_max_length=64)


def save_tiny_decoder(folder: Path, chat_template: str | None = None) -> Path:
    """A decoder of one layer with its tokenizer, without code beside it."""
    tokenizer = tiny_tokenizer()
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    torch.manual_seed(0)
    config = HfxDecoderConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    HfxDecoderForCausalLM(config).save_pretrained(folder, bundle=False)
    tokenizer.save_pretrained(folder)
    return folder
