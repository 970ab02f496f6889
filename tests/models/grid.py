"""One grid for all families: what the tests of any of them run over. A family, and each of its heads, is one entry.

A document is what a model is given alone, without padding: a dict of tensors whose last dim are its tokens, or numbers that
belong to the row. Batches are made of documents, padded or packed, and so the same documents can be asked for whichever way.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from models.variants import DECODER_VARIANTS, ENCODER_DECODER_VARIANTS, ENCODER_VARIANTS
from transformers import PreTrainedModel

from hf_ext.models import (
    HfxDecoderConfig,
    HfxDecoderForCausalLM,
    HfxDecoderForQuestionAnswering,
    HfxDecoderForSequenceClassification,
    HfxDecoderForTokenClassification,
    HfxDecoderModel,
    HfxEncoderConfig,
    HfxEncoderDecoderConfig,
    HfxEncoderDecoderForConditionalGeneration,
    HfxEncoderDecoderForQuestionAnswering,
    HfxEncoderDecoderForSequenceClassification,
    HfxEncoderDecoderModel,
    HfxEncoderForMaskedLM,
    HfxEncoderForMultipleChoice,
    HfxEncoderForQuestionAnswering,
    HfxEncoderForSequenceClassification,
    HfxEncoderForTokenClassification,
    HfxEncoderModel,
)


SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.25,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
ATTENTIONS = ("eager", "sdpa", "hfx_tiled")
NUM_LABELS = 3
LENGTHS = (13, 7, 9, 11)  # tokens of the documents; sliding windows are shorter, and two pairs are of 20 tokens
IGNORED = -100
NOWHERE = 1000  # an answer beyond the window

# fp32: losses of order 5, logits of order 10, gradients of order 0.1 to 10, summed in another order
LOSS = {"atol": 1e-5, "rtol": 1e-5}
LOGITS = {"atol": 2e-5, "rtol": 1e-5}
GRADIENT = {"atol": 2e-5, "rtol": 1e-4}


@dataclass(frozen=True)
class Head:
    """A model class and what a document of n tokens is labelled with.

    Attributes:
        labels: (input_ids (n,), number of the document) -> the further inputs of a training step.
        options: configuration that makes the model this head, such as the problem_type.
        reads_tokens: predicts something for each token, not for the row.
        packs: its loss can be taken over packed rows.
        choices: rows of a document; 0: it is one row.
    """

    model_class: type[PreTrainedModel]
    labels: Callable[[torch.Tensor, int], dict[str, torch.Tensor]] = lambda ids, i: {}
    options: dict = field(default_factory=dict)
    reads_tokens: bool = True
    packs: bool = True
    choices: int = 0


@dataclass(frozen=True)
class Family:
    """A family: its classes by what they do ("body", "text" for a language model, …) and what it is tested on.

    Attributes:
        typical: the variants that short matrices take.
        records: beginning of the names under which it records what is asked of it.
        logits: how close they must be. gradients_in: dtype in which they are compared.
    """

    config_class: type
    heads: dict[str, Head]
    variants: dict[str, dict]
    typical: tuple[str, ...]
    is_causal: bool
    records: str = ""
    logits: dict = field(default_factory=lambda: LOGITS)
    gradients_in: torch.dtype = torch.float32

    def attentions(self, options: dict) -> tuple[str, ...]:
        """The implementations that can compute a variant; that the others refuse is tested with the nonsense."""
        return attentions_for(options)

    def make_config(self, **options):
        return self.config_class(**{**SIZES, **options})

    def make(self, head: str = "text", attention: str | None = None, seed: int = 0, **options) -> PreTrainedModel:
        """A model in eval mode. The same seed gives the same weights whatever the attention."""
        torch.manual_seed(seed)
        config = self.make_config(**{"num_labels": NUM_LABELS, **self.heads[head].options, **options})
        config._attn_implementation = attention
        return stirred(self.heads[head].model_class(config).eval())

    def documents(self, head: str = "text", lengths=LENGTHS) -> list[dict[str, torch.Tensor]]:
        made = []
        for i, n in enumerate(lengths):
            entry = self.heads[head]
            ids = tokens(B=max(entry.choices, 1), T=n, seed=n)
            ids = ids if entry.choices else ids[0]
            made.append({"input_ids": ids, **entry.labels(ids, i)})
        return made


def attentions_for(options: dict) -> tuple[str, ...]:
    """The implementations that can compute a variant; that the others refuse is tested with the nonsense."""
    beyond_sdpa = {"attn_logit_softcapping", "attention_sinks"} & set(options)
    return tuple(a for a in ATTENTIONS if a != "sdpa" or not beyond_sdpa)


def stirred(model: PreTrainedModel) -> PreTrainedModel:
    """`model`, with what starts at zero or one away from there, where a forgotten one could not be told from a small one."""
    for name, parameter in model.named_parameters():
        if name.endswith("sinks"):
            torch.nn.init.normal_(parameter, std=2.0)
        if name.endswith("value_mix"):
            torch.nn.init.uniform_(parameter, 0.3, 1.0)
        if "lambda_" in name:
            torch.nn.init.normal_(parameter, std=0.5)
        if name.endswith("bias") and parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def tokens(B: int = 2, T: int = 13, seed: int = 0) -> torch.Tensor:
    """(B, T) ids without the special ones."""
    return torch.randint(3, SIZES["vocab_size"], (B, T), generator=torch.Generator().manual_seed(seed))


def alone(document: dict) -> dict[str, torch.Tensor]:
    """A batch of one document."""
    return {name: value[None] for name, value in document.items()}


def padded(documents: list[dict], side: str = "right") -> dict[str, torch.Tensor]:
    """A batch of them all, with an attention_mask for each input_ids."""
    batch = {}
    for name in documents[0]:
        values = [d[name] for d in documents]
        if name.endswith("_positions"):  # where an answer begins or ends
            longest = max(d["input_ids"].shape[-1] for d in documents)
            shifts = [longest - d["input_ids"].shape[-1] if side == "left" else 0 for d in documents]
            values = [value + shift for value, shift in zip(values, shifts, strict=True)]
        is_by_token = _is_by_token(name, documents[0])
        batch[name] = _pad(values, IGNORED if "labels" in name else 0, side) if is_by_token else torch.stack(values)
        if name.endswith("input_ids"):
            ones = [torch.ones_like(value) for value in values]
            batch[name.replace("input_ids", "attention_mask")] = _pad(ones, 0, side)
    return batch


def packed(documents: list[dict]) -> dict[str, torch.Tensor]:
    """One row of what belongs to their tokens, with position_ids for each input_ids and no mask."""
    batch = {}
    for name in filter(lambda name: _is_by_token(name, documents[0]), documents[0]):
        batch[name] = torch.cat([d[name] for d in documents], dim=-1)[None]
        if name.endswith("input_ids"):
            positions = [torch.arange(d[name].shape[-1]) for d in documents]
            batch[name.replace("input_ids", "position_ids")] = torch.cat(positions)[None]
    return batch


def packed_in_pairs(documents: list[dict]) -> dict[str, torch.Tensor]:
    """Two rows of two documents each."""
    rows = [packed(documents[:2]), packed(documents[2:])]
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def _is_by_token(name: str, document: dict) -> bool:
    value = document[name]
    return value.ndim > 0 and (name != "labels" or value.shape[-1] in _lengths(document))


def _lengths(document: dict) -> set[int]:
    return {value.shape[-1] for name, value in document.items() if name.endswith("input_ids")}


def _pad(values: list[torch.Tensor], fill: int, side: str) -> torch.Tensor:
    longest = max(value.shape[-1] for value in values)
    room = [longest - value.shape[-1] for value in values]
    sides = [(0, n) if side == "right" else (n, 0) for n in room]
    return torch.stack([torch.nn.functional.pad(value, s, value=fill) for value, s in zip(values, sides, strict=True)])


def asked(document: dict) -> dict[str, torch.Tensor]:
    """The document without what it is labelled with."""
    return {name: value for name, value in document.items() if name.endswith("input_ids")}


def mask_of(batch: dict) -> torch.Tensor:
    """Of a padded batch: which tokens something is said of, (B, T)."""
    return batch.get("decoder_attention_mask", batch["attention_mask"])


def num_items(documents: list[dict]) -> int:
    """What the loss of a batch of them is averaged over."""
    if "start_positions" in documents[0]:
        return sum(int(d["start_positions"] < d["input_ids"].shape[-1]) for d in documents)
    return sum(int((d["labels"] != IGNORED).sum()) for d in documents)


def scores(output) -> torch.Tensor:
    """What a model says: (B, T, ...) by token or (B, ...) by row."""
    if "start_logits" in output:
        return torch.stack((output.start_logits, output.end_logits), dim=-1)
    return output.logits if "logits" in output else output.last_hidden_state


def real(output, head: Head, mask: torch.Tensor | None = None) -> torch.Tensor:
    """The predictions that count, documents in order: (tokens, ...), or (rows, ...)."""
    said = scores(output)
    if not head.reads_tokens:
        return said
    return said.flatten(0, 1) if mask is None else said[mask.bool()]


def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Of all parameters that have one, which are then forgotten."""
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    assert max(g.abs().max() for g in found.values()) > 0.05  # not a flat place where all agree
    return found


