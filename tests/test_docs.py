"""Every snippet of the chapters and the README runs; every file and folder that they name exists."""

import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_snippets_run(page, tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S)
    blocks = [b for b in blocks if "outputs/" not in b]  # those need the quickstart, which proves them itself
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "snippet"}
    for block in blocks:  # a page is read from top to bottom
        exec(compile(block, page.name, "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_named_files_exist(page):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:recipes|tests|docs|hf_ext)/[\w/.-]+)`", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`((?:ops|layers|models|data|objectives|training|tasks|hub)/[\w/]+\.py)`", text):
        assert (ROOT / "hf_ext" / name).exists(), name
    for name in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (page.parent / name).exists(), name


def test_every_room_is_in_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for room in sorted(p.name for p in (ROOT / "hf_ext").iterdir() if (p / "__init__.py").exists()):
        assert f"{room}/" in text, room
    for recipe in (ROOT / "recipes").rglob("*.yaml"):
        assert str(recipe.relative_to(ROOT)) in text, recipe


def test_every_paper_is_listed_once():
    text = (ROOT / "docs/papers.md").read_text(encoding="utf-8")
    listed = [line.split(" | ")[2] for line in text.splitlines() if line.startswith("|") and "arXiv" in line]
    assert len(listed) > 50
    twice = {where for where in listed if listed.count(where) > 1}
    assert not twice
