from dataclasses import replace

import pytest

from potstill.errors import ConfigError
from potstill.models.specs import ModelSpec
from potstill.objectives.matching import preset_names, read_matches

TEACHER = ModelSpec("bert", "masked", 12, 768, 12, 100, 64)
STUDENT = replace(TEACHER, depth=3)
SMALL = replace(STUDENT, width=384, heads=6)
CAUSAL = replace(TEACHER, model_type="gpt2", kind="causal")


def read(value, student=STUDENT, teachers=(TEACHER,)):
    return read_matches(value, teachers, student)


def test_the_published_presets_of_a_teacher_of_twelve_blocks():
    def pairs(name, student):
        return [(m.teacher, m.student, m.loss, m.projection, m.weight) for m in read(f"{name}", student)]

    assert pairs("L3_hidden_mse", STUDENT) == [
        ((t,), (s,), "hidden_mse", None, 1.0) for t, s in ((0, 0), (4, 1), (8, 2), (12, 3))
    ]
    assert pairs("L3_nst", STUDENT) == [
        ((t, t), (s, s), "nst", None, 1.0) for t, s in ((0, 0), (4, 1), (8, 2), (12, 3))
    ]
    assert pairs("L3_small_hidden_mse", SMALL)[1] == ((4,), (1,), "hidden_mse", "linear", 1.0)
    tiny = replace(SMALL, depth=4, width=312)
    assert [m[0] for m in pairs("L4_tiny_hidden_mse", tiny)] == [(0,), (3,), (6,), (9,), (12,)]
    assert [m[0] for m in pairs("L6_hidden_mse", replace(STUDENT, depth=6))] == [
        (k,) for k in (0, 2, 4, 6, 8, 10, 12)
    ]
    nano = replace(STUDENT, depth=12, width=256, heads=4)
    assert [m[:2] for m in pairs("L12_nano_hidden_mse", nano)] == [
        ((k,), (k,)) for k in (0, 2, 4, 6, 8, 10, 12)
    ]
    assert len(pairs("L3", STUDENT)) == 8
    assert len(preset_names()) == 15


def test_presets_adapt_to_the_teacher_and_are_for_students_of_their_depth():
    big = replace(TEACHER, depth=24, width=1024)
    assert [(m.teacher, m.projection) for m in read("L3_hidden_mse", STUDENT, (big,))] == [
        ((k,), "linear") for k in (0, 8, 16, 24)
    ]
    with pytest.raises(
        ConfigError, match=r"objective.matches=L6: is for a student of 6 blocks; this one has 3"
    ):
        read("L6")
    with pytest.raises(ConfigError, match="needs a teacher of 3 blocks or more; this one has 2"):
        read("L3", STUDENT, (replace(TEACHER, depth=2),))


def test_names_terms_and_layers_that_stand_for_all():
    two = read(["L3_hidden_mse", {"teacher": 12, "student": 3, "loss": "cos", "name": "last", "weight": 2}])
    assert [m.term for m in two][-2:] == ["match_hidden_mse_3", "match_last"]
    assert two[-1].weight == 2.0
    (emd,) = read({"loss": "emd"})
    assert (emd.student, len(emd.teacher), emd.feature) == ((1, 2, 3), 12, "hidden")
    assert read(None) == ()
    (scheduled,) = read(
        {"teacher": 0, "student": 0, "loss": "cos", "schedule": "linear", "end": 0, "steps": 5}
    )
    assert (scheduled.end, scheduled.steps) == (0.0, 5)


