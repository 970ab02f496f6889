"""Tags derived from text at hand by fixed rules, where no tagged data set is: a task to learn, and no more than the rules.

A rule takes a text and gives `Tagged` passages of it. What a model scores says how well it imitates the rule from the words
alone; the rule itself sees more (Python's own parser) or is a list of patterns.
"""

import ast
import io
import re
import tokenize
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass


# words of a passage of code, about: whole logical lines are added until there are so many
CODE_WORDS = 48
# characters; longer tokens are texts and tables, not code
LONGEST_TOKEN = 40
WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Tagged:
    """A text with its words and entities.

    Attributes:
        text: as the model reads it.
        words: (first character, one after the last) of each word, ascending.
        entities: (first word, one after the last, type), ascending, none over another.
    """

    text: str
    words: list[tuple[int, int]]
    entities: list[tuple[int, int, str]]


def python_code(source: str) -> Iterator[Tagged]:
    """Passages of a Python module: its tokens joined by single spaces, and what the names in them are, by Python's parser.

    FUNCTION and CLASS where one is defined, PARAMETER in a definition, KEYWORD in a call, BASE of a class, DECORATOR, MODULE
    that is imported, EXCEPTION that is raised or caught. The dotted ones are of several words. Comments, docstrings and
    lines with a token of more than `LONGEST_TOKEN` characters are left out; a text that isn't Python gives nothing.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old escapes in the source
            tree = ast.parse(source)
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (SyntaxError, ValueError, tokenize.TokenError):
        return
    kinds = (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING, tokenize.NEWLINE)
    tokens = [token for token in tokens if token.type in kinds]
    entities = sorted(_code_entities(tree, tokens, source.splitlines()))
    passage, first = [], 0  # numbers of tokens
    for number, token in enumerate(tokens):
        if token.type != tokenize.NEWLINE:
            continue
        line, first = list(range(first, number)), number + 1
        is_text = all(tokens[n].type == tokenize.STRING for n in line)
        if is_text or any(len(tokens[n].string) > LONGEST_TOKEN or "\n" in tokens[n].string for n in line):
            continue
        passage += line
        if len(passage) >= CODE_WORDS:
            yield _joined(passage, tokens, entities)
            passage = []
    if passage:
        yield _joined(passage, tokens, entities)


def _joined(passage: list[int], tokens: list, entities: list[tuple[int, int, str]]) -> Tagged:
    words, start = [], 0
    for number in passage:
        words.append((start, start + len(tokens[number].string)))
        start = words[-1][1] + 1
    place = {number: word for word, number in enumerate(passage)}
    inside = [(place[a], place[b - 1] + 1, kind) for a, b, kind in entities if a in place]
    return Tagged(" ".join(tokens[number].string for number in passage), words, inside)


def _code_entities(tree: ast.AST, tokens: list, lines: list[str]) -> Iterator[tuple[int, int, str]]:
    """(first token, one after the last, type) of every entity."""
    starts = [token.start for token in tokens]

    def token_at(line: int, byte: int) -> int:
        # the parser counts UTF-8 bytes, the tokenizer characters
        return bisect_left(starts, (line, len(lines[line - 1].encode()[:byte].decode())))

    def dotted(node: ast.AST, kind: str) -> Iterator[tuple[int, int, str]]:
        named = node.func if isinstance(node, ast.Call) else node
        inner = named
        while isinstance(inner, ast.Attribute):
            inner = inner.value
        if isinstance(inner, ast.Name):
            yield (
                token_at(named.lineno, named.col_offset),
                token_at(named.end_lineno, named.end_col_offset),
                kind,
            )

    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            is_class = isinstance(node, ast.ClassDef)
            at = token_at(node.lineno, node.col_offset)
            name = at + (2 if isinstance(node, ast.AsyncFunctionDef) else 1)
            yield name, name + 1, "CLASS" if is_class else "FUNCTION"
            for decorator in node.decorator_list:
                yield from dotted(decorator, "DECORATOR")
            for base in node.bases if is_class else ():
                yield from dotted(base, "BASE")
        elif isinstance(node, ast.arg):
            at = token_at(node.lineno, node.col_offset)
            yield at, at + 1, "PARAMETER"
        elif isinstance(node, ast.keyword) and node.arg is not None:
            at = token_at(node.lineno, node.col_offset)
            yield at, at + 1, "KEYWORD"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                at = token_at(alias.lineno, alias.col_offset)
                yield at, at + 2 * alias.name.count(".") + 1, "MODULE"
        elif isinstance(node, ast.ImportFrom) and node.module:
            at = token_at(node.lineno, node.col_offset) + 1
            while tokens[at].string in (".", "..."):
                at += 1
            yield at, at + 2 * node.module.count(".") + 1, "MODULE"
        elif isinstance(node, ast.Raise | ast.ExceptHandler):
            given = node.exc if isinstance(node, ast.Raise) else node.type
            for one in given.elts if isinstance(given, ast.Tuple) else [given]:
                for first, end, kind in dotted(one, "EXCEPTION"):
                    if tokens[end - 1].string[0].isupper():  # else a variable that holds one
                        yield first, end, kind


_UNITS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
_TENS = "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety"
_SPELLED = f"(?i:{'|'.join([*_UNITS.split(), *_TENS.split()])})"
_SCALE = "(?i:hundred|thousand|million|billion)"
_COUNT = rf"(?:\d[\d,]*(?:\.\d+)?(?: {_SCALE})?|{_SPELLED}(?:[ -](?:and )?(?:{_SPELLED}|{_SCALE}))*)(?!\w)"
_MONTH = "(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_DAY = "(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"
_HALF = r"(?:\s?[ap]\.?\s?m\b\.?)"
# in the order in which they take their words
_PATTERNS = {
    "MONEY": rf"[$£€¥] ?{_COUNT}|{_COUNT} (?:dollars?|pounds?|yuan|cents?|euros?|bucks?|yen|RMB)\b",
    "PERCENT": rf"{_COUNT} ?(?:%|per ?cent\b)",
    "TIME": rf"\d{{1,2}} ?: ?\d\d{_HALF}?(?!\w)|{_COUNT}(?: o ?' ?clock\b|{_HALF})|\b(?:noon|midnight)\b"
    rf"|\b(?i:half past|(?:a )?quarter (?:to|past)) {_COUNT}",
    "DATE": rf"\b{_MONTH}(?: \d{{1,2}}(?:st|nd|rd|th)?\b)?(?:,? (?:19|20)\d\d\b)?|\b{_DAY}s?\b|\b(?:19|20)\d\d\b"
    r"|\b(?i:today|tomorrow|yesterday|tonight)\b",
    "PERSON": r"\b(?:Mr|Mrs|Ms|Miss|Dr|Prof|Professor)\b\.? ?[A-Z][a-z]+\b(?: [A-Z][a-z]+\b)?",
    "NUMBER": rf"(?<!\w)(?!(?i:one)(?! {_SCALE}))(?:{_COUNT})",
}
_ENTITIES = [(kind, re.compile(rf"(?<!\w)(?:{pattern})")) for kind, pattern in _PATTERNS.items()]
_TURN = re.compile(r"^#Person\d+#:\s*")


def dialogue_entities(text: str) -> Iterator[Tagged]:
    """The turns of a dialogue, a line each, with amounts of MONEY, PERCENT, TIME, DATE, PERSON (after a title) and NUMBER.

    By patterns alone, with what they get wrong. A turn's speaker (`#Person1#:`) is left out, and so are turns of fewer than
    three words.
    """
    for line in text.splitlines():
        turn = _TURN.sub("", line.strip())
        words = [match.span() for match in WORD.finditer(turn)]
        if len(words) < 3:
            continue
        first_at, last_at = ({span[side]: number for number, span in enumerate(words)} for side in (0, 1))
        taken, entities = set(), []
        for kind, pattern in _ENTITIES:
            for match in pattern.finditer(turn):
                first, last = first_at.get(match.start()), last_at.get(match.end())
                if first is not None and last is not None and taken.isdisjoint(range(first, last + 1)):
                    taken.update(range(first, last + 1))
                    entities.append((first, last + 1, kind))
        yield Tagged(turn, words, sorted(entities))


RULES: dict[str, Callable[[str], Iterator[Tagged]]] = {
    "python_code": python_code,
    "dialogue_entities": dialogue_entities,
}
