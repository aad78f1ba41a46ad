"""The command line: errors are one line and exit code 2, `--help` is quick, sweeps have folders."""

import errno
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from potstill.cli.overrides import readable
from potstill.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def no_torch(tmp_path_factory):
    """A folder for PYTHONPATH whose `torch` leaves a mark and cannot be imported."""
    folder = tmp_path_factory.mktemp("no_torch")
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text(
        "import pathlib\n"
        "pathlib.Path(__file__).with_name('imported').touch()\n"
        "raise ImportError('torch was asked for too early')\n"
    )
    return folder


@pytest.fixture
def refused(no_torch, command, light_command, tmp_path):
    """Run a command that must be refused; gives its one line."""

    def run(script, *overrides, before_torch=True, **kwargs):
        environment = {"PYTHONPATH": str(no_torch)} if before_torch else {}
        folder = tmp_path / "run"
        run_command = light_command if before_torch else command
        done = run_command(script, f"hydra.run.dir={folder}", *overrides, **environment, **kwargs)
        assert done.returncode == 2, done.stderr
        assert not (no_torch / "torch" / "imported").exists()
        assert not folder.is_dir() or not list(folder.iterdir())
        lines = done.stderr.splitlines()
        if before_torch:
            assert len(lines) == 1, done.stderr
        assert re.fullmatch(r"error: .* \[E-[A-Z]+\]", lines[-1]), lines[-1]
        return lines[-1]

    return run


