"""What tests of whole runs share."""

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from potstill.models.load import load_base_model, load_tokenizer
from potstill.models.sentence_folders import SentenceSettings, write_sentence_settings
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


@pytest.fixture
def in_two_processes(command, tmp_path):
    """Call it to compare a command with the same steps cut for two processes: the weights and figures are the same.

    Arguments are the overrides, the `data.batch_size` that makes the steps of half the size, and names of figures;
    it gives the folder of the run in one process.
    """

    def start(overrides, batch, figures):
        two = ["strategy=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]
        cut = [*two, f"data.batch_size={batch}", "trainer.accumulate_grad_batches=2"]
        folders = [tmp_path / "one", tmp_path / "two"]
        for folder, more in zip(folders, ([], cut), strict=True):
            done = command("train.py", *overrides, *more, f"hydra.run.dir={folder}")
            assert done.returncode == 0, done.stderr[-3000:]
        one, other = (
            torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for folder in folders
        )
        for name, value in one.items():
            if not name.endswith("key.bias"):  # has no gradient but for rounding, which Adam scales up
                torch.testing.assert_close(other[name], value, rtol=0, atol=1e-5, msg=name)
        first, second = (json.loads((folder / "summary.json").read_text()) for folder in folders)
        for name in figures:
            assert second[name] == pytest.approx(first[name], rel=1e-4), name
        return folders[0]

    return start


@pytest.fixture(scope="session")
def halves(tmp_path_factory, words):
    """A folder of train.tsv and eval.tsv: texts of one half of the words, `yes` where it is the first."""
    folder, half, draw = tmp_path_factory.mktemp("halves"), len(words) // 2, random.Random(0)
    for part, count in (("train", 160), ("eval", 40)):
        rows = ["text\tlabel"]
        for _ in range(count):
            label = draw.random() < 0.5
            chosen = draw.choices(words[:half] if label else words[half:], k=draw.randint(3, 9))
            rows.append(f"{' '.join(chosen)}\t{['no', 'yes'][label]}")
        (folder / f"{part}.tsv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="session")
def chats(tmp_path_factory):
    """A folder of train.jsonl, eval.jsonl and template.jinja: completions repeat a word of the prompt.

    Evaluation rows have it as their answer, too.
    """
    folder, draw = tmp_path_factory.mktemp("chats"), random.Random(0)
    words = ["man", "there", "was", "who", "they", "has"]
    for part, count in (("train", 96), ("eval", 12)):
        lines = []
        for _ in range(count):
            word = draw.choice(words)
            turns = [("user", f"say {word}"), ("assistant", f"{word} {word}")] * draw.randint(1, 2)
            lines.append({"messages": [{"role": role, "content": content} for role, content in turns]})
            lines[-1] |= {"answer": f"{word} {word}"} if part == "eval" else {}
        (folder / f"{part}.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    (folder / "template.jinja").write_text(
        "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + '<|endoftext|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
    )
    return folder


@pytest.fixture(scope="session")
def make_encoder(tmp_path_factory, bert_teacher):
    """Call `make_encoder(prompts, default_prompt)` for a folder with a sentence encoder."""

    def make(prompts, default_prompt=None):
        folder = tmp_path_factory.mktemp("encoder") / "encoder"
        load_base_model("x", str(bert_teacher)).save_pretrained(folder)
        load_tokenizer(bert_teacher).save_pretrained(folder)
        settings = SentenceSettings("mean", True, max_length=32, prompts=prompts, default_prompt=default_prompt)
        write_sentence_settings(settings, folder, 32)
        return folder

    return make


@pytest.fixture(scope="session")
def torchrun(command, tmp_path_factory):
    """Call `torchrun(script, *arguments)`: two processes of torch's launcher, which end with it."""
    launcher = tmp_path_factory.mktemp("torchrun") / "launcher.py"
    launcher.write_text("from torch.distributed.run import main\nmain()\n")
    return lambda script, *arguments, **kwargs: command(
        launcher, "--standalone", "--nproc-per-node=2", script, *arguments, **kwargs
    )
