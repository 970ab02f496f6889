"""What every metric refuses, in one line, before anything is added."""

import re

import pytest

from hf_ext.metrics import compute, load_metric


REFUSED = [
    ("accuracy", [0.7], [1], "predictions[0]: 0.7 must be an integer; of scores take the argmax first"),
    ("accuracy", ["1"], [1], "predictions[0]: '1' must be an integer; of scores take the argmax first"),
    ("accuracy", [1, None], [1, 1], "predictions[1]: None must be an integer; of scores take the argmax first"),
    ("accuracy", [1, 1], [1], "references: 1 for 2 predictions, must be as many; give one entry an example in each"),
    ("accuracy", [], [], "predictions: empty, there must be at least one example; look whether the split is empty"),
    ("accuracy", 1, [1], "predictions: 1 must be a list with one entry an example; put it in a list"),
    ("accuracy", [1], None, "references: None, accuracy needs predictions and references; give one entry an example"),
    (
        "accuracy",
        [1],
        [-100],
        "references[0]: -100 must be a class, 0 or above; drop the places that the loss ignores first",
    ),
    ("accuracy", [[0.1, 0.9]], [1], "predictions[0]: [0.1, 0.9] must be an integer; of scores take the argmax first"),
    ("regression", [float("nan")], [1.0], "predictions[0]: nan must be a finite number; look where it was computed"),
    ("regression", [1.0], [True], "references[0]: True must be a finite number; look where it was computed"),
    ("sacrebleu", [["a"]], ["a"], "predictions[0]: ['a'] must be a text; decode tokens first, one text an entry"),
    ("sacrebleu", ["a"], [[]], "references[0]: empty, there must be at least one text; drop the example"),
    ("sacrebleu", ["a"], [[["a"]]], "references[0][0]: ['a'] must be a text; decode tokens first, one text an entry"),
    ("sacrebleu", "a", ["a"], "predictions: 'a' must be a list with one entry an example; put it in a list"),
    ("rouge", ["a"], [3], "references[0]: 3 must be a list of texts; put it in a list"),
    ("chrf", ["a", 7], ["a", "b"], "predictions[1]: 7 must be a text; decode tokens first, one text an entry"),
    ("distinct_n", ["a"], ["a"], "references: distinct_n does not use them; leave them out"),
    (
        "multilabel_classification",
        [[0.2]],
        [[1, 0]],
        "predictions[0]: 1 entries for 2 labels, must be one a label; give each example a row of 0 and 1",
    ),
    (
        "multilabel_classification",
        [[0.2, 0.3]],
        [[1, 2]],
        "references[0][1]: 2 must be 0 or 1, whether the label holds; give a row of 0 and 1",
    ),
    (
        "seqeval",
        [["O"]],
        [["O", "O"]],
        "predictions[0]: 1 tags for 2 tokens, must be one a token; drop padding and ignored places from both",
    ),
    (
        "perplexity",
        [[1.5]],
        None,
        "predictions[0][0]: 1.5 must be at most 0, the logarithm of a probability; of losses change the sign",
    ),
    ("perplexity", [[]], None, "predictions: no token in any text, there must be at least one; give longer texts"),
    (
        "bits_per_byte",
        [[]],
        [""],
        "references: all texts are empty, there must be at least one byte; give longer texts",
    ),
    (
        "bits_per_byte",
        [[-1.0]],
        [""],
        "predictions[0]: 1 tokens for a text of 0 characters, must be both or none; look whether texts and "
        "log-likelihoods are in one order",
    ),
    (
        "answer_accuracy",
        ["1"],
        ["one"],
        "references[0]: 'one' must end in #### and a number, or be a number; mend the data",
    ),
    (
        "squad",
        ["a"],
        [[]],
        "references[0]: no right answer, must have one; drop the question or set with_unanswerable=True",
    ),
    (
        "squad",
        [{"id": "1", "text": "a"}],
        [["a"]],
        "predictions[0]: {'no_answer_probability': 0.0, 'id': '1', 'text': 'a'} must be a dict with the keys id, "
        "prediction_text, no_answer_probability",
    ),
    ("squad", ["a"], [None], "references[0]['answers']: None must be a list of texts; put it in a list"),
]


