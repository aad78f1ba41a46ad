"""Values of equations that a model wrote, without executing them, and accuracy by value."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

MAX_CHARACTERS = 256
MAX_DEPTH = 32  # of brackets, signs and powers within each other
MAX_VALUE = 1e15  # in size; beyond it float64 no longer holds every integer
TOLERANCE = 1e-6  # relative to the larger of two values, and absolute near 0

_TOKEN = re.compile(r"\s*(?:([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)|(\*\*|//|[-+*/%()]))")


class _NotArithmeticError(Exception):
    """The text is no plain arithmetic, or has no value."""


def value_of(equation: str) -> float | None:
    """The value of plain arithmetic: `+ - * / // % **`, brackets, integers and decimals, as Python reads them.

    The text is read by a parser of its own and never executed; it is bounded in length, depth and the size of every
    value on the way, so no text takes long.

    Returns:
        The value; None for a text that is anything else, is too long, too deep or too large, divides by zero, or has no
        real value.
    """
    if len(equation) > MAX_CHARACTERS:
        return None
    try:
        return _Reader(_tokens(equation)).value()
    except (_NotArithmeticError, ArithmeticError):
        return None


def same_value(first: float | None, second: float | None) -> bool:
    """Whether both are values, and equal but for rounding (`TOLERANCE`)."""
    if first is None or second is None:
        return False
    return math.isclose(first, second, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


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
        if not token[-1:].isdigit() and not token[:1].isdigit():
            raise _NotArithmeticError
        if token.isdigit() and token[0] == "0" and int(token):  # 007 is no number in Python either
            raise _NotArithmeticError
        self.at += 1
        return _bounded(float(token))


def _bounded(value: float) -> float:
    if not abs(value) <= MAX_VALUE:
        raise _NotArithmeticError
    return value
