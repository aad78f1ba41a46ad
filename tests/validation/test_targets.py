"""Classes that a command line names, and arguments of Lightning's Trainer."""

import pytest
from omegaconf import OmegaConf

from potstill.config import TrainConfig
from potstill.config.typed import typed
from potstill.errors import ConfigError
from potstill.runs.checks import validate_train


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("callbacks.x", 5), ("callbacks.x", {"a": 1}), ("callbacks.x", {"_target_": 5}), ("callbacks.x", [1]),
        ("callbacks.x", "nope"), ("optimizer._target_", 5), ("optimizer._target_", ["a"]),
        ("optimizer._target_", {"a": 1}), ("optimizer._target_", "nope"),
    ],
)  # fmt: skip
def test_a_target_is_a_dotted_path(key, value, kd, compose_config):
    config = compose_config(*kd, raw=True)
    OmegaConf.update(config, key, value, force_add=True)
    with pytest.raises(ConfigError) as refused:
        validate_train(typed(config, TrainConfig))
    assert key.removesuffix("._target_") in str(refused.value)


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("optimizer", {"_target_": "torch.nn.Identity"}),
        ("optimizer", {"_target_": "torch.optim.AdamW", "foo": 1}),
        ("callbacks.x", {"_target_": "torch.nn.Identity"}),
        ("callbacks.x", {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "foo": 1}),
        ("trainer.extra", {"max_steps": 5}),
        ("trainer.extra", {"callbacks": []}),
        ("trainer.extra", {"detect_anomaly": "maybe"}),
    ],
)
def test_what_a_class_does_not_take_is_found_before_the_corpus_is_read(
    key, settings, kd, compose_config, tmp_path, monkeypatch
):
    from potstill.methods.language import Language
    from potstill.runs import train as train_run

    config = compose_config(*kd, raw=True)
    OmegaConf.update(config, key, settings, merge=False, force_add=True)
    monkeypatch.setattr(Language, "build", lambda *_: pytest.fail("the corpus was read"))
    with pytest.raises(ConfigError) as refused:
        train_run.train(typed(config, TrainConfig), tmp_path)
    assert str(refused.value).startswith(key.partition(".")[0])


def test_a_weight_of_null_is_the_hard_weight(source, bert_teacher, compose_config):
    hard = [*source, f"teacher.model={bert_teacher}", "objective.terms.ce.weight=0", "objective.terms.cos.weight=0"]
    with pytest.raises(ConfigError, match=r"^objective\.terms"):
        validate_train(compose_config(*hard, "objective.hard_weight=0"))
    validate_train(compose_config(*hard, "objective.hard_weight=1"))
    alone = [*source, "objective=mlm", f"student.model={bert_teacher}", "objective.terms.mlm.weight=null"]
    with pytest.raises(ConfigError, match=r"^objective\.terms"):
        validate_train(compose_config(*alone))


def test_a_student_of_impossible_sizes(compose_config):
    from potstill.models.students import student_from_config

    settings = {"model_type": "bert", "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": -3}
    with pytest.raises(ConfigError, match=r"^student\.config"):
        student_from_config(settings, vocab_size=50, pad_token_id=0)
