"""chrF and chrF++ of a corpus by sacrebleu, from 0 to 100.

chrF = 100 · (1 + β²) · P · R / (β² · P + R), β = 2, so recall counts twice: P and R are the means over n = 1..6 of
the precision and recall of character n-grams without white space; chrF++ adds the n-grams of 1 and 2 words to the
means. With several references the best of them counts, sentence by sentence. No tokenizer is in it, so it suits
languages with rich forms better than BLEU.
"""

import evaluate
from datasets import Features, Sequence, Value
from sacrebleu.metrics import CHRF

from hf_ext.metrics.checked_metric import CheckedMetric
from hf_ext.metrics.texts import as_references, check_references, reference_streams


CITATION = """\
@inproceedings{popovic2015chrf,
  title={chr{F}: character n-gram {F}-score for automatic {MT} evaluation}, author={Popovi{\\'c}, Maja},
  booktitle={Proceedings of the Tenth Workshop on Statistical Machine Translation}, pages={392--395}, year={2015}
}
@inproceedings{popovic2017chrf,
  title={chr{F}++: words helping character n-grams}, author={Popovi{\\'c}, Maja},
  booktitle={Proceedings of the Second Conference on Machine Translation}, pages={612--618}, year={2017}
}"""

INPUTS = """
Args:
    predictions (list of str): the translations, detokenised.
    references (list of str, or list of lists of str): one or several right translations of each; their number may
        differ.
    lowercase (bool): False by default.

Returns:
    chrf, chrf++ (floats from 0 to 100), chrf_signature, chrf++_signature (str)

Examples:
    >>> from hf_ext.metrics import load_metric
    >>> scores = load_metric("chrf").compute(predictions=["Ein Hund rennt."], references=["Ein Hund läuft."])
    >>> round(scores["chrf"], 2), round(scores["chrf++"], 2)
    (45.23, 47.46)
"""


class Chrf(CheckedMetric):
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
        self, predictions: list[str], references: list[list[str]], lowercase: bool = False
    ) -> dict[str, float | str]:
        scores = {}
        for name, word_order in (("chrf", 0), ("chrf++", 2)):
            chrf = CHRF(word_order=word_order, lowercase=lowercase)
            scores[name] = chrf.corpus_score(predictions, reference_streams(references)).score
            scores[f"{name}_signature"] = str(chrf.get_signature())
        return scores
