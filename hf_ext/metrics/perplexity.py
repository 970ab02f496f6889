"""Perplexity = exp(- mean log-likelihood of a token), over all tokens of all texts: long texts count more.

It is that of the tokenizer's tokens: models with other tokenizers are compared by bits per byte.
"""

import math

import evaluate
from datasets import Features, Sequence, Value
from transformers.utils import logging

from hf_ext.metrics.checked_metric import CheckedMetric
from hf_ext.metrics.log_likelihoods import check_log_likelihoods


logger = logging.get_logger(__name__)

CITATION = """\
@article{jelinek1977perplexity,
  title={Perplexity -- a measure of the difficulty of speech recognition tasks},
  author={Jelinek, Fred and Mercer, Robert L. and Bahl, Lalit R. and Baker, James K.},
  journal={The Journal of the Acoustical Society of America}, volume={62}, pages={S63}, year={1977}
}"""

INPUTS = """
Args:
    predictions (list of lists of float): for each text the natural logarithm of the probability of each predicted
        token.

Returns:
    perplexity (float, at least 1; infinite where it is above the largest float, the log says so), loss (float, nats
    a token), num_tokens (int)

Examples:
    >>> from hf_ext.metrics import load_metric
    >>> import math
    >>> scores = load_metric("perplexity").compute(predictions=[[math.log(0.5), math.log(0.25)], [math.log(0.125)]])
    >>> round(scores["perplexity"], 6), scores["num_tokens"]
    (4.0, 3)
"""


class Perplexity(CheckedMetric):
    """The metric; see the description of its file."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation=CITATION,
            inputs_description=INPUTS,
            features=Features({"predictions": Sequence(Value("float64"))}),
        )

    def check_batch(self, predictions: list[list[float]]) -> None:
        check_log_likelihoods(predictions)

    def _compute(self, predictions: list[list[float]]) -> dict[str, float | int]:
        num_tokens = sum(map(len, predictions))
        if num_tokens == 0:
            raise ValueError("predictions: no token in any text, there must be at least one; give longer texts")
        loss = -math.fsum(value for row in predictions for value in row) / num_tokens
        try:
            perplexity = math.exp(loss)
        except OverflowError:
            logger.warning(f"perplexity: exp({loss:.1f}) is above the largest float; infinity is given")
            perplexity = math.inf
        return {"perplexity": perplexity, "loss": loss, "num_tokens": num_tokens}
