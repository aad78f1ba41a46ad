"""Names in a model card are text, never markup."""

import pytest

from potstill.reporting.model_card import code_block, code_span, figure_list

HOSTILE = "a`<script>alert(1)</script>\n---\nlicense: mit\n---\n![x](http://e/x.png)`` \r\u2028# b\u202e"


@pytest.mark.parametrize("made", [code_span(HOSTILE), code_block(HOSTILE), figure_list({HOSTILE: 0.5})])
def test_a_name_stays_on_its_line_and_in_its_span(made):
    assert len(made.splitlines()) == 1
    assert made.count("`") in (0, 2)
    assert "\u202e" not in made


def test_figures():
    assert figure_list({"val/f1": 0.123456, "seed": 1, "name": "x"}) == "- `val/f1`: 0.1235"
    assert code_span("bert-base-uncased") == "`bert-base-uncased`"