# Overrides after those of a valid run, and parts of the error.
ERRORS = {
    "misspelled key": (["trainer.max_step=3"], ["trainer.max_step=3", "`trainer.max_steps`", "[E-KEY]"]),
    "key of another option": (["objective.temperature=3"], ["objective.temperature=3", "kd", "[E-KEY]"]),
    "added key of the whole": (["+references=3"], ["references=3", "[E-KEY]"]),
    "misspelled group": (["studnet=bert_tiny"], ["studnet=bert_tiny", "`student`", "[E-KEY]"]),
    "unknown option": (["objective=kdd"], ["objective=kdd", "clm, custom, ", "`objective=kd`", "[E-KEY]"]),
    "ill-typed": (["data.batch_size=many"], ["data.batch_size=many", "integer"]),
    "added key": (["++objective.tmeperature=3"], ["objective.tmeperature=3"]),
    "no override": (["data.train_files=["], ["data.train_files=[", "key=value"]),
    "new key of a free dictionary": (
        ["student.config.depth=2"],
        ["student.config.depth=2", "student.config", "+"],
    ),
    "sweep without -m": (["seed=1,2"], ["seed=1,2", "-m"]),
    "missing text": (["data.train_files=[nowhere.txt]"], ["data.train_files", "nowhere.txt"]),
    "hub data offline": (
        ["data=wikitext", "data.train_files=null", "data.eval_files=null"],
        ["data.train.0", "Salesforce/wikitext", "data=text_files", "save_to_disk"],
    ),
    "hub teacher offline": (
        ["teacher.model=bert-base-uncased"],
        ["teacher.model=bert-base-uncased", "folder"],
    ),
    "several": (
        ["data.mlm_share=1.5", "trainer.max_steps=-3", "data.mlm_smoothing=9"],
        ["data.mlm_share=1.5", "trainer.max_steps=-3", "data.mlm_smoothing=9"],
    ),
    "checkpoint": (["ckpt_path=nowhere.ckpt"], ["ckpt_path=nowhere.ckpt", "last.ckpt"]),
    "logger": (["logger.name=wendb"], ["logger.name=wendb", "wandb, tensorboard, csv"]),
    "schedule": (["schedule.name=linaer"], ["schedule.name=linaer", "linear, cosine"]),
    "data of another kind": (
        ["objective=step_by_step", "student=t5_tiny"],
        ["data=text_files: is read by language models; objective=step_by_step reads data=anli1, arithmetic, cqa"],
    ),
    "a recipe for another option": (
        ["experiment=quickstart", "data=task", "data.train_files=null"],
        ["data=task: experiment=quickstart sets data.vocabulary_size", "[E-KEY]"],
    ),
    "benchmark key without a benchmark": (
        ["benchmark.train_file=a.tsv"],
        ["benchmark.train_file=a.tsv", "`benchmark`"],
    ),
    "task file": (
        ["objective=finetune", "benchmark=text_classification", "benchmark.train_file=nowhere.tsv"],
        ["benchmark.eval_file=null"],
    ),
    "hub task offline": (
        ["objective=finetune", "benchmark=sst2"],
        ["benchmark.hub", "nyu-mll/glue (sst2, train)", "benchmark.folder"],
    ),
    "a doctor for stages": (
        ["doctor=true", "stages=[{name: a}]"],
        ["doctor=true with stages"],
    ),
    "two stages of one name": (
        ["stages=[{name: a},{name: a}]"],
        ["stages.name=a"],
    ),
    "a stage that is not there": (
        ["stages=[{name: a, overrides: ['student.model=${stage:b}/student']}]"],
        ["stage a: ${stage:b}: "],
    ),
    "an error of a stage": (
        ["stages=[{name: a, overrides: ['trainer.max_steps=-3']}]"],
        ["stage a: trainer.max_steps=-3", "[E-CONFIG]"],
    ),
    "interpolation": (["data.name=${oc.env:POTSTILL_UNSET}"], ["data.name", "POTSTILL_UNSET"]),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_is_one_line_before_torch(case, refused, text_file):
    overrides, parts = ERRORS[case]
    base = {
        "objective": "mlm", "student": "bert_tiny", "logger": "csv", "data": "text_files",
        "data.train_files": f"[{text_file}]",
    }  # fmt: skip
    given = {override.partition("=")[0] for override in overrides}
    given |= {"data", "data.train_files"} if "objective=finetune" in overrides else set()
    line = refused("train.py", *(f"{k}={v}" for k, v in base.items() if k not in given), *overrides)
    for part in parts:
        assert part in line


def test_an_output_folder_that_is_a_file_is_rejected(command, tmp_path, text_file):
    taken = tmp_path / "taken"
    taken.touch()
    source = ["data=text_files", f"data.train_files=[{text_file}]", "objective=mlm", "student=bert_tiny", "logger=csv"]
    done = command("train.py", *source, f"hydra.run.dir={taken}")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: hydra.run.dir: cannot write {taken}: File exists")
    assert taken.is_file()


@pytest.mark.parametrize("place", ["hydra.run.dir", "data.cache"])
def test_a_full_disk_is_found_before_torch(place, tmp_path, text_file, no_torch):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=64k tmpfs {disk}"
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*unshare, mount], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    folders = {"hydra.run.dir": tmp_path / "run", "data.cache": tmp_path / "cache", place: disk / "inside"}
    overrides = [
        "data=text_files", f"data.train_files=[{text_file}]", "objective=mlm", "student=bert_tiny", "logger=csv",
        *(f"{key}={folder}" for key, folder in folders.items()),
    ]  # fmt: skip
    train = " ".join([sys.executable, str(ROOT / "train.py"), *(f"'{override}'" for override in overrides)])
    done = subprocess.run(
        [*unshare, f"{mount} && {train}"],
        env={**os.environ, "PYTHONPATH": str(no_torch)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: {place}={disk / 'inside'}: ")
    assert done.stderr.count("\n") == 1


def test_text_without_a_usable_sequence(refused, text_file, bert_teacher, tmp_path):
    (tmp_path / "short.txt").write_text("too short\nfar too short\n")
    line = refused(
        "train.py", f"teacher.model={bert_teacher}", "logger=csv", "data=text_files", "data.num_proc=1",
        f"data.train_files=[{tmp_path}/short.txt]", f"data.eval_files=[{text_file}]", before_torch=False,
    )  # fmt: skip
    for part in ("short.txt", "all of 2 texts are dropped", "data.min_length"):
        assert part in line


def test_evaluate_rejects_before_torch(refused, text_file, bert_teacher):
    source = ["data=text_files", f"data.eval_files=[{text_file}]"]
    assert "model=: name at least one" in refused("evaluate.py", *source)
    line = refused("evaluate.py", *source, f"model={bert_teacher}", "benchmark=mnil")
    assert "benchmark=mnil: no such option; one of clm, cmrc2018" in line
    assert "did you mean `benchmark=mnli`" in line
    line = refused("evaluate.py", *source, f"model={bert_teacher}", "benchmark=interchange")
    assert "compares students with a teacher; model=[<teacher>,<student>]" in line


def test_a_corpus_too_short_to_swap(refused, text_file, bert_teacher):
    line = refused(
        "train.py", "objective=diito", f"teacher.model={bert_teacher}", "logger=csv", "data=text_files",
        "data.num_proc=1", f"data.train_files=[{text_file}]", "objective.interchange.proportion=0.01",
        before_torch=False,
    )  # fmt: skip
    assert "objective.interchange.proportion=0.01: all " in line
    assert "sequences are too short to swap one token (the longest has" in line


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_help_teaches_the_groups_without_torch(script, no_torch, light_command):
    done = light_command(script, "--help", PYTHONPATH=str(no_torch))
    assert done.returncode == 0, done.stderr
    assert not (no_torch / "torch" / "imported").exists()
    assert "group=option" in done.stdout
    groups = {"train.py": "objective data teacher student strategy optimizer schedule callbacks logger sweep debug "
              "experiment benchmark", "evaluate.py": "benchmark data strategy"}[script]  # fmt: skip
    for group in groups.split():
        assert f"\n{group}: " in done.stdout  # the list that Hydra makes


def test_help_into_a_closed_pipe_is_not_an_error(no_torch):
    read, write = os.pipe()
    os.close(read)
    with suppress(OSError):
        done = subprocess.run(
            [sys.executable, str(ROOT / "train.py"), "--help"],
            cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
    os.close(write)
    assert done.returncode == 128 + 13
    assert done.stderr == ""


def test_both_spellings_of_an_experiment(no_torch, light_command):
    for spelling in ("+experiment=distilbert", "experiment=distilbert"):
        done = light_command("train.py", spelling, "--cfg", "job", PYTHONPATH=str(no_torch))
        assert done.returncode == 0, done.stderr
        assert "architecture: distilbert" in done.stdout
        assert "accumulate_grad_batches: 50" in done.stdout


def test_a_sweep_with_ddp_is_rejected(refused, text_file, bert_teacher, tmp_path):
    line = refused(
        "train.py", "-m", "seed=1,2", "strategy=ddp", f"teacher.model={bert_teacher}", "data=text_files",
        f"data.train_files=[{text_file}]", "logger=csv", f"hydra.sweep.dir={tmp_path}/sweep",
    )  # fmt: skip
    assert "trainer.strategy=ddp with -m" in line
    assert "trainer.devices=1" in line


@pytest.mark.parametrize(("error", "ends"), [(errno.ENOSPC, 2), (errno.EIO, 1)])
def test_an_error_of_the_disk_ends_one_job_of_a_sweep(error, ends, no_torch, tmp_path):
    (tmp_path / "jobs.py").write_text(
        "import os\n"
        "from potstill.cli import commands\n"
        "def job(config):\n"
        "    if config.seed == 2:\n"
        f"        raise OSError({error}, os.strerror({error}), 'last.ckpt')\n"
        "    commands._output_folder().joinpath('done').touch()\n"
        "commands._run('train', job)\n"
    )
    done = subprocess.run(
        [sys.executable, str(tmp_path / "jobs.py"), "-m", "seed=1,2,3", f"hydra.sweep.dir={tmp_path}/sweep"],
        env={**os.environ, "PYTHONPATH": str(no_torch)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == ends, done.stderr
    assert [(tmp_path / "sweep" / str(job) / "done").is_file() for job in range(3)] == [True, False, True]
    reason = (tmp_path / "sweep" / "1" / "error.txt").read_text()
    assert "last.ckpt" in reason
    assert os.strerror(error) in reason
    assert ("Traceback" in done.stderr) == (ends == 1)
    if ends == 2:
        assert done.stderr == f"error: {reason}"


@pytest.mark.integration
def test_a_sweep_has_one_folder_per_job(command, text_file, eval_file, bert_teacher, tmp_path):
    done = command(
        "train.py", "-m", "seed=1,2", f"teacher.model={bert_teacher}", "data=text_files", "logger=csv",
        f"data.train_files=[{text_file}]", f"data.eval_files=[{eval_file}]", "data.max_length=32",
        "data.num_proc=1", "trainer.max_steps=1", f"hydra.sweep.dir={tmp_path}/sweep",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summaries = [json.loads((tmp_path / "sweep" / job / "summary.json").read_text()) for job in ("0", "1")]
    assert [summary["seed"] for summary in summaries] == [1, 2]
    assert summaries[0]["val/loss"] != summaries[1]["val/loss"]
    assert (tmp_path / "sweep" / "1" / "student" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("override", "quoted"),
    [
        ("data.name=a=b", "data.name='a=b'"),
        ("data.train_files=[a=b.txt,c d.txt]", "data.train_files=['a=b.txt','c d.txt']"),
        ("teacher.model=/x/[y", "teacher.model='/x/[y'"),
        ("teacher.model=/x/y (1)", "teacher.model='/x/y (1)'"),
        ("data.name=a,", "data.name='a,'"),
        ("data.name='a", "data.name="),
        ("data.name=${", "data.name="),
    ],
)
def test_text_in_hydras_grammar_is_put_in_its_quotes(override, quoted):
    """As Hydra reads what is advised, the value is the one that was typed."""
    with pytest.raises(ConfigError) as refused:
        readable("train", [override])
    line = str(refused.value)
    assert line.startswith(f"{override}: ")
    assert quoted in line
    advised = shlex.split(line[line.rindex(", ") + 2 :] if "[" not in override else line.split("s, ", 1)[1])
    value = OverridesParser.create().parse_override(advised[0]).value()
    typed = override.partition("=")[2]
    assert value == (["a=b.txt", "c d.txt"] if "[a" in typed else typed)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data.name=größer/日本", "größer/日本"),
        ("data.name=it#1!;<>&", "it#1!;<>&"),
        ("data.train_files=[~/a.txt,ö.txt]", [str(Path.home() / "a.txt"), "ö.txt"]),
        ("hydra.run.dir=~/runs", str(Path.home() / "runs")),
    ],
)
def test_text_that_has_one_meaning_is_read(override, value):
    (read,) = readable("train", [override])
    assert OverridesParser.create().parse_override(read).value() == value


@pytest.mark.parametrize(
    "word",
    ["optimizer=null", "objective=null", "data={a: 1}", "teacher=[pretrained]", "teacher/cache=5", "=3", "~", "seed",
     "--foo", "data.name=\udcff", "a b=1", "seed=" + "x" * 200_000],
)  # fmt: skip
def test_words_that_are_no_overrides(word):
    with pytest.raises(ConfigError) as refused:
        readable("train", [word])
    assert word.partition("=")[0] in str(refused.value)


def test_groups_without_a_default_may_be_null():
    assert readable("train", ["benchmark=null", "experiment=null"]) == ["benchmark=null", "experiment=null"]


@pytest.mark.parametrize("override", ["teacher.cache.temperatures.x=1", "tasks.x.y=1", "data.train_files.0.a=1"])
def test_keys_within_null_and_lists(override, refused):
    assert override in refused("train.py", "logger=csv", override)


LONG = "a" * 300


@pytest.mark.parametrize(
    ("script", "overrides", "key"),
    [
        ("train.py", ["hydra.run.dir={folder}/" + LONG], "hydra.run.dir"),
        ("train.py", ["hydra.run.dir={folder}/" + LONG + "/x"], "hydra.run.dir"),
        (
            "train.py",
            ["hydra.run.dir={folder}/${{hydra.job.override_dirname}}", "+student.config={{a: " + LONG + "}}"],
            "hydra.run.dir",
        ),
        ("train.py", ["-m", "seed=1,2", "hydra.sweep.dir={folder}/" + LONG], "hydra.sweep.dir"),
        ("train.py", ["-m", "seed=1", "hydra.sweep.dir={folder}", "hydra.sweep.subdir=" + LONG], "hydra.sweep.subdir"),
        (
            "train.py",
            [
                "-m",
                "hydra.sweep.dir={folder}",
                "hydra.sweep.subdir=${{hydra.job.override_dirname}}",
                *(f"+student.config.{name * 30}=" + name * 40 for name in "abcde"),
            ],
            "hydra.sweep.subdir",
        ),
        ("train.py", ["data.cache={home}/" + LONG], "data.cache"),
        ("train.py", ["teacher.model=" + LONG], "teacher.model"),
        ("train.py", ["data=text_files", "data.train_files=[b.txt,{folder}/" + LONG + "]"], "data.train_files"),
        ("train.py", ["ckpt_path=" + LONG], "ckpt_path"),
        ("evaluate.py", ["sweep.folder=" + LONG], "sweep.folder"),
    ],
)
def test_the_key_of_a_name_that_is_too_long(script, overrides, key, light_command, no_torch, tmp_path):
    given = [one.format(home=tmp_path, folder=tmp_path / "run") for one in overrides]
    done = light_command(script, *given, PYTHONPATH=str(no_torch))
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"error: {key}: ")
    assert "Traceback" not in done.stderr
