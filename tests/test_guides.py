"""The guides are true: each command is run, in its order, on little text and for two steps."""

import json
import re
import shlex
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
PLACEHOLDERS = "# placeholders"  # begins a block of commands that are only composed
QUIET = ["trainer.limit_val_batches=2", "trainer.enable_progress_bar=false"]
TEXT = ["data.num_proc=1", "data.max_length=32", "data.max_examples=60"]
GENERATED = ["data.generated.train=32", "data.generated.valid=8", "data.generated.test=8"]


def blocks(guide, language):
    """The lines of each block of a language."""
    found = re.findall(rf"^```{language}\n(.*?)^```", guide.read_text(), re.M | re.S)
    return [block.strip().splitlines() for block in found]


def commands(guide, *, placeholders=False):
    """(script, words behind it) of each command."""
    lines = [
        line
        for block in blocks(guide, "bash")
        if (block[0] == PLACEHOLDERS) == placeholders
        for line in block
        if not line.startswith("#")
    ]
    split = [shlex.split(re.sub(r"<[^>]+>", "somewhere", line)) for line in lines]
    assert all(words[:2] in (["python", "train.py"], ["python", "evaluate.py"]) for words in split), lines
    return [(words[1].removesuffix(".py"), words[2:]) for words in split]


def job(words):
    """The overrides of one job, the first of a sweep, and the folder that the command names."""
    overrides, folder = [], None
    for word in words:
        key, _, value = word.partition("=")
        if key == "hydra.run.dir":
            folder = value
        elif key != "-m":
            single = value if value.startswith(("[", "{")) else value.split(",")[0]
            overrides.append(f"{key}={single}")
    return overrides, folder


def small(script, overrides, text_file, logger):
    """What makes a job short: little data of the kind that it reads, and two steps."""
    own = "objective=custom" in overrides
    generated = any(word.endswith("=arithmetic") for word in overrides)
    task = any(word.startswith(("benchmark=text_classification", "tasks=")) for word in overrides)
    chats = any("chats/" in word for word in overrides)
    rows = "data=text_pairs" in overrides
    extra = [*QUIET]
    if generated:
        extra += GENERATED
    elif chats:
        extra += [
            "data.max_length=32",
            *(["objective.sampling.max_new_tokens=4"] if "objective=gkd" in overrides else []),
        ]
    elif task or rows:
        extra += ["data.max_length=32"]
    elif not own:
        extra += [*TEXT, "data=text_files", f"data.train_files=[{text_file}]", "data.eval_share=0.2"]
    if "benchmark=efficiency" in overrides:
        extra += ["benchmark.lengths=[8]", "benchmark.batches=[1]"]
    if script == "train":
        extra += ["trainer.max_steps=2", "trainer.log_every_n_steps=1", f"logger={logger}"]
        extra += [] if own or generated else ["data.batch_size=4"]
        extra += ["trainer.val_check_interval=2"] if generated else []
        if "student=bert_small" in overrides:
            extra += ["data.vocabulary_size=300", "student.config.hidden_size=32"]
            extra += ["student.config.num_attention_heads=2", "student.config.intermediate_size=64"]
    return extra


