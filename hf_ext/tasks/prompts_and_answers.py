"""Prompts and the answers that go on from them: how any task that a decoder learns by writing makes its rows.

A row of two texts becomes token ids of a prompt and of an answer, and these become rows for training in which the loss is
on the answers only (supervised fine-tuning). A prompt is tokenized by itself, here as when the model is asked, so that
both times it is the same tokens whatever the answer begins with.
"""

from dataclasses import dataclass, field

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from hf_ext.data import pack_answers
from hf_ext.models.configuration_choices import check_choice


logger = logging.get_logger(__name__)

FORMATS = ("plain", "chat")
LEARNT = ("answer", "all")
# who speaks; a tokenizer trained here has a token for each
CHAT_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass
class PromptArguments:
    """How texts become prompts and answers, and these rows."""

    format: str = field(
        default="plain",
        metadata={"help": "plain (the template) or chat (the tokenizer's chat template; a new tokenizer gets one)."},
    )
    template: str | None = field(
        default=None,
        metadata={"help": "With plain: the prompt, {prompt} in it is the text. Default: {prompt} and a line break."},
    )
    system: str | None = field(
        default=None, metadata={"help": "With chat: what the system says first; default nothing."}
    )
    loss_on: str = field(default="answer", metadata={"help": "What is learnt: answer, or all (the prompts too)."})
    packing: bool = field(
        default=True, metadata={"help": "Several whole examples a row, each by itself to the model; else one a row."}
    )
    row_length: int | None = field(
        default=None, metadata={"help": "Tokens a row at most. Default: what the model reads at most."}
    )

    def __post_init__(self):
        check_choice("prompts.format", self.format, FORMATS)
        check_choice("prompts.loss_on", self.loss_on, LEARNT)
        if self.template is not None and self.format == "chat":
            raise ValueError(f"prompts.template={self.template!r}: has no effect with format 'chat'; leave it out")
        if self.system is not None and self.format == "plain":
            raise ValueError(f"prompts.system={self.system!r}: has no effect with format 'plain'; leave it out")
        if self.template is not None and self.template.count("{prompt}") != 1:
            raise ValueError(f"prompts.template={self.template!r}: must have {{prompt}} once, where the text goes")
        if self.row_length is not None and self.row_length < 2:
            raise ValueError(f"prompts.row_length={self.row_length}: must be at least 2")

    @property
    def special_tokens(self) -> dict:
        """What a new tokenizer is trained with; arguments of `train_tokenizer`."""
        return {"extra_tokens": CHAT_TOKENS} if self.format == "chat" else {}

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Give the tokenizer the chat template that is asked for, where it has none.

        Raises:
            ValueError: it has neither a template nor the tokens of ours, or no end token.
        """
        if tokenizer.eos_token is None:
            raise ValueError("tokenizer: it has no eos_token, which ends an answer; set tokenizer.eos_token")
        if self.format == "chat" and tokenizer.chat_template is None:
            if missing := [token for token in CHAT_TOKENS if token not in tokenizer.get_vocab()]:
                raise ValueError(
                    f"prompts.format='chat': the tokenizer has no chat template and no token {missing[0]}; use 'plain'"
                )
            tokenizer.chat_template = CHAT_TEMPLATE

    def prompt(self, tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
        """Token ids of the prompt for a text, as they are learnt and asked."""
        if self.format == "plain":
            return tokenizer(self.prompt_text(text), add_special_tokens=False)["input_ids"]
        said = [] if self.system is None else [{"role": "system", "content": self.system}]
        said.append({"role": "user", "content": text})
        return tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=False)

    def prompt_text(self, text: str) -> str:
        """With plain: what the model reads."""
        return (self.template or "{prompt}\n").replace("{prompt}", text)


def tokenize(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    arguments: PromptArguments,
    *,
    where: str,
    columns: tuple[str, str] = ("prompt", "answer"),
) -> Dataset:
    """`prompt` and `answer`, token ids, the answer with its end token; order and number stay.

    Args:
        where: the split, for errors. columns: what holds the texts.

    Raises:
        ValueError: an empty text, or one with a special token in it, which would forge a border.
    """

    def convert(row: dict, number: int) -> dict:
        for column in columns:
            text = row[column]
            if not (text or "").strip():
                raise ValueError(f"{column}: row {number} of {where} is empty; remove it")
            if forged := [token for token in tokenizer.all_special_tokens if token in text]:
                raise ValueError(f"{column}: row {number} of {where} holds the special token {forged[0]}; remove it")
        prompt, answer = (row[column] for column in columns)
        answer_ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
        return {"prompt": arguments.prompt(tokenizer, prompt), "answer": [*answer_ids, tokenizer.eos_token_id]}

    return rows.map(convert, with_indices=True, remove_columns=rows.column_names, desc=f"tokens of {where}")


def training_rows(examples: Dataset, arguments: PromptArguments, max_length: int, where: str) -> Dataset:
    """Rows for training and for the held-out loss: `input_ids`, `position_ids`, `labels`, for `CausalCollator`.

    Examples longer than a row are left out, and a warning says how many: a cut answer would lack its end.

    Args:
        examples: from `tokenize`. max_length: what the model reads at most.

    Raises:
        ValueError: no example fits.
    """
    row_length = min(arguments.row_length or max_length, max_length)
    fits = [len(prompt) + len(answer) <= row_length for prompt, answer in zip(*examples[:].values(), strict=True)]
    if not any(fits):
        raise ValueError(f"prompts.row_length={row_length}: every example of {where} is longer; raise it")
    if not all(fits):
        logger.warning(
            f"prompts.row_length={row_length}: {fits.count(False)} of {len(fits)} examples of {where} are longer and left "
            "out"
        )
    kept = examples.select([number for number, fit in enumerate(fits) if fit])
    packed = pack_answers(
        kept, row_length=row_length, packing=arguments.packing, learn_prompts=arguments.loss_on == "all"
    )
    return Dataset.from_list(list(packed))
