"""SQuAD's files, articles of paragraphs of questions, as rows of one question each."""

from collections.abc import Mapping

from datasets import Dataset, Features, List, Value


# articles at a time: a SQuAD article has about 200 questions, each of which repeats its paragraph
_BATCH_SIZE = 8
FEATURES = Features(
    {
        "id": Value("string"),
        "title": Value("string"),
        "context": Value("string"),
        "question": Value("string"),
        "answers": {"text": List(Value("string")), "answer_start": List(Value("int64"))},
    }
)


def unfold_squad(rows: Dataset) -> Dataset:
    """Rows with `paragraphs`, the articles of SQuAD's files, as a row for every question; other rows as they are.

    A question has `id`, `title` (of its article), `context`, `question` and `answers`, {"text": [...], "answer_start":
    [...]}, as SQuAD has them on the Hub. `answer_start` counts characters. Questions that SQuAD 2 calls impossible have no
    answers.

    Raises:
        ValueError: a paragraph without context or questions, or a question without one of its parts.

    Source: Rajpurkar et al., 2016, arXiv 1606.05250; Rajpurkar et al., 2018, arXiv 1806.03822.
    """
    if "paragraphs" not in rows.column_names:
        return rows
    return rows.map(
        _questions, batched=True, batch_size=_BATCH_SIZE, remove_columns=rows.column_names, features=FEATURES
    )


def _questions(articles: Mapping[str, list]) -> dict[str, list]:
    unfolded = {name: [] for name in FEATURES}
    titles = articles.get("title") or [""] * len(articles["paragraphs"])
    for title, paragraphs in zip(titles, articles["paragraphs"], strict=True):
        for paragraph in paragraphs:
            for asked in _part(paragraph, "qas", title):
                answers = [] if asked.get("is_impossible") else _part(asked, "answers", title)
                unfolded["id"].append(str(_part(asked, "id", title)))
                unfolded["title"].append(title or "")
                unfolded["context"].append(_part(paragraph, "context", title))
                unfolded["question"].append(_part(asked, "question", title))
                unfolded["answers"].append(
                    {name: [_part(answer, name, title) for answer in answers] for name in ("text", "answer_start")}
                )
    return unfolded


def _part(of: Mapping, name: str, title: str):
    if of.get(name) is None:
        raise ValueError(
            f"data.data_files: article {title!r} has a part without {name!r}, only {', '.join(of)}; it isn't SQuAD's format"
        )
    return of[name]
