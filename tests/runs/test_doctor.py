"""The doctor: what it says is near what a run takes, and it leaves nothing behind."""

import numpy as np
import pytest
import torch

from potstill.methods.language import Language
from potstill.runs import doctor
from potstill.runs.doctor import Measured, estimates, largest_batch, line_through, measure, run_device, steps_of

CPU = torch.device("cpu")


def test_a_line_goes_through_the_last_two_sizes():
    line = line_through([(1, 500.0), (2, 100.0), (4, 140.0)])
    assert (line.slope, line.at(8)) == (20.0, 220.0)
    assert line_through([(1, 5.0)]).at(100) == 5.0
    assert line_through([(1, 5.0), (2, 4.0)]).at(100) == 4.0  # memory never falls


def test_the_largest_batch_fits_and_the_next_does_not():
    line = line_through([(1, 110.0), (2, 120.0)])
    assert largest_batch(line, 199.0, 1, 2).startswith("about data.batch_size=9 ")
    assert largest_batch(line, 199.0, 2, 2).startswith("about data.batch_size=8 ")
    assert largest_batch(line, 105.0, 1, 2).startswith("none: data.batch_size=1 needs")
    assert "at least" in largest_batch(line_through([(1, 110.0)]), 199.0, 1, 1)


def test_steps_are_those_of_the_run(compose_config, kd):
    def steps(*overrides, lengths=None):
        return steps_of(compose_config(*kd, "data.batch_size=4", *overrides), lengths)

    assert steps("trainer.max_steps=7") == 7
    assert steps("trainer.max_epochs=2") is None
    lengths = np.full(33, 10)
    assert steps("trainer.max_epochs=2", "trainer.accumulate_grad_batches=2", lengths=lengths) == 10
    assert steps("trainer.max_epochs=2", "trainer.devices=2", "data.max_tokens=40", lengths=lengths) == 10


def test_too_little_memory_for_one_sequence_is_reported(compose_config, kd):
    assert "more than there is" in estimates(compose_config(*kd), CPU, [], None)["memory needed"]
    found = estimates(compose_config(*kd, "trainer.max_steps=10", "data.batch_size=2"), CPU,
                      [Measured(1, 10**9, 1.0), Measured(2, 2 * 10**9, 2.0)], np.array([5, 10] * 100))  # fmt: skip
    assert found["memory needed"].startswith("about 2.00 GB")
    assert found["time"].startswith("about 15 s for 10 steps")


def test_the_doctor_stops_at_the_first_size_without_memory(compose_config, kd, tmp_path, monkeypatch):
    tried = []

    def attempt(module, data, config, folder, size):
        tried.append(size)
        return [Measured(size, size, 0.0)] if size < 8 else []

    class Steps:
        sequences = type("Sequences", (), {"lengths": np.array([9])})

    data = type("Data", (), {"_steps": Steps, "settings": type("Settings", (), {"unit": 2})})
    monkeypatch.setattr(doctor, "_try", attempt)
    found = measure(None, data, compose_config(*kd, "data.batch_size=50"), tmp_path)
    assert (tried, [m.batch for m in found]) == ([2, 4, 8], [2, 4])


def test_a_run_on_the_cpu_is_not_measured_on_the_gpu(compose_config, kd, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    device = run_device(compose_config(*kd, "strategy=cpu", "trainer.devices=2"))
    assert device == CPU
    assert doctor._peak(device) > 0
    assert "threads" in doctor.machine(compose_config(*kd, "strategy=cpu"), device)["device"]


def test_stores_of_the_doctor_are_not_kept(compose_config, kd, monkeypatch, tmp_path):
    monkeypatch.setattr(Language, "build", lambda self, config: config)
    config = compose_config(*kd, "teacher/cache=on", f"teacher.cache.folder={tmp_path}/own", "trainer.max_steps=2")
    built = doctor._build(config, tmp_path / "temporary")
    assert built.teacher.cache.folder is None  # so they are below data.cache
    assert built.data.cache == str(tmp_path / "temporary" / "cache")
    # The longest steps are measured, which the store of a run of two steps would not hold.
    assert built.trainer.max_steps == doctor.LEAST_STEPS
    assert (config.teacher.cache.folder, config.trainer.max_steps) == (f"{tmp_path}/own", 2)
    # A store without a teacher is only read, and is of the whole text.
    config.teacher.model = None
    built = doctor._build(config, tmp_path / "alone")
    kept = built.teacher.cache.folder, built.trainer.max_steps, built.data.max_examples
    assert kept == (config.teacher.cache.folder, 2, config.data.max_examples)
    config.teacher.models = ["a", "b"]
    assert doctor._build(config, tmp_path / "several").teacher.cache.folder is None


@pytest.mark.integration
def test_memory_at_a_size_is_predicted_from_smaller_ones(compose_config, source, cache, tmp_path):
    """Of what grows with the batch, within a factor of 1.5 (docs/configuration.md says so)."""
    shape = "{model_type: bert, hidden_size: 128, num_hidden_layers: 4, num_attention_heads: 4, intermediate_size: 512}"
    config = compose_config(
        *source, "objective=mlm", f"+student.config={shape}", "data.vocabulary_size=300", "data.num_proc=1",
        "data.max_length=64", "data.batch_size=128",
    )  # fmt: skip
    torch.manual_seed(0)
    training = doctor._build(config, tmp_path)
    *smaller, largest = measure(training.module, training.data, config, tmp_path)
    assert [m.batch for m in smaller] == [1, 2, 4, 8, 16, 32, 64]
    foretold = line_through([(m.batch, m.peak) for m in smaller]).at(128) - smaller[0].peak
    assert 1 / 1.5 < foretold / (largest.peak - smaller[0].peak) < 1.5
    assert all(m.seconds > 0 for m in smaller)


@pytest.mark.integration
def test_the_doctor_prints_and_writes_nothing(command, text_file, eval_file, bert_teacher, tmp_path):
    folder, cache = tmp_path / "run", tmp_path / "cache"
    common = [
        "objective=diito", f"teacher.model={bert_teacher}", "data=text_files", f"data.train_files=[{text_file}]",
        f"data.eval_files=[{eval_file}]", "data.max_length=32", "data.num_proc=1", "data.batch_size=4",
        "trainer.max_epochs=1", "trainer.enable_progress_bar=false", f"hydra.run.dir={folder}",
    ]  # fmt: skip
    done = command("train.py", *common, "doctor=true", cache=cache)
    assert done.returncode == 0, done.stderr
    for name in ("device", "memory", "precision", "versions", "parameters", "data", "memory needed", "largest batch"):
        assert any(line.startswith(name) for line in done.stdout.splitlines()), name
    assert "stores would be made" in done.stdout
    assert "not known before the store is made" in done.stdout
    assert not folder.exists()
    assert not (cache / "stores").exists()
    assert command("train.py", *common, "logger=csv", cache=cache).returncode == 0
    before = sorted(path for path in tmp_path.rglob("*"))
    done = command("train.py", *common, "doctor=true", f"hydra.run.dir={tmp_path}/second", cache=cache)
    assert "stores are ready" in done.stdout, done.stdout + done.stderr
    assert "steps, validation not counted" in done.stdout
    assert sorted(path for path in tmp_path.rglob("*")) == before
