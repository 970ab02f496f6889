"""What `make bench` writes of what a benchmark prints."""

import runpy
from pathlib import Path

import pytest


REPORT = runpy.run_path(str(Path(__file__).parent / "benchmarks" / "report.py"), run_name="report")
PRINTED = """x86_64
| batch 1 | tokens/s | against llama |
| --- | --- | --- |
| llama | 23.0 | 1.00 |
| ours, `compiled` | 57.3, 12 | 2.56 |

| kind | note |
| --- | --- |
| words | none |
"""


def test_tables_are_read():
    (table,) = REPORT["read_tables"](PRINTED)
    assert table.quantity == "batch 1, tokens/s"
    assert table.values == {"llama": 23.0, "ours, `compiled`": 57.3}


@pytest.mark.parametrize("status", [0, 1])
def test_a_run_is_kept_and_drawn_if_it_ended_well(status, tmp_path, capsys):
    script = tmp_path / "sums.py"
    script.write_text(f"import sys\nprint({PRINTED!r})\nsys.exit({status})\n")
    assert REPORT["run"](script, tmp_path / "out") == (status == 0)
    assert "| llama | 23.0 | 1.00 |" in capsys.readouterr().out
    if status:
        assert not (tmp_path / "out").exists()
        return
    kept = (tmp_path / "out" / "sums.md").read_text()
    assert kept.startswith("# sums\n")
    assert "torch " in kept
    assert "| llama | 23.0 | 1.00 |" in kept
    assert (tmp_path / "out" / "sums.png").read_bytes().startswith(b"\x89PNG")
