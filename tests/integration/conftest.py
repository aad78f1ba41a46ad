"""What tests of whole runs share."""

import pytest

from potstill.runs import train as train_run
from potstill.runs.checks import validate_train


@pytest.fixture
def run(overrides, shared_cache, monkeypatch, tmp_path, compose_config):
    """A run in this process, into a folder of this name, of the test module's own `overrides` and further ones."""
    monkeypatch.setenv("POTSTILL_CACHE", str(shared_cache))

    def start(name, *further):
        config = compose_config(*overrides, *further)
        validate_train(config)
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        train_run.train(config, folder)
        return folder

    return start
