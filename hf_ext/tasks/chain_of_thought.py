"""Chain of thought: questions answered in worked steps that end in a number, by a decoder.

What `recipes/chain_of_thought/train.py` puts together: learning from worked answers alone, prompts masked
(`prompts_and_answers`); answers written greedily, and several drawn that vote (self-consistency); sums computed while
they are written (`calculator`).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from datasets import Dataset
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from hf_ext.data import RowArguments
from hf_ext.metrics import compute, extract_answer, majority_answer
from hf_ext.tasks.adapter_section import AdapterArguments
from hf_ext.tasks.calculator import Calculator
from hf_ext.tasks.generation_section import GenerationArguments
from hf_ext.tasks.prompts_and_answers import PromptArguments
from hf_ext.tasks.tokenizer_section import TokenizerArguments
from hf_ext.training.arguments import HfxTrainingArguments
from hf_ext.training.text_evaluation import TextEvaluation, write_texts


COLUMNS = ("question", "answer")
HEADLINE = ("answer_accuracy",)


@dataclass
class AnswerArguments:
    """How answers are helped along and read."""

    calculator: bool = field(
        default=False,
        metadata={"help": "Compute what follows `<<48/2=` while it is written, instead of letting the model guess."},
    )
    fallback: bool = field(
        default=False, metadata={"help": "Take the last number of an answer without `####`; else it has no answer."}
    )


@dataclass
class VotingArguments:
    """Several answers drawn for each question; the number that most of them end in is the answer."""

    num_samples: int = field(default=0, metadata={"help": "Answers drawn for each question; 0: no vote."})
    temperature: float = field(default=0.7, metadata={"help": "Of the softmax that tokens are drawn from."})
    top_k: int = field(default=40, metadata={"help": "Draw among the so many likeliest; 0 for all."})
    top_p: float = field(default=1.0, metadata={"help": "Draw among the likeliest that hold so much probability."})

    def __post_init__(self):
        if self.num_samples < 0 or self.num_samples == 1:
            raise ValueError(
                f"voting.num_samples={self.num_samples}: one vote is no vote; give at least 2, or 0 for none"
            )
        if self.temperature <= 0:
            raise ValueError(f"voting.temperature={self.temperature}: must be above 0")
        if self.top_k < 0:
            raise ValueError(f"voting.top_k={self.top_k}: must not be negative")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"voting.top_p={self.top_p}: must be above 0 and at most 1")


SECTIONS = {
    "model": dict,
    "tokenizer": TokenizerArguments,
    "data": RowArguments,
    "prompts": PromptArguments,
    "generation": GenerationArguments,
    "answers": AnswerArguments,
    "voting": VotingArguments,
    "adapter": AdapterArguments,
    "training": HfxTrainingArguments,
}


def texts(rows: Dataset):
    """All texts, for a tokenizer to learn from."""
    for column in COLUMNS:
        yield from (text for text in rows[column] if text)


def processors(arguments: AnswerArguments, tokenizer: PreTrainedTokenizerBase) -> LogitsProcessorList:
    return LogitsProcessorList([Calculator(tokenizer)] if arguments.calculator else [])


def evaluation(
    examples: Dataset,
    rows: Dataset,
    generation: GenerationConfig,
    arguments: AnswerArguments,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
) -> TextEvaluation:
    """Answers written whenever a split is evaluated, and `answer_accuracy` and `without_answer` of them.

    Args:
        examples: the split as `prompts_and_answers.tokenize` gives it. rows: the same, as texts.

    Raises:
        ValueError: a worked answer that ends in no number.
    """
    right = list(rows["answer"])
    compute("answer_accuracy", right[:1] * len(right), right)  # refuses what is no answer, before anything is trained
    return TextEvaluation(
        prompts=list(examples["prompt"]),
        score=lambda written: compute("answer_accuracy", written, right, fallback=arguments.fallback),
        generation=generation,
        batch_size=batch_size,
        logits_processor=processors(arguments, tokenizer),
    )


def draw_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    generation: GenerationConfig,
    arguments: AnswerArguments,
    *,
    batch_size: int,
    seed: int,
) -> list[list[str]]:
    """`num_return_sequences` answers to each question; the same seed gives the same.

    Source: Wang et al. 2022, arXiv 2203.11171, section 2: draw reasoning paths, let their answers vote.
    """
    set_seed(seed)
    return write_texts(
        model,
        tokenizer,
        prompts,
        generation,
        batch_size=max(1, batch_size // generation.num_return_sequences),
        logits_processor=processors(arguments, tokenizer),
    )


def voting_config(config: GenerationConfig, arguments: VotingArguments) -> GenerationConfig:
    """`config` that draws as the vote asks."""
    given = {"do_sample": True, "num_beams": 1, "num_return_sequences": arguments.num_samples}
    shape = {name: getattr(arguments, name) for name in ("temperature", "top_k", "top_p")}
    return GenerationConfig(**{**config.to_dict(), **given, **shape})


def vote_scores(drawn: Sequence[Sequence[str]], rows: Dataset, *, fallback: bool) -> dict[str, float]:
    """Four shares from 0 to 1.

    `voted_accuracy`: questions whose majority is right. `sampled_accuracy`: drawn answers that are. `any_accuracy`:
    questions with at least one right answer. `agreement`: votes that the majority has.
    """
    voted, sampled, any_right, agreement = 0, 0.0, 0, 0.0
    for answers, row in zip(drawn, rows, strict=True):
        true = extract_answer(row["answer"])
        found = [extract_answer(text, fallback=fallback) for text in answers]
        majority = majority_answer(answers, fallback=fallback)
        voted += majority == true
        sampled += found.count(true) / len(found)
        any_right += true in found
        agreement += found.count(majority) / len(found) if majority is not None else 0.0
    names = ("voted_accuracy", "sampled_accuracy", "any_accuracy", "agreement")
    return {name: value / len(rows) for name, value in zip(names, (voted, sampled, any_right, agreement), strict=True)}


def predictions(
    written: Sequence[str], drawn: Sequence[Sequence[str]] | None, rows: Dataset, *, fallback: bool
) -> list[dict]:
    """A line of the predictions file for each question: what is right, what was written, and every vote."""
    lines = []
    for number, row in enumerate(rows):
        line = {
            "question": row["question"],
            "answer": extract_answer(row["answer"]),
            "prediction": extract_answer(written[number], fallback=fallback),
            "written": written[number],
        }
        if drawn is not None:
            found = [extract_answer(text, fallback=fallback) for text in drawn[number]]
            line["voted"] = majority_answer(drawn[number], fallback=fallback)
            line["votes"] = dict(Counter("none" if one is None else one for one in found).most_common())
            line["drawn"] = list(drawn[number])
        lines.append(line)
    return lines
