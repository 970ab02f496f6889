"""Votes and their scores, by hand."""

import pytest
from datasets import Dataset
from transformers import GenerationConfig

from hf_ext.tasks import chain_of_thought as task


ROWS = Dataset.from_dict({"question": ["a", "b"], "answer": ["1+1\n#### 2", "#### 1,000"]})
DRAWN = [["#### 2", "#### 3", "so #### 2.0", "nothing"], ["#### 7", "#### 1000", "#### 7", "none"]]


def test_vote_scores():
    assert task.vote_scores(DRAWN, ROWS, fallback=False) == {
        "voted_accuracy": 1 / 2,
        "sampled_accuracy": (2 / 4 + 1 / 4) / 2,
        "any_accuracy": 1.0,
        "agreement": 2 / 4,
    }


def test_predictions_have_all_votes():
    lines = task.predictions(["#### 2", "it is 1000"], DRAWN, ROWS, fallback=False)
    assert lines[0]["votes"] == {"2": 2, "3": 1, "none": 1}
    assert (lines[0]["answer"], lines[0]["prediction"], lines[0]["voted"]) == ("2", "2", "2")
    assert (lines[1]["answer"], lines[1]["prediction"], lines[1]["voted"]) == ("1000", None, "7")
    assert task.predictions(["#### 2", "it is 1000"], None, ROWS, fallback=True)[1]["prediction"] == "1000"


def test_the_first_answer_wins_a_tie():
    for answers, winner in ((["#### 5", "#### 4"], "5"), (["#### 4", "#### 5"], "4")):
        (line,) = task.predictions(["x"], [answers], ROWS.select([0]), fallback=False)
        assert line["voted"] == winner


def test_the_vote_draws_and_the_rest_of_the_settings_stay():
    config = GenerationConfig(max_new_tokens=9, num_beams=4, pad_token_id=1, eos_token_id=0)
    drawing = task.voting_config(config, task.VotingArguments(num_samples=3, top_k=0))
    assert (drawing.do_sample, drawing.num_beams, drawing.num_return_sequences) == (True, 1, 3)
    assert (drawing.max_new_tokens, drawing.temperature, drawing.top_k) == (9, 0.7, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 1}, "one vote is no vote"),
        ({"num_samples": -2}, "one vote is no vote"),
        ({"temperature": 0.0}, "must be above 0"),
        ({"top_k": -1}, "must not be negative"),
        ({"top_p": 1.5}, "above 0 and at most 1"),
    ],
)
def test_nonsense(options, message):
    with pytest.raises(ValueError, match=message):
        task.VotingArguments(**options)


def test_answers_without_a_number_are_refused_before_training():
    rows = Dataset.from_dict({"question": ["a"], "answer": ["nothing"]})
    examples = Dataset.from_dict({"prompt": [[5]], "answer": [[6]]})
    with pytest.raises(ValueError, match="must end in ####"):
        task.evaluation(examples, rows, GenerationConfig(), task.AnswerArguments(), None, 1)
