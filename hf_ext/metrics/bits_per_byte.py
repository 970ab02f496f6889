"""Bits per byte = - sum of the token log-likelihoods / (ln 2 · UTF-8 bytes of the texts), over all texts.

It does not depend on the tokenizer, so models with different ones can be compared, provided that every byte of the
texts is predicted: a first token without prediction is not paid for. Bits per character are the same by code points.
"""

import math

import evaluate
from datasets import Features, Sequence, Value

from hf_ext.metrics.checked_metric import CheckedMetric
from hf_ext.metrics.log_likelihoods import check_log_likelihoods


CITATION = """\
@article{gao2020pile,
  title={The {P}ile: An 800{GB} Dataset of Diverse Text for Language Modeling},
  author={Gao, Leo and Biderman, Stella and Black, Sid and Golding, Laurence and others},
  journal={arXiv preprint arXiv:2101.00027}, year={2020}
}"""

INPUTS = """
Args:
    predictions (list of lists of float): for each text the natural logarithm of the probability of each of its
        tokens.
    references (list of str): the texts.

Returns:
    bits_per_byte, bits_per_character (floats), num_bytes, num_characters (ints)

Examples:
    >>> from hf_ext.metrics import load_metric
    >>> import math
    >>> load_metric("bits_per_byte").compute(predictions=[[math.log(0.25), math.log(0.25)]], references=["né"])
    {'bits_per_byte': 1.3333333333333333, 'bits_per_character': 2.0, 'num_bytes': 3, 'num_characters': 2}
"""


class BitsPerByte(CheckedMetric):
    """The metric; see the description of its file."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation=CITATION,
            inputs_description=INPUTS,
            features=Features({"predictions": Sequence(Value("float64")), "references": Value("string")}),
        )

    def check_batch(self, predictions: list[list[float]], references: list[str]) -> None:
        check_log_likelihoods(predictions)
        for index, (row, text) in enumerate(zip(predictions, references, strict=True)):
            if bool(row) != bool(text):
                raise ValueError(
                    f"predictions[{index}]: {len(row)} tokens for a text of {len(text)} characters, must be both or none; "
                    "look whether texts and log-likelihoods are in one order"
                )

    def _compute(self, predictions: list[list[float]], references: list[str]) -> dict[str, float | int]:
        num_bytes = sum(len(text.encode("utf-8")) for text in references)
        num_characters = sum(map(len, references))
        if num_bytes == 0:
            raise ValueError("references: all texts are empty, there must be at least one byte; give longer texts")
        bits = -math.fsum(value for row in predictions for value in row) / math.log(2)
        return {
            "bits_per_byte": bits / num_bytes,
            "bits_per_character": bits / num_characters,
            "num_bytes": num_bytes,
            "num_characters": num_characters,
        }
