"""Keys of the models: `teacher`, `tasks`, `student`, `custom`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.errors import ConfigError
from potstill.runtime.json_text import read_json
from potstill.runtime.ranges import PART, POSITIVE, SIZE, TEMPERATURE, Range, Section, When, option, within

# Entries of a config.json that are not of the architecture: of the file, of its weights, and of a task's head.
_NOT_SIZES = {
    "_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "finetuning_task",
    "id2label", "label2id", "num_labels", "problem_type",
}  # fmt: skip
FILES = (".npy", ".safetensors", ".parquet")  # formats of teacher.cache.file
OWN = "own"  # teacher.tokenizer: that of the teacher's own folder


@dataclass
class CacheConfig(Section):
    """Whether a teacher's outputs are computed once and read from the disk, and in which form."""

    enabled: bool = option(
        False, "compute the teacher's outputs once and read them from disk, see [Cached teachers](cache.md)"
    )
    file: Any = option(
        None,
        "logits, or vectors of texts, of your own in place of a teacher, one entry for each training row in its order: "
        "`.npy`, `.safetensors` or `.parquet`, see [Cached teachers](cache.md#logits-of-your-own); of vectors also a "
        "list of files, whose rows follow one another, see [Sentence "
        "encoders](guides/embeddings.md#where-the-teachers-vectors-come-from)",
    )
    folder: str | None = option(
        None,
        "folder of the stores, `train/` and for language models and encoders `eval/`; null: `teacher_outputs/` in "
        "`data.cache`. With stores in it these need no `teacher.model`",
        When("enabled", True),
    )
    form: str = option(
        "top",
        "form of a vocabulary: `top`, the likeliest tokens and the mass of the others; `sampled`, "
        "tokens drawn without bias; or `hidden`, the last hidden states, which give all logits; labels of a task are "
        "stored whole",
        When("enabled", True),
    )
    k: int = within(64, SIZE, "tokens per position", When("form", "top"))
    precision: str = option(
        "float16",
        "type of log-probabilities, `float16` or `float32`, or of hidden states and vectors, also `bfloat16`",
        When("form", "top", "hidden"),
    )
    temperatures: list[float] | None = within(
        None,
        TEMPERATURE,
        "temperatures of the runs that will read the store; null: `objective.temperature`",
        When("enabled", True),
    )
    samples: int = within(50, Range(1, 2048), "draws per position", When("form", "sampled"))
    power: float = within(1.0, Range(0.5, 1.5), "tokens are drawn from p ** power", When("form", "sampled"))
    systematic: bool = option(True, "one random number per position instead of one per draw", When("form", "sampled"))

    @property
    def files(self) -> list[str]:
        """The files of the user's own."""
        given = self.file if isinstance(self.file, list) else [self.file]
        return [str(name) for name in given if name is not None]

    @property
    def replaces_teacher(self) -> bool:
        """Whether stores of outputs can take the place of `teacher.model`, where that is null."""
        return self.enabled and self.folder is not None and self.form != "hidden"


@dataclass
class TeacherConfig(Section):
    """The model that is learned from."""

    model: str | None = option(
        None, "folder, GGUF file or hub id, see [Quantised teachers](guides/language-models.md#quantised-teachers)"
    )
    models: list[str] | None = option(
        None,
        "several teachers of one task, `[a,b]`, in place of `teacher.model`; a student of layers is built "
        "from the first",
    )
    weights: list[float] | None = within(None, POSITIVE, "weights of their mean, one per teacher; null: equal")
    tokenizer: str | None = option(
        None,
        "null: the teacher reads the student's tokens; `own`: those of its own tokenizer; or the folder of "
        "a tokenizer. See [Teachers of another tokenizer](#teachers-of-another-tokenizer)",
    )
    average: str = option(
        "logits",
        "average the `logits` of several teachers, or their `probabilities` at T",
        choices=("logits", "probabilities"),
    )
    attention: str = option(
        "sdpa",
        "attention implementation of transformers: `sdpa` `eager` `flex_attention` `flash_attention_2` to "
        "`_4`, or a kernel of the hub",
    )
    cache: CacheConfig = field(default_factory=CacheConfig)


@dataclass
class SharedTaskConfig(Section):
    """One of several tasks that a student learns, of objective=task_kd."""

    benchmark: str | None = option(None, "an option of `benchmark`")
    teacher: str | None = option(None, "folder or hub id of a model that is fine-tuned on it")
    name: str | None = option(
        None, "name of the student's folder and suffix of its metrics: letters, digits and _; null: the benchmark's"
    )
    options: dict[str, Any] = option(
        {}, "keys of the benchmark: `{folder: <folder>}`, `{train_file: a.tsv, eval_file: b.tsv}`"
    )
    matches: Any = option(None, "replaces `objective.matches`; `[]`: none")


