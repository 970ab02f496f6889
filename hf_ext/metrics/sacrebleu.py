"""BLEU of a corpus by sacrebleu, from 0 to 100, with the signature that says how it was computed.

BLEU = 100 · BP · exp(mean over n = 1..4 of log p_n): p_n is the share of the predictions' n-grams that are in a
reference too, each no more often than there, over the whole corpus; BP = min(1, exp(1 - r/c)), c the predictions'
length in tokens, r the length of each one's closest reference. Texts go in detokenised and cased, sacrebleu splits
them itself: only so are numbers of two papers comparable. A p_n of 0 is smoothed as `smooth_method` says.
"""

import evaluate
from datasets import Features, Sequence, Value
from sacrebleu.metrics import BLEU

from hf_ext.metrics.checked_metric import CheckedMetric, check_choice
from hf_ext.metrics.texts import as_references, check_references, reference_streams


# The others of sacrebleu's tokenizers want a model from the network or a package for one language.
TOKENIZERS = ("13a", "intl", "char", "zh", "none")
SMOOTHING = ("exp", "floor", "add-k", "none")

CITATION = """\
@inproceedings{post2018call,
  title={A Call for Clarity in Reporting {BLEU} Scores}, author={Post, Matt},
  booktitle={Proceedings of the Third Conference on Machine Translation}, pages={186--191}, year={2018}
}
@inproceedings{papineni2002bleu,
  title={{BLEU}: a Method for Automatic Evaluation of Machine Translation},
  author={Papineni, Kishore and Roukos, Salim and Ward, Todd and Zhu, Wei-Jing}, booktitle={ACL}, pages={311--318},
  year={2002}
}"""

INPUTS = """
Args:
    predictions (list of str): the translations, detokenised.
    references (list of str, or list of lists of str): one or several right translations of each; their number may
        differ.
    tokenize (str): "13a" (default), "intl" (punctuation of any script), "char", "zh", "none".
    lowercase (bool): False by default.
    smooth_method (str): "exp" (default), "floor", "add-k", "none".

Returns:
    bleu (float from 0 to 100), brevity_penalty, precision_1 … precision_4 (0 to 100), prediction_length,
    reference_length (in tokens), signature (str)

Examples:
    >>> from hf_ext.metrics import load_metric
    >>> metric = load_metric("sacrebleu")
    >>> scores = metric.compute(
    ...     predictions=["A dog runs on the beach.", "Two men talk."],
    ...     references=["A dog runs along the beach.", "Two men are talking."],
    ... )
    >>> round(scores["bleu"], 2), scores["signature"].split("|version")[0]
    (30.82, 'nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp')
"""


class Sacrebleu(CheckedMetric):
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
        tokenize: str = "13a",
        lowercase: bool = False,
        smooth_method: str = "exp",
    ) -> dict[str, float | int | str]:
        check_choice("tokenize", tokenize, TOKENIZERS)
        check_choice("smooth_method", smooth_method, SMOOTHING)
        bleu = BLEU(lowercase=lowercase, tokenize=tokenize, smooth_method=smooth_method)
        score = bleu.corpus_score(predictions, reference_streams(references))
        return {
            "bleu": score.score,
            "brevity_penalty": score.bp,
            **{f"precision_{n}": precision for n, precision in enumerate(score.precisions, start=1)},
            "prediction_length": score.sys_len,
            "reference_length": score.ref_len,
            "signature": str(bleu.get_signature()),
        }
