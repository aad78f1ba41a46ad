"""Binarization on a local Ray of two CPUs: the store of the local run."""

import gzip
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from potstill.data.common.tokenizers import describe
from potstill.data.corpus import ray_encoding
from potstill.data.corpus.binarize import binarize
from potstill.data.corpus.ray_encoding import parts_of
from potstill.data.corpus.sources import HubDataset, TextFiles
from potstill.data.corpus.splits import HeldOut, sources_of
from potstill.errors import DataError
from potstill.methods.common.data import build_corpora

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "##s", "on", "mat", "."]
TEXT = "The cats sat on the mat."


@pytest.fixture(scope="module")
def two_cpus():
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'potstill[ray]'")
    pytest.importorskip("ray.data", reason="Ray Data is not installed: pip install 'potstill[ray]'")
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False, configure_logging=False)
    yield ray
    ray.shutdown()


@pytest.fixture
def vocabulary(tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return describe(folder)


@pytest.fixture
def source(tmp_path):
    """Three files of several batches each, of texts that differ; one is packed."""
    paths = []
    for number in range(3):
        lines = [" ".join(WORDS[5 + (line * step + number) % 7] for step in range(3, 40)) for line in range(6000)]
        content = "".join(f"{line}\n" for line in lines).encode()
        path = tmp_path / (f"{number}.txt.gz" if number == 1 else f"{number}.txt")
        path.write_bytes(gzip.compress(content) if number == 1 else content)
        paths.append(str(path))
    return TextFiles(tuple(paths), "line", None, None, tmp_path / "cache")


def run(source, vocabulary, cache, **options):
    given = {"max_length": 12, "min_length": 3, "num_proc": 1} | options
    return binarize(source, vocabulary, cache=cache, **given)


def contents(store):
    return {path.name: path.read_bytes() for path in sorted(store.folder.iterdir())}


@pytest.mark.parametrize("part", ["all", "limited", "held out"])
def test_the_store_is_the_local_one(part, two_cpus, source, vocabulary, tmp_path):
    """The same name, ids, lengths, counts, report and index, byte for byte, whatever the blocks."""
    wanted = {"all": source, "limited": replace(source, max_examples=7000), "held out": HeldOut(source, 0.3, "eval")}[
        part
    ]
    done: list[int] = []
    local = run(wanted, vocabulary, tmp_path / "local")
    other = run(wanted, vocabulary, tmp_path / "ray", num_proc=None, engine="ray", progress=done.append)
    assert other.folder.name == local.folder.name
    assert contents(other) == contents(local)
    assert len(done) > 3
    assert done == sorted(done)
    assert done[-1] == local.index["report"]["texts"]


def test_the_option_ray(two_cpus, source, vocabulary, tmp_path, compose_config, monkeypatch):
    calls = []
    encoded = ray_encoding.encoded_on_ray
    monkeypatch.setattr(ray_encoding, "encoded_on_ray", lambda *given: calls.append(given) or encoded(*given))
    corpora = []
    for engine in ("ray", "local"):
        data = compose_config(
            "data=text_files", f"data.train_files=[{source.files[0]}]", f"data.engine={engine}", "data.num_proc=1",
            f"data.cache={tmp_path}/{engine}", "data.eval_share=0.5",
        ).data  # fmt: skip
        corpora.append(build_corpora(data, sources_of(data), vocabulary, 12))
        assert len(calls) == 2  # of both parts, by Ray alone
    for ray_store, local_store in zip(*corpora, strict=True):
        assert ray_store.describe() == local_store.describe()
        assert contents(ray_store.stores[0]) == contents(local_store.stores[0])


def test_killed_workers_are_replaced(two_cpus, source, vocabulary, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_encoding, "BLOCK_BYTES", 2**18)  # so that there is work left to do
    killed: list[int] = []

    def kill_once(_):
        if not killed:
            killed.extend(workers_at_work())
            for worker in killed:
                os.kill(worker, signal.SIGKILL)

    other = run(source, vocabulary, tmp_path / "ray", num_proc=None, engine="ray", progress=kill_once)
    assert killed
    assert contents(other) == contents(run(source, vocabulary, tmp_path / "local"))


def workers_at_work():
    """Processes that this one's Ray has given a task of ours."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and (name := command_of(process)).startswith("ray::") and "MapBatches" in name:
            found += [int(process.name)] if os.getpid() in ancestors(int(process.name)) else []
    return found


def command_of(process):
    try:
        return (process / "cmdline").read_text()
    except OSError:  # it has ended meanwhile
        return ""


def ancestors(pid):
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found


def test_errors_are_those_of_the_local_engine(two_cpus, source, vocabulary, tmp_path):
    bad = tmp_path / "2.txt"
    bad.write_bytes(f"{TEXT}\n".encode() * 60_000 + b"\xff\xfe\n")
    found = []
    for engine in ("local", "ray"):
        with pytest.raises(DataError) as error:
            run(source, vocabulary, tmp_path / engine, engine=engine)
        found.append((error.value.code, str(error.value)))
        assert [path.suffix for path in (tmp_path / engine / "stores").iterdir()] == [".lock"]
    assert found[0] == found[1]
    assert found[0][0] == "E-FILE"
    assert "line 60001" in found[0][1]


def test_parts_of_sources(source):
    parts = parts_of(HeldOut(source, 0.3, "train"))
    assert [part.source.files for part in parts] == [(file,) for file in source.files]
    assert all((part.share, part.part) == (0.3, "train") for part in parts)
    one_after_another = [text for part in parts for batch in part.batches(2**18) for text in batch]
    whole = [text for batch in HeldOut(source, 0.3, "train").batches(2**18) for text in batch]
    assert one_after_another == whole
    for alone in (replace(source, max_examples=5), HubDataset("some/texts")):
        assert parts_of(alone) == [alone]