def assert_same(got: dict, expected: dict, case: str = "") -> None:
    """Gradients, name by name."""
    assert got.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], **GRADIENT, msg=lambda m, n=name: f"{case} {n}: {m}")


def next_tokens(ids: torch.Tensor, i: int) -> dict:
    labels = ids.clone()
    labels[0] = IGNORED  # no document predicts the first token of the next
    labels[3 : 3 + i] = IGNORED
    return {"labels": labels}


def masked_tokens(ids: torch.Tensor, i: int) -> dict:
    return {"labels": ids.masked_fill(torch.arange(len(ids)) % 3 != i % 3, IGNORED)}


def token_classes(ids: torch.Tensor, i: int) -> dict:
    return {"labels": (ids % NUM_LABELS).masked_fill(torch.arange(len(ids)) == i, IGNORED)}


def answers(ids: torch.Tensor, i: int) -> dict:
    """The last document's isn't there."""
    begins = torch.tensor(i if i < 3 else NOWHERE)
    return {"start_positions": begins, "end_positions": (begins + 2).clamp(max=NOWHERE)}


def several_labels(ids: torch.Tensor, i: int) -> dict:
    return {"labels": (ids[:NUM_LABELS] % 2).float()}


def numbers(ids: torch.Tensor, i: int) -> dict:
    return {"labels": ids[:NUM_LABELS].float() / 50 - 1}


