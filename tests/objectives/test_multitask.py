from torch import nn

from potstill.objectives.matches import MatchTerms
from potstill.objectives.matching import Match
from potstill.objectives.multitask import SharedObjective
from potstill.objectives.task import TaskObjective


def test_terms_and_projections_are_told_apart_by_their_task():
    matches = MatchTerms([Match("last", "hidden", "cos", (2,), (1,), projection="linear", projection_lr=0.1)])
    matches.projections["last"] = nn.Linear(4, 8)
    matches.rates["last"] = 0.1
    shared = SharedObjective(
        {
            "a": TaskObjective("classification", {"ce": 1.0, "label": 0.0, "match_last": 2.0}, matches=matches),
            "b": TaskObjective("regression", {"label": 1.0}),
        }
    )  # fmt: skip
    assert shared.active == ("ce_a", "match_last_a", "label_b")
    assert shared.matches.rates == {"a-last": 0.1}
    assert shared.matches.projections["a-last"] is matches.projections["last"]  # trained where it is used
