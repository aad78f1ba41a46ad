"""What cannot be learned from a stored teacher is refused before anything is read."""

import pytest

from potstill.errors import ConfigError
from potstill.runs.checks import validate_train

LANGUAGE = ["objective=kd", "teacher/cache=on", "objective.terms.cos.weight=0"]
TASK = ["objective=task_kd", "benchmark=text_classification", "teacher/cache=on"]
EXCHANGE = "objective.interchange.mapping=single_middle"


def problems_of(compose_config, overrides):
    with pytest.raises(ConfigError) as error:
        validate_train(compose_config(*overrides))
    return str(error.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["objective=kd", "teacher/cache=on"], r"terms.cos.weight=1.0: teacher/cache=on keeps no more than"),
        ([*LANGUAGE, "objective.terms.mse.weight=0.1"], "objective.terms.mse.weight=0.1: teacher/cache=on keeps"),
        (
            [*LANGUAGE, *(f"objective.terms.cos.{key}" for key in ("schedule=linear", "end=1", "steps=9"))],
            "objective.terms.cos.weight=0",
        ),
        ([*LANGUAGE, "objective.matches=[{teacher: 4, student: 2, loss: hidden_mse}]"], "nothing within it; use"),
        ([*LANGUAGE, EXCHANGE], "swaps states in the teacher, and"),
        ([*LANGUAGE, EXCHANGE, "objective.terms.causal_ce.weight=1"], "objective.terms.causal_ce.weight=1"),
        ([*LANGUAGE, "objective.terms.ce.weight=0"], "nothing would be read of what teacher/cache=on stores"),
        ([*TASK, "teacher.tokenizer=own"], "teacher.tokenizer=own: stored outputs are of the student's own tokens"),
        ([*LANGUAGE, "teacher.cache.form=all"], "teacher.cache.form=all: one of top, sampled"),
        ([*LANGUAGE, "teacher.cache.precision=float64"], "one of float16, float32"),
        ([*LANGUAGE, "teacher.cache.k=0"], "teacher.cache.k=0"),
        ([*LANGUAGE, "teacher.cache.samples=4096"], "teacher.cache.samples=4096"),
        ([*LANGUAGE, "teacher.cache.power=2"], "teacher.cache.power=2.0"),
        ([*LANGUAGE, "objective.divergence=jsd"], "objective.divergence=jsd: "),
        ([*LANGUAGE, "objective.divergence=reverse_kl"], "objective.divergence=reverse_kl: "),
        ([*LANGUAGE, "teacher.cache.temperatures=[]"], r"teacher.cache.temperatures=\[\]"),
        (
            [*LANGUAGE, "teacher.cache.temperatures=[1,4]"],
            r"objective.temperature=2.0: teacher.cache.temperatures=\[1.0, 4.0\] holds no tail for it",
        ),
        (
            [*LANGUAGE, "teacher.cache.form=sampled", "teacher.cache.temperatures=[2]"],
            "tokens are drawn at objective.temperature alone",
        ),
        ([*TASK, "objective.terms.cos.weight=1"], "objective.terms.cos.weight=1"),
        ([*TASK, "data.augment.share=0.5"], "data.augment.share=0.5: rows change in every epoch, and their stored"),
        ([*TASK, "objective.terms.ce.weight=0", "objective.terms.label.weight=1"], "nothing would be read"),
        (["objective=mlm", "teacher/cache=on"], "objective=mlm learns from no outputs that could be stored"),
        (["objective=diito", "teacher/cache=on"], "objective=diito learns from no outputs"),
        (["objective=finetune", "benchmark=text_classification", "teacher/cache=on"], "objective=finetune learns"),
    ],
)  # fmt: skip
def test_a_fault_is_told_in_one_line(overrides, said, compose_config):
    found = problems_of(compose_config, overrides)
    assert "\n" not in found
    import re

    assert re.search(said, found), found


def test_a_folder_that_is_a_file_is_told(compose_config, tmp_path):
    (tmp_path / "file").write_text("")
    found = problems_of(compose_config, [*LANGUAGE, f"teacher.cache.folder={tmp_path}/file"])
    assert f"teacher.cache.folder={tmp_path}/file: {tmp_path}/file is a file" in found


@pytest.mark.parametrize(
    "overrides",
    [
        LANGUAGE,
        [*LANGUAGE, "teacher.cache.temperatures=[1,2]"],
        [*TASK, "objective.terms.mse.weight=1", "objective.terms.ce.weight=0"],
        ["objective=kd", "objective.terms.mse.weight=1", "teacher/cache=off"],
    ],
)
def test_what_stored_outputs_suffice_for_has_no_problem(overrides, compose_config):
    assert "cache" not in problems_of(compose_config, overrides)  # there is no teacher and no text


def test_no_more_tokens_are_kept_than_there_are(kd, compose_config):
    cached = [*kd, *LANGUAGE]
    assert problems_of(compose_config, [*cached, "teacher.cache.k=100000"]).startswith("teacher.cache.k=100000")
    validate_train(compose_config(*cached, "teacher.cache.k=100"))


HIDDEN = ["objective=kd", "teacher/cache=on", "teacher.cache.form=hidden"]


@pytest.mark.parametrize(
    "overrides",
    [
        *([f"objective.divergence={divergence}"] for divergence in ("forward_kl", "reverse_kl", "jsd")),
        ["objective.terms.mse.weight=0.1", "teacher.cache.precision=bfloat16"],
        ["objective.terms.ce.weight=0"],
    ],
)
def test_hidden_states_suffice_for_all_terms_of_the_base_run(overrides, kd, compose_config):
    validate_train(compose_config(*kd, *HIDDEN, *overrides))


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["teacher.cache.precision=float64"], "teacher.cache.precision=float64"),
        (["teacher.cache.temperatures=[2]"], r"teacher.cache.temperatures=[2.0]"),
        (["objective.matches=[{teacher: 4, student: 2, loss: hidden_mse}]"], "objective.matches="),
        ([EXCHANGE], "objective.interchange.mapping="),
        (["objective.terms.ce.weight=0", "objective.terms.cos.weight=0"], "objective.terms.ce.weight=0"),
    ],
)
def test_what_hidden_states_do_not_suffice_for(overrides, key, compose_config):
    found = problems_of(compose_config, [*HIDDEN, *overrides])
    assert key in found
    assert "\n" not in found


def test_log_probabilities_have_no_bfloat16(compose_config):
    found = problems_of(compose_config, [*LANGUAGE, "teacher.cache.precision=bfloat16"])
    assert "teacher.cache.precision=bfloat16: of form=top one of float16, float32" in found
