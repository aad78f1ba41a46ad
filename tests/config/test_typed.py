"""Options as objects: references, defaults, required keys, and what is written of them."""

import json

import pytest
import yaml
from omegaconf import OmegaConf

from potstill.config import EvaluateConfig, TrainConfig
from potstill.config.benchmarks import ClassificationConfig
from potstill.config.typed import as_written, benchmark_of, composed, typed
from potstill.errors import ConfigError, KeyNameError
from potstill.methods import evaluator_of
from potstill.runtime import redaction


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    monkeypatch.setattr(redaction, "_remembered", {})


def test_references_to_variables_stay_and_others_are_resolved(compose_config, monkeypatch):
    monkeypatch.setenv("A_WORD", "swordfish")
    monkeypatch.setenv("A_NUMBER", "7")
    config = compose_config(
        "objective=mlm", "data.cache=${oc.env:A_WORD}", "data.name=x/${oc.env:A_WORD}", "data.skip=${data.cache}",
        "data.tokenizer='${oc.env:NOT_THERE,usual}'", "seed='${oc.decode:${oc.env:A_NUMBER}}'",
        "data.train_files=['${oc.env:A_WORD}','${seed}']",
    )  # fmt: skip
    assert (config.data.cache, config.data.name, config.seed) == ("swordfish", "x/swordfish", 7)
    written = as_written(config)["data"]
    assert (written["cache"], written["name"]) == ("${oc.env:A_WORD}", "x/${oc.env:A_WORD}")
    assert written["skip"] == "${oc.env:A_WORD}"
    assert written["tokenizer"] == "${oc.env:NOT_THERE,usual}"
    assert written["train_files"] == ["${oc.env:A_WORD}", "7"]
    assert as_written(config)["seed"] == 7
    assert "swordfish" not in yaml.safe_dump(as_written(config))
    again = compose_config("data.cache=${oc.env:A_WORD}", raw=True)
    assert OmegaConf.select(again, "data.cache") == "swordfish"  # the resolver is as it was


def test_what_changed_since_is_written_as_it_is(compose_config, monkeypatch):
    monkeypatch.setenv("A_WORD", "swordfish")
    config = compose_config("logger.tags=['${oc.env:A_WORD}']", "data.cache=${oc.env:A_WORD}")
    config.logger.tags, config.data.cache = [], "another"
    written = as_written(config)
    assert (written["logger"]["tags"], written["data"]["cache"]) == ([], "another")


def test_required_keys_are_named_together(compose_config):
    config = compose_config(raw=True)
    config.logger.name = config.data.name = "???"
    with pytest.raises(ConfigError, match=r"^data\.name=\?\?\?.*logger\.name=\?\?\?"):
        typed(config, TrainConfig)


def test_references_in_stages_are_left_to_the_stages(monkeypatch):
    monkeypatch.setenv("A_WORD", "swordfish")
    stages = "stages=[{name: a, overrides: ['data.cache=${oc.env:A_WORD}', 'student.model=${stage:b}']}]"
    config = composed("train", [stages], TrainConfig)
    assert config.stages[0].overrides == ["data.cache=${oc.env:A_WORD}", "student.model=${stage:b}"]


def test_composing_names_the_override_that_does_not_fit():
    with pytest.raises(ConfigError, match=r"^trainer\.max_steps=many: "):
        composed("train", ["seed=1", "trainer.max_steps=many"], TrainConfig)
    assert composed("evaluate", ["model=[a,b]"], EvaluateConfig).model == ["a", "b"]


def test_an_option_of_a_benchmark_with_keys_of_its_own():
    own = benchmark_of("mnli", {"folder": "here", "metrics": ["accuracy"]}, "tasks[0]")
    assert (own.name, own.folder, own.further[0].name) == ("mnli", "here", "mismatched")
    for name, options, key in (
        ("mnlii", {}, "tasks[0].benchmark=mnlii"),
        (None, {}, "tasks[0].benchmark=null"),
        ("mnli", {"fold": 1}, "tasks[0].options.fold=1"),
        ("mnli", {"further": [{"file": "a"}]}, "tasks[0].options.further"),
    ):
        with pytest.raises(ConfigError) as error:
            benchmark_of(name, options, "tasks[0]")
        assert str(error.value).startswith(key)


@pytest.mark.parametrize("base", ["text_classification", "/schema/benchmark/classification@_here_"])
def test_a_benchmark_of_the_users_own_has_the_keys_of_its_kind(base, tmp_path):
    (tmp_path / "benchmark").mkdir()
    lines = ["name: mine", "monitor: accuracy", "mode: max", "labels: [a, b]"]
    searched = f"hydra.searchpath=[file://{tmp_path}]"
    path = tmp_path / "benchmark" / "mine.yaml"
    path.write_text("\n".join(["defaults:", f"  - {base}", "  - _self_", *lines]))
    own = composed("train", [searched, "benchmark=mine", "benchmark.train_file=a.tsv"], TrainConfig).task_benchmark
    assert isinstance(own, ClassificationConfig)
    assert (own.name, own.labels, own.train_file) == ("mine", ["a", "b"], "a.tsv")
    path.write_text("\n".join(lines))
    with pytest.raises(KeyNameError, match=r"^benchmark=mine: Key 'labels' .* /schema/benchmark/classification@_here_"):
        composed("train", [searched, "benchmark=mine"], TrainConfig)
    path.write_text("\n".join(lines[:-1]))
    with pytest.raises(ConfigError, match=r"^benchmark\.evaluator=null: benchmark=mine is of no kind"):
        evaluator_of(composed("evaluate", [searched, "benchmark=mine"], EvaluateConfig))


@pytest.mark.parametrize("given", ["folder", "file"])
def test_sizes_are_read_from_a_config_file(given, tmp_path):
    """What is not of the architecture is left out; keys of `student.config` go before those of the file."""
    written = {
        "model_type": "bert", "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "num_labels": 9,
        "architectures": ["BertForMaskedLM"], "torch_dtype": "float16", "auto_map": {"AutoModel": "code.Model"},
        "intermediate_size": 48, "id2label": {"0": "x"}, "transformers_version": "4.0",
    }  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps(written))
    name = tmp_path if given == "folder" else path
    words = ["objective=task_kd", "benchmark=sst2", "teacher.model=x", f"student.config_file={name}"]
    config = composed("train", [*words, "student=pretrained", "student.model=null"], TrainConfig)
    sizes = {key: written[key] for key in ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads")}
    assert config.student.config == {**sizes, "intermediate_size": 48}
    assert config.optimizer["lr"] == 5e-4  # a model from scratch
    config = composed("train", [*words, "+student.config.num_hidden_layers=2"], TrainConfig)
    assert config.student.config["num_hidden_layers"] == 2


@pytest.mark.parametrize(("text", "what"), [(None, "No such file"), ("{", "cannot be read"), ("[1]", "holds a list")])
def test_a_config_file_that_cannot_be_used(text, what, tmp_path):
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=rf"^student\.config_file={path}: .*{what}"):
        composed("train", [f"student.config_file={path}"], TrainConfig)
