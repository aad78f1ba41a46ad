"""Teachers whose outputs are stored: computed where they are not there yet, and read in the teachers' place."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from potstill.config import TrainConfig
from potstill.config.objectives.language import KdConfig
from potstill.data.common.progress import counting
from potstill.data.common.store import ShardWriter
from potstill.data.common.tokenizers import Vocabulary
from potstill.data.corpus.datamodule import CorpusDataModule
from potstill.data.corpus.store import Corpus
from potstill.data.corpus.teacher_rows import by_length
from potstill.data.tasks.datamodule import TaskDataModule
from potstill.data.tasks.labels import SPANS, TOKENS, Task
from potstill.errors import CacheError, PairError
from potstill.models.backbone import Backbone, backbone_of
from potstill.teacher_cache.computing import WHOLE, Progress, computing, write_logits, write_vocabulary
from potstill.teacher_cache.digests import arrays_digest, corpus_digest, mask_settings, teacher_digests
from potstill.teacher_cache.formats import FullFormat, SampledFormat, StoredLogits, StoredVocabulary, TopFormat
from potstill.teacher_cache.hidden import HiddenFormat, Projection, StoredHidden
from potstill.teacher_cache.store import OutputStore, build_outputs, identity_key, store_identity
from potstill.training.trainer import build_trainer

log = logging.getLogger(__name__)

TRAIN, EVAL = "train", "eval"  # folders below teacher.cache.folder
LanguageForm = TopFormat | SampledFormat | HiddenFormat
StoredLanguage = StoredVocabulary | StoredHidden


class _Place(NamedTuple):
    """The number of processes of a run, and the device of this one."""

    world: int
    device: torch.device


def store_task_teachers(
    config: TrainConfig,
    teachers: Sequence[PreTrainedModel],
    data: TaskDataModule,
    vocabulary: Vocabulary,
    task: Task,
    *,
    every_token: bool,
) -> list[StoredLogits]:
    """The logits of each teacher over the training rows.

    Args:
        config: of the run.
        teachers: with their heads; nothing of them is kept.
        data: with training rows.
        vocabulary: of the tokenizer.
        task: says how many logits a row has.
        every_token: of tagged words, whether all real tokens are stored.

    Raises:
        DataError: an existing store cannot be used, or a new one cannot be written.
    """
    assert data.train is not None
    features, place = data.train.features, place_of(config)
    order, _ = by_length(features.lengths)
    units = np.empty_like(order)
    units[order] = np.arange(len(order))
    arrays: dict[str, NDArray[Any]] = {"ids": features.ids, "types": features.types, "lengths": features.lengths}
    if data.train.words is not None and not every_token:
        arrays["words"] = data.train.words
    found = []
    for number, teacher in enumerate(teachers):
        form = FullFormat(int(teacher.config.num_labels or 0), ragged=task.kind in (TOKENS, SPANS))
        identity = store_identity(
            teacher=_teacher(config, teacher),
            tokenizer=vocabulary.digest,
            data=arrays_digest(arrays),
            form=form.identity,
        )

        def write(backbone: Backbone, writer: ShardWriter, progress: Progress, form: FullFormat = form) -> None:
            batches = data.train_batches(order, place.device)
            write_logits(backbone, batches, form, writer, progress, every_token=every_token)

        name = TRAIN if len(teachers) == 1 else f"{TRAIN}_{number}"
        store = _store(config, teacher, name, identity, form, len(order), place, write)
        found.append(StoredLogits(store, form, units))
    return found


def store_language_teacher(
    config: TrainConfig,
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    data: CorpusDataModule,
    vocabulary: Vocabulary,
) -> tuple[StoredLanguage, StoredLanguage | None]:
    """A teacher's outputs for all tokens of the training corpus and, if there is one, of the evaluation corpus.

    From now on `data` numbers tokens as the stores do.

    Args:
        config: of the run.
        teacher: with its head; nothing of it is kept, or its head alone for hidden states.
        student: its vocabulary may be narrower than the teacher's where heads are padded.
        data: with a training corpus.
        vocabulary: of the tokenizer.

    Raises:
        DataError: an existing store cannot be used, or a new one cannot be written.
    """
    place, precision = place_of(config), config.trainer.precision
    form = _language_form(config, backbone_of(teacher), backbone_of(student))
    own = _teacher(config, teacher)
    stores: dict[str, OutputStore] = {}
    for name, count, inputs in _inputs(config, data, vocabulary, place):
        identity = store_identity(teacher=own, form=form.identity, **inputs)

        def write(backbone: Backbone, writer: ShardWriter, progress: Progress, training: bool = name == TRAIN) -> None:
            write_vocabulary(backbone, data.unit_batches(training, place.device), form, writer, progress)

        stores[name] = _store(config, teacher, name, identity, form, count, place, write)
    if isinstance(form, HiddenFormat):
        projection = Projection(backbone_of(teacher), WHOLE.get(precision))
        stored: list[StoredLanguage] = [StoredHidden(store, form, projection) for store in stores.values()]
    else:
        stored = [StoredVocabulary(store, form, config.taught.temperature) for store in stores.values()]
    return stored[0], stored[1] if len(stored) > 1 else None


def open_language_outputs(
    config: TrainConfig, student: PreTrainedModel, data: CorpusDataModule, vocabulary: Vocabulary
) -> tuple[StoredVocabulary, StoredVocabulary | None]:
    """As `store_language_teacher`, of stores that exist: no teacher is there.

    What the stores say of their teacher is believed; all other parts of their identities are compared.

    Args:
        config: of the run, with the folder of the stores.
        student: its vocabulary must have the columns of the stores.
        data: with a training corpus.
        vocabulary: of the tokenizer.

    Raises:
        CacheError: a store is missing, or cannot be used.
        PairError: the student has fewer columns.
    """
    width, stored = len(backbone_of(student).decoder[0]), []
    for name, _, inputs in _inputs(config, data, vocabulary, place_of(config)):
        folder = store_folder(config, name, {})
        if not folder.is_dir():
            raise CacheError(
                f"teacher.cache.folder={config.teacher.cache.folder}: has no {name}/, the teacher's outputs on the "
                f"{'training' if name == TRAIN else 'evaluation'} text; compute them, or give teacher.model"
            )
        store = OutputStore.open(folder)
        kept = store.index["identity"]
        columns = kept["form"].get("vocabulary_size", width)
        if columns > width:
            raise PairError(f"the store '{folder}' has a vocabulary of {columns}, and the student one of {width}")
        form = _sparse_form(config, columns)
        store.check_identity(store_identity(teacher=kept["teacher"], form=form.identity, **inputs))
        log.info("the teacher's outputs are read from %s", folder)
        stored.append(StoredVocabulary(store, form, config.taught.temperature))
    return stored[0], stored[1] if len(stored) > 1 else None


def _inputs(
    config: TrainConfig, data: CorpusDataModule, vocabulary: Vocabulary, place: _Place
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Name, number of items, and parts of the identity that are not the teacher's or the form's, of each store."""
    trainer, s = config.trainer, data.settings
    data.count_units(trainer.max_steps or -1, trainer.max_epochs, place.world)
    masks: dict[str, Any] = {TRAIN: None, EVAL: None}
    if data.kind == "masked":
        masks[TRAIN] = mask_settings(s, steps=data.covered_steps, world=place.world, device=place.device.type)
        if data.counts is not None:
            masks[TRAIN]["token_counts"] = arrays_digest({"counts": data.counts})
        # Those of evaluation are of a sequence by itself, whatever is trained on.
        masks[EVAL] = {"seed": s.seed, "mlm_share": s.mlm_share, "mlm_replace": list(s.mlm_replace)}
    for name, corpus, units in ((TRAIN, data.train, data.train_units), (EVAL, data.evaluation, data.eval_units)):
        if corpus is not None and units is not None:
            assert isinstance(corpus, Corpus)  # not conversations, by validation
            inputs = {"tokenizer": vocabulary.digest, "data": corpus_digest(corpus), "masks": masks[name]}
            yield name, units.count, inputs


