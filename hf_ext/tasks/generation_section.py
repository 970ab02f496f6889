"""The generation section of a recipe: how a model writes when it is evaluated, and what it is saved with."""

import dataclasses
from dataclasses import dataclass, field

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class GenerationArguments:
    """How texts are written: by beam search, greedily, or drawn."""

    max_new_tokens: int = field(default=128, metadata={"help": "Tokens to write at most."})
    min_new_tokens: int | None = field(default=None, metadata={"help": "Tokens to write at least."})
    num_beams: int = field(default=1, metadata={"help": "Beams of the search; 1 is greedy."})
    length_penalty: float | None = field(
        default=None, metadata={"help": "With beams: log-likelihoods are divided by length to this power. Default: 1."}
    )
    no_repeat_ngram_size: int = field(
        default=0, metadata={"help": "So many tokens in a row stand once only; 0: may repeat."}
    )
    repetition_penalty: float = field(
        default=1.0, metadata={"help": "Scores of tokens that were written are divided by it."}
    )
    do_sample: bool = field(default=False, metadata={"help": "Draw instead of taking the likeliest."})
    temperature: float | None = field(default=None, metadata={"help": "Drawing: of the softmax. Default: 1."})
    top_k: int | None = field(default=None, metadata={"help": "Drawing: among the so many likeliest. Default: all."})
    top_p: float | None = field(default=None, metadata={"help": "Drawing: among those that hold so much. Default: 1."})
    min_p: float | None = field(
        default=None, metadata={"help": "Drawing: among those at least so likely, as a share of the likeliest."}
    )
    batch_size: int = field(default=32, metadata={"help": "Prompts at a time."})

    def __post_init__(self):
        for name in ("max_new_tokens", "min_new_tokens", "num_beams", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"generation.{name}={value}: must be at least 1")
        if (self.min_new_tokens or 0) > self.max_new_tokens:
            raise ValueError(
                f"generation.min_new_tokens={self.min_new_tokens}: above max_new_tokens={self.max_new_tokens}; lower it"
            )
        if self.length_penalty is not None and self.num_beams == 1:
            raise ValueError(
                f"generation.length_penalty={self.length_penalty}: has no effect without num_beams above 1"
            )
        for name in ("temperature", "top_k", "top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not self.do_sample:
                raise ValueError(f"generation.{name}={value}: has no effect without do_sample: true; leave it out")
            if value is not None and value <= 0:
                raise ValueError(f"generation.{name}={value}: must be above 0")
        for name in ("top_p", "min_p"):
            if (getattr(self, name) or 0) > 1:
                raise ValueError(f"generation.{name}={getattr(self, name)}: must be at most 1")
        if self.no_repeat_ngram_size < 0:
            raise ValueError(f"generation.no_repeat_ngram_size={self.no_repeat_ngram_size}: must not be negative")
        if self.repetition_penalty <= 0:
            raise ValueError(f"generation.repetition_penalty={self.repetition_penalty}: must be above 0")

    def config(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **changes) -> GenerationConfig:
        """transformers' own; `changes` are fields of it."""
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "batch_size"}
        if self.do_sample:  # transformers cuts at 50 by default
            given["top_k"] = self.top_k or 0
        given |= {
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "decoder_start_token_id": getattr(model.config, "decoder_start_token_id", None),
        }
        return GenerationConfig(**{name: value for name, value in (given | changes).items() if value is not None})