@dataclass
class MixingConfig(Section):
    """How several tasks share the steps of a run, and what says which student is best."""

    exponent: float = within(
        1.0,
        Range(0, 10),
        "with `tasks`: a task is drawn in proportion to its number of training examples to this power; 0: uniformly",
    )
    monitor: str = option(
        "mean",
        "with `tasks`: `mean` keeps the student with the best mean of the tasks' monitored metrics, "
        "`val/mean`; or the name of the task whose metric decides",
    )


@dataclass
class StudentConfig(Section):
    """The model that learns: pretrained, made of the teacher's layers, or from scratch."""

    model: str | None = option(None, "folder, GGUF file or hub id of an existing student")
    config: dict[str, Any] = option(
        {}, "a student from scratch: `model_type` and arguments of its transformers configuration"
    )
    config_file: str | None = option(
        None, "config.json, or its folder, of a student from scratch; keys of `student.config` go before its own"
    )
    layers: list[int] | None = within(
        None,
        Range(0, 1000),
        "teacher layers that the student is built from; null: half of them, first and last included",
    )
    architecture: str | None = option(
        None, "architecture of a student of layers; null: the teacher's; `distilbert` from a BERT"
    )
    vocab_transform: bool = option(True, "copy the transform of the teacher's head too")
    freeze_positions: bool = option(False, "do not train the position embeddings")
    freeze_token_types: bool = option(False, "do not train the token type embeddings")
    dropout: float | None = within(
        None, PART, "every dropout probability in training; null: as in the model's config, which is saved unchanged"
    )
    checkpointing: str | None = option(
        None,
        "activation checkpointing: `selective` keeps the outputs of linear layers (about half the memory, "
        "a little slower), `full` only the input of each block",
        choices=("selective", "full"),
    )
    attention: str = option(
        "sdpa", "as `teacher.attention`; also for a student of the teacher's layers; a BiGRU has none"
    )


@dataclass
class CustomConfig(Section):
    """Modules of the user's own, of objective=custom; dotted paths, found from the working directory too."""

    teacher: dict[str, Any] = option(
        {"_target_": None},
        "`_target_`: a class or function that returns the teacher, an nn.Module with its weights, and its "
        "arguments; null if no term reads a teacher",
    )
    teachers: list[dict[str, Any]] = option(
        [],
        "several teachers of one task, `[{_target_: my.a}, {_target_: my.b}]`, in place of `custom.teacher`; "
        "`teacher.weights` and `teacher.average` combine their predictions, a match names one by `teacher_index`",
    )
    student: dict[str, Any] = option({"_target_": None}, "`_target_`: the same for the student")
    data: dict[str, Any] = option(
        {"_target_": None},
        "`_target_`: returns a LightningDataModule, or (training DataLoader, validation DataLoader or "
        "None); their batches are micro-batches, `data.*` is not read",
    )
    adaptor: str | None = option(
        None,
        "`(batch, outputs) -> dictionary` of `logits`, `logits_mask`, `labels`, `losses`, `hidden`, `attention`, "
        "`inputs_mask`, see [the guide](guides/your-own.md#the-adaptor)",
    )
    teacher_adaptor: Any = option(
        None, "adaptor of the teachers, or a list with one for each teacher; null: `custom.adaptor`"
    )
    forward: str | None = option(
        None,
        "`(model, batch) -> outputs`; null: a dictionary is passed by name and a tuple by position, as far "
        "as the model's `forward` accepts them; anything else as it is",
    )

    @property
    def every_teacher(self) -> dict[str, dict[str, Any]]:
        """The teachers by their key; empty without one."""
        if self.teachers:
            return {f"custom.teachers[{number}]": settings for number, settings in enumerate(self.teachers)}
        return {"custom.teacher": self.teacher} if self.teacher.get("_target_") is not None else {}

    @property
    def teacher_adaptors(self) -> dict[str, Any]:
        """The adaptors of the teachers by their key, one for all or one for each."""
        given = self.teacher_adaptor
        if isinstance(given, list):
            return {f"custom.teacher_adaptor[{number}]": path for number, path in enumerate(given)}
        return {"custom.adaptor": self.adaptor} if given is None else {"custom.teacher_adaptor": given}


def sizes_of(given: str) -> dict[str, Any]:
    """The architecture and sizes in a config.json, as `student.config` has them.

    Args:
        given: the file, or its folder.

    Raises:
        ConfigError: there is no such file, or it holds no JSON object.
    """
    path = Path(given).expanduser()
    path = path / "config.json" if path.is_dir() else path
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"student.config_file={given}: cannot be read ({reason}); expected a config.json") from error
    if not isinstance(found, dict):
        raise ConfigError(f"student.config_file={given}: holds a {type(found).__name__}; expected a config.json")
    return {str(name): value for name, value in found.items() if name not in _NOT_SIZES}