def _language_form(config: TrainConfig, teacher: Backbone, student: Backbone) -> LanguageForm:
    cache = config.teacher.cache
    if cache.form == "hidden":
        labelled = isinstance(config.objective, KdConfig) and config.objective.positions == "masked"
        return HiddenFormat(teacher.width, cache.precision, labelled)
    return _sparse_form(config, min(len(backbone.decoder[0]) for backbone in (teacher, student)))


def _sparse_form(config: TrainConfig, width: int) -> TopFormat | SampledFormat:
    cache, temperature = config.teacher.cache, config.taught.temperature
    if cache.form == "top":
        kept = tuple(float(t) for t in cache.temperatures or (temperature,))
        return TopFormat(cache.k, width, kept, cache.precision)
    return SampledFormat(cache.samples, width, config.seed, temperature, power=cache.power, systematic=cache.systematic)


def _teacher(config: TrainConfig, teacher: PreTrainedModel) -> dict[str, str]:
    digests = teacher_digests(teacher.state_dict(), teacher.config.to_dict())
    return {**digests, "precision": config.trainer.precision}


def place_of(config: TrainConfig) -> _Place:
    """Number of processes of a run, and the device of this one."""
    trainer = build_trainer(config.trainer, Path(), callbacks=[], loggers=False)
    return _Place(trainer.world_size, trainer.strategy.root_device)


def store_folder(config: TrainConfig, name: str, identity: Mapping[str, Any]) -> Path:
    """The folder of a store: in the folder that is given, by its name, else in the data cache, by its key."""
    given = config.teacher.cache.folder
    if given is not None:
        return Path(given).expanduser().absolute() / name
    return Path(config.data.cache).expanduser() / "teacher_outputs" / identity_key(identity)


def _store(
    config: TrainConfig,
    teacher: PreTrainedModel,
    name: str,
    identity: Mapping[str, Any],
    form: FullFormat | LanguageForm,
    units: int,
    place: _Place,
    write: Callable[[Backbone, ShardWriter, Progress], None],
) -> OutputStore:
    """The store of an identity."""
    folder = store_folder(config, name, identity)

    def compute(writer: ShardWriter) -> None:
        what = f"computing the teacher's outputs of {units:,} units"
        log.info("%s into %s", what, folder)
        with counting(what) as progress, computing(teacher, config.trainer.precision, place.device) as backbone:
            write(backbone, writer, progress)

    store = build_outputs(folder, identity, form.fields, units, compute)
    log.info("the teacher's outputs are read from %s", folder)
    return store
