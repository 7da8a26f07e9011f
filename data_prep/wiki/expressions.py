"""``{{#expr: 2 * (3 + 4) round 1}}``: the arithmetic of MediaWiki's parser functions.

Follows its documentation (Help:Extension:ParserFunctions): ``round`` has the lowest precedence,
then sums, products (with ``div`` and ``mod``), powers, signs. Anything else has no value.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable

_TOKEN = re.compile(r"\s*(\d+\.?\d*|\.\d+|round|div|mod|[-+*/^()−×÷])", re.IGNORECASE)
_LONGEST, _DEEPEST = 200, 20
_MOST_DIGITS = 15
_LEVELS: tuple[dict[str, Callable[[float, float], float]], ...] = (
    {"round": lambda value, digits: _rounded(value, digits)},
    {"+": operator.add, "-": operator.sub},
    {"*": operator.mul, "/": operator.truediv, "div": operator.truediv, "mod": math.fmod},
    {"^": math.pow},
)
_OTHER_SIGNS = {"−": "-", "×": "*", "÷": "/"}


def expression_value(text: str) -> str:
    """Return the value of an expression as MediaWiki writes it; "" if it has none."""
    tokens = _tokens(text) if len(text) <= _LONGEST else []
    if not tokens or tokens.count("(") > _DEEPEST:
        return ""
    tokens.reverse()  # the next token is the last one, so that pop() takes it
    try:
        value = _level(tokens, 0)
    except (ValueError, ArithmeticError, IndexError):
        return ""
    if tokens or not math.isfinite(value):
        return ""
    whole = round(value)
    return str(whole) if value == whole else f"{value:.{_MOST_DIGITS - 1}g}"


def _tokens(text: str) -> list[str]:
    tokens = []
    position = 0
    text = text.strip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            return []
        tokens.append(_OTHER_SIGNS.get(match[1], match[1].lower()))
        position = match.end()
    return tokens


def _level(tokens: list[str], level: int) -> float:
    if level == len(_LEVELS):
        return _operand(tokens)
    value = _level(tokens, level + 1)
    while tokens and tokens[-1] in _LEVELS[level]:
        value = _LEVELS[level][tokens.pop()](value, _level(tokens, level + 1))
    return value


def _operand(tokens: list[str]) -> float:
    token = tokens.pop()
    if token in "+-":
        return -_operand(tokens) if token == "-" else _operand(tokens)
    if token == "(":
        value = _level(tokens, 0)
        if tokens.pop() != ")":
            raise ValueError
        return value
    return float(token)


def _rounded(value: float, digits: float) -> float:
    """Round half away from zero, as PHP does."""
    scale = 10.0 ** max(-_MOST_DIGITS, min(_MOST_DIGITS, int(digits)))
    return math.copysign(math.floor(abs(value) * scale + 0.5) / scale, value)
