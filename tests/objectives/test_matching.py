from dataclasses import replace

import pytest

from potstill.errors import ConfigError, PairError, PotstillError
from potstill.models.specs import ModelSpec
from potstill.objectives.matching import read_matches
from potstill.objectives.presets import preset_names

TEACHER = ModelSpec("bert", "masked", 12, 768, 12, 100, 64)
STUDENT = replace(TEACHER, depth=3)
SMALL = replace(STUDENT, width=384, heads=6)
CAUSAL = replace(TEACHER, model_type="gpt2", kind="causal")
RELATIVE = replace(TEACHER, model_type="deberta-v2")
WINDOWED = replace(TEACHER, model_type="modernbert")


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
    assert [m[0] for m in pairs("L6_hidden_mse", replace(STUDENT, depth=6))] == [(k,) for k in (0, 2, 4, 6, 8, 10, 12)]
    nano = replace(STUDENT, depth=12, width=256, heads=4)
    assert [m[:2] for m in pairs("L12_nano_hidden_mse", nano)] == [((k,), (k,)) for k in (0, 2, 4, 6, 8, 10, 12)]
    assert len(pairs("L3", STUDENT)) == 8
    assert len(preset_names()) == 7 * 8
    for known, own, student in (
        ("L3_hidden_smmd", "L3_nst", STUDENT), ("L3n_hidden_mse", "L3_small_hidden_mse", SMALL),
        ("L3l_hidden_mse", "L3_hidden_mse", SMALL), ("L4t_hidden_mse", "L4_tiny_hidden_mse", tiny),
        ("L4t_hidden_sgram", "L4_tiny_fsp", tiny), ("L4_hidden_smmd", "L4_nst", tiny),
        ("small_hidden_mse", "L12_nano_hidden_mse", nano), ("small_hidden_smmd", "L12_nano_nst", nano),
        ("es_hidden_smmd", "es_nst", nano),
    ):  # fmt: skip
        assert pairs(known, student) == pairs(own, student)
    gram = [((k, k), (s, s), "fsp", "linear", 1.0) for k, s in ((0, 0), (3, 1), (6, 2), (9, 3), (12, 4))]
    assert pairs("L4t_hidden_sgram", tiny) == gram
    assert [m[0] for m in pairs("es_hidden_mse", nano)] == [(k,) for k in (2, 4, 6, 8, 10, 12)]
    for loss in ("attention_mse", "attention_mse_sum", "attention_ce", "attention_ce_mean"):
        assert pairs(f"L3_{loss}", STUDENT) == [((4 * k,), (k,), loss, None, 1.0) for k in (1, 2, 3)]
    four = replace(STUDENT, depth=4)
    assert [m[:2] for m in pairs("L4_attention_ce", four)] == [((3 * k,), (k,)) for k in (1, 2, 3, 4)]


@pytest.mark.parametrize(("published", "own"), [("mmd", "nst"), ("gram", "fsp")])
def test_published_names_of_losses(published, own):
    entry = {"teacher": [4, 4], "student": [1, 1], "loss": published}
    assert read(entry) == read({**entry, "loss": own})


def test_the_matches_of_the_published_tables_follow_from_the_student():
    for depth, own in ((3, "L3"), (4, "L4_tiny"), (6, "L6"), (12, "L12_nano")):
        student = replace(SMALL, depth=depth)
        assert read("textbrewer", student) == read(own, student)
    assert read("textbrewer", replace(STUDENT, model_type="bigru")) == ()
    assert read("textbrewer", replace(STUDENT, model_type="electra")) == ()
    with pytest.raises(PairError, match=r"^objective.matches=textbrewer: .* 5 blocks"):
        read("textbrewer", replace(STUDENT, depth=5))