def classification_heads(sequence: type, token: type, question: type) -> dict[str, Head]:
    """What every family has."""
    by_row = {"reads_tokens": False, "packs": False}
    return {
        "sequence": Head(sequence, lambda ids, i: {"labels": ids[0] % NUM_LABELS}, **by_row),
        "several labels": Head(sequence, several_labels, {"problem_type": "multi_label_classification"}, **by_row),
        "numbers": Head(sequence, numbers, {"problem_type": "regression"}, **by_row),
        "token": Head(token, token_classes),
        "question": Head(question, answers, packs=False),
    }


FAMILIES = {
    "decoder": Family(
        config_class=HfxDecoderConfig,
        heads={
            "body": Head(HfxDecoderModel),
            "text": Head(HfxDecoderForCausalLM, next_tokens),
            **classification_heads(
                HfxDecoderForSequenceClassification, HfxDecoderForTokenClassification, HfxDecoderForQuestionAnswering
            ),
        },
        variants=DECODER_VARIANTS,
        typical=("llama", "local and global, softcaps, unit offset norms, scaled embeddings"),
        is_causal=True,
    ),
    "encoder": Family(
        config_class=HfxEncoderConfig,
        heads={
            "body": Head(HfxEncoderModel),
            "text": Head(HfxEncoderForMaskedLM, masked_tokens),
            **classification_heads(
                HfxEncoderForSequenceClassification, HfxEncoderForTokenClassification, HfxEncoderForQuestionAnswering
            ),
            "choice": Head(
                HfxEncoderForMultipleChoice,
                lambda ids, i: {"labels": ids[0, 0] % 2},
                reads_tokens=False,
                packs=False,
                choices=2,
            ),
        },
        variants=ENCODER_VARIANTS,
        typical=(
            "BERT: segments, learned positions, post-norm, biases",
            "ModernBERT: local and global, no first norm, mean, head on tokens",
        ),
        is_causal=False,
    ),
}


