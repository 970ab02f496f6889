"""SQuAD's files as rows, and rows that stay together when some are held out."""

import json

import pytest

from hf_ext.data import RowArguments, load_rows, unfold_squad
from hf_ext.tasks.question_answering import COLUMNS, OPTIONAL_COLUMNS


def write_squad(path, articles: int = 12):
    data = []
    for a in range(articles):
        paragraphs = []
        for p in range(2):
            context = f"Paragraph {p} of article {a}."
            qas = [
                {"id": f"{a}-{p}-0", "question": "Which article?", "answers": [{"text": str(a), "answer_start": 23}]},
                {"id": f"{a}-{p}-1", "question": "Who?", "answers": [], "is_impossible": True},
            ]
            paragraphs.append({"context": context, "qas": qas})
        data.append({"title": f"article {a}", "paragraphs": paragraphs})
    path.write_text(json.dumps({"version": "1.1", "data": data}), encoding="utf-8")
    return data


def load(path, **arguments):
    asked = RowArguments(data_files=str(path), json_field="data", **arguments)
    return load_rows(asked, COLUMNS, OPTIONAL_COLUMNS, unfold=unfold_squad, group="context")


def test_every_question_is_a_row_and_an_article_on_one_side(tmp_path):
    data = write_squad(tmp_path / "squad.json")
    rows = load(tmp_path / "squad.json", group_column="title", validation_fraction=0.4)
    assert not set(rows["train"]["title"]) & set(rows["validation"]["title"])
    found = {row["id"]: row for split in rows.values() for row in split}
    expected = {
        asked["id"]: {
            "id": asked["id"],
            "title": article["title"],
            "context": paragraph["context"],
            "question": asked["question"],
            "answers": {name: [a[name] for a in asked["answers"]] for name in ("text", "answer_start")},
        }
        for article in data
        for paragraph in article["paragraphs"]
        for asked in paragraph["qas"]
    }
    assert found == expected


def test_without_a_column_the_task_s_own_keeps_rows_together(tmp_path):
    write_squad(tmp_path / "squad.json")
    rows = load(tmp_path / "squad.json", validation_fraction=0.4)
    assert not set(rows["train"]["context"]) & set(rows["validation"]["context"])
    assert set(rows["train"]["title"]) & set(rows["validation"]["title"])


def test_what_can_t_be_meant_is_refused(tmp_path):
    path = tmp_path / "squad.json"
    write_squad(path)
    with pytest.raises(ValueError, match=r"data.group_column: 'titel' is not among .*; did you mean 'title'\?"):
        load(path, group_column="titel")
    with pytest.raises(ValueError, match=r"data.group_column: 'title' has no effect with validation_split"):
        RowArguments(data_files={"train": "a", "validation": "b"}, validation_split="validation", group_column="title")
    broken = {"data": [{"title": "one", "paragraphs": [{"context": "Text.", "qas": [{"id": "1", "answers": []}]}]}]}
    path.write_text(json.dumps(broken), encoding="utf-8")
    with pytest.raises(ValueError, match="article 'one' has a part without 'question', only id, answers"):
        load(path)
