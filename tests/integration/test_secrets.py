"""No secret of a command line or of the environment is printed or stays in a file, also of rejected runs."""

import pytest

SECRET = "Sup3r-s3cr3t-v4lue"
REJECTED = {
    "a password in an address": [f"generation.url=http://me:{SECRET}@host:8000/v1"],
    "an address without a scheme": [f"generation.url=me:{SECRET}@host/v1"],
    "an unquoted query": [f"generation.url=http://host/v1?key={SECRET}"],
    "a quoted query": [f"generation.url='http://host/v1?k={SECRET}'"],
    "an unknown key": [f"generation.api_key={SECRET}"],
    "an unknown key that is added": [f"+generation.api_key={SECRET}"],
    "a dictionary": [f"+generation={{headers:{{Authorization:{SECRET}}}}}"],
    "the key in place of its variable": ["generation.key_variable=sk-Sup3r-s3cr3t-v4lue"],
    "a key in the place of a model": ["generation.model=sk-Sup3r-s3cr3t-v4lue", "seed=-1", "trainer.max_steps=-7"],
    "an address in the place of a model": [f"teacher.model=https://me:{SECRET}@host/x"],
    "a wrong value beside a good secret": [f"+generation.extra_body.api_key={SECRET}", "trainer.max_steps=-7"],
    "a variable": ["data.name=${oc.env:MY_SECRET}", "logger.name=${oc.env:MY_SECRET}"],
}  # fmt: skip


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_hidden(folder, *texts):
    for text in texts:
        assert "s3cr3t" not in text
    for path, content in contents(folder).items():
        assert b"s3cr3t" not in content, path
        assert b"swordfish" not in content, path


@pytest.mark.parametrize("case", REJECTED)
def test_a_rejected_command(command, tmp_path, case):
    overrides = ["objective=mlm", "student=bert_tiny", "logger=csv", "stage=rationales", *REJECTED[case]]
    done = command("train.py", *overrides, f"hydra.run.dir={tmp_path}/run", MY_SECRET=SECRET)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert_hidden(tmp_path, done.stdout, done.stderr)


@pytest.mark.parametrize(
    "overrides",
    [
        [f"model=https://me:{SECRET}@host/x"],
        [f"data.url=http://host/v1?key={SECRET}"],
        [f"+data.api_key={SECRET}"],
        [f"+data.extra.api_key={SECRET}", "data.max_length=-7"],
        ["data.name=${oc.env:MY_SECRET}", "model=${oc.env:MY_SECRET}"],
    ],
)
def test_a_rejected_evaluation(command, tmp_path, overrides):
    done = command("evaluate.py", *overrides, f"hydra.run.dir={tmp_path}/run", MY_SECRET=SECRET)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert_hidden(tmp_path, done.stdout, done.stderr)


@pytest.mark.parametrize("case", ["a password in an address", "an unknown key", "an unknown key that is added"])
def test_a_rejected_sweep(command, tmp_path, case):
    (tmp_path / "kept").touch()
    overrides = ["objective=mlm", "student=bert_tiny", "logger=csv", *REJECTED[case]]
    done = command(
        "train.py", "-m", "seed=1,2", *overrides, "trainer.max_steps=-7", f"hydra.sweep.dir={tmp_path}/sweep"
    )
    assert done.returncode == 2, done.stderr
    assert_hidden(tmp_path, done.stdout, done.stderr)


def test_a_run_that_ends_well(command, tmp_path, text_file, eval_file, bert_tokenizer, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    overrides = [
        "objective=mlm", "student=bert_tiny", "logger=wandb", "logger.mode=offline", "data=text_files",
        f"data.train_files=[{text_file}]", f"data.eval_files=[{eval_file}]", f"data.tokenizer={bert_tokenizer}",
        "trainer.max_steps=1", "trainer.enable_progress_bar=false", "data.name=${oc.env:MY_SECRET}",
        "logger.tags=['${oc.env:MY_WORD}','http://me:Sup3r-s3cr3t-v4lue@host','api_key=Sup3r-s3cr3t-v4lue']",
        "seed=${oc.env:MY_SEED}",
    ]  # fmt: skip
    done = command(
        "train.py", *overrides, f"hydra.run.dir={tmp_path}/run", MY_SECRET=SECRET, MY_WORD="swordfish", MY_SEED="12"
    )
    assert done.returncode == 0, done.stderr
    assert_hidden(tmp_path, done.stdout, done.stderr)
    run = tmp_path / "run"
    config = (run / "config.yaml").read_text()
    assert "name: ${oc.env:MY_SECRET}" in config
    assert "seed: 12" in config
    record = (run / ".hydra" / "overrides.yaml").read_text()
    assert "http://***@host" in record
    assert "api_key=***" in record