def test_presets_adapt_to_the_teacher_and_are_for_students_of_their_depth():
    big = replace(TEACHER, depth=24, width=1024)
    assert [(m.teacher, m.projection) for m in read("L3_hidden_mse", STUDENT, (big,))] == [
        ((k,), "linear") for k in (0, 8, 16, 24)
    ]
    with pytest.raises(PairError, match=r"^objective.matches=L6: .* 6 blocks .* 3 and 12$"):
        read("L6")
    with pytest.raises(PairError, match=r"^objective.matches=L3: .* 3 blocks .* 3 and 2$"):
        read("L3", STUDENT, (replace(TEACHER, depth=2),))


def test_names_terms_and_layers_that_stand_for_all():
    two = read(["L3_hidden_mse", {"teacher": 12, "student": 3, "loss": "cos", "name": "last", "weight": 2}])
    assert [m.term for m in two][-2:] == ["match_hidden_mse_3", "match_last"]
    assert two[-1].weight == 2.0
    (emd,) = read({"loss": "emd"})
    assert (emd.student, len(emd.teacher), emd.feature) == ((1, 2, 3), 12, "hidden")
    assert read(None) == ()
    (scheduled,) = read({"teacher": 0, "student": 0, "loss": "cos", "schedule": "linear", "end": 0, "steps": 5})
    assert (scheduled.end, scheduled.steps) == (0.0, 5)


