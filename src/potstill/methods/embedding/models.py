"""Student and teacher of a sentence encoder, from configuration, and the folder of a student."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel

from potstill.config import TrainConfig
from potstill.config.objectives.embedding import embedding_of
from potstill.data.common.tokenizers import Vocabulary, bare_tokenizer
from potstill.methods.common.data import local_tokenizer, vocabulary_of
from potstill.methods.common.models import check_vocabulary
from potstill.models.backbone import backbone_of
from potstill.models.sentence import SentenceEncoder, load_sentence_model, sentence_student
from potstill.models.sentence_folders import MODULES, SentenceSettings, sentence_settings
from potstill.models.specs import default_layers, read_spec
from potstill.models.static import MODEL_TYPE as STATIC
from potstill.models.students import encoder_from_config
from potstill.runtime.json_text import read_json


class Side:
    """Student or teacher: the model, how it makes a vector, its tokenizer.

    Args:
        model: the model, or what loads it when something reads it first.
        settings: how it makes a vector.
        vocabulary: of its tokenizer.
        width: of its vectors, where it is not to be asked of the model.
    """

    def __init__(
        self,
        model: PreTrainedModel | Callable[[], PreTrainedModel],
        settings: SentenceSettings,
        vocabulary: Vocabulary,
        width: int | None = None,
    ) -> None:
        self._model, self.settings, self.vocabulary, self._width = model, settings, vocabulary, width

    @property
    def model(self) -> PreTrainedModel:
        """The model."""
        if not isinstance(self._model, PreTrainedModel):
            self._model = self._model()
        return self._model

    @property
    def width(self) -> int:
        """Of its vectors."""
        return self.encoder.width if self._width is None else self._width

    @property
    def encoder(self) -> SentenceEncoder:
        """The model as a function."""
        return SentenceEncoder(self.model, self.settings)


def open_encoder(key: str, value: str) -> tuple[Side, int]:
    """A sentence encoder of a folder or hub id, and the most tokens that it reads.

    Raises:
        PotstillError: there is none, or it cannot be used.
    """
    folder = Path(local_tokenizer(key, value))
    settings = sentence_settings(f"{key}={value}", folder)
    model, vocabulary = load_sentence_model(key, value, folder, settings), vocabulary_of(key, value)
    known = [settings.max_length or vocabulary.max_length, backbone_of(model).max_length]
    limit = min(length for length in known if length)
    return Side(model, replace(settings, max_length=limit), vocabulary), limit


def teacher_of(config: TrainConfig) -> Side:
    """The teacher, with the tokenizer that it reads; its weights are not loaded yet.

    Raises:
        PotstillError: it cannot be used.
    """
    key, name, given = "teacher.model", str(config.teacher.model), config.teacher.tokenizer
    folder = Path(local_tokenizer(key, name))
    settings = sentence_settings(f"{key}={name}", folder, embedding_of(config).pooling)
    vocabulary = vocabulary_of(key, name)
    spec = read_spec(key, name)
    known = [settings.max_length or vocabulary.max_length, spec.max_length]
    settings = replace(settings, max_length=min(length for length in known if length))
    if given not in (None, "own"):
        vocabulary = vocabulary_of("teacher.tokenizer", str(given))

    def load() -> PreTrainedModel:
        model = load_sentence_model(key, name, folder, settings, config.teacher.attention)
        check_vocabulary(vocabulary, key, model)
        return model

    width = spec.width if settings.dense is None else read_json(folder / settings.dense / "config.json")["out_features"]
    return Side(load, settings, vocabulary, width)


def student_of(config: TrainConfig, teacher: Side | None, *, normalize: bool = False) -> Side:
    """The student; a linear layer that fits the widths is added later.

    Args:
        config: of the run.
        teacher: whose layers, settings and tokenizer are the student's where it has none of its own; may be None.
        normalize: whether vectors have length 1, where neither says it.

    Raises:
        PotstillError: it cannot be used.
    """
    s, given, pooling = config.student, config.data.tokenizer, embedding_of(config).pooling
    if given is not None:
        vocabulary = vocabulary_of("data.tokenizer", given, saved=True)
    elif s.model:
        vocabulary = vocabulary_of("student.model", s.model, saved=True)
    else:  # keep the teacher's for the folder of the student
        vocabulary = vocabulary_of("teacher.model", str(config.teacher.model), saved=True)
    settings = SentenceSettings(str(pooling), normalize)
    if teacher is not None:
        settings = replace(teacher.settings, dense=None, activation="Identity")
    if s.model:
        folder = Path(local_tokenizer("student.model", s.model))
        if (folder / MODULES).is_file():
            settings = sentence_settings(f"student.model={s.model}", folder)
        elif teacher is None:
            own = sentence_settings(f"student.model={s.model}", folder, pooling)
            settings = replace(own, normalize=normalize)
        model = load_sentence_model("student.model", s.model, folder, settings, s.attention)
        if settings.static:
            vocabulary = _bare(config, vocabulary)
    elif s.config:
        if s.config["model_type"] == STATIC:
            vocabulary = _bare(config, vocabulary, settings.lower)
            settings = replace(settings, pooling="mean", max_length=None, lower=False, static=True)
        model = encoder_from_config(
            s.config,
            vocab_size=vocabulary.size,
            pad_token_id=vocabulary.pad_id,
            start_id=vocabulary.start_id,
            end_id=vocabulary.end_id,
            attention=s.attention,
        )
    else:
        assert teacher is not None  # checked by validation
        layers = list(s.layers) if s.layers is not None else default_layers(backbone_of(teacher.model).depth)
        model = sentence_student(teacher.model, layers, architecture=s.architecture, attention=s.attention)
        settings = teacher.settings
    limit = backbone_of(model).max_length
    return Side(model, replace(settings, max_length=min(settings.max_length or limit, limit)), vocabulary)


def _bare(config: TrainConfig, vocabulary: Vocabulary, lower: bool = False) -> Vocabulary:
    """The same tokens without those around a text: sentence-transformers reads none with a static model."""
    cache = Path(config.data.cache).expanduser()
    return vocabulary_of("student", str(bare_tokenizer(vocabulary, cache, lower)), saved=True)
