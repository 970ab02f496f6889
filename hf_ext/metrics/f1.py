"""F1 = 2 · precision · recall / (precision + recall) = 2 TP / (2 TP + FP + FN).

With average "binary" it is the class `pos_label`'s; "micro" sums the counts of all classes first (for one class an
example this is the accuracy); "macro" is the classes' mean, a rare class counts as much as a frequent one;
"weighted" weights that mean by how often a class is in the references; None gives a list, one entry a class. A
fraction of nothing by nothing is 0. The classes are `labels`, or those that occur in predictions or references.
"""

from hf_ext.metrics.averaged_metric import AveragedMetric


DESCRIPTION = __doc__
INPUTS = """
Args:
    predictions (list of int): the predicted classes. With config_name="multilabel", rows of 0 and 1, one entry a
        label.
    references (list of int): the true ones, in the same form.
    average (str or None): "binary" (default), "micro", "macro", "weighted", or None for a list.
    labels (list of int): the classes, where not all of them need occur. No class may be outside.
    pos_label (int): the class that "binary" is about, 1 by default.

Returns:
    f1 (float from 0 to 1, or a list of them)

Examples:
    >>> from hf_ext.metrics import load_metric
    >>> metric = load_metric("f1")
    >>> metric.compute(predictions=[1, 0, 0, 0], references=[1, 1, 0, 0])
    {'f1': 0.6666666666666666}
    >>> metric.compute(predictions=[0, 1, 2, 2], references=[0, 1, 1, 2], average="micro")
    {'f1': 0.75}
    >>> metric = load_metric("f1", config_name="multilabel")
    >>> metric.compute(predictions=[[1, 0], [0, 1]], references=[[1, 1], [0, 1]], average=None)
    {'f1': [1.0, 0.6666666666666666]}
"""


class F1(AveragedMetric):
    """The metric; see the description of its file."""

    score = "f1"
    texts = (DESCRIPTION, INPUTS)
