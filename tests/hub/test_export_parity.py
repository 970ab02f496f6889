"""The exports' section of a card: every record in the folder, written once, and taken out when they are gone."""

import shutil

import pytest
from hub.test_model_card import write_export

from hf_ext.hub.card_sections import put_section
from hf_ext.hub.export_parity import add_exports, exports_section


CARD = "---\nlicense: mit\n---\n\n# mine\n\n## Samples\n\nx\n\n## Intended use and limits\n\nNone.\n"


def test_a_row_for_each_graph_of_each_export(tmp_path):
    assert exports_section(tmp_path) == ""
    write_export(tmp_path)
    write_export(tmp_path / "small", quantize="int8", greedy_tokens=None)
    rows = [line for line in exports_section(tmp_path).splitlines() if line.startswith("| onnx")]
    assert rows == [
        "| onnx | decode | 1.3e-06 | 1e-07 | 5.5 | 0.0001 | 20 of 20 |",
        "| onnx, int8 (`small`) | decode | 1.3e-06 | 1e-07 | 5.5 | 0.0001 |  |",
    ]


def test_a_card_that_is_there_gets_them_in_place(tmp_path):
    (tmp_path / "README.md").write_text(CARD)
    write_export(tmp_path / "onnx")
    assert add_exports(tmp_path)
    once = (tmp_path / "README.md").read_text()
    assert once.startswith(CARD[: CARD.index("\n## Intended")])
    assert once.endswith("\n## Intended use and limits\n\nNone.\n")
    assert add_exports(tmp_path)
    assert (tmp_path / "README.md").read_text() == once
    shutil.rmtree(tmp_path / "onnx")
    assert not add_exports(tmp_path)
    assert (tmp_path / "README.md").read_text() == CARD


def test_broken_records_and_missing_cards_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no README.md"):
        add_exports(tmp_path)
    write_export(tmp_path / "onnx")
    (tmp_path / "onnx" / "export.json").unlink()
    with pytest.raises(ValueError, match=r"parity.json: isn't what an export writes \(FileNotFoundError"):
        exports_section(tmp_path)
    write_export(tmp_path / "onnx")
    (tmp_path / "onnx" / "parity.json").write_text("{}")
    with pytest.raises(ValueError, match=r"parity.json: isn't what an export writes \(KeyError: 'greedy_tokens'\)"):
        exports_section(tmp_path)


def test_a_section_takes_the_place_of_its_own_alone(tmp_path):
    (tmp_path / "README.md").write_text(CARD)
    put_section(tmp_path, "## In fewer bits (int4)", "one")
    put_section(tmp_path, "## Samplers", "| a |")
    put_section(tmp_path, "## In fewer bits (int4)", "two")
    body = (tmp_path / "README.md").read_text().partition("## Samples\n\nx\n\n")[2]
    assert body == "## Samplers\n\n| a |\n\n## In fewer bits (int4)\n\ntwo\n\n## Intended use and limits\n\nNone.\n"
    for heading in ("## Samplers", "## In fewer bits (int4)"):
        put_section(tmp_path, heading, "")
    assert (tmp_path / "README.md").read_text() == CARD
