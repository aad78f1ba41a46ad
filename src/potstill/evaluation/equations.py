"""Values of equations that a model wrote, without executing them, and accuracy by value."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Sequence
from itertools import accumulate

MAX_CHARACTERS = 256
MAX_DEPTH = 32  # of nested brackets, signs and powers
TOLERANCE = 1e-6  # relative to the larger of two values
NEAR_ZERO = 1e-9  # absolute: a rounding error of 0

_DIGITS = r"[0-9](?:_?[0-9])*"
_THOUSANDS = r"[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9_])"
# A number as Python writes it, or with commas between thousands.
NUMBER = rf"(?:(?:{_THOUSANDS}|{_DIGITS})(?:\.(?:{_DIGITS})?)?|\.{_DIGITS})(?:[eE][+-]?{_DIGITS})?"
_ARITHMETIC = re.compile(r"[0-9eE_.,+*/%()\s-]*")
_GROUPED = re.compile(rf"(?<![0-9_.eE])(?<![eE][+-]){_THOUSANDS}")
_SIGNS = str.maketrans({"\u2212": "-", "\u00d7": "*", "\u00f7": "/"})  # typographic minus, times and division signs
_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,  # of floats: a large exponent overflows at once
}


class _NotArithmeticError(Exception):
    """The text is not plain arithmetic, or has no value."""


def value_of(equation: str) -> float | None:
    """The value of plain arithmetic: `+ - * / // % **`, brackets, and numbers as Python writes them.

    Numbers may have commas between thousands (`1,000`). The signs \u2212 \u00d7 \u00f7 are read as - * /.

    The text is parsed into Python's syntax tree, whose operators and numbers are computed in floating point; it is
    never executed, and bounded in length and depth.

    Returns:
        The value; None for any other text, one that is too long or too deep, and without a finite real value.
    """
    if len(equation) > MAX_CHARACTERS:
        return None
    text = equation.translate(_SIGNS)
    nesting = accumulate(1 if letter == "(" else -1 if letter == ")" else 0 for letter in text)
    if not _ARITHMETIC.fullmatch(text) or max(nesting, default=0) >= MAX_DEPTH:
        return None
    text = _GROUPED.sub(lambda found: found[0].replace(",", ""), " ".join(text.split()))
    try:
        return _evaluated(ast.parse(text, mode="eval").body)
    except (_NotArithmeticError, ArithmeticError, SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _evaluated(node: ast.expr, depth: int = 1) -> float:
    if depth > MAX_DEPTH:
        raise _NotArithmeticError
    match node:
        case ast.Constant(value=int() | float() as number):
            value = float(number)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            inner = _evaluated(operand, depth + 1)
            value = -inner if isinstance(sign, ast.USub) else inner
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            exponent = isinstance(op, ast.Pow)
            value = _OPERATORS[type(op)](_evaluated(left, depth), _evaluated(right, depth + exponent))
        case _:
            raise _NotArithmeticError
    if isinstance(value, complex) or not math.isfinite(value):
        raise _NotArithmeticError
    return value


def same_value(first: float | None, second: float | None) -> bool:
    """Whether both are values, and equal within `TOLERANCE` (near zero `NEAR_ZERO`)."""
    if first is None or second is None:
        return False
    return math.isclose(first, second, rel_tol=TOLERANCE, abs_tol=NEAR_ZERO)


def equation_accuracy(predictions: Sequence[str], gold: Sequence[str]) -> float:
    """Share of predictions with the value of their gold equation; a prediction without a value is wrong.

    Source: Hsieh et al. 2023 (arXiv:2305.02301), section 4.1, for SVAMP; there values are compared exactly.

    Raises:
        ValueError: no predictions, or lists of different lengths.
    """
    return _share([same_value(value_of(p), value_of(g)) for p, g in zip(predictions, gold, strict=True)])


def text_accuracy(predictions: Sequence[str], gold: Sequence[str]) -> float:
    """Share of predictions that equal their gold text, apart from leading and trailing blanks.

    Raises:
        ValueError: no predictions, or lists of different lengths.
    """
    return _share([p.strip() == g.strip() for p, g in zip(predictions, gold, strict=True)])


def _share(right: list[bool]) -> float:
    if not right:
        raise ValueError("no predictions")
    return sum(right) / len(right)
