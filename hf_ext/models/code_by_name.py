"""Names of code on the Hub where a file may put them: what a file says there would be fetched and run without a question."""

from collections.abc import Iterator, Mapping


# Of these fields a name with a slash is a repository of kernels, which transformers loads: CVE-2026-4372, and the field
# without an underscore is still read from a config.json (its pull request 46708).
CODE_FIELDS = (
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "experts_implementation",
    "_experts_implementation",
    "_experts_implementation_internal",
)


def check_names_no_code(content, where: str) -> None:
    """Raises ValueError, one line, where a file names code to fetch, or says that code may be trusted: that is the user's
    own command's to say.

    Args:
        content: of a JSON or YAML, as deep as it is. where: the file's name.
    """
    for key, value in entries(content):
        if key == "trust_remote_code" and value:
            raise ValueError(f"{where}: says trust_remote_code={value!r}; only your own command may, so take it out")
        if key in CODE_FIELDS:
            for name in value.values() if isinstance(value, Mapping) else [value]:
                if isinstance(name, str) and "/" in name:
                    raise ValueError(
                        f"{where}: {key}={name!r} names code on the Hub that would be fetched and run; take it out, and "
                        "name it in your own command if you trust it"
                    )


def entries(content) -> Iterator[tuple[object, object]]:
    """(key, value) of all mappings in it, however deep."""
    waiting = [content]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            yield from part.items()
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
