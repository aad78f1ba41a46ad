"""Keys that a command line gives and the chosen options do not read."""

import pytest
from omegaconf import OmegaConf

from potstill.config import EvaluateConfig, TrainConfig
from potstill.config.benchmarks import BenchmarkConfig
from potstill.validation.unread import _BOTH, _EVALUATE, _TRAIN, unread_in, unread_keys

TRAIN = [
    (["objective=kd"], ["mixing.exponent=0.5", "teacher.cache.k=5", "teacher.cache.folder=x",
                        "generation.temperature=1",
                        "objective.interchange.proportion=0.5", "objective.alpha=0.1", "objective.beta=0.1",
                        "objective.temperature_gamma=2", "data.labels=llm", "data.generated.train=5",
                        "data.augment.mask=0.2", "teacher.average=probabilities"]),
    (["objective=mlm"], ["objective.temperature=3", "objective.hard_weight=1", "teacher.attention=eager",
                         "objective.positions=masked"]),
    (["objective=clm"], ["data.mlm_share=0.2", "data.mlm_smoothing=0"]),
    (["objective=finetune", "benchmark=sst2"], ["data.mlm_share=0.2", "data.eval_share=0.5", "data.min_length=3",
                                                "objective.temperature=3", "benchmark.part=test", "benchmark.depth=3"]),
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
    (["objective=kd"], ["adapted.adaptor=mine.adaptor"]),
]  # fmt: skip
EVALUATE = [
    (["benchmark=mlm"], ["trainer.max_steps=5", "data.batch_size=4", "trainer.gradient_clip_val=1",
                         "data.augment.share=0.5",
                         "benchmark.lengths=[4]", "benchmark.positions=masked", "data.restricted_decoding=true"]),
    (["benchmark=clm"], ["data.mlm_share=0.2"]),
    (["benchmark=efficiency"], ["data.mlm_share=0.2", "data.min_length=3"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "schema", "options", "unread"),
    [("train", TrainConfig, *case) for case in TRAIN]
    + [("evaluate", EvaluateConfig, *case) for case in EVALUATE],
)
def test_a_key_that_is_not_read_is_named(name, schema, options, unread, compose_config):
    config = compose_config(*options, *unread, name=name)
    keys = [override.partition("=")[0] for override in unread]
    faults = unread_keys(config, schema, keys)
    assert {fault.partition("=")[0] for fault in faults} == {*keys} - {"seed"}
    groups = ["objective", "teacher/cache", "logger", "data", "benchmark", "student", "teacher"]
    assert not unread_keys(config, schema, groups)  # what an option sets was not typed


@pytest.mark.parametrize("override", ["mixing={exponent: 0.5}", "teacher.cache={k: 5}", "teacher.cache.k=64"])
def test_whole_sections_and_values_that_change_nothing(override, compose_config):
    key, _, value = override.partition("=")
    faults = unread_keys(compose_config(override), TrainConfig, [key])
    assert bool(faults) == (value != "64")


def test_every_key_of_the_tables_is_in_the_schema():
    for schema, table in ((TrainConfig, _TRAIN), (EvaluateConfig, _EVALUATE), (TrainConfig, _BOTH)):
        plain = OmegaConf.structured(schema)
        plain.benchmark = BenchmarkConfig()
        for key in {key for keys, _, _ in table for key in keys}:
            section, _, name = key.rpartition(".")
            assert name in set(OmegaConf.select(plain, section) if section else plain), key


@pytest.mark.parametrize(
    "overrides",
    [["objective=diito", "objective.interchange.proportion=0.5"],
     ["objective=diito", "benchmark=sst2", "objective.interchange.crossway=true"],
     ["objective=step_by_step", "data=arithmetic", "objective.alpha=0.1", "data.generated.train=5"],
     ["objective=step_by_step", "objective.soft_weight=0.5", "objective.temperature=3"],
     ["objective=kd", "objective.hard_weight=1", "objective.positions=masked", "data.mlm_share=0.1",
      "data.eval_share=0.2"],
     ["objective=finetune", "benchmark=sst2", "data.augment.share=0.5", "data.augment.mask=0.3"],
     ["stage=rationales", "generation.temperature=1", "data.test_files=[a]"],
     ["objective=task_kd", "benchmark=sst2", "objective.soft_target=jsd", "objective.beta=0.1",
      "teacher/cache=on", "teacher.cache.folder=x"]],
)  # fmt: skip
def test_what_is_read_is_not_named(overrides, compose_config):
    config = compose_config(*overrides)
    unread = [key for key, _ in unread_in(config)]
    typed = [override.partition("=")[0] for override in overrides]
    assert not [key for key in typed if "." in key and any(f"{key}.".startswith(f"{own}.") for own in unread)]
