"""ROUGE F-measures by rouge_score, from 0 to 1, mean over examples.

rouge1, rouge2: F1 of the words and of the pairs of words that prediction and reference share, each as often as the
rarer of the two has it. rougeL: F1 of the longest common subsequence of words. rougeLsum: the same by sentences, one
a line: every reference sentence is matched with all predicted ones. With several references each score is that of
the best of them. The default tokenizer is rouge_score's, whose numbers papers report. It keeps a-z and 0-9 only:
"Mädchen" falls into "m" and "dchen". For other languages than English say tokenizer="unicode".
"""

import evaluate
from datasets import Features, Sequence, Value
from rouge_score import rouge_scorer, tokenizers
from transformers.utils import logging

from hf_ext.metrics.checked_metric import CheckedMetric, check_choice
from hf_ext.metrics.texts import as_references, check_references, unicode_words


logger = logging.get_logger(__name__)

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
TOKENIZERS = ("rouge_score", "unicode")

CITATION = """\
@inproceedings{lin2004rouge,
  title={{ROUGE}: A Package for Automatic Evaluation of Summaries}, author={Lin, Chin-Yew},
  booktitle={Text Summarization Branches Out}, pages={74--81}, year={2004}
}"""

INPUTS = """
Args:
    predictions (list of str): the summaries; for rougeLsum with a line break between sentences.
    references (list of str, or list of lists of str): one or several right summaries of each.
    rouge_types (list of str): of "rouge1", "rouge2", "rougeL", "rougeLsum"; all by default.
    tokenizer (str): "rouge_score" (default, ASCII) or "unicode" (letters and digits of any script).
    use_stemmer (bool): Porter's stems of English words, with tokenizer "rouge_score" only; False by default.

Returns:
    a float from 0 to 1 for each of `rouge_types`

Examples:
    >>> from hf_ext.metrics import load_metric
    >>> metric = load_metric("rouge")
    >>> metric.compute(predictions=["the cat sat"], references=["the cat sat down"], rouge_types=["rouge1", "rougeL"])
    {'rouge1': 0.8571428571428571, 'rougeL': 0.8571428571428571}
    >>> metric.compute(predictions=["über"], references=["ober"], rouge_types=["rouge1"], tokenizer="unicode")
    {'rouge1': 0.0}
"""


class UnicodeTokenizer(tokenizers.Tokenizer):
    """Words of any script, for rouge_score."""

    def tokenize(self, text: str) -> list[str]:
        return unicode_words(text)


class Rouge(CheckedMetric):
    """The metric; see the description of its file."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation=CITATION,
            inputs_description=INPUTS,
            features=Features({"predictions": Value("string"), "references": Sequence(Value("string"))}),
        )

    def prepare(self, name: str, index: int, value: str | list[str]) -> str | list[str]:
        return as_references(name, value)

    def check_batch(self, predictions: list[str], references: list[list[str]]) -> None:
        check_references(references)

    def _compute(
        self,
        predictions: list[str],
        references: list[list[str]],
        rouge_types: list[str] | None = None,
        tokenizer: str = "rouge_score",
        use_stemmer: bool = False,
    ) -> dict[str, float]:
        types = list(ROUGE_TYPES if rouge_types is None else rouge_types)
        if not types:
            raise ValueError("rouge_types: empty, there must be at least one; leave it out for all of them")
        for rouge_type in types:
            check_choice("rouge_types", rouge_type, ROUGE_TYPES)
        check_choice("tokenizer", tokenizer, TOKENIZERS)
        if use_stemmer and tokenizer != "rouge_score":
            raise ValueError("use_stemmer: True is for English with tokenizer 'rouge_score'; leave one of the two out")
        if tokenizer == "rouge_score":
            _warn_of_lost_letters(references)
            splitter = tokenizers.DefaultTokenizer(use_stemmer)
        else:
            splitter = UnicodeTokenizer()
        scorer = rouge_scorer.RougeScorer(types, tokenizer=splitter)
        sums = dict.fromkeys(types, 0.0)
        for prediction, texts in zip(predictions, references, strict=True):
            for rouge_type, score in scorer.score_multi(texts, prediction).items():
                sums[rouge_type] += float(score.fmeasure)
        return {rouge_type: total / len(predictions) for rouge_type, total in sums.items()}


def _warn_of_lost_letters(references: list[list[str]]) -> None:
    for texts in references:
        for text in texts:
            lost = next((char for char in text if char.isalnum() and not char.isascii()), None)
            if lost:
                logger.warning_once(
                    f"rouge: tokenizer 'rouge_score' drops letters such as {lost!r}; say tokenizer='unicode' for other "
                    "languages than English"
                )
                return
