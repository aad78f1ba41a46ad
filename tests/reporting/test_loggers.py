import csv
import json
import socket
import struct
import time

import pytest
from lightning.pytorch.loggers import TensorBoardLogger

from potstill.errors import ConfigError
from potstill.reporting.artifacts import artifact_name, log_student, model_files
from potstill.reporting.loggers import MetricsFile, direction, finish, log_summary, log_table, make_loggers, wandb_mode
from potstill.reporting.report import Table


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    return monkeypatch


def test_wandb_mode(no_key, tmp_path):
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
    finish(loggers, code=0)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert rows == [{"epoch": "", "step": "3", "train/loss": "1.5"}]


def test_tensorboard(tmp_path):
    loggers = make_loggers("tensorboard", tmp_path)
    assert [type(logger) for logger in loggers] == [MetricsFile, TensorBoardLogger]
    loggers[1].log_metrics({"train/loss": 1.5}, step=3)
    finish(loggers, code=0)
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_unknown_logger(tmp_path):
    with pytest.raises(ConfigError, match=r"logger.name=mlflow: .*wandb, csv, tensorboard"):
        make_loggers("mlflow", tmp_path)


@pytest.mark.parametrize(
    ("metric", "better"),
    [
        ("val/loss", "min"),
        ("train/loss_ce", "min"),
        ("val/teacher_perplexity", "min"),
        ("val/interchange_kl", "min"),
        ("val/interchange_kl_1-0", "min"),
        ("val/interchange_agreement", "max"),
        ("val/f1_macro", "max"),
        ("test/accuracy", "max"),
        ("train/tokens_per_second", "max"),
        ("train/lr", None),
        ("train/grad_norm", None),
        ("epoch", None),
    ],
)
def test_direction(metric, better):
    assert direction(metric) == better