@pytest.mark.parametrize(
    ("entry", "student", "said"),
    [
        ("L5", STUDENT, "objective.matches=L5: one of L3, L3_hidden_mse"),
        (7, STUDENT, r"objective.matches\[0\]=7: not a match; write"),
        ({"layer": 1}, STUDENT, r"objective.matches\[0\].layer=1: no such key; one of name, teacher"),
        ({"teacher": 13, "student": 3, "loss": "hidden_mse"}, STUDENT, "=13: the teacher has the layers 0 to 12"),
        ({"teacher": 12, "student": 4, "loss": "cos"}, STUDENT, "student=4: the student has the layers 0 to 3"),
        ({"teacher": 0, "student": 1, "loss": "attention_mse"}, STUDENT, "the teacher has the layers 1 to 12"),
        ({"teacher": 1, "loss": "cos"}, STUDENT, "student=null: a layer, 0 to 3"),
        ({"teacher": 1, "student": 1}, STUDENT, "loss=null: one of hidden_mse"),
        ({"teacher": 1, "student": 1, "loss": "mse"}, STUDENT, "loss=mse: of feature=hidden one of hidden_mse, cos"),
        ({"teacher": 1, "student": 1, "loss": "cos", "feature": "attention"}, STUDENT, "of feature=attention one of"),
        ({"teacher": 1, "student": 1, "loss": "nst"}, STUDENT, r"nst compares two layers, \[k,k\] for one"),
        ({"teacher": [1, 2], "student": 1, "loss": "cos"}, STUDENT, "cos compares one layer"),
        (
            {"teacher": 1, "student": 1, "loss": "hidden_mse"},
            SMALL,
            "loss=hidden_mse: the student's states are 384 wide, the teacher's 768; give projection=linear",
        ),
        (
            {"teacher": 1, "student": 1, "loss": "attention_ce"},
            SMALL,
            "the student has 6 attention heads, the teacher 12; use attention_ce_mean",
        ),
        ({"teacher": 1, "student": 1, "loss": "relation_qq", "heads": 7}, STUDENT, "heads=7: does not divide"),
        ({"teacher": 1, "student": 1, "loss": "relation_qq"}, CAUSAL, "has no bidirectional attention to read"),
        ({"teacher": 1, "student": 1, "loss": "cos", "projection": "gelu"}, STUDENT, "projection=gelu: one of linear"),
        (
            {"teacher": 1, "student": 1, "loss": "attention_mse", "projection": "linear"},
            STUDENT,
            "projection=linear: attention has no width to project",
        ),
        ({"teacher": 1, "student": 1, "loss": "cos", "projection_lr": 1e-3}, STUDENT, "there is no projection"),
        ({"teacher": 1, "student": 1, "loss": "cos", "weight": -1}, STUDENT, "weight=-1"),
        ({"teacher": 1, "student": 1, "loss": "cos", "teacher_index": 1}, STUDENT, "the teachers are 0 to 0"),
        ({"teacher": 1, "student": 1, "loss": "cos", "schedule": "linear"}, STUDENT, "end=null: schedule=linear needs"),
        ({"teacher": 1, "student": 1, "loss": "cos", "steps": 3}, STUDENT, "schedule=constant: keeps its weight"),
        ({"teacher": 1, "student": 1, "loss": "cos", "schedule": "Plateau"}, STUDENT, "linear, cosine, StepLR"),
        ({"teacher": 1, "student": 1, "loss": "cos", "schedule": "StepLR", "end": 1}, STUDENT, "takes schedule_args"),
        ({"teacher": 1, "student": 1, "loss": "cos", "schedule": "StepLR", "schedule_args": 3}, STUDENT, "by name"),
        ({"teacher": 1, "student": 1, "loss": "cos", "schedule": "StepLR"}, STUDENT, "not of schedule=StepLR"),
        ({"teacher": 1, "student": 1, "loss": "cos", "schedule_args": {"a": 1}}, STUDENT, "constant takes none"),
        ({"module": "encoder", "teacher": 1, "loss": "cos"}, STUDENT, "in place of layers"),
        ({"feature": "module", "loss": "cos"}, STUDENT, "module=null: feature=module takes a submodule's name"),
        ({"teacher": 1, "student": 1, "loss": "cos", "name": "a b"}, STUDENT, "letters, digits and _ only"),
    ],
)  # fmt: skip
def test_matches_that_cannot_be(entry, student, said):
    with pytest.raises(ConfigError, match=said) as fault:
        read(entry, student)
    assert "\n" not in str(fault.value)


def test_two_matches_of_one_name():
    with pytest.raises(ConfigError, match="two matches have the name hidden_mse_0"):
        read(["L3", "L3_hidden_mse"])