@pytest.mark.parametrize(
    ("entry", "student", "problem"),
    [
        ("L5", STUDENT, "=L5: .* L3, L3_small, .*_hidden_mse"),
        (7, STUDENT, r"\[0\]=7: "),
        ({"layer": 1}, STUDENT, r"\[0\].layer=1: .* name, teacher"),
        ({"teacher": 13, "student": 3, "loss": "hidden_mse"}, STUDENT, r"\[0\].teacher=13: .* 0 to 12"),
        ({"teacher": 12, "student": 4, "loss": "cos"}, STUDENT, r"\[0\].student=4: .* 0 to 3"),
        ({"teacher": 0, "student": 1, "loss": "attention_mse"}, STUDENT, r"\[0\].teacher=0: .* 1 to 12"),
        ({"teacher": 1, "loss": "cos"}, STUDENT, r"\[0\].student=null: .* 0 to 3"),
        ({"teacher": True, "student": 1, "loss": "cos"}, STUDENT, r"\[0\].teacher=True: .* 0 to 12"),
        ({"teacher": 1, "student": 1}, STUDENT, r"\[0\].loss=null: .*hidden_mse"),
        ({"teacher": 1, "student": 1, "loss": "mse"}, STUDENT, r"\[0\].loss=mse: .*hidden_mse, cos.* feature=hidden"),
        (
            {"teacher": 1, "student": 1, "loss": "cos", "feature": "attention"},
            STUDENT,
            r"\[0\].loss=cos: .*attention_mse.* feature=attention",
        ),
        ({"teacher": 1, "student": 1, "loss": "cos", "feature": "states"}, STUDENT, r"\[0\].feature=states: .*hidden"),
        ({"teacher": 1, "student": 1, "loss": "nst"}, STUDENT, r"\[0\].teacher=1: .* nst .* two, \[k,k\]"),
        ({"teacher": [1, 2], "student": 1, "loss": "cos"}, STUDENT, r"\[0\].teacher=\[1, 2\]: .* cos .* one"),
        ({"teacher": 1, "student": 1, "loss": "hidden_mse"}, SMALL, "loss=hidden_mse: .* 384 .* 768; .*=linear"),
        ({"teacher": 1, "student": 1, "loss": "attention_ce"}, SMALL, "loss=attention_ce: .* 6 .* 12; .*ce_mean"),
        ({"teacher": 1, "student": 1, "loss": "relation_qq", "heads": 7}, STUDENT, r"\[0\].heads=7: .* 768"),
        ({"teacher": 1, "student": 1, "loss": "relation_qq"}, CAUSAL, r"\[0\].feature=relation: .*gpt2"),
        ({"teacher": 1, "student": 1, "loss": "relation_vv"}, RELATIVE, r"\[0\].feature=relation: .*deberta-v2"),
        ({"teacher": 1, "student": 1, "loss": "attention_mse"}, WINDOWED, r"\[0\].feature=attention: .*modernbert"),
        (
            {"teacher": 1, "student": 1, "loss": "cos", "projection": "gelu"},
            STUDENT,
            r"\[0\].projection=gelu: .*linear, relu, tanh",
        ),
        (
            {"teacher": 1, "student": 1, "loss": "attention_mse", "projection": "linear"},
            STUDENT,
            r"\[0\].projection=linear: attention",
        ),
        ({"teacher": 1, "student": 1, "loss": "cos", "projection_lr": 1e-3}, STUDENT, r"\[0\].projection_lr=0.001: "),
        ({"teacher": 1, "student": 1, "loss": "cos", "weight": -1}, STUDENT, r"\[0\].weight=-1: "),
        ({"teacher": 1, "student": 1, "loss": "cos", "weight": [1]}, STUDENT, r"\[0\].weight=\[1\]: "),
        ({"teacher": 1, "student": 1, "loss": "cos", "teacher_index": 1}, STUDENT, r"\[0\].teacher_index=1: .* 0 to 0"),
        ({"teacher": 1, "student": 1, "loss": "cos", "run": "swapped"}, STUDENT, r"\[0\].run=swapped: "),
        (
            {"teacher": 1, "student": 1, "loss": "attention_mse", "run": "counterfactual"},
            STUDENT,
            r"\[0\].run=counterfactual: .*feature=hidden",
        ),
        ({"teacher": 1, "student": 1, "loss": "cos", "schedule": "linear"}, STUDENT, r"\[0\].end=null: .*=linear"),
        ({"teacher": 1, "student": 1, "loss": "cos", "steps": 3}, STUDENT, r"\[0\].schedule=constant: .*steps=3"),
        (
            {"teacher": 1, "student": 1, "loss": "cos", "schedule": "Plateau"},
            STUDENT,
            r"\[0\].schedule=Plateau: .*constant, linear, cosine, StepLR",
        ),
        (
            {"teacher": 1, "student": 1, "loss": "cos", "schedule": "StepLR", "end": 1},
            STUDENT,
            r"\[0\].end=1, .*StepLR takes schedule_args",
        ),
        (
            {"teacher": 1, "student": 1, "loss": "cos", "schedule": "StepLR", "schedule_args": 3},
            STUDENT,
            r"\[0\].schedule_args=3: .*StepLR",
        ),
        (
            {"teacher": 1, "student": 1, "loss": "cos", "schedule": "StepLR", "schedule_args": {"gamma": -1}},
            STUDENT,
            r"\[0\].schedule_args.gamma=-1: ",
        ),
        ({"teacher": 1, "student": 1, "loss": "cos", "schedule": "StepLR"}, STUDENT, r"\[0\].schedule_args=\{\}: "),
        (
            {"teacher": 1, "student": 1, "loss": "cos", "schedule_args": {"a": 1}},
            STUDENT,
            r"\[0\].schedule_args=\{'a': 1\}: schedule=constant",
        ),
        ({"module": "encoder", "teacher": 1, "loss": "cos"}, STUDENT, r"\[0\].module=encoder: "),
        ({"feature": "module", "loss": "cos"}, STUDENT, r"\[0\].module=null: feature=module"),
        ({"teacher": 1, "student": 1, "loss": "cos", "name": "a b"}, STUDENT, r"\[0\].name=a b: "),
    ],
)  # fmt: skip
def test_invalid_matches(entry, student, problem):
    with pytest.raises(PotstillError, match=f"^objective.matches.*{problem}") as error:
        read(entry, student)
    assert "\n" not in str(error.value)


def test_two_matches_of_one_name():
    with pytest.raises(ConfigError, match=r"^objective.matches: .* hidden_mse_0"):
        read(["L3", "L3_hidden_mse"])
