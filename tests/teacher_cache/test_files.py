"""Logits and vectors in a user's own files: read as they were written, and what is refused."""

import re

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import save_file

from potstill.errors import FileError, FormatError
from potstill.teacher_cache.files import read_logits, read_vectors, task_logits
from potstill.teacher_cache.vectors import FileVectors, have_length_1

LOGITS = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)


def written(folder, form, logits=LOGITS):
    path = folder / f"logits.{form}"
    if form == "npy":
        np.save(path, logits)
    elif form == "safetensors":
        save_file({"logits": torch.from_numpy(logits).contiguous()}, path)
    else:
        parquet.write_table(pa.table({"id": list(range(len(logits))), "logits": logits.tolist()}), path)
    return path


@pytest.mark.parametrize("form", ["npy", "safetensors", "parquet"])
def test_rows_are_read_in_any_order(form, tmp_path):
    stored = task_logits(written(tmp_path, form), "key", rows=7, labels=("a", "b", "c"))
    rows = torch.tensor([6, 0, 0, 3])
    found = stored(rows)
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.from_numpy(LOGITS)[rows])


def test_other_types_and_single_scores(tmp_path):
    path = written(tmp_path, "npy", LOGITS.astype(np.float16))
    found = task_logits(path, "key", rows=7, labels=("a", "b", "c"))(torch.arange(7))
    assert torch.equal(found, torch.from_numpy(LOGITS.astype(np.float16).astype(np.float32)))
    for form in ("npy", "safetensors"):
        path = written(tmp_path, form, LOGITS[:, 0])
        assert task_logits(path, "key", rows=7, labels=())(torch.arange(7)).shape == (7, 1)
    path = tmp_path / "scores.parquet"
    parquet.write_table(pa.table({"logits": pa.chunked_array([LOGITS[:3, 0], LOGITS[3:, 0]])}), path)
    found = task_logits(path, "key", rows=7, labels=())(torch.arange(7))
    assert torch.equal(found[:, 0], torch.from_numpy(LOGITS[:, 0]))
    path = tmp_path / "fixed.parquet"
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(LOGITS.reshape(-1)), 3)
    parquet.write_table(pa.table({"logits": fixed}), path)
    found = task_logits(path, "key", rows=7, labels=("a", "b", "c"))(torch.arange(7))
    assert torch.equal(found, torch.from_numpy(LOGITS))
    path = tmp_path / "half.safetensors"
    save_file({"logits": torch.from_numpy(LOGITS).bfloat16()}, path)
    assert task_logits(path, "key", rows=7, labels=("a", "b", "c"))(torch.arange(7)).shape == (7, 3)


def test_several_heads(tmp_path):
    path = tmp_path / "heads.safetensors"
    heads = [torch.randn(7, 3), torch.randn(7, 5, 2)]
    save_file({f"logits.{number}": head for number, head in enumerate(heads)}, path)
    found = read_logits(path, "key")
    assert all(torch.equal(own(torch.arange(7)), head) for own, head in zip(found, heads, strict=True))
    with pytest.raises(FormatError, match=r"has 2 tensors"):
        task_logits(path, "key", rows=7, labels=("a", "b", "c"))


