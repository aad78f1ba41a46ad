"""What tests of whole runs share."""

import pytest

from potstill.runs import train as train_run
from potstill.runs.checks import validate_train


@pytest.fixture(scope="module", autouse=True)
def quick_results():
    """Runs in this process prepare their plots without drawing them, and measure latencies briefly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", lambda figure, file, **options: file.write("<svg></svg>"))
        patch.setattr("potstill.evaluation.latency.BUDGET_SECONDS", 0.05)
        yield


@pytest.fixture
def run(overrides, shared_cache, monkeypatch, tmp_path, compose_config):
    """A run in this process, into a folder of this name, of the test module's own `overrides` and further ones."""
    monkeypatch.setenv("POTSTILL_CACHE", str(shared_cache))
    return lambda name, *further: _train(compose_config(*overrides, *further), tmp_path / name)


@pytest.fixture(scope="module")
def whole(overrides, shared_cache, tmp_path_factory, compose_config):
    """The folder of an uninterrupted run of the test module's `overrides`, which tests only read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POTSTILL_CACHE", str(shared_cache))
        return _train(compose_config(*overrides), tmp_path_factory.mktemp("runs") / "whole")


def _train(config, folder):
    validate_train(config)
    folder.mkdir(exist_ok=True)
    train_run.train(config, folder)
    return folder


@pytest.fixture(scope="session")
def torchrun(command, tmp_path_factory):
    """Call `torchrun(script, *arguments)`: two processes of torch's launcher, which end with it."""
    launcher = tmp_path_factory.mktemp("torchrun") / "launcher.py"
    launcher.write_text("from torch.distributed.run import main\nmain()\n")
    return lambda script, *arguments, **kwargs: command(
        launcher, "--standalone", "--nproc-per-node=2", script, *arguments, **kwargs
    )
