"""What is printed of foreign texts acts on no terminal."""

import logging

import pytest

from potstill.cli.commands import _Record, one_line
from potstill.errors import ConfigError, printable

HOSTILE = "red \x1b[31m, title \x1b]0;x\x07, back \x08, C1 \x9b2J, turned \u202egnp, line \u2028, half \ud83d, \r"


def test_controls_are_written_as_escapes():
    text = printable(HOSTILE)
    assert text.isprintable()
    assert text.encode()
    assert text.startswith(r"red \x1b[31m, title \x1b]0;x\x07, back \x08, C1 \x9b2J, turned \u202egnp")


@pytest.mark.parametrize("text", ["plain\n\ttext", "héllo 日本 👩\u200d🔬", "שלום"])
def test_texts_stay_as_they_are(text):
    assert printable(text) == text


def test_an_error_and_a_line_of_the_log_act_on_no_terminal():
    assert one_line(ConfigError(f"data.name={HOSTILE}")).isprintable()
    record = _Record("potstill", logging.WARNING, __file__, 1, "said %s", (HOSTILE,), None)
    assert record.getMessage().isprintable()