def text_of_its_own(ids: torch.Tensor, i: int) -> dict:
    """A target, of another length than the source, and what a decoder reads of it."""
    target = tokens(B=1, T=len(ids) - 2, seed=100 + i)[0]
    before = torch.cat((torch.tensor([0]), target[:-1]))
    return {"decoder_input_ids": before, "labels": target.masked_fill(torch.arange(len(target)) == i, IGNORED)}


_BY_ROW = classification_heads(HfxEncoderDecoderForSequenceClassification, None, HfxEncoderDecoderForQuestionAnswering)
# with the one whose heads read one sequence or two: more than a document of tokens is asked of it
ALL_FAMILIES = {
    **FAMILIES,
    "encoder-decoder": Family(
        config_class=HfxEncoderDecoderConfig,
        heads={
            "body": Head(HfxEncoderDecoderModel, text_of_its_own),
            "text": Head(HfxEncoderDecoderForConditionalGeneration, text_of_its_own),
            **{name: head for name, head in _BY_ROW.items() if name != "token"},
        },
        variants={
            name: {"encoder_layers": 3, **options}
            for name, options in ENCODER_DECODER_VARIANTS.items()
            if "encoder_vocab_size" not in options  # which the grid's tokens are not of
        },
        typical=("BART: learned positions", "T5: relative, scaled output, untied"),
        is_causal=True,
        records="decoder_",
        logits={"atol": 5e-5, "rtol": 1e-5},  # sums of five layers, where the others have two
        gradients_in=torch.float64,  # likewise: in fp32 they are 2e-4 of 10 off, rounding alone
    ),
}


def trained_heads(family: str) -> list[str]:
    """Those with a loss."""
    return [head for head in ALL_FAMILIES[family].heads if head != "body"]


def cases(*further: str, families: dict[str, Family] = FAMILIES) -> list:
    """Parameters (family, name of a variant, attention): all with `make test-full`; else one attention a variant, in turn.

    Args:
        further: implementations beside `ATTENTIONS`.
    """
    made = []
    for family, entry in families.items():
        for i, (name, options) in enumerate(entry.variants.items()):
            able = (*entry.attentions(options), *(a for a in further if not is_without(a, options)))
            for attention in able:
                marks = [] if attention == able[i % len(able)] else [pytest.mark.full]
                made.append(pytest.param(family, name, attention, id=f"{family}: {name} ({attention})", marks=marks))
    return made


def typical_heads(families: dict[str, Family] = FAMILIES) -> list:
    """Parameters (family, name of a variant, head), heads that have a loss."""
    return [
        pytest.param(family, name, head, id=f"{family}: {head} ({name.split(':')[0].split(',')[0]})")
        for family, entry in families.items()
        for head in trained_heads(family)
        for name in entry.typical
    ]


def is_without(attention: str, options: dict) -> bool:
    """Whether an implementation beside `ATTENTIONS` is not asked for these options on a CPU."""
    return attention == "flex_attention" and bool(options.get("attention_sinks"))
