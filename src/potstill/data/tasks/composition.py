"""Which task a benchmark's configuration names, and where its parts are read from. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from potstill.data.tasks.labels import CLASSIFICATION, METRICS, REGRESSION, Task
from potstill.data.tasks.readers import OBJECTS, TABLES, HubRows, Layout, RowSource, TaskFile, find_file
from potstill.errors import ConfigError

EFFICIENCY = "efficiency"  # benchmark.task of the benchmark that reads no data
MAIN = ""  # the name of the evaluation set that the monitored metric is of


class TaskParts(NamedTuple):
    """What is trained on, and the evaluation sets by name."""

    train: RowSource
    eval: dict[str, RowSource]


def is_task(benchmark: DictConfig | None) -> bool:
    """Whether a benchmark is of a task model (not a perplexity)."""
    return benchmark is not None and benchmark.task in METRICS


def text_name(config: DictConfig) -> str:
    """What reports call the text of a run: the benchmark of a task model, else the corpus."""
    return str(config.benchmark.name if is_task(config.benchmark) else config.data.name)


def task_of(benchmark: DictConfig) -> Task:
    """The task of a benchmark's configuration.

    Raises:
        ConfigError: keys that do not go together.
    """
    kind, name = benchmark.task, benchmark.name
    if kind not in METRICS:
        raise ConfigError(f"benchmark.task={kind}: {CLASSIFICATION} or {REGRESSION}")
    labels = tuple(map(str, benchmark.labels or ()))
    if kind == REGRESSION and labels:
        raise ConfigError(f"benchmark.labels={list(labels)}: {name} is a regression, which has none; null")
    if labels and len(set(labels)) < max(len(labels), 2):
        raise ConfigError(f"benchmark.labels={list(labels)}: two or more names, none of them twice")
    metrics = tuple(benchmark.metrics)
    if not metrics or set(metrics) - set(METRICS[kind]):
        raise ConfigError(
            f"benchmark.metrics={list(metrics)}: some of {', '.join(METRICS[kind])}, the metrics of a {kind}"
        )
    if benchmark.monitor not in metrics:
        raise ConfigError(
            f"benchmark.monitor={benchmark.monitor}: one of benchmark.metrics, {', '.join(metrics)}"
        )
    if benchmark.mode not in ("min", "max"):
        raise ConfigError(f"benchmark.mode={benchmark.mode}: min or max")
    task = Task(name, kind, (), metrics, benchmark.monitor, benchmark.mode, _aliases(benchmark))
    return task.with_labels(labels) if labels else task


def training_parts(benchmark: DictConfig, max_examples: int | None) -> TaskParts:
    """What a benchmark is trained on, and what is validated on; all with labels.

    Raises:
        ConfigError: a part that is named nowhere.
    """
    layouts = _layouts(benchmark)
    train = _part(benchmark, "train", layouts, labelled=True, max_examples=max_examples)
    return TaskParts(train, _evaluation(benchmark, layouts, max_examples, labelled=True))


def judged_parts(benchmark: DictConfig, max_examples: int | None) -> dict[str, RowSource]:
    """The sets that a model is judged on, by name; they may be without labels.

    Raises:
        ConfigError: a part that is named nowhere, or no part at all.
    """
    layouts = _layouts(benchmark)
    part = benchmark.part or ("test" if benchmark.test_file else "eval")
    if part == "eval":
        return _evaluation(benchmark, layouts, max_examples, labelled=False)
    if part != "test":
        raise ConfigError(f"benchmark.part={part}: eval or test")
    return {MAIN: _part(benchmark, "test", layouts, labelled=False, max_examples=max_examples)}


def _evaluation(
    benchmark: DictConfig, layouts: tuple[Layout, ...], max_examples: int | None, labelled: bool
) -> dict[str, RowSource]:
    options: dict[str, Any] = {"labelled": labelled, "max_examples": max_examples}
    sets = {MAIN: _part(benchmark, "eval", layouts, **options)}
    if benchmark.eval_file:  # a set of the user's own, alone
        return sets
    for number, further in enumerate(benchmark.further):
        key = f"further.{number}"
        if OmegaConf.is_missing(further, "name"):
            raise ConfigError(f"benchmark.{key}.name=???: name the set, such as mismatched")
        sets[further.name] = _part(benchmark, key, layouts, place=further, **options)
    return sets


def _part(
    benchmark: DictConfig,
    part: str,
    layouts: tuple[Layout, ...],
    *,
    labelled: bool,
    max_examples: int | None,
    place: DictConfig | None = None,
) -> RowSource:
    """A part's own file, else its file in the folder, else its split on the hub."""
    given = benchmark[f"{part}_file"] if place is None else None
    place = benchmark[part] if place is None else place
    options: dict[str, Any] = {"layouts": layouts, "labelled": labelled, "max_examples": max_examples}
    if given:
        path = Path(given).expanduser().absolute()
        return TaskFile(path, key=f"benchmark.{part}_file", skip_broken=benchmark.skip_broken, **options)
    if benchmark.folder and place.file:
        folder = Path(benchmark.folder).expanduser().absolute()
        if not folder.is_dir():
            raise ConfigError(
                f"benchmark.folder={benchmark.folder}: no such folder; give that of the task's files"
            )
        within = ""
        if benchmark.subfolder and (folder / benchmark.subfolder).is_dir():  # of all of GLUE
            within = f"{benchmark.subfolder}/"
        path = find_file(folder, place.file) or find_file(folder / within, place.file) or folder
        if path == folder:
            raise ConfigError(
                f"benchmark.folder={benchmark.folder}: holds no {within}{place.file} "
                f"({' '.join(TABLES + OBJECTS)}, plain or .gz), the {part} part of {benchmark.name}; or name a file "
                f"by benchmark.{_key_of(part)}"
            )
        return TaskFile(path, key="benchmark.folder", skip_broken=benchmark.skip_broken, **options)
    if benchmark.hub and place.split:
        named = next((layout for layout in layouts if not layout.numbered), layouts[0])
        return HubRows(
            benchmark.hub, benchmark.config, place.split, named.texts[0], benchmark.revision,
            key="benchmark.hub", **options,
        )  # fmt: skip
    folder_too = ", or benchmark.folder=<folder>" if place.file else ""
    raise ConfigError(
        f"benchmark.{_key_of(part)}=null: benchmark={benchmark.name} needs its {part} part, "
        f"benchmark.{_key_of(part)}=<file>{folder_too}"
    )


