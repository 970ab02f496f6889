"""How much a text repeats itself.

repetition_n = 1 - different n-grams / n-grams of one text, mean over the texts that have such n-grams (Welleck et
al. 2019 call it seq-rep-n): 0 if nothing comes twice, near 1 in a loop. longest_repeat: the words of the longest
sequence that stands in one text twice, over all texts; the two may overlap.
"""

import evaluate
from datasets import Features, Value

from hf_ext.metrics.checked_metric import CheckedMetric, check_choice
from hf_ext.metrics.ngrams import SPLITTERS, longest_repeat, ngrams


CITATION = """\
@article{welleck2019neural,
  title={Neural Text Generation with Unlikelihood Training},
  author={Welleck, Sean and Kulikov, Ilia and Roller, Stephen and Dinan, Emily and Cho, Kyunghyun and Weston, Jason},
  journal={arXiv preprint arXiv:1908.04319}, year={2019}
}"""

INPUTS = """
Args:
    predictions (list of str): the generated texts.
    n (int): the length of the n-grams, 4 by default.
    split (str): "words" (default), between white space, or "characters".

Returns:
    repetition_4, or of the n that was given (float from 0 to 1; 0 where no text is that long), longest_repeat (int)

Examples:
    >>> from hf_ext.metrics import load_metric
    >>> load_metric("repetition").compute(predictions=["to be or not to be", "no more"], n=2)
    {'repetition_2': 0.09999999999999998, 'longest_repeat': 2}
"""


class Repetition(CheckedMetric):
    """The metric; see the description of its file."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation=CITATION,
            inputs_description=INPUTS,
            features=Features({"predictions": Value("string")}),
        )

    def _compute(self, predictions: list[str], n: int = 4, split: str = "words") -> dict[str, float | int]:
        check_choice("split", split, tuple(SPLITTERS))
        if n < 1:
            raise ValueError(f"n: {n} must be at least 1; leave it out for 4")
        texts = [SPLITTERS[split](text) for text in predictions]
        grams = [found for found in (ngrams(tokens, n) for tokens in texts) if found]
        shares = [1 - len(set(found)) / len(found) for found in grams]
        return {
            f"repetition_{n}": sum(shares) / max(len(shares), 1),
            "longest_repeat": max(longest_repeat(tokens) for tokens in texts),
        }
