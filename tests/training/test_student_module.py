import torch
from torch import nn

from potstill.objectives.features import Features
from potstill.objectives.matches import Matches
from potstill.objectives.matching import Match
from potstill.objectives.task import TaskObjective
from potstill.training.student_module import Optimization, StudentModule


def test_terms_and_projections_of_several_tasks_have_the_name_of_their_task():
    match = Match("last", "hidden", "cos", (2,), (1,), projection="linear", projection_lr=0.1)
    teacher, student = (Features(hidden={place: torch.zeros(1, 1, width)}) for place, width in ((2, 8), (1, 4)))
    matches = Matches([match], [teacher], student, seed=0)
    module = StudentModule(
        nn.Linear(1, 1),
        None,
        {
            "a": TaskObjective("classification", {"ce": 1.0, "label": 0.0, "match_last": 2.0}, matches=matches),
            "b": TaskObjective("regression", {"label": 1.0}),
        },
        Optimization(lambda model: torch.optim.SGD(model.parameters(), lr=1.0)),
    )
    assert module.active == ("ce_a", "match_last_a", "label_b")
    assert module.projections["a-last"] is matches.projections["last"]  # trained where it is used
    rates = [(group["lr"], len(group["params"])) for group in module.configure_optimizers().param_groups]
    assert rates == [(1.0, 2), (0.1, 2)]