def _key_of(part: str) -> str:
    return f"{part}.file" if part.startswith("further") else f"{part}_file"


def _layouts(benchmark: DictConfig) -> tuple[Layout, ...]:
    known = tuple(
        Layout(tuple(map(str, layout.texts)), None if layout.label is None else str(layout.label))
        for layout in benchmark.layouts
    )
    if benchmark.text_columns is None:
        layouts = known
    else:
        layouts = (Layout(tuple(map(str, benchmark.text_columns)), benchmark.label_column or "label"),)
    given = f"benchmark.text_columns={list(benchmark.text_columns or ())}"
    if not layouts or not all(1 <= len(layout.texts) <= 2 for layout in layouts):
        raise ConfigError(f"{given}: name the column of a text, or those of a pair of texts, [a,b]")
    if known and len(known[0].texts) != len(layouts[0].texts):
        raise ConfigError(
            f"{given}: {benchmark.name} is a task of {_texts(len(known[0].texts))}, this names "
            f"{len(layouts[0].texts)}; use benchmark=text_classification for another task"
        )
    label = layouts[0].label
    if layouts[0].numbered and label is not None and not label.isdigit():
        raise ConfigError(f"benchmark.label_column={label}: a number, as the text columns are")
    return layouts


def _texts(count: int) -> str:
    return "single texts" if count == 1 else "pairs of texts"


def _aliases(benchmark: DictConfig) -> dict[str, str]:
    pairs = [str(alias).partition("=") for alias in benchmark.aliases]
    if wrong := [spelling for spelling, equals, _ in pairs if not equals]:
        raise ConfigError(
            f"benchmark.aliases=[{wrong[0]}]: spelling=label, such as contradictory=contradiction"
        )
    return {spelling.strip(): label.strip() for spelling, _, label in pairs}
