"""A section of a card that is known only after the card was written: what exports compute, what fewer bits cost."""

import re
from pathlib import Path


BEFORE = "## Intended use and limits"


def put_section(folder: str | Path, heading: str, section: str) -> None:
    """Put a section into the card of `folder`, in place of the one that has its heading.

    Args:
        heading: of the second level, such as "## Exports". section: Markdown below it; empty, and there is none any more.

    Raises:
        ValueError: no card.
    """
    card = Path(folder) / "README.md"
    if not card.is_file():
        raise ValueError(f"folder={Path(folder).name!r}: has no README.md; the run that made the model writes one")
    # to the next heading of the same level, or the end
    earlier = re.compile(rf"\n*^{re.escape(heading)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    text = earlier.sub("\n\n", card.read_text(encoding="utf-8")).rstrip() + "\n"
    if section:
        section = f"{heading}\n\n{section.strip()}\n"
        before, found, after = text.partition(BEFORE)
        text = f"{before.rstrip()}\n\n{section}\n{found}{after}" if found else f"{text.rstrip()}\n\n{section}"
    card.write_text(text, encoding="utf-8")
