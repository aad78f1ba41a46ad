"""Values of equations that a model wrote, without executing them, and accuracy by value."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

MAX_CHARACTERS = 256
MAX_DEPTH = 32  # of brackets, signs and powers within each other
TOLERANCE = 1e-6  # relative to the larger of two values
NEAR_ZERO = 1e-9  # absolute: what rounding leaves of 0

_DIGITS = r"[0-9](?:_?[0-9])*"
# A number as Python writes it, or with commas between thousands.
NUMBER = (
    rf"(?:(?:[1-9][0-9]{{0,2}}(?:,[0-9]{{3}})+(?![0-9_])|{_DIGITS})(?:\.(?:{_DIGITS})?)?|\.{_DIGITS})"
    rf"(?:[eE][+-]?{_DIGITS})?"
)
_TOKEN = re.compile(rf"\s*(?:({NUMBER})|(\*\*|//|[-+*/%()]))")
_SIGNS = str.maketrans(
    {"\u2212": "-", "\u00d7": "*", "\u00f7": "/"}
)  # as texts write minus, times and divided by


class _NotArithmeticError(Exception):
    """The text is no plain arithmetic, or has no value."""


def value_of(equation: str) -> float | None:
    """The value of plain arithmetic: `+ - * / // % **`, brackets, and numbers in every form that Python writes.

    Numbers may have an exponent (`1e-05`), begin or end with their point (`.5`, `5.`), and have underscores, or commas
    between thousands (`1,000`). The signs \u2212 \u00d7 \u00f7 are read as - * /.

    The text is read by a parser of its own and never executed; it is bounded in length and depth, and computed in
    floating point, so no text takes long.

    Returns:
        The value; None for a text that is anything else, is too long, too deep, divides by zero, or has no finite real
        value.
    """
    if len(equation) > MAX_CHARACTERS:
        return None
    try:
        return _Reader(_tokens(equation.translate(_SIGNS))).value()
    except (_NotArithmeticError, ArithmeticError):
        return None


def same_value(first: float | None, second: float | None) -> bool:
    """Whether both are values, and equal but for rounding (`TOLERANCE`, near zero `NEAR_ZERO`)."""
    if first is None or second is None:
        return False
    return math.isclose(first, second, rel_tol=TOLERANCE, abs_tol=NEAR_ZERO)


def equation_accuracy(predictions: Sequence[str], gold: Sequence[str]) -> float:
    """Share of predictions that have the value of their gold equation; what has no value is wrong.

    Source: Hsieh et al. 2023 (arXiv:2305.02301), section 4.1, for SVAMP; there values are equal to the bit.

    Raises:
        ValueError: there are none, or not as many of both.
    """
    return _share([same_value(value_of(p), value_of(g)) for p, g in zip(predictions, gold, strict=True)])


def text_accuracy(predictions: Sequence[str], gold: Sequence[str]) -> float:
    """Share of predictions that are their gold text, but for blanks around it.

    Raises:
        ValueError: there are none, or not as many of both.
    """
    return _share([p.strip() == g.strip() for p, g in zip(predictions, gold, strict=True)])


def _share(right: list[bool]) -> float:
    if not right:
        raise ValueError("there are no predictions")
    return sum(right) / len(right)


def _tokens(text: str) -> list[str]:
    tokens, at, text = [], 0, text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise _NotArithmeticError
        tokens.append(match.group(1) or match.group(2))
        at = match.end()
    return tokens


class _Reader:
    """Recursive descent over tokens: sums of products of signed powers of numbers and brackets."""

    def __init__(self, tokens: list[str]):
        self.tokens, self.at, self.depth = tokens, 0, 0

    def value(self) -> float:
        result = self._sum()
        if self.at < len(self.tokens):
            raise _NotArithmeticError
        return result

    def _take(self, *wanted: str) -> str | None:
        if self.at < len(self.tokens) and self.tokens[self.at] in wanted:
            self.at += 1
            return self.tokens[self.at - 1]
        return None

    def _sum(self) -> float:
        result = self._product()
        while sign := self._take("+", "-"):
            right = self._product()
            result = _bounded(result + right if sign == "+" else result - right)
        return result

    def _product(self) -> float:
        result = self._signed()
        while sign := self._take("*", "/", "//", "%"):
            right = self._signed()
            if sign == "*":
                result = result * right
            elif sign == "/":
                result = result / right
            else:
                result = result // right if sign == "//" else result % right
            result = _bounded(result)
        return result

    def _signed(self) -> float:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _NotArithmeticError
        sign = self._take("+", "-")
        result = self._power() if sign is None else self._signed()
        self.depth -= 1
        return -result if sign == "-" else result

    def _power(self) -> float:
        base = self._atom()
        if not self._take("**"):
            return base
        power = base ** self._signed()  # floats: a large exponent overflows, it takes no time
        if isinstance(power, complex):
            raise _NotArithmeticError
        return _bounded(power)

    def _atom(self) -> float:
        if self._take("("):
            inner = self._sum()
            if not self._take(")"):
                raise _NotArithmeticError
            return inner
        token = self.tokens[self.at] if self.at < len(self.tokens) else ""
        token = token.replace(",", "").replace("_", "")
        if not any(sign.isdigit() for sign in token):
            raise _NotArithmeticError
        if token.isdigit() and token[0] == "0" and int(token):  # 007 is no number in Python either
            raise _NotArithmeticError
        self.at += 1
        return _bounded(float(token))


def _bounded(value: float) -> float:
    if not math.isfinite(value):
        raise _NotArithmeticError
    return value
