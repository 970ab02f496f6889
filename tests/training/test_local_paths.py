"""What is for others names no folder of this machine, in whatever a path stands."""

from pathlib import Path

import pytest
import yaml

from hf_ext.training.local_paths import public_yaml, without_local_paths


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    (tmp_path / "home" / "ann lee" / "work").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "ann lee"))
    monkeypatch.chdir(tmp_path / "home" / "ann lee" / "work")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--output_dir /tmp/a/b", "--output_dir b"),
        ("--output_dir=/tmp/a/b c", "--output_dir=b c"),
        ("x: '/home/me/*.txt'", "x: '*.txt'"),
        ("x: ~/texts/a.txt", "x: a.txt"),
        ("{{path:/home/me/x}}", "{{path:x}}"),
        ("file:///home/me/x.csv", "x.csv"),
        ("recipes/pretraining/debug.yaml", "recipes/pretraining/debug.yaml"),
        ("../shared/data/a.txt", "../shared/data/a.txt"),
        ("see https://arxiv.org/abs/1706.03762", "see https://arxiv.org/abs/1706.03762"),
        ("hf://datasets/me/rows", "hf://datasets/me/rows"),
        ("1 / 2", "1 / 2"),
        # a home with a space in its name, itself and below it; the folder where a command runs
        ("{home}", "~"),
        ("x {home}/", "x ~/"),
        ("{home}/mine", "mine"),
        ("{home}/texts/a.txt", "a.txt"),
        ('{{"output_dir": "{home}/runs/mine"}}', '{{"output_dir": "mine"}}'),
        ("{home}/work/outputs/mine", "outputs/mine"),
        ("{home}by/x", "ann leeby/x"),
        ("model{home}/work/x", "model{home}/work/x"),
    ],
)
def test_paths_are_cut(text, expected):
    home = str(Path.home())
    assert without_local_paths(text.format(home=home)) == expected.format(home=home)


def test_lists_and_mappings_keep_all_else():
    given = {"a": ["/tmp/x/y", 1, None], "b": {"c": ("/tmp/x/z", True)}}
    assert without_local_paths(given) == {"a": ["y", 1, None], "b": {"c": ("z", True)}}


def test_a_pattern_that_is_left_of_a_path_is_still_yaml():
    assert yaml.safe_load(public_yaml("a: {b: '/tmp/x/*.txt'}\nc: [1, ü]\n")) == {"a": {"b": "*.txt"}, "c": [1, "ü"]}