def test_what_does_not_fit_names_both_numbers(tmp_path):
    path = written(tmp_path, "npy")
    where = re.escape(f"teacher.cache.file={path}: ")
    with pytest.raises(FormatError, match=rf"^{where}.* 7 rows.* 1,200 are"):
        task_logits(path, "teacher.cache.file", rows=1200, labels=("a", "b", "c"))
    with pytest.raises(FormatError, match=rf"^{where}.* 3 columns.* 2 labels \(no, yes\)"):
        task_logits(path, "teacher.cache.file", rows=7, labels=("no", "yes"))
    with pytest.raises(FormatError, match=rf"^{where}.* 3 columns.* 1 score"):
        task_logits(path, "teacher.cache.file", rows=7, labels=())


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_not_finite(value, tmp_path):
    logits = LOGITS.astype(np.float64)
    logits[4, 1] = value
    with pytest.raises(FormatError, match=r"row 4 .* finite"):
        read_logits(written(tmp_path, "npy", logits), "key")


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileError, match=r"none\.npy: does not exist"):
        read_logits(tmp_path / "none.npy", "key")
    for form in ("npy", "safetensors", "parquet"):
        path = tmp_path / f"text.{form}"
        path.write_text("0.1\t0.9\n" * 20)
        with pytest.raises(FormatError, match=f"key={path}: ") as error:
            read_logits(path, "key")
        assert "\n" not in str(error.value)
    np.save(tmp_path / "objects.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    with pytest.raises(FormatError, match=r"objects\.npy: "):
        read_logits(tmp_path / "objects.npy", "key")
    np.savez(tmp_path / "archive.npz", LOGITS)
    (tmp_path / "archive.npz").rename(tmp_path / "archive.npy")
    with pytest.raises(FormatError, match=r"archive of arrays"):
        read_logits(tmp_path / "archive.npy", "key")
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    with pytest.raises(FormatError, match=r"words\.npy: logits: .*numbers"):
        read_logits(tmp_path / "words.npy", "key")
    save_file({"scores": torch.zeros(2, 2)}, tmp_path / "scores.safetensors")
    with pytest.raises(FormatError, match=r"has scores; must have logits"):
        read_logits(tmp_path / "scores.safetensors", "key")
    for rows in ([[1.0, 2.0], [1.0]], [[1.0, 2.0], None]):
        parquet.write_table(pa.table({"logits": rows}), tmp_path / "ragged.parquet")
        with pytest.raises(FormatError, match="different lengths"):
            read_logits(tmp_path / "ragged.parquet", "key")


def test_vectors_of_several_files_are_one_list_of_rows(tmp_path):
    names = [tmp_path / "a.npy", tmp_path / "b.safetensors", tmp_path / "c.parquet"]
    np.save(names[0], LOGITS.astype(np.float16))
    save_file({"sentence_embedding": torch.from_numpy(LOGITS[:2]).contiguous()}, names[1])
    parquet.write_table(pa.table({"text": ["a", "b", "c"], "found": LOGITS[4:].tolist()}), names[2])
    found = FileVectors(read_vectors(names, "key"))
    expected = np.concatenate([LOGITS.astype(np.float16).astype(np.float32), LOGITS[:2], LOGITS[4:]])
    assert (len(found), found.width) == (12, 3)
    order = np.array([11, 0, 8, 7, 6, 0])
    assert torch.equal(found(order), torch.from_numpy(expected[order]))
    rows = np.array([5, 9])
    assert torch.equal(found.of(rows)(np.array([1, 0, 1])), torch.from_numpy(expected[[9, 5, 9]]))
    assert not have_length_1(found, 12)
    units = LOGITS / np.linalg.norm(LOGITS, axis=1, keepdims=True)
    assert have_length_1(FileVectors([units.astype(np.float16)]), 7)
    assert not have_length_1(FileVectors([np.concatenate([units, 1.01 * units[:1]])]), 8)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda own: own.__setitem__((3, 1), np.nan), "row 3 has a value that is not finite"),
        (lambda own: own.__setitem__((2, 0), np.inf), "row 2 has a value"),
        (lambda own: own.__setitem__(4, 0), "row 4 is zero"),
    ],
)
def test_vectors_that_cannot_be_learned_are_refused(change, problem, tmp_path):
    own = LOGITS.copy()
    change(own)
    np.save(tmp_path / "bad.npy", own)
    with pytest.raises(FormatError, match=problem):
        read_vectors([tmp_path / "bad.npy"], "key")


def test_files_without_vectors(tmp_path):
    np.save(tmp_path / "wide.npy", np.ones((2, 5)))
    np.save(tmp_path / "scores.npy", np.ones(4))
    save_file({"a": torch.ones(2, 3), "b": torch.ones(2, 3)}, tmp_path / "two.safetensors")
    parquet.write_table(pa.table({"text": ["a"], "score": [1.0]}), tmp_path / "no.parquet")
    for names, problem in (
        ([written(tmp_path, "npy"), tmp_path / "wide.npy"], "is 5 wide, and .*logits.npy 3"),
        ([tmp_path / "scores.npy"], r"shape \(4,\)"),
        ([tmp_path / "two.safetensors"], "has a, b; must have vectors"),
        ([tmp_path / "no.parquet"], "has no vectors"),
    ):
        with pytest.raises(FormatError, match=problem):
            read_vectors(names, "key")
    with pytest.raises(FileError):
        read_vectors([tmp_path / "none.npy"], "key")
