"""Teachers of a user's own whose logits are stored: in the user's file, or computed once over the training loader."""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.config import TrainConfig
from potstill.data.common.progress import counting
from potstill.data.common.store import Gathered, ShardWriter, canonical
from potstill.data.custom import CustomBatch, CustomDataModule
from potstill.errors import ConfigError
from potstill.methods.common.teacher_cache import TRAIN, place_of, store_folder
from potstill.objectives.custom import AdaptorReader, StoredTeacher
from potstill.objectives.features import Features
from potstill.teacher_cache.computing import frozen
from potstill.teacher_cache.digests import teacher_digests
from potstill.teacher_cache.files import check_rows, read_logits
from potstill.teacher_cache.formats import FullFormat, StoredLogits
from potstill.teacher_cache.store import build_outputs, store_identity

log = logging.getLogger(__name__)

_CLOSE = 0.02  # largest difference between epochs, relative to the largest logit: padding and half precision

ByHead = list[list[NDArray[np.float32]]]  # of each head, of each row: (predictions, labels)


def teacher_of_file(path: Path, data: CustomDataModule) -> StoredTeacher:
    """The logits of `teacher.cache.file`.

    Raises:
        DataError: they cannot be read, or are not those of the rows.
    """
    key = "teacher.cache.file"
    heads = read_logits(path, key)
    if data.rows is not None:
        check_rows(heads[0].logits, data.rows, f"{key}={path}")
    return StoredTeacher(heads, len(heads[0].logits), f"{key}={path}")


def store_custom_teachers(
    config: TrainConfig, readers: Sequence[AdaptorReader], features: Sequence[Features], data: CustomDataModule
) -> list[StoredTeacher]:
    """The logits of each teacher over the training loader.

    Args:
        config: of the run.
        readers: read the teachers; nothing of them is kept.
        features: of each teacher on one batch.
        data: the user's loaders.

    Raises:
        ConfigError: an adaptor returns no numbers of rows, or the rows of an epoch are not all rows, each once.
        DataError: an existing store cannot be used, or a new one cannot be written.
    """
    for reader, own in zip(readers, features, strict=True):
        if own.rows is None:
            raise ConfigError(
                f"{reader.key}: returns no rows, the numbers of the examples, which teacher/cache=on needs"
            )
    digest, (_, device) = _data_digest(data.batches(0)), place_of(config)
    return [
        _store(config, reader, own, data, digest, device, "" if len(readers) == 1 else f"_{number}")
        for number, (reader, own) in enumerate(zip(readers, features, strict=True))
    ]


def _store(
    config: TrainConfig,
    reader: AdaptorReader,
    features: Features,
    data: CustomDataModule,
    digest: str,
    device: torch.device,
    suffix: str,
) -> StoredTeacher:
    precision = config.trainer.precision
    teacher = {
        **teacher_digests(reader.model.state_dict(), {}),
        "code": _code_digest(type(reader.model), reader.adaptor, reader.forward),
        "adaptor": reader.key,
        "precision": precision,
    }

    @cache
    def computed() -> ByHead:
        log.info("computing the logits of %s over the training loader", reader.key)
        with frozen(reader.model, precision, device):
            return _over_epoch(reader, data, device)

    heads, rows = [], 0
    for number, logits in enumerate(features.logits):
        form = FullFormat(logits.shape[-1], ragged=features.kept[number] is not None)
        identity = store_identity(
            teacher=teacher, tokenizer="", data=digest, form={**form.identity, "head": number}
        )  # fmt: skip
        name = f"{TRAIN}{suffix}" if len(features.logits) == 1 else f"{TRAIN}{suffix}_head_{number}"
        store = build_outputs(
            store_folder(config, name, identity), identity, form.fields, data.rows, _writer(computed, number, form)
        )
        rows = len(store)
        heads.append(StoredLogits(store, form, np.arange(rows)))
    return StoredTeacher(heads, rows, reader.key)


def _writer(computed: Callable[[], ByHead], head: int, form: FullFormat) -> Callable[[ShardWriter], None]:
    def write(writer: ShardWriter) -> None:
        for own in computed()[head]:
            counts = np.array([len(own)]) if form.ragged else None
            writer.append(Gathered({"logits": own}, counts))

    return write


def _over_epoch(reader: AdaptorReader, data: CustomDataModule, device: torch.device) -> ByHead:
    """A teacher's selected logits of each row.

    Raises:
        ConfigError: a row is missing or comes twice, or its logits change from epoch to epoch.
    """
    found: dict[int, list[NDArray[np.float32]]] = {}
    with counting("computing the teacher's logits") as progress:
        for micro in data.batches(0, device):
            for row, heads in _by_row(reader(micro).base[0]):
                if row in found:
                    raise ConfigError(f"{reader.key}: the row {row} comes twice in an epoch; must be the examples' own")
                found[row] = heads
            progress(len(found))
    rows = len(found) if data.rows is None else data.rows
    missing = next((row for row in range(rows) if row not in found), None)
    if missing is not None:
        raise ConfigError(
            f"{reader.key}: returns {len(found):,} rows in an epoch, without the row {missing}; must be 0 to "
            f"{rows - 1:,}"
        )
    for row, heads in _by_row(reader(next(data.batches(1, device))).base[0]):
        for before, now in zip(found[row], heads, strict=True):
            largest = _CLOSE * float(np.abs(before).max(initial=1))
            if before.shape != now.shape or np.abs(before - now).max(initial=0) > largest:
                raise ConfigError(
                    f"{reader.key}: the logits of the row {row} change from epoch to epoch, as if the loader changed "
                    "its inputs; use teacher/cache=off"
                )
    return [[found[row][head] for row in range(rows)] for head in range(len(next(iter(found.values()))))]


def _by_row(features: Features) -> list[tuple[int, list[NDArray[np.float32]]]]:
    assert features.rows is not None
    parts = []
    for logits, kept in zip(features.logits, features.kept, strict=True):
        counts = [1] * len(features.rows) if kept is None else kept.sum(1).tolist()
        parts.append([own.cpu().numpy() for own in logits.float().split(counts)])
    return [(row, [part[place] for part in parts]) for place, row in enumerate(features.rows.tolist())]


def _code_digest(*code: Any) -> str:
    """sha256 of the files that define functions and classes."""
    digest = hashlib.sha256()
    for own in code:
        if (file := inspect.getsourcefile(own)) is not None:
            digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def _data_digest(batches: Iterable[CustomBatch]) -> str:
    """sha256 of all batches of an epoch."""
    digest = hashlib.sha256()
    for own in batches:
        _add(digest, own.batch)
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        array = value.detach().cpu().contiguous()
        digest.update(canonical([str(array.dtype), list(array.shape)]))
        digest.update(array.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        for key in value:
            _add(digest, str(key))
            _add(digest, value[key])
    elif isinstance(value, list | tuple):
        for own in value:
            _add(digest, own)
    elif isinstance(value, str | int | float | bool):
        digest.update(canonical([value]))