@pytest.fixture(scope="module")
def run(tmp_path_factory, shared_cache, text_file, words, compose_config):
    """Runs a command of a guide in this process; `runs/`, `reviews/`, `news/`, `chats/` are folders of the module's."""
    from potstill.runs import evaluate as evaluate_run
    from potstill.runs import train as train_run
    from potstill.runs.checks import validate_evaluate, validate_train

    home = tmp_path_factory.mktemp("guides")
    (home / "reviews").mkdir()
    (home / "news").mkdir()
    (home / "chats").mkdir()
    (home / "pairs").mkdir()
    scored = [f"{words[n]} {words[n + 1]}\t{words[n + n % 3]} {words[n + 1]}\t{n % 3}" for n in range(12)]
    (home / "pairs" / "dev.tsv").write_text("\n".join(["first\tsecond\tscore", *scored]) + "\n")
    for part, count in (("train", 24), ("dev", 12)):
        rows = [f"{' '.join(words[n : n + 5])}\t{'good' if n % 2 else 'bad'}" for n in range(count)]
        (home / "reviews" / f"{part}.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
        sets = [{"text": row.split("\t")[0], "label": ["money", "sport"][: n % 3]} for n, row in enumerate(rows)]
        (home / "news" / f"{part}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in sets))
        chats = [{"prompt": row.split("\t")[0], "completion": " the man", "answer": "the man"} for row in rows]
        (home / "chats" / f"{part}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in chats))

    def start(script, command, logger="csv"):
        overrides, named = job(command)
        folder = home / (named or "runs/unnamed")
        folder.mkdir(parents=True, exist_ok=True)
        moved = [re.sub(r"(?<![\w/])(runs|reviews|news|chats|pairs)/", rf"{home}/\1/", word) for word in overrides]
        config = compose_config(
            *moved, f"data.cache={shared_cache}", *small(script, overrides, text_file, logger), name=script
        )
        (validate_train if script == "train" else validate_evaluate)(config)
        (train_run.train if script == "train" else evaluate_run.evaluate)(config, folder)
        for name in ("summary.json", "report.html", *(["student"] if script == "train" else [])):
            assert (folder / name).exists(), (command, name)

    start.home = home
    return start


@pytest.fixture
def first_teacher(run):
    """The teacher that all guides to language and task models begin with."""
    if not (run.home / "runs" / "teacher" / "student").is_dir():
        run(*commands(ROOT / "docs" / "guides" / "language-models.md")[0])


@pytest.fixture
def own_modules(request, tmp_path, monkeypatch):
    """The files that a guide tells to save, where Python finds them."""
    monkeypatch.syspath_prepend(str(tmp_path))
    names = []
    for block in blocks(request.getfixturevalue("guide"), "python"):
        name = block[0].removeprefix("# ").removesuffix(".py")
        (tmp_path / f"{name}.py").write_text("\n".join(block) + "\n")
        names.append(name)
    yield
    for name in names:
        sys.modules.pop(name, None)


def test_there_is_a_guide_for_each_path():
    names = [guide.stem for guide in GUIDES]
    expected = "diito embeddings generative language-models several-tasks step-by-step tasks your-own"
    assert names == expected.split()
    assert all(len(commands(guide)) >= 3 for guide in GUIDES)
    readme = (ROOT / "README.md").read_text()
    assert all(f"docs/guides/{name}.md" in readme for name in names)


@pytest.mark.integration
@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
@pytest.mark.usefixtures("first_teacher", "own_modules")
def test_commands_run_one_after_the_other(guide, run):
    for script, command in commands(guide):
        run(script, command)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_commands_compose_as_they_are_written(guide, compose_config):
    for placeholders in (False, True):
        for script, command in commands(guide, placeholders=placeholders):
            compose_config(*job(command)[0], name=script)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_keys_that_are_named_are_described(guide):
    described = set(re.findall(r"`([\w.]+)`", (ROOT / "docs" / "configuration.md").read_text()))
    sections = {key.partition(".")[0] for key in described if "." in key} - {"train", "val", "test"}
    named = set(re.findall(r"`'?\+?([a-z_]+\.[\w.]+)", guide.read_text()))
    keys = {key for key in named if key.partition(".")[0] in sections and not key.endswith((".py", ".json"))}
    term = re.compile(r"objective\.terms\.\w+\.weight")
    assert keys, guide
    assert {key for key in keys if not term.fullmatch(key)} <= described


@pytest.mark.integration
@pytest.mark.usefixtures("first_teacher")
def test_what_the_guide_to_tasks_says_is_in_the_report(run):
    """Under wandb, which a reader who sets no logger has: classes in the report, the student beside its teacher."""
    script, command = commands(ROOT / "docs" / "guides" / "tasks.md")[0]
    run(script, [*command, "logger.mode=offline", "hydra.run.dir=runs/logged"], logger="wandb")
    folder = run.home / "runs" / "logged"
    report = (folder / "report.html").read_text()
    assert "Classes" in report
    assert "precision" in report
    (written,) = folder.glob("wandb/offline-run-*/*.wandb")
    name = f"student-{(folder / 'wandb_id').read_text().strip()}".encode()
    for _ in range(200):  # wandb's own process writes it
        if name in written.read_bytes():
            break
        time.sleep(0.1)
    assert name in written.read_bytes()
