"""Keys that a command line gives and the chosen options do not read."""

import pytest

from potstill.config import OPTIONS, EvaluateConfig, TrainConfig, value_of
from potstill.errors import KeyNameError
from potstill.validation.unread import _BOTH, _EVALUATE, _TRAIN, unread_in, unread_keys

TRAIN = [
    (["objective=kd"], ["mixing.exponent=0.5", "teacher.cache.k=5", "teacher.cache.folder=x",
                        "generation.temperature=1",
                        "objective.interchange.proportion=0.5", "teacher.average=probabilities"]),
    (["objective=mlm"], ["teacher.attention=eager"]),
    (["objective=task_kd", "benchmark=sst2"], ["objective.beta=0.1", "objective.temperature_gamma=2",
                                               "objective.temperature_strength=2"]),
    (["objective=diito", "benchmark=sst2"], ["objective.positions=masked"]),
    (["objective=step_by_step"], ["objective.temperature=3"]),
    (["objective=clm"], ["data.mlm_share=0.2", "data.mlm_smoothing=0", "data.token_counts=x"]),
    (["objective=finetune", "benchmark=sst2"], ["data.augment.mask=0.2", "benchmark.part=test",
                                                "benchmark.interchange.mapping=grid",
                                                "benchmark.interchange.proportion=0.5"]),
    (["objective=custom"], ["data.train_files=[a]", "data.batch_size=3", "data.max_length=8", "data.cache=x"]),
    (["objective=task_kd", "benchmark=sst2", "teacher/cache=on"], ["teacher.cache.k=5", "teacher.cache.form=sampled"]),
    (["objective=kd", "teacher/cache=on"], ["teacher.cache.samples=5"]),
    (["objective=kd", "teacher/cache=on", "teacher.cache.form=sampled"], ["teacher.cache.k=5"]),
    (["stage=rationales", "data=svamp"], ["objective.temperature=3", "optimizer.lr=1e-3", "trainer.max_steps=3",
                                          "student.dropout=0.1", "seed=43"]),
    (["logger=csv"], ["logger.project=mine", "logger.mode=offline"]),
    (["schedule=constant", "schedule.name=constant"], ["schedule.warmup_share=0.1"]),
    (["schedule.warmup_steps=5"], ["schedule.warmup_share=0.1"]),
    (["data.max_tokens=500"], ["data.batch_size=4"]),
    (["student=bert_tiny"], ["student.vocab_transform=false"]),
    (["objective=kd"], ["custom.adaptor=mine.adaptor"]),
    (["objective=gkd", "objective.sampling.temperature=0"], ["objective.sampling.top_p=0.5"]),
    (["objective=gkd", "objective.divergence=reverse_kl"], ["objective.beta=0.1"]),
    (["objective=embed"], ["data.mlm_share=0.2", "student.vocab_transform=false", "objective.query_prompt=a",
                           "objective.scale=5", "objective.margin_scale=5"]),
    (["objective=embed", "data=text_pairs"], ["objective.prompt=a", "data.columns.scores=[a]"]),
]  # fmt: skip
EVALUATE = [
    (["benchmark=mlm"], ["trainer.max_steps=5", "data.batch_size=4", "trainer.gradient_clip_val=1",
                         "benchmark.positions=masked"]),
    (["benchmark=sst2"], ["data.augment.share=0.5"]),
    (["benchmark=step_by_step"], ["data.labels=llm", "data.share=0.5", "data.more_sets=[asdiv]"]),
    (["benchmark=clm"], ["data.mlm_share=0.2"]),
    (["benchmark=efficiency"], ["data.mlm_share=0.2", "data.min_length=3"]),
]  # fmt: skip
CORPORA = {
    "bookcorpus", "docstrings", "openwebtext", "pickled", "saved", "text_files", "wikitext", "wikitext_bookcorpus",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "schema", "options", "unread"),
    [("train", TrainConfig, *case) for case in TRAIN] + [("evaluate", EvaluateConfig, *case) for case in EVALUATE],
)
def test_a_key_that_is_not_read_is_named(name, schema, options, unread, compose_config):
    config = compose_config(*options, *unread, name=name)
    keys = [override.partition("=")[0] for override in unread]
    problems = unread_keys(config, keys)
    assert {error.partition("=")[0] for error in problems} == {*keys} - {"seed"}
    groups = ["objective", "teacher/cache", "logger", "data", "benchmark", "student", "teacher"]
    assert not unread_keys(config, groups)  # what an option sets was not typed


