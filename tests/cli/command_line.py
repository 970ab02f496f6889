"""A command line run in this process, as a user would see it."""

from dataclasses import dataclass

import pytest

from hf_ext.cli.main import main


@dataclass(frozen=True)
class Done:
    """What a command line ended with."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """stderr's last line; a mistake is told in one."""
        return self.err.strip().splitlines()[-1] if self.err.strip() else ""


def hf_ext_command(capsys, *words) -> Done:
    """Run `hf-ext WORD …`."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    said = capsys.readouterr()
    return Done(ended.value.code or 0, said.out, said.err)
