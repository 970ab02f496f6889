"""distinct-n = different n-grams / n-grams, of all texts together: 1 if none is there twice, near 0 if texts are alike.

Li et al. (2016) divide by the number of words instead, which is the same for n = 1; here the value can reach 1 for
every n. The more text, the lower: compare equally many words only.
"""

import evaluate
from datasets import Features, Value

from hf_ext.metrics.checked_metric import CheckedMetric, check_choice
from hf_ext.metrics.ngrams import SPLITTERS, ngrams


CITATION = """\
@inproceedings{li2016diversity,
  title={A Diversity-Promoting Objective Function for Neural Conversation Models},
  author={Li, Jiwei and Galley, Michel and Brockett, Chris and Gao, Jianfeng and Dolan, Bill},
  booktitle={NAACL-HLT}, pages={110--119}, year={2016}
}"""

INPUTS = """
Args:
    predictions (list of str): the generated texts.
    orders (list of int): the n; 1, 2 and 3 by default.
    split (str): "words" (default), between white space, or "characters".

Returns:
    distinct_1, distinct_2, distinct_3 (floats from 0 to 1; 0 where no text is that long)

Examples:
    >>> from hf_ext.metrics import load_metric
    >>> load_metric("distinct_n").compute(predictions=["a b a b", "a c"], orders=[1, 2])
    {'distinct_1': 0.5, 'distinct_2': 0.75}
"""


class DistinctN(CheckedMetric):
    """The metric; see the description of its file."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation=CITATION,
            inputs_description=INPUTS,
            features=Features({"predictions": Value("string")}),
        )

    def _compute(
        self, predictions: list[str], orders: list[int] | None = None, split: str = "words"
    ) -> dict[str, float]:
        check_choice("split", split, tuple(SPLITTERS))
        scores = {}
        for n in (1, 2, 3) if orders is None else orders:
            if n < 1:
                raise ValueError(f"orders: {n} must be at least 1; leave it out for 1, 2 and 3")
            found = [gram for text in predictions for gram in ngrams(SPLITTERS[split](text), n)]
            scores[f"distinct_{n}"] = len(set(found)) / max(len(found), 1)
        return scores
