"""The adapter section of a recipe: train a few weights beside a trained model's (LoRA), which may be held in 8 or 4 bits.

LoRA: W x becomes W x + (alpha / r) B A x with A (r, in) and B (out, r) trained alone; Hu et al. 2021, arXiv 2106.09685,
eq. 3. Over a quantized W it is QLoRA; Dettmers et al. 2023, arXiv 2305.14314, eq. 5. `peft` does the one, optimum-quanto
the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from hf_ext.hub.saved_adapter import BITS
from hf_ext.models.configuration_choices import check_choice


METHODS = ("lora", "dora")
QUANTIZED = (None, *BITS)
TASK_TYPES = {
    AutoModelForCausalLM: "CAUSAL_LM",
    AutoModelForSeq2SeqLM: "SEQ_2_SEQ_LM",
    AutoModelForSequenceClassification: "SEQ_CLS",
    AutoModelForTokenClassification: "TOKEN_CLS",
    AutoModelForQuestionAnswering: "QUESTION_ANS",
}
# whose heads are trained whole: no language model's, which the base has
NEW_HEADS = (AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoModelForQuestionAnswering)


@dataclass
class AdapterArguments:
    """Low-rank weights to train beside those of `model.path`; without `method` all weights are trained."""

    method: str | None = field(default=None, metadata={"help": f"{' or '.join(METHODS)}; null trains all weights."})
    r: int = field(default=8, metadata={"help": "Rank of the trained product."})
    alpha: float = field(default=16.0, metadata={"help": "The product is scaled by alpha / r."})
    dropout: float = field(default=0.0, metadata={"help": "Probability, on what the product reads."})
    target_modules: list[str] | None = field(
        default=None, metadata={"help": "Names of the linear layers that get one. Default: the family's."}
    )
    quantize: str | None = field(
        default=None, metadata={"help": "Hold the other weights in int8 or int4 (QLoRA); null: as they are."}
    )
    merge: bool | None = field(
        default=None,
        metadata={"help": "Add the product into the weights that are saved. Default: yes, unless they are quantized."},
    )

    def __post_init__(self):
        check_choice("adapter.method", self.method, (None, *METHODS))
        check_choice("adapter.quantize", self.quantize, QUANTIZED)
        if self.method is None:
            for name in ("target_modules", "quantize", "merge"):
                if getattr(self, name) is not None:
                    raise ValueError(f"adapter.{name}={getattr(self, name)!r}: has no effect without adapter.method")
        if self.r < 1:
            raise ValueError(f"adapter.r={self.r}: must be at least 1")
        if self.alpha <= 0:
            raise ValueError(f"adapter.alpha={self.alpha}: must be above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"adapter.dropout={self.dropout}: must be at least 0 and below 1")
        if self.method == "dora" and self.quantize:
            raise ValueError(
                f"adapter.method='dora': can't take the norms of {self.quantize} weights; use lora, or leave quantize out"
            )
        if self.merge and self.quantize:
            raise ValueError(f"adapter.merge=True: can't add into {self.quantize} weights; leave one of the two out")

    @property
    def merges(self) -> bool:
        """Whether the saved model has the adapter added into its weights."""
        return self.method is not None and (self.quantize is None if self.merge is None else self.merge)


def add_adapter(model: PreTrainedModel, arguments: AdapterArguments, auto_class, new_tokens: Sequence[int] = ()):
    """`model` with adapters to train and everything else frozen; `model` itself without a method.

    Args:
        auto_class: what the model was built as; its head is trained whole, unless it is a language model's.
        new_tokens: rows of the embeddings that the task has added; they are trained too.

    Raises:
        ValueError: a task that adapters aren't offered for; new tokens, where the adapter is saved alone.
        ImportError: peft or optimum-quanto is missing.
    """
    if arguments.method is None:
        return model
    from peft import LoraConfig, get_peft_model

    if auto_class not in TASK_TYPES:
        raise ValueError(f"adapter.method={arguments.method!r}: not offered for {auto_class.__name__}; leave it out")
    if new_tokens and not arguments.merges:
        field = f"quantize={arguments.quantize!r}" if arguments.quantize else "merge=False"
        raise ValueError(
            f"adapter.{field}: the adapter is saved alone, and its base has no embeddings for tokens that "
            f"the task adds ({len(new_tokens)}); leave it out"
        )
    if arguments.quantize is not None:
        hold_in_few_bits(model, arguments.quantize)
    config = LoraConfig(
        r=arguments.r,
        lora_alpha=arguments.alpha,
        lora_dropout=arguments.dropout,
        target_modules=arguments.target_modules,
        use_dora=arguments.method == "dora",
        task_type=TASK_TYPES[auto_class],
        modules_to_save=heads_of(model) if auto_class in NEW_HEADS else None,
        trainable_token_indices=list(new_tokens) or None,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise ValueError(f"adapter.target_modules={arguments.target_modules}: {str(error).splitlines()[0]}") from error


def heads_of(model: PreTrainedModel) -> list[str]:
    """Names of what stands on the body: peft knows a `classifier`, and not what a family has before it."""
    return [
        name
        for name, child in model.named_children()
        if name != model.base_model_prefix and any(True for _ in child.parameters())
    ]


def hold_in_few_bits(model: PreTrainedModel, bits: str) -> None:
    """Quantize the linear layers of the blocks in place; embeddings and heads stay as they are."""
    from optimum.quanto import freeze, qint4, qint8, quantize

    blocks = ["*layers.*"]
    quantize(model, weights={"int8": qint8, "int4": qint4}[bits], include=blocks)
    freeze(model)
