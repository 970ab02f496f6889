"""A calculator for a model that writes its sums as `<<48/2=24>>`: what stands after the `=` is computed, not guessed.

Source: Cobbe et al. 2021, arXiv 2110.14168, section 3 and appendix B, where tokens are overwritten the same way.
"""

import ast
import operator
import re
from fractions import Fraction

import torch
from transformers import LogitsProcessor, PreTrainedTokenizerBase


OPEN, CLOSE = "<<", ">>"
# characters; a longer sum is none that a word problem asks for
LONGEST_SUM = 64
# tokens before the next one in which a sum may have begun
TAIL = 80
# places behind the point that a result may have, and of one that has more, as most of GSM8K's own are rounded
MOST_PLACES, PLACES = 6, 2

_ALLOWED = re.compile(rf"[\d.+\-*/() ,]{{1,{LONGEST_SUM}}}")
_OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
_SIGNS = {ast.UAdd: operator.pos, ast.USub: operator.neg}


def calculate(expression: str) -> str | None:
    """The value of a sum of decimal numbers with + - * / and brackets, exactly; None if it is nothing of the kind.

    A value that needs more than six places behind the point is rounded to two.
    """
    text = expression.strip().replace(",", "")
    if not _ALLOWED.fullmatch(expression) or not text:
        return None
    try:
        value = _value(ast.parse(text, mode="eval").body, text)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None
    return _written(value)


def _value(node: ast.expr, text: str) -> Fraction:
    if isinstance(node, ast.Constant):
        return Fraction(ast.get_source_segment(text, node))  # not the float: 0.1 is a tenth
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_value(node.left, text), _value(node.right, text))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _SIGNS:
        return _SIGNS[type(node.op)](_value(node.operand, text))
    raise ValueError(f"{text!r}: only decimal numbers, + - * / and brackets")


def _written(value: Fraction) -> str:
    places = MOST_PLACES if (value * 10**MOST_PLACES).denominator == 1 else PLACES
    scaled = round(value * 10**places)  # whole, so that nothing is lost
    whole, behind = divmod(abs(scaled), 10**places)
    digits = f"{whole}.{behind:0{places}d}".rstrip("0").rstrip(".")
    return f"-{digits}" if scaled < 0 else digits


class Calculator(LogitsProcessor):
    """Forces the tokens of the result, and of the `>>` after it, wherever a text has come to `<<sum=`.

    A result that is already begun is gone on with if its characters are right; else, and where the sum is none, the model
    goes on by itself. It looks at the last `TAIL` tokens only, and keeps nothing between calls: any way to decode will do.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """input_ids (B, T), scores (B, vocabulary) of the next token -> scores, all but the forced one at -inf."""
        tails = self.tokenizer.batch_decode(input_ids[:, -TAIL:], skip_special_tokens=True)
        scores = scores.clone()
        for row, tail in enumerate(tails):
            if rest := what_is_left(tail):
                token = self.tokenizer(rest, add_special_tokens=False)["input_ids"][0]
                scores[row] = -torch.inf
                scores[row, token] = 0
        return scores


def what_is_left(text: str) -> str:
    """What must follow in a text that ends in a sum whose result isn't whole; "" if the text may go on as it likes."""
    _, opened, inside = text.rpartition(OPEN)
    expression, equals, written = inside.partition("=")
    if not opened or not equals or CLOSE in expression:
        return ""
    value = calculate(expression)
    whole = "" if value is None else value + CLOSE
    return whole[len(written) :] if whole.startswith(written) else ""
