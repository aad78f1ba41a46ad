"""The documents are true: commands compose and run, links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
NETWORK = "# needs a network"
TINY = {
    "train": [
        "data.max_length=32",
        "data.vocabulary_size=300",
        "data.num_proc=1",
        "data.max_examples=300",
        "data.batch_size=4",
        "trainer.log_every_n_steps=1",
        "trainer.limit_val_batches=2",
        "trainer.enable_progress_bar=false",
        "logger=csv",
    ],
    "evaluate": [
        "data.max_length=32",
        "data.num_proc=1",
        "data.max_examples=300",
        "trainer.limit_val_batches=2",
        "trainer.enable_progress_bar=false",
    ],
}


def bash_blocks(path):
    """The lines of each bash block."""
    return [block.strip().splitlines() for block in re.findall(r"^```bash\n(.*?)^```", path.read_text(), re.M | re.S)]


def commands(needs_network=False):
    """(script, overrides) of each command of the README, in its order."""
    found = []
    for block in bash_blocks(ROOT / "README.md"):
        if (block[0] == NETWORK) == needs_network:
            found += [shlex.split(line) for line in block if line.startswith("python ")]
    return [(words[1].removesuffix(".py"), words[2:]) for words in found]


LOCAL, HUB = commands(), commands(needs_network=True)


def label(command):
    return " ".join([command[0], *command[1]])[:60]


def prepared(overrides):
    """Overrides of one job: placeholders filled, the first value of each sweep taken."""
    single = []
    for override in overrides:
        override = re.sub(r"<[^>]+>", "somewhere", override)
        if override != "-m":
            key, _, value = override.partition("=")
            single.append(override if value.startswith(("[", "{")) else f"{key}={value.split(',')[0]}")
    return single


def plain(overrides):
    """Overrides without those of Hydra's own section, and the output folder that these name."""
    folder = next((o.partition("=")[2] for o in overrides if o.startswith("hydra.run.dir=")), None)
    return [o for o in overrides if not o.startswith("hydra.")], folder


def test_the_readme_has_the_commands_that_it_promises():
    assert len((ROOT / "README.md").read_text().splitlines()) < 150
    assert len(LOCAL) > 8
    assert len(HUB) > 3
    assert {script for script, _ in LOCAL + HUB} == {"train", "evaluate"}
    text = (ROOT / "README.md").read_text()
    assert "make quickstart" in text
    assert "make test" in text


@pytest.mark.parametrize("command", LOCAL + HUB, ids=label)
def test_commands_compose(command, compose_config):
    script, overrides = command
    compose_config(*plain(prepared(overrides))[0], name=script)


@pytest.mark.integration
def test_commands_run_one_after_the_other(tmp_path, monkeypatch, shared_cache, text_file, compose_config):
    """Each local command, on little text and for two steps; the folders that they name are moved along."""
    from potstill.runs import evaluate as evaluate_run
    from potstill.runs import train as train_run
    from potstill.runs.checks import validate_evaluate, validate_train

    monkeypatch.setenv("POTSTILL_CACHE", str(shared_cache))
    monkeypatch.chdir(ROOT)
    for number, (script, overrides) in enumerate(LOCAL):
        own, folder = plain(prepared(overrides))
        own = [o.replace("runs/", f"{tmp_path}/") for o in own if not o.startswith("trainer.max_epochs=")]
        output = tmp_path / folder.removeprefix("runs/") if folder else tmp_path / f"job{number}"
        output.mkdir(exist_ok=True)
        extra = TINY[script]
        if not any(o.startswith("data=") for o in own):
            extra = [*extra, "data=text_files", f"data.train_files=[{text_file}]", "data.eval_share=0.2"]
        if script == "train":
            resumes = any(o.startswith("ckpt_path=") for o in own)
            extra = [*extra, f"trainer.max_steps={4 if resumes else 2}"]
        config = compose_config(*own, *extra, name=script)
        (validate_train if script == "train" else validate_evaluate)(config)
        (train_run.train if script == "train" else evaluate_run.evaluate)(config, output)
        assert (output / "summary.json").is_file(), overrides
        assert (output / "report.html").is_file(), overrides
        if script == "train":
            assert (output / "student" / "config.json").is_file(), overrides


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(document):
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if not link.startswith(("http:", "https:", "#")):
            assert (document.parent / link.split("#")[0]).exists(), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_make_targets_exist(document):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    used = re.findall(r"(?:^|`)make ([a-z -]+?)(?:`|$)", document.read_text(), re.M)
    assert {target for line in used for target in line.split()} <= targets


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_source_files_exist(document):
    for name in re.findall(r"`((?:[a-z_]+/)+\w+\.py)`", document.read_text()):
        assert (ROOT / "src" / "potstill" / name).is_file() or (ROOT / name).is_file(), name