@pytest.mark.parametrize(("name", "predictions", "references", "message"), REFUSED)
def test_refused_in_one_line(name, predictions, references, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        compute(name, predictions, references)


OPTIONS = [
    (
        "accuracy",
        [3],
        [1],
        {"labels": [0, 1]},
        "predictions[0]: 3 is not among the labels [0, 1]; give all classes there",
    ),
    (
        "classification",
        [0],
        [2],
        {"num_labels": 2},
        "references[0]: 2 is not among the labels [0, 1]; give all classes there",
    ),
    (
        "f1",
        [0, 2],
        [1, 2],
        {},
        "average: 'binary' is for two classes, but there are [0, 1, 2]; say 'micro', 'macro' or 'weighted'",
    ),
    (
        "f1",
        [0],
        [0],
        {"average": "mean"},
        "average: 'mean' must be one of 'binary', 'micro', 'macro', 'weighted', None",
    ),
    ("f1", [0], [0], {"labels": [0, 1]}, "labels: [0, 1] has no effect with average 'binary'; leave it out"),
    (
        "f1",
        [0],
        [0],
        {"average": "macro", "pos_label": 0},
        "pos_label: 0 has no effect with average 'macro'; say 'binary' or leave it out",
    ),
    (
        "multilabel_classification",
        [[2.0, -1.0]],
        [[1, 0]],
        {},
        "threshold: none given, but scores reach from -1 to 2 and are no probabilities; of logits give threshold=0.0",
    ),
    (
        "sacrebleu",
        ["a"],
        ["a"],
        {"tokenize": "flores200"},
        "tokenize: 'flores200' must be one of '13a', 'intl', 'char', 'zh', 'none'",
    ),
    (
        "rouge",
        ["a"],
        ["a"],
        {"rouge_types": ["rouge"]},
        "rouge_types: 'rouge' must be one of 'rouge1', 'rouge2', 'rougeL', 'rougeLsum'",
    ),
    (
        "rouge",
        ["a"],
        ["a"],
        {"tokenizer": "unicode", "use_stemmer": True},
        "use_stemmer: True is for English with tokenizer 'rouge_score'; leave one of the two out",
    ),
    (
        "seqeval",
        [["O"]],
        [["E-PER"]],
        {"scheme": "IOB2"},
        "references[0][0]: 'E-PER' must be 'O' or one of B, I with '-' and the type for scheme 'IOB2'; name the scheme "
        "of the tags",
    ),
    (
        "seqeval",
        [["PER"]],
        [["O"]],
        {},
        "predictions[0][0]: 'PER' must be 'O' or one of B, I, E, S with '-' and the type for scheme None; name the scheme "
        "of the tags",
    ),
    (
        "squad",
        ["a"],
        ["a"],
        {"language": "fr"},
        "language: 'fr' must be one of 'en', 'de', 'es', 'vi', 'hi', 'zh', None",
    ),
    (
        "squad",
        ["a"],
        ["a"],
        {"no_answer_threshold": 0.5},
        "with_unanswerable: False, but thresholds need it; set it to True or leave them out",
    ),
    ("repetition", ["a"], None, {"n": 0}, "n: 0 must be at least 1; leave it out for 4"),
    ("distinct_n", ["a"], None, {"orders": [0]}, "orders: 0 must be at least 1; leave it out for 1, 2 and 3"),
    ("distinct_n", ["a"], None, {"split": "bytes"}, "split: 'bytes' must be one of 'words', 'characters'"),
]


@pytest.mark.parametrize(("name", "predictions", "references", "options", "message"), OPTIONS)
def test_options_refused_in_one_line(name, predictions, references, options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        compute(name, predictions, references, **options)


@pytest.mark.parametrize("name", ["accuracy", "rouge", "squad"])
def test_unknown_options_are_refused(name):
    given = [1] if name == "accuracy" else ["a"]
    with pytest.raises(TypeError, match="avrage"):
        compute(name, given, given, avrage="macro")


def test_nothing_added():
    with pytest.raises(ValueError, match=r"^predictions: nothing was added, there must be at least one example; give"):
        load_metric("f1").compute()


def test_a_refused_batch_leaves_what_was_there():
    metric = load_metric("accuracy")
    metric.add_batch(predictions=[1, 0], references=[1, 1])
    with pytest.raises(ValueError, match="must be as many"):
        metric.add_batch(predictions=[1, 0], references=[1])
    assert metric.compute() == {"accuracy": 0.5}


def test_what_is_not_used_is_refused_in_batches_too():
    for add in (load_metric("distinct_n").add_batch, load_metric("distinct_n").compute):
        with pytest.raises(ValueError, match=r"^references: distinct_n does not use them; leave them out$"):
            add(predictions=["a"], references=["a"])


def test_batches_of_different_width_are_refused():
    metric = load_metric("f1", config_name="multilabel")
    metric.add_batch(predictions=[[1, 0]], references=[[1, 0]])
    metric.add_batch(predictions=[[1]], references=[[1]])
    with pytest.raises(ValueError, match=r"^predictions\[1\]: 1 entries for 2 labels"):
        metric.compute(average="micro")


def test_ranks_need_a_name_of_their_run():
    with pytest.raises(
        ValueError, match=r"^experiment_id: None with num_process=2; give every rank of a run the same name"
    ):
        load_metric("f1", num_process=2, process_id=0)
