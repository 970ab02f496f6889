"""Evaluation by what a model writes: texts generated for prompts, and what metrics say of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedTokenizerBase
from transformers.utils import logging


logger = logging.get_logger(__name__)


@dataclass
class TextEvaluation:
    """What to write when evaluating, and how it is scored.

    Attributes:
        prompts: token ids, one list a text: the encoder's input, or what a decoder goes on from.
        score: (texts in the order of the prompts) -> metrics by name.
        generation: how to write; its `num_return_sequences` must be 1.
        batch_size: prompts at a time.
        logits_processor: what else has a say in the next token; of transformers, or one that a task has.
        texts: what was written last.
    """

    prompts: Sequence[Sequence[int]]
    score: Callable[[list[str]], dict[str, float]]
    generation: GenerationConfig
    batch_size: int = 32
    logits_processor: LogitsProcessorList | None = None
    texts: list[str] | None = None

    def __call__(
        self, model, tokenizer, *, share: tuple[int, int] = (0, 1), gather: Callable = list
    ) -> dict[str, float]:
        """Write and score.

        Args:
            share: (number of this process, processes); each writes the prompts whose index is its number modulo them.
            gather: what this process wrote -> what all wrote, process by process.
        """
        number, processes = share
        mine = range(number, len(self.prompts), processes)
        written = write_texts(
            model,
            tokenizer,
            [self.prompts[i] for i in mine],
            self.generation,
            batch_size=self.batch_size,
            logits_processor=self.logits_processor,
        )
        written = gather(list(zip(mine, written, strict=True)))
        self.texts = [text for _, text in sorted(written)]
        return self.score(self.texts)


@torch.no_grad()
def write_texts(
    model,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    generation: GenerationConfig,
    *,
    batch_size: int = 32,
    logits_processor: LogitsProcessorList | None = None,
) -> list:
    """What a model writes for each prompt, in their order: a text, or a list of `num_return_sequences` texts.

    Prompts of like length go together, the longest first: little padding, and memory that doesn't suffice shows at once. An
    encoder-decoder's are padded on the right, a decoder's on the left; special tokens are left out of the texts.

    Raises:
        ValueError: an empty prompt.
    """
    for index, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompts: number {index} is empty; give at least one token")
    was_training = model.training
    model.eval()
    returned = generation.num_return_sequences or 1
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    texts = [None] * len(prompts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        inputs = _padded([prompts[i] for i in chosen], tokenizer.pad_token_id, left=not model.config.is_encoder_decoder)
        inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
        output = model.generate(**inputs, generation_config=generation, logits_processor=logits_processor)
        if not model.config.is_encoder_decoder:
            output = output[:, inputs["input_ids"].shape[1] :]
        written = tokenizer.batch_decode(output, skip_special_tokens=True)
        for place, index in enumerate(chosen):
            own = written[place * returned : (place + 1) * returned]
            texts[index] = own if returned > 1 else own[0]
    model.train(was_training)
    return texts


def _padded(prompts: list[Sequence[int]], pad_token_id: int, *, left: bool) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask`, (B, T) int64."""
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad_token_id)
    mask = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        place = slice(longest - len(prompt), longest) if left else slice(0, len(prompt))
        ids[row, place] = torch.as_tensor(prompt)
        mask[row, place] = 1
    return {"input_ids": ids, "attention_mask": mask}
