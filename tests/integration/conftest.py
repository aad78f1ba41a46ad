"""What tests of whole runs share."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from potstill.runs import evaluate as evaluate_run
from potstill.runs import train as train_run
from potstill.runs.checks import validate_evaluate, validate_train


@dataclass
class Run:
    """A finished run or evaluation in this process: `folder, summary = run`."""

    folder: Path
    summary: dict
    value: float | None  # what a sweep minimizes or maximizes

    def __iter__(self):
        return iter((self.folder, self.summary))


@pytest.fixture(scope="module", autouse=True)
def quick(shared_cache):
    """Runs in this process share a cache, prepare plots without drawing them, and measure latencies briefly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POTSTILL_CACHE", str(shared_cache))
        patch.setattr("matplotlib.figure.Figure.savefig", lambda figure, file, **options: file.write("<svg></svg>"))
        patch.setattr("potstill.evaluation.latency.BUDGET_SECONDS", 0.05)
        yield


@pytest.fixture(scope="session")
def trained(compose_config):
    """Call `trained(folder, *overrides)`: train in this process, as train.py does."""

    def start(folder, *overrides):
        config = compose_config(*overrides)
        validate_train(config)
        folder.mkdir(exist_ok=True)
        return _finished(folder, train_run.train(config, folder))

    return start


@pytest.fixture(scope="session")
def evaluated(compose_config):
    """The same for evaluate.py."""

    def start(folder, *overrides):
        config = compose_config("trainer.enable_progress_bar=false", *overrides, name="evaluate")
        validate_evaluate(config)
        folder.mkdir(exist_ok=True)
        return _finished(folder, evaluate_run.evaluate(config, folder))

    return start


def _finished(folder, value):
    return Run(folder, json.loads((folder / "summary.json").read_text()), value)


@pytest.fixture(scope="module")
def own(request, tmp_path_factory):
    """The folder of a user's own module, named and filled by `NAME` and `SOURCE` of the test module, to import."""
    name, folder = request.module.NAME, tmp_path_factory.mktemp("own")
    (folder / f"{name}.py").write_text(request.module.SOURCE)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop(name, None)


@pytest.fixture
def run(overrides, trained, tmp_path):
    """Call `run(name, ...)`: train with the test module's own `overrides` and further ones, into `tmp_path / name`."""
    return lambda name, *further: trained(tmp_path / name, *overrides, *further)


@pytest.fixture(scope="module")
def whole(overrides, trained, tmp_path_factory):
    """The folder of an uninterrupted run of the test module's `overrides`, which tests only read."""
    return trained(tmp_path_factory.mktemp("runs") / "whole", *overrides).folder


@pytest.fixture(scope="session")
def torchrun(command, tmp_path_factory):
    """Call `torchrun(script, *arguments)`: two processes of torch's launcher, which end with it."""
    launcher = tmp_path_factory.mktemp("torchrun") / "launcher.py"
    launcher.write_text("from torch.distributed.run import main\nmain()\n")
    return lambda script, *arguments, **kwargs: command(
        launcher, "--standalone", "--nproc-per-node=2", script, *arguments, **kwargs
    )
