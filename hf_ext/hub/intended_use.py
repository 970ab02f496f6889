"""What a card says a model is for, and where it ends: by task, with the run's own numbers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PretrainedConfig


# a language model's tokens a parameter that a budget of FLOPs is best spent on; Hoffmann et al. 2022, arXiv 2203.15556
COMPUTE_OPTIMAL_TOKENS = 20
# tasks whose models learn from every token
LANGUAGE_MODELING = ("text-generation", "fill-mask", "text2text-generation")
# metrics that are shares of the rows, so that chance alone moves them by a standard error that is known
SHARES = ("accuracy", "exact_match", "answer_accuracy")


@dataclass(frozen=True)
class Use:
    """Prose of a task: what its models are for, what not, and what they do wrong by their nature."""

    intended: str
    out_of_scope: str
    limits: tuple[str, ...]


_WRITES = (
    "It writes what is likely after what it was trained on: what is true, it does not know. Names, errors and prejudices of "
    "those texts come back, passages word by word among them.",
)
USES = {
    "text-generation": Use(
        "Text that goes on from a beginning like those it was trained on: to study training, decoding and adaptation, as "
        "the teacher or the start of another model.",
        "Facts, advice, code that is run unread, and anything that is published without somebody who reads it first.",
        _WRITES,
    ),
    "fill-mask": Use(
        "As an encoder to start classifiers, taggers and readers from, on texts like those it was trained on; filling gaps "
        "shows what it has learnt.",
        "Writing texts, and sentence embeddings without further training.",
        ("It fills each gap by itself: two gaps in a row need not fit each other.",),
    ),
    "text2text-generation": Use(
        "As the start of a model that writes one text from another: summaries, translations, answers.",
        "Answers or instructions as it is: it has learnt to mend its training texts, or to answer as they do.",
        _WRITES,
    ),
    "text-classification": Use(
        "Sorting texts of the kind that it was trained on into the classes that the card names, or giving them a number.",
        "Decisions about people, other kinds of text or other languages, and classes that it was not taught: it has no "
        "answer for “none of these” unless that is a class.",
        ("Its probabilities were not calibrated: 0.9 does not mean nine times in ten.",),
    ),
    "token-classification": Use(
        "Marking the kinds of words that the card names, in texts of the kind that it was trained on.",
        "Taking names out of texts to protect people: what it misses stays in, and it misses some (see recall).",
        ("Words are judged by their surroundings in training; new names in new surroundings are missed more often.",),
    ),
    "question-answering": Use(
        "Finding the place in a given text that answers a question about it.",
        "Questions without a text, or whose answer has to be put together from several places.",
        ("An answer is a place in the text, and is given even where the text has none, unless no answer was trained.",),
    ),
    "translation": Use(
        "Sentences of the directions that the card names, of the kind that it was trained on.",
        "Contracts, medicine, law, safety; other languages or kinds of text; whole documents at once.",
        ("What it does not know it replaces by something likely, fluently: numbers and names need checking.",),
    ),
    "summarization": Use(
        "Summaries of texts of the kind that it was trained on, beside the text itself.",
        "In place of the text, where it matters what was said.",
        ("A summary that is written may say what the text does not; one that is chosen leaves out what it points to.",),
    ),
}


def use_of(task: str) -> Use:
    """Raises ValueError for a task without an entry here."""
    if task not in USES:
        raise ValueError(f"task={task!r}: a card needs words about its use; known are {', '.join(USES)}")
    return USES[task]


def measured_limits(
    config: PretrainedConfig,
    *,
    metrics: Mapping[str, float],
    num_validation_rows: int | None = None,
    tokens: int | None = None,
    parameters: int | None = None,
) -> tuple[str, ...]:
    """What the run's own numbers say about how far to trust it, a sentence or two each.

    Args:
        metrics: of the card. num_validation_rows: that they were computed on.
        tokens: trained on, of a language model from scratch. parameters: of it.
    """
    found = []
    if tokens and parameters and (ratio := tokens / parameters) < COMPUTE_OPTIMAL_TOKENS:
        found.append(
            f"{_short(tokens)} tokens of training are {ratio:.2g} a parameter; for a language model of this size about "
            f"{COMPUTE_OPTIMAL_TOKENS} are worth their FLOPs, so it knows less than its size allows."
        )
    longest = getattr(config, "max_position_embeddings", None)
    if isinstance(longest, int):
        found.append(f"It was built for rows of up to {longest:,} tokens and has seen no longer ones.")
    if num_validation_rows:
        said = f"The scores are of {num_validation_rows:,} held-out rows from where the training data come from"
        share = next((name for name in SHARES if name in metrics), None)
        if share is not None:
            scale = 100 if metrics[share] > 1 else 1
            # Agresti and Coull's: two rows more on each side, so that a perfect score has an error too
            value = (metrics[share] / scale * num_validation_rows + 2) / (num_validation_rows + 4)
            error = scale * math.sqrt(value * (1 - value) / (num_validation_rows + 4))
            said += f": chance alone moves {share} by {error:.1g} or so (one standard error)"
        found.append(f"{said}. Texts from elsewhere were not tried.")
    found.append("Nothing was measured about harm, or about how it treats groups of people.")
    return tuple(found)


def _short(count: int) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return str(count)
