import csv
import socket

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from potstill.errors import ConfigError
from potstill.tracking import finish, log_summary, make_loggers, wandb_mode


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    return monkeypatch


def test_mode_is_offline_until_a_key_or_the_user_says_otherwise(no_key, tmp_path):
    assert wandb_mode(None) == "offline"
    assert wandb_mode("disabled") == "disabled"
    no_key.setenv("WANDB_API_KEY", "x" * 40)
    assert wandb_mode(None) == "online"
    assert wandb_mode("offline") == "offline"
    no_key.setenv("WANDB_MODE", "disabled")
    assert wandb_mode(None) == "disabled"
    no_key.delenv("WANDB_MODE")
    no_key.delenv("WANDB_API_KEY")
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine api.wandb.ai login user password " + "x" * 40)
    netrc.chmod(0o600)
    assert wandb_mode(None) == "online"


def test_metrics_csv_is_always_written(tmp_path):
    loggers = make_loggers("csv", tmp_path)
    loggers[0].log_metrics({"train/loss": 1.5}, step=3)
    finish(loggers, failed=False)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert rows == [{"step": "3", "train/loss": "1.5"}]


def test_tensorboard(tmp_path):
    loggers = make_loggers("tensorboard", tmp_path)
    assert [type(logger) for logger in loggers] == [CSVLogger, TensorBoardLogger]
    loggers[1].log_metrics({"train/loss": 1.5}, step=3)
    finish(loggers, failed=False)
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_unknown_logger(tmp_path):
    with pytest.raises(ConfigError, match=r"logger.name=mlflow: wandb, csv or tensorboard"):
        make_loggers("mlflow", tmp_path)


@pytest.mark.integration
def test_wandb_writes_a_run_a_job_without_asking_for_a_login(no_key, tmp_path):
    settings = {
        "project": "p",
        "run": None,
        "group": None,
        "tags": ["kd"],
        "mode": None,
        "config": {"seed": 1},
    }
    names = []
    for job, failed in (("a", False), ("b", True)):
        folder = tmp_path / job
        folder.mkdir()
        loggers = make_loggers("wandb", folder, **settings)
        loggers[1].log_metrics({"train/loss": 1.5}, step=1)
        log_summary(loggers, {"val/perplexity": 2.0})
        names.append(loggers[1].experiment.id)
        finish(loggers, failed=failed)
        assert len(list(folder.glob("wandb/offline-run-*/*.wandb"))) == 1
    assert len(set(names)) == 2


@pytest.fixture
def fresh_wandb():
    """wandb reads its variables once a process: let it forget what other tests have set."""
    import wandb

    wandb.teardown()
    yield
    wandb.teardown()


@pytest.mark.integration
def test_a_run_goes_on_without_the_endpoint(no_key, fresh_wandb, tmp_path, caplog):
    """Nothing listens on the port: the run is kept offline, and its metrics.csv is whole."""
    with socket.socket() as held:  # a port that nobody else takes meanwhile, and that refuses
        held.bind(("127.0.0.1", 0))
        no_key.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{held.getsockname()[1]}")
        no_key.setenv("WANDB_API_KEY", "x" * 40)
        no_key.setenv("WANDB_INIT_TIMEOUT", "2")
        settings = {"project": "p", "run": None, "group": None, "tags": [], "config": {"seed": 1}}
        loggers = make_loggers("wandb", tmp_path, **settings, mode="online")
        for step in (1, 2):
            for logger in loggers:
                logger.log_metrics({"train/loss": step / 2}, step=step)
        finish(loggers, failed=False)
    assert "wandb cannot be reached" in caplog.text
    assert "wandb sync" in caplog.text
    assert len(list(tmp_path.glob("wandb/offline-run-*/*.wandb"))) == 1
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [(row["step"], row["train/loss"]) for row in rows] == [("1", "0.5"), ("2", "1.0")]
