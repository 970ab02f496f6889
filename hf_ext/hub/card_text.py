"""A card as a page will show it: nothing in it that a page would run, no metadata that stands for more than it says."""

import re

import yaml


MAX_METADATA = 2**20  # characters
METADATA = re.compile(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", re.DOTALL)
# what a viewer that doesn't clean pages runs or loads; the Hub cleans them
ACTIVE = re.compile(r"<\s*(?:script|iframe|object|embed|form)\b|<[^>]*\son\w+\s*=|javascript:", re.IGNORECASE)
# code is shown, not run
_CODE = re.compile(r"^(`{3,}|~{3,}).*?^\1|`[^`\n]*`", re.DOTALL | re.MULTILINE)


def check_card_text(text: str) -> None:
    """Raises ValueError, one line, for a card with scripts, frames, forms or links that run something, and for metadata with
    aliases, ten lines of which can stand for billions of values."""
    match = METADATA.match(text)
    if match is not None:
        if len(match[1]) > MAX_METADATA:
            raise ValueError(
                f"README.md: its metadata has {len(match[1]):,} characters, above {MAX_METADATA:,}; cut it"
            )
        _check_metadata(match[1])
    found = ACTIVE.search(_CODE.sub("", text if match is None else text[match.end() :]))
    if found is not None:
        raise ValueError(f"README.md: holds {found[0]!r}, which a page may run; take it out, or show it as code")


class _WithoutAliases(yaml.SafeLoader):
    """Of which the nodes are asked only: nothing is made of them."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise ValueError("it has an alias, *name; write out what is meant")
        return super().compose_node(parent, index)


def _check_metadata(text: str) -> None:
    loader = _WithoutAliases(text)
    try:
        loader.get_single_node()
    except RecursionError:
        raise ValueError("README.md: its metadata isn't valid (hundreds of levels deep)") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"README.md: its metadata isn't valid ({str(error).splitlines()[0]})") from None
    finally:
        loader.dispose()