def records(folder):
    """The records of an offline run, in order; waits until wandb's process has written the last one."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    for _ in range(100):
        if of_kind(found := read_records(path.read_bytes()), "exit"):
            return found
        time.sleep(0.1)
    raise AssertionError(f"{path} has no end")


def read_records(raw):
    """The complete records of a file in LevelDB's log format after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    at, whole, found = 7, b"", []
    while at + 7 <= len(raw):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", raw[at : at + 7])
        if at + 7 + size > len(raw):  # wandb's process is still writing this record
            break
        whole += raw[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a record in one piece, or its last piece
            found.append(wandb_internal_pb2.Record.FromString(whole))
            whole = b""
    return found


def of_kind(found, kind):
    return [getattr(record, kind) for record in found if record.WhichOneof("record_type") == kind]


SETTINGS = {
    "entity": None,
    "project": "p",
    "run": None,
    "group": "sweep",
    "job_type": "train",
    "tags": ["kd", "kd", "sst2"],
    "mode": None,
    "config": {"seed": 1, "trainer": {"max_steps": 2}},
}


@pytest.fixture
def student(tmp_path):
    """The folder of a run with a student of 2 kB; its teacher is the student of another wandb run."""
    for run, letter in (("taught", b"s"), ("teaching", b"t")):
        (tmp_path / run / "student").mkdir(parents=True)
        (tmp_path / run / "student" / "model.safetensors").write_bytes(letter * 2000)
    (tmp_path / "teaching" / "wandb_id").write_text("abc123\n")
    return tmp_path / "taught"


@pytest.mark.integration
def test_the_records_of_a_wandb_run(no_key, student):
    """Group, job type, tags, options, best and last of each metric, tables, student and teacher, and how it ended."""
    teacher = student.parent / "teaching" / "student"
    loggers = make_loggers("wandb", student, **SETTINGS)
    for step, (loss, accuracy) in enumerate([(3.0, 0.1), (1.0, 0.9), (2.0, 0.5)]):
        loggers[1].log_metrics({"val/loss": loss, "val/accuracy": accuracy, "train/lr": 0.1}, step=step)
    log_summary(loggers, {"val/loss": 2.0, "seconds": 4.0})
    log_table(loggers, "classes", Table("Classes", ["class", "f1"], [["yes", 0.5]]))
    log_student(loggers, student / "student", [str(teacher)], {"val/loss": 2.0}, limit_mb=1)
    number = loggers[1].experiment.id
    finish(loggers, code=143)

    found = records(student)
    run = of_kind(found, "run")[0]
    assert (run.run_group, run.job_type, list(run.tags)) == ("sweep", "train", ["kd", "sst2"])
    options = {update.key: json.loads(update.value_json) for update in run.config.update}
    assert (options["seed"], options["trainer.max_steps"]) == (1, 2)
    summary = {}
    for record in of_kind(found, "summary"):
        for update in record.update:
            summary["/".join(update.nested_key) or update.key] = json.loads(update.value_json)
    assert summary["val/loss"] == {"min": 1.0, "last": 2.0}
    assert summary["val/accuracy"] == {"max": 0.9, "last": 0.5}
    assert (summary["train/lr"], summary["seconds"]) == (0.1, 4.0)
    assert summary["classes/_type"] == "table-file"
    used, made = (artifact for artifact in of_kind(found, "artifact") if artifact.type == "model")
    assert (used.name, used.use_after_commit) == ("student-abc123", True)
    assert (made.name, made.use_after_commit) == (f"student-{number}", False)
    assert json.loads(made.metadata) == {"val/loss": 2.0, "teachers": [str(teacher)]}
    (file,) = made.manifest.contents
    assert file.local_path == str(student / "student" / "model.safetensors")  # no copy
    assert of_kind(found, "exit")[0].exit_code == 143


@pytest.mark.integration
@pytest.mark.parametrize("limit_mb", [0, 0.001])
def test_a_student_above_the_limit_is_not_logged(no_key, student, limit_mb):
    loggers = make_loggers("wandb", student, **SETTINGS)
    log_student(loggers, student / "student", ["bert-base-uncased"], {}, limit_mb)
    finish(loggers, code=0)
    found = records(student)
    assert not of_kind(found, "artifact")
    assert of_kind(found, "exit")[0].exit_code == 0


@pytest.mark.integration
def test_large_teachers_and_those_of_the_hub_are_references(no_key, student):
    large = student.parent / "large"
    large.mkdir()
    (large / "model.safetensors").write_bytes(b"t" * 5000)
    loggers = make_loggers("wandb", student, **SETTINGS)
    log_student(loggers, student / "student", ["bert-base-uncased", str(large)], {}, limit_mb=0.003)
    finish(loggers, code=0)
    hub, folder, _ = of_kind(records(student), "artifact")
    assert [entry.ref for entry in hub.manifest.contents] == ["https://huggingface.co/bert-base-uncased"]
    assert [entry.ref for entry in folder.manifest.contents] == [f"{large.as_uri()}/model.safetensors"]


def test_artifacts_hold_only_files_of_save_pretrained_inside_the_folder(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "model.safetensors").write_text("secret")
    folder = tmp_path / "teacher"
    (folder / ".git").mkdir(parents=True)
    (folder / "task").mkdir()
    saved = ["config.json", "model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json",
             "pytorch_model.bin", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "merges.txt", "spiece.model",
             "generation_config.json", "special_tokens_map.json", "chat_template.jinja", "task/config.json",
             "task/model.safetensors"]  # fmt: skip
    others = [".env", ".netrc", ".git/config.json", "notes.txt", "id_rsa", "credentials.json", "modeling.py",
              "optimizer.pt", "task/.env", "README.md"]  # fmt: skip
    for name in (*saved, *others):
        (folder / name).write_text("x")
    (folder / "vocab.json").symlink_to(outside / "model.safetensors")
    (folder / "linked").symlink_to(outside)
    (folder / "added_tokens.json").mkdir()
    (outside / "config.json").write_text("x")
    found = [path.relative_to(folder).as_posix() for path in model_files(folder)]
    assert sorted(found) == sorted(saved)
    with_card = [path.relative_to(folder).as_posix() for path in model_files(folder, card=True)]
    assert sorted(with_card) == sorted([*saved, "README.md"])


def test_names_of_artifacts(student):
    assert artifact_name(str(student.parent / "teaching" / "student")) == "student-abc123"
    assert artifact_name("google/t5 base") == "google-t5-base"
    assert len(artifact_name("a" * 300)) == 128


@pytest.mark.integration
def test_wandb_writes_one_run_per_job_without_a_login(no_key, tmp_path):
    names = []
    for job, code in (("a", 0), ("b", 1)):
        folder = tmp_path / job
        folder.mkdir()
        loggers = make_loggers("wandb", folder, **SETTINGS)
        loggers[1].log_metrics({"train/loss": 1.5}, step=1)
        log_summary(loggers, {"val/perplexity": 2.0})
        names.append(loggers[1].experiment.id)
        finish(loggers, code=code)
        assert len(list(folder.glob("wandb/offline-run-*/*.wandb"))) == 1
    assert len(set(names)) == 2


@pytest.fixture
def fresh_wandb():
    """wandb without the environment variables of other tests, which it reads once per process."""
    import wandb

    wandb.teardown()
    yield
    wandb.teardown()


@pytest.mark.integration
def test_a_run_without_a_server_is_logged_offline(no_key, fresh_wandb, tmp_path, caplog):
    """Without a server the run is logged offline, and metrics.csv is complete."""
    with socket.socket() as held:  # reserves a port that refuses connections
        held.bind(("127.0.0.1", 0))
        no_key.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{held.getsockname()[1]}")
        no_key.setenv("WANDB_API_KEY", "x" * 40)
        no_key.setenv("WANDB_INIT_TIMEOUT", "2")
        settings = {
            "entity": None,
            "project": "p",
            "run": None,
            "group": None,
            "job_type": "train",
            "tags": [],
            "config": {"seed": 1},
        }
        loggers = make_loggers("wandb", tmp_path, **settings, mode="online")
        for step in (1, 2):
            for logger in loggers:
                logger.log_metrics({"train/loss": step / 2}, step=step)
        finish(loggers, code=0)
    assert "wandb sync" in caplog.text
    assert len(list(tmp_path.glob("wandb/offline-run-*/*.wandb"))) == 1
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [(row["step"], row["train/loss"]) for row in rows] == [("1", "0.5"), ("2", "1.0")]


@pytest.mark.integration
def test_a_run_continues_when_the_server_stops(wandb_server, monkeypatch, tmp_path, caplog):
    import wandb

    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "1")
    loggers = make_loggers("wandb", tmp_path, **{**SETTINGS, "mode": "online"})
    assert any("upsertBucket" in query["query"] for query in wandb_server.asked)
    for step in (1, 2, 3):
        for logger in loggers:
            logger.log_metrics({"train/loss": step / 2}, step=step)
        if step == 2:
            wandb_server.stop()
    finish(loggers, code=0)
    (kept,) = tmp_path.glob("wandb/run-*")
    assert f"`wandb sync {kept}`" in caplog.text
    (records,) = kept.glob("*.wandb")
    wandb.teardown()  # as at the end of the process
    until = time.monotonic() + 60
    while b"train/loss" not in records.read_bytes() and time.monotonic() < until:
        time.sleep(0.1)  # wandb's own process writes it
    assert b"train/loss" in records.read_bytes()
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [row["train/loss"] for row in rows] == ["0.5", "1.0", "1.5"]
