"""Names in a model card are literal text."""

import pytest

from potstill.reporting.model_card import code_block, code_span, figure_list

HOSTILE = "a`<script>alert(1)</script>\n---\nlicense: mit\n---\n![x](http://e/x.png)`` \r\u2028# b\u202e"


@pytest.mark.parametrize("made", [code_span(HOSTILE), code_block(HOSTILE), figure_list({HOSTILE: 0.5})])
def test_names_are_one_line_without_markup(made):
    assert len(made.splitlines()) == 1
    assert made.count("`") in (0, 2)
    assert "\u202e" not in made


def test_figures():
    assert figure_list({"val/f1": 0.123456, "seed": 1, "name": "x"}) == "- `val/f1`: 0.1235"
    assert code_span("bert-base-uncased") == "`bert-base-uncased`"
