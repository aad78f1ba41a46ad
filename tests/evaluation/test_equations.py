"""Values of plain arithmetic equal Python's; other texts have no value, and every text takes bounded time."""

import ast
import math
import operator
import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from potstill.evaluation.equations import (
    MAX_CHARACTERS,
    MAX_DEPTH,
    equation_accuracy,
    same_value,
    text_accuracy,
    value_of,
)

numbers = st.one_of(
    st.integers(0, 999).map(str),
    st.decimals(0, 99, places=2).map(str),
    st.floats(0, 1e30).map(repr),  # 1e-05, 1e+16
    st.integers(0, 10**9).map("{:_}".format),
    st.sampled_from([".5", "5.", "1E3", "0_0.1_0e+0_1"]),
)
expressions = st.recursive(
    numbers,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//", "%", " + ", " - "]), inner).map("".join),
        inner.map(lambda text: f"( {text} )"),
        inner.map(lambda text: f"-{text}"),
    ),
    max_leaves=8,
)


OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def reference(node):
    """The value of Python's own syntax tree; None where it divides by zero or is too large on the way."""
    if isinstance(node, ast.Constant):
        return float(node.value)
    if isinstance(node, ast.UnaryOp):
        inner = reference(node.operand)
        return None if inner is None else -inner
    left, right = reference(node.left), reference(node.right)
    if left is None or right is None:
        return None
    try:
        result = OPERATORS[type(node.op)](left, right)
    except ArithmeticError:
        return None
    return result if math.isfinite(result) else None


@given(expressions)
def test_values_equal_python(text):
    assume(len(text) <= MAX_CHARACTERS and text.count("(") + text.count("-") < MAX_DEPTH)
    assert value_of(text) == reference(ast.parse(text, mode="eval").body)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 ** 3", 8),
        ("2 ** -1", 0.5),
        ("-2 ** 2", -4),
        ("2 ** 3 ** 2", 512),
        ("8 / 4 / 2", 1),
        ("8 - 4 - 2", 2),
        ("-7 // 2", -4),
        ("-7 % 4", 1),
        (".5 + 5.", 5.5),
        ("\t(1\n+ 2) ", 3),
        ("+-+3", -3),
        ("0", 0),
        ("00.5", 0.5),
        ("1e-05", 1e-05),
        ("( 2E+3 - .5e1 )", 1995),
        ("1_000 + 1", 1001),
        ("1,000", 1000),
        ("12,345,678.5 - 1", 12345677.5),
        ("\u22123 \u00d7 4 \u00f7 2", -6),
        ("10 ** 16", 1e16),
        ("9" * 16, 1e16),
        ("1e308 / 10", 1e307),
    ],
)
def test_value(text, value):
    assert value_of(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "()",
        "7 apples",
        "(1 + 2",
        "1 + 2)",
        "1 2",
        "(1)(2)",
        "3 = 3",
        "1,00",
        "0,500",
        "1000,000",
        "1,0000",
        "1,000_0",
        "1_",
        "1__0",
        "_1",
        "1e",
        "1e+",
        "e5",
        "1e5.5",
        "1e999",
        "1e308 * 10",
        "1e999 - 1e999",
        "x",
        "__import__('os')",
        "0x10",
        "2j",
        "inf",
        "nan",
        "٣",
        "007",
        "1.2.3",
        ".",
        "* 3",
        "5 - ",
        "1 / 0",
        "1 % 0",
        "0 ** -1",
        "(-8) ** 0.5",
        "9 ** 9 ** 9 ** 9",
        "1e9 ** 1e9",
        "1" + "+1" * 128,
        "(" * 100 + "1" + ")" * 100,
        "-" * 100 + "1",
        "2" + "**1" * 60,
    ],
)
def test_no_value(text):
    started = time.monotonic()
    assert value_of(text) is None
    assert time.monotonic() - started < 1


def test_depth_counts_nested_brackets():
    assert value_of("+".join(["(1)"] * 60)) == 60


def test_accuracies():
    gold = ["( 8.0 - 3.0 )", "3 * 4", "1 / 3", "2"]
    assert equation_accuracy(["5", "(4 * 3)", "0.33333333", "two"], gold) == 0.75
    assert equation_accuracy(["1 / 0"], ["1 / 0"]) == 0
    assert text_accuracy([" sea", "Sea", "sea."], ["sea\n", "sea", "sea"]) == pytest.approx(1 / 3)


@pytest.mark.parametrize("accuracy", [equation_accuracy, text_accuracy])
def test_empty_and_different_lists_are_rejected(accuracy):
    with pytest.raises(ValueError, match="no predictions"):
        accuracy([], [])
    with pytest.raises(ValueError, match=r"shorter|longer"):
        accuracy(["1"], [])


def test_same_value_is_relative_except_near_zero():
    assert same_value(1e9, 1e9 + 1)
    assert not same_value(1000, 1001)
    assert same_value(0.0, 1e-9)
    assert not same_value(1e-05, 1e-06)
    assert not same_value(2e-07, 1e-07)
    assert not same_value(None, None)
    assert not same_value(math.nan, math.nan)