@pytest.mark.parametrize(
    ("option", "override", "able"),
    [
        ("objective=kd", "objective.alpha=0.1", {"step_by_step"}),
        ("objective=kd", "objective.temperature_gamma=0.1", {"custom", "diito", "task_kd"}),
        ("objective=mlm", "objective.hard_weight=1", {"custom", "diito", "gkd", "kd", "task_kd"}),
        ("objective=mlm", "objective.positions=masked", {"diito", "kd"}),
        ("objective=finetune", "objective.temperature=3", {"custom", "diito", "gkd", "kd", "step_by_step", "task_kd"}),
        ("objective=clm", "objective.terms.mlm.weight=1", {"diito", "kd", "mlm"}),
        ("objective=custom", "objective.interchange.mapping=grid", {"diito", "kd", "task_kd"}),
        ("data=text_files", "data.augment.share=0.5", {"task"}),
        ("data=svamp", "data.generated.train=5", {"arithmetic"}),
        ("data=arithmetic", "data.folder=x", {"anli1", "cqa", "esnli", "rationales", "svamp"}),
        ("data=task", "data.mlm_share=0.2", CORPORA),
        ("data=rationales", "data.max_length=8", {*CORPORA, "conversations", "task", "text_pairs"}),
        ("data=docstrings", "data.labels=llm", {"anli1", "arithmetic", "cqa", "esnli", "rationales", "svamp"}),
        ("benchmark=sst2", "benchmark.stride=3", {"cmrc2018", "drcd", "question_answering", "squad", "squad_v2"}),
        ("benchmark=sst2", "benchmark.positions=masked", {"clm", "interchange", "mlm"}),
        ("benchmark=stsb", "benchmark.scheme=BIO", {"conll2003", "msra_ner", "token_classification"}),
        (
            "benchmark=squad",
            "benchmark.skip_broken=true",
            {
                "cola",
                "lcqmc",
                "mnli",
                "mrpc",
                "paraphrases",
                "qnli",
                "qqp",
                "rte",
                "sst2",
                "sts",
                "stsb",
                "text_classification",
                "text_regression",
                "wnli",
                "xnli_zh",
            },
        ),
        ("benchmark=mlm", "benchmark.depth=3", {"efficiency"}),
    ],
)
def test_a_key_of_another_option_names_those_that_have_it(option, override, able, compose_config):
    with pytest.raises(KeyNameError) as refused:
        compose_config(option, override)
    problem, named = str(refused.value).split("; ")
    assert problem.startswith(f"{override}: ")
    assert option in problem
    assert set(named.partition("=")[2].rpartition(" ha")[0].split(", ")) == able


@pytest.mark.parametrize("override", ["mixing={exponent: 0.5}", "teacher.cache={k: 5}", "teacher.cache.k=64"])
def test_whole_sections_and_values_that_change_nothing(override, compose_config):
    key, _, value = override.partition("=")
    problems = unread_keys(compose_config(override), [key])
    assert bool(problems) == (value != "64")


def test_every_key_of_the_tables_is_in_the_schema():
    for schema, table in ((TrainConfig, _TRAIN), (EvaluateConfig, _EVALUATE), (TrainConfig, _BOTH)):
        plain = schema()
        for key in {key for keys, _, _ in table for key in keys}:
            group, _, own = key.partition(".")
            options = [option() for option in OPTIONS.get(group, {}).values()] if own else []
            path, _, name = (own if options else key).rpartition(".")
            sections = [value_of(one, path) if path else one for one in options or [plain]]
            assert any(hasattr(section, name) for section in sections), key


@pytest.mark.parametrize(
    "overrides",
    [["objective=diito", "objective.interchange.proportion=0.5"],
     ["objective=diito", "benchmark=sst2", "objective.interchange.crossway=true"],
     ["objective=step_by_step", "data=arithmetic", "objective.alpha=0.1", "data.generated.train=5"],
     ["objective=step_by_step", "objective.soft_weight=0.5", "objective.temperature=3"],
     ["objective=kd", "objective.hard_weight=1", "objective.positions=masked", "data.mlm_share=0.1",
      "data.eval_share=0.2"],
     ["objective=finetune", "benchmark=sst2", "data.augment.share=0.5", "data.augment.mask=0.3"],
     ["stage=rationales", "data=rationales", "generation.temperature=1", "data.train_files=[a]"],
     ["objective=task_kd", "benchmark=sst2", "objective.soft_target=jsd", "objective.beta=0.1",
      "teacher/cache=on", "teacher.cache.folder=x"]],
)  # fmt: skip
def test_what_is_read_is_not_named(overrides, compose_config):
    config = compose_config(*overrides)
    unread = [key for key, _ in unread_in(config)]
    typed = [override.partition("=")[0] for override in overrides]
    assert not [key for key in typed if "." in key and any(f"{key}.".startswith(f"{own}.") for own in unread)]
