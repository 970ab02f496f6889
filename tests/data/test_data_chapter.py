"""The snippets of docs/data.md run, one after the other."""

import re
from pathlib import Path

import datasets

from hf_ext.data import pack_documents


CHAPTER = Path(__file__).parents[2] / "docs" / "data.md"


def test_snippets_run(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", CHAPTER.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(snippets) == 5
    exec("\n".join(snippets), {})


def test_diagram_is_what_the_packing_gives():
    documents = [
        [f"{name}{index}" for index in range(1, length + 1)] for name, length in (("A", 5), ("B", 2), ("C", 4))
    ]
    chapter = " ".join(CHAPTER.read_text(encoding="utf-8").split())
    for strategy in ("split", "best_fit"):
        rows = list(pack_documents(documents, row_length=8, strategy=strategy, eos_token_id=".", pad_token_id="_"))
        for name in ("input_ids", "position_ids", "labels"):
            drawn = " | ".join(" ".join(str(value) for value in row[name]) for row in rows).replace("-100", "x")
            assert f"{name} {drawn}" in chapter
