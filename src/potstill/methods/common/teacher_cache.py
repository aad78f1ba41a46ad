"""Teachers whose outputs are stored: computed where they are not there yet, and read in the teachers' place."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from transformers import PreTrainedModel

from potstill.data.common.progress import counting
from potstill.data.common.tokenizers import Vocabulary
from potstill.data.corpus.datamodule import CorpusDataModule
from potstill.data.corpus.teacher_rows import by_length
from potstill.data.tasks.datamodule import TaskDataModule
from potstill.data.tasks.labels import SPANS, TOKENS, Task
from potstill.models.backbone import Backbone, backbone_of
from potstill.teacher_cache.computing import Progress, computing, write_logits, write_vocabulary
from potstill.teacher_cache.digests import arrays_digest, corpus_digest, mask_settings, teacher_of_model
from potstill.teacher_cache.formats import FullForm, SampledForm, TopForm
from potstill.teacher_cache.identity import identity_key, store_identity
from potstill.teacher_cache.reading import StoredLogits, StoredVocabulary
from potstill.teacher_cache.store import OutputStore, OutputWriter, build_outputs
from potstill.training.trainer import build_trainer

log = logging.getLogger(__name__)

TRAIN, EVAL = "train", "eval"  # folders below teacher.cache.folder
Form = FullForm | TopForm | SampledForm


class _Place(NamedTuple):
    """Where a run goes on: its number of processes, and this one's device."""

    world: int
    device: torch.device


def store_task_teachers(
    config: DictConfig,
    teachers: Sequence[PreTrainedModel],
    data: TaskDataModule,
    vocabulary: Vocabulary,
    task: Task,
) -> list[StoredLogits]:
    """The logits of each teacher over the training rows.

    Args:
        config: of the run.
        teachers: with their heads; nothing of them is kept.
        data: with training rows.
        vocabulary: of the tokenizer.
        task: says how many logits a row has.

    Raises:
        DataError: an existing store cannot be used, or a new one cannot be written.
    """
    assert data.train is not None
    features, place = data.train.features, _place(config)
    order, _ = by_length(features.lengths)
    units = np.empty_like(order)
    units[order] = np.arange(len(order))
    arrays: dict[str, NDArray[Any]] = {
        "ids": features.ids,
        "types": features.types,
        "lengths": features.lengths,
    }
    if data.train.words is not None:
        arrays["words"] = data.train.words
    found = []
    for number, teacher in enumerate(teachers):
        form = FullForm(int(teacher.config.num_labels or 0), ragged=task.kind in (TOKENS, SPANS))
        identity = store_identity(
            teacher=_teacher(config, teacher),
            tokenizer=vocabulary.digest,
            data=arrays_digest(arrays),
            form=form.identity,
        )

        def write(
            backbone: Backbone, writer: OutputWriter, progress: Progress, form: FullForm = form
        ) -> None:
            write_logits(backbone, data.train_batches(order, place.device), form, writer, progress)

        name = TRAIN if len(teachers) == 1 else f"{TRAIN}_{number}"
        store = _store(config, teacher, name, identity, form, len(order), place, write)
        found.append(StoredLogits(store, form, units))
    return found


def store_language_teacher(
    config: DictConfig,
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    data: CorpusDataModule,
    vocabulary: Vocabulary,
) -> tuple[StoredVocabulary, StoredVocabulary | None]:
    """What a teacher says of all tokens of the training and of the evaluation corpus, if there is one.

    From now on `data` numbers tokens as the stores do.

    Args:
        config: of the run.
        teacher: with its head; nothing of it is kept.
        student: its vocabulary may be narrower than the teacher's where heads are padded.
        data: with a training corpus.
        vocabulary: of the tokenizer.

    Raises:
        DataError: an existing store cannot be used, or a new one cannot be written.
    """
    place, trainer, s = _place(config), config.trainer, data.settings
    data.count_units(trainer.max_steps, trainer.max_epochs, place.world)
    width = min(len(backbone_of(model).decoder[0]) for model in (teacher, student))
    form = _vocabulary_form(config, width)
    own = _teacher(config, teacher)
    masks: dict[str, Any] = {TRAIN: None, EVAL: None}
    if data.kind == "masked":
        masks[TRAIN] = mask_settings(s, steps=data.covered_steps, world=place.world, device=place.device.type)
        # Those of evaluation are of a sequence by itself, whatever is trained on.
        masks[EVAL] = {"seed": s.seed, "mlm_share": s.mlm_share, "mlm_replace": list(s.mlm_replace)}
    stored: dict[str, StoredVocabulary] = {}
    for name, corpus, units in (
        (TRAIN, data.train, data.train_units),
        (EVAL, data.evaluation, data.eval_units),
    ):
        if corpus is None or units is None:
            continue
        identity = store_identity(
            teacher=own,
            tokenizer=vocabulary.digest,
            data=corpus_digest(corpus),
            form=form.identity,
            masks=masks[name],
        )

        def write(
            backbone: Backbone, writer: OutputWriter, progress: Progress, training: bool = name == TRAIN
        ) -> None:
            write_vocabulary(backbone, data.unit_batches(training, place.device), form, writer, progress)

        store = _store(config, teacher, name, identity, form, units.count, place, write)
        stored[name] = StoredVocabulary(store, form, config.objective.temperature)
    return stored[TRAIN], stored.get(EVAL)


def _vocabulary_form(config: DictConfig, width: int) -> TopForm | SampledForm:
    cache, temperature = config.teacher.cache, config.objective.temperature
    if cache.form == "top":
        kept = tuple(float(t) for t in cache.temperatures or (temperature,))
        return TopForm(cache.k, width, kept, cache.precision)
    return SampledForm(
        cache.samples, width, config.seed, temperature, power=cache.power, systematic=cache.systematic
    )


def _teacher(config: DictConfig, teacher: PreTrainedModel) -> dict[str, str]:
    digests = teacher_of_model(teacher.state_dict(), teacher.config.to_dict())
    return {**digests, "precision": config.trainer.precision}


def _place(config: DictConfig) -> _Place:
    trainer = build_trainer(config.trainer, Path(), callbacks=[], loggers=False)
    return _Place(trainer.world_size, trainer.strategy.root_device)


def _store(
    config: DictConfig,
    teacher: PreTrainedModel,
    name: str,
    identity: Mapping[str, Any],
    form: Form,
    units: int,
    place: _Place,
    write: Callable[[Backbone, OutputWriter, Progress], None],
) -> OutputStore:
    """The store of an identity: in the folder that is given, else in the data cache, by its key."""
    given = config.teacher.cache.folder
    if given is not None:
        folder = Path(given).expanduser().absolute() / name
    else:
        folder = Path(config.data.cache).expanduser() / "teacher_outputs" / identity_key(identity)

    def compute(writer: OutputWriter) -> None:
        what = f"computing the teacher's outputs of {units:,} units"
        log.info("%s into %s", what, folder)
        with (
            counting(what) as progress,
            computing(teacher, config.trainer.precision, place.device) as backbone,
        ):
            write(backbone, writer, progress)

    store = build_outputs(folder, identity, form.fields, units, compute)
    log.info("the teacher's outputs are read from %s", folder)
    return store
