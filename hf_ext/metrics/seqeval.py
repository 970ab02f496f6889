"""Entities found in tagged tokens: an entity counts as right where its type and both of its ends are right.

precision = right / predicted, recall = right / true, f1 = 2 · precision · recall / (precision + recall), of all
types together (micro); 0 where there are none. accuracy is the share of right tags, high wherever most tokens are
outside. `scheme=None` reads tags as conlleval does: an I after O or after another type begins an entity. A named
scheme reads strictly: what is not a whole entity by its rules, in the references or in the predictions, is none.
"""

import evaluate
from datasets import Features, Sequence, Value
from seqeval.metrics import sequence_labeling, v1
from seqeval.scheme import BILOU, IOB2, IOBES, IOE2

from hf_ext.metrics.checked_metric import CheckedMetric, check_choice
from hf_ext.metrics.labels import accuracy


# BIOES is the scheme that seqeval calls IOBES.
SCHEMES = {"IOB2": IOB2, "BIOES": IOBES, "IOBES": IOBES, "IOE2": IOE2, "BILOU": BILOU}
PREFIXES = {None: "BIES", "IOB2": "BI", "BIOES": "BIES", "IOBES": "BIES", "IOE2": "IE", "BILOU": "BILU"}

CITATION = """\
@misc{nakayama2018seqeval,
  title={{seqeval}: A Python framework for sequence labeling evaluation}, author={Hiroki Nakayama},
  url={https://github.com/chakki-works/seqeval}, year={2018}
}
@inproceedings{ramshaw1995text,
  title={Text Chunking using Transformation-Based Learning}, author={Ramshaw, Lance and Marcus, Mitch},
  booktitle={Third Workshop on Very Large Corpora}, year={1995}
}"""

INPUTS = """
Args:
    predictions (list of lists of str): the tag of every token, "O" or a prefix, "-" and the type.
    references (list of lists of str): the true ones; where the loss ignores a token it is in neither.
    scheme (str or None): "IOB2", "BIOES" (also "IOBES"), "IOE2", "BILOU", read strictly; None (default), as
        conlleval does.
    per_type (bool): also every type's scores, False by default.

Returns:
    precision, recall, f1, accuracy (floats from 0 to 1); with `per_type` also per_type, a dict from type to
    precision, recall, f1 and number (how many of them are in the references)

Examples:
    >>> from hf_ext.metrics import load_metric
    >>> metric = load_metric("seqeval")
    >>> tags = {"predictions": [["B-PER", "I-PER", "O"]], "references": [["B-PER", "I-PER", "B-LOC"]]}
    >>> metric.compute(**tags)
    {'precision': 1.0, 'recall': 0.5, 'f1': 0.6666666666666666, 'accuracy': 0.6666666666666666}
    >>> metric.compute(**tags, per_type=True)["per_type"]["LOC"]
    {'precision': 0.0, 'recall': 0.0, 'f1': 0.0, 'number': 1}
    >>> metric.compute(predictions=[["O", "I-PER"]], references=[["O", "B-PER"]])["f1"]
    1.0
    >>> metric.compute(predictions=[["O", "I-PER"]], references=[["O", "B-PER"]], scheme="IOB2")["f1"]
    0.0
"""


class Seqeval(CheckedMetric):
    """The metric; see the description of its file."""

    def _info(self) -> evaluate.MetricInfo:
        tags = Sequence(Value("string"))
        return evaluate.MetricInfo(
            description=__doc__,
            citation=CITATION,
            inputs_description=INPUTS,
            features=Features({"predictions": tags, "references": tags}),
        )

    def check_batch(self, predictions: list[list[str]], references: list[list[str]]) -> None:
        for index, (predicted, true) in enumerate(zip(predictions, references, strict=True)):
            if len(predicted) != len(true):
                raise ValueError(
                    f"predictions[{index}]: {len(predicted)} tags for {len(true)} tokens, must be one a token; drop "
                    "padding and ignored places from both"
                )

    def _compute(
        self,
        predictions: list[list[str]],
        references: list[list[str]],
        scheme: str | None = None,
        per_type: bool = False,
    ) -> dict:
        check_choice("scheme", scheme, tuple(PREFIXES))
        for name, rows in (("predictions", predictions), ("references", references)):
            _check_tags(name, rows, scheme)
        score = sequence_labeling.precision_recall_fscore_support
        options = {"zero_division": 0}
        if scheme is not None:
            score, options["scheme"] = v1.precision_recall_fscore_support, SCHEMES[scheme]
        overall = score(references, predictions, average="micro", **options)
        scores = {name: float(value) for name, value in zip(("precision", "recall", "f1"), overall, strict=False)}
        predicted_tags, true_tags = ([tag for row in rows for tag in row] for rows in (predictions, references))
        scores["accuracy"] = accuracy(predicted_tags, true_tags) if true_tags else 0.0
        if per_type:
            types = _types(references, predictions, scheme)
            rows = zip(
                *(column.tolist() for column in score(references, predictions, average=None, **options)), strict=True
            )
            scores["per_type"] = {
                name: dict(zip(("precision", "recall", "f1", "number"), row, strict=True))
                for name, row in zip(types, rows, strict=True)
            }
        return scores


def _types(references: list[list[str]], predictions: list[list[str]], scheme: str | None) -> list[str]:
    """The types of the entities of both, in the order in which seqeval gives their scores."""
    if scheme is None:
        return sorted(
            {entity[0] for rows in (references, predictions) for entity in sequence_labeling.get_entities(rows)}
        )
    return sorted(set().union(*(v1.Entities(rows, SCHEMES[scheme]).unique_tags for rows in (references, predictions))))


def _check_tags(name: str, rows: list[list[str]], scheme: str | None) -> None:
    for index, row in enumerate(rows):
        for place, tag in enumerate(row):
            if tag != "O" and (len(tag) < 3 or tag[1] != "-" or tag[0] not in PREFIXES[scheme]):
                raise ValueError(
                    f"{name}[{index}][{place}]: {tag!r} must be 'O' or one of {', '.join(PREFIXES[scheme])} with '-' and "
                    f"the type for scheme {scheme!r}; name the scheme of the tags"
                )
