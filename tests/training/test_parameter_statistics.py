"""Statistics of weights and gradients: in tensorboard, not in metrics.csv."""

import csv

import pytest
from safetensors.torch import load_file

from potstill.errors import ConfigError
from potstill.runs import train as train_run
from potstill.runs.checks import validate_train
from potstill.validation.unread import unread_keys

pytestmark = pytest.mark.slow

RUN = [
    "data.max_length=32", "data.num_proc=1", "data.batch_size=8", "trainer.enable_progress_bar=false",
    "data.eval_share=0", "student.layers=[0,3]", "trainer.max_steps=5", "logger.parameters_every=2",
    "trainer.gradient_clip_val=0.1", "student.freeze_positions=true", "optimizer.lr=0",
]  # fmt: skip


def test_each_weight_and_its_clipped_gradient_is_described(kd, compose_config, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = compose_config(*kd, *RUN, "logger=tensorboard")
    validate_train(config)
    train_run.train(config, tmp_path)
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    weights = load_file(tmp_path / "student" / "model.safetensors")  # those of every step: the rate is 0
    names = [tag for tag in events.Tags()["scalars"] if tag.startswith("parameters/")]
    means = {name.removeprefix("parameters/weight_mean/"): name for name in names if "/weight_mean/" in name}
    assert len(names) == 4 * len(means)
    assert not any("position_embeddings" in name for name in means)
    name = "bert.encoder.layer.1.output.dense.weight"
    found = events.Scalars(f"parameters/weight_std/{name}")
    assert [event.step for event in found] == [0, 2, 4]
    assert found[0].value == pytest.approx(float(weights[name].std(correction=0)), rel=1e-5)
    assert events.Scalars(means[name])[0].value == pytest.approx(float(weights[name].mean()), rel=1e-3)
    squares = sum(
        weights[own].numel()
        * sum(events.Scalars(f"parameters/gradient_{kind}/{own}")[1].value ** 2 for kind in ("mean", "std"))
        for own in means
    )
    assert squares == pytest.approx(0.1**2, rel=1e-3)  # the norm that gradients are clipped to
    with (tmp_path / "metrics.csv").open() as file:
        assert not any(name.startswith("parameters/") for name in csv.DictReader(file).fieldnames)


def test_statistics_need_whole_weights_and_a_logger(kd, compose_config):
    with pytest.raises(ConfigError, match=r"logger\.parameters_every=2: null with trainer\.strategy=fsdp"):
        validate_train(compose_config(*kd, *RUN, "logger=wandb", "trainer.strategy=fsdp", "trainer.accelerator=gpu"))
    config = compose_config(*kd, *RUN, "logger=csv")
    assert len(unread_keys(config, ["logger.parameters_every"])) == 1
