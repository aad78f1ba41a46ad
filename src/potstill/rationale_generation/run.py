"""Step 1 of distilling step-by-step (Hsieh et al. 2023): rationales of a language model for the rows of a data set.

They are written in the published layout: `llm/{split}_CoT_{i}.json`, lists with one answer per row in all.
"""

import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from potstill.data.rationales.soft_labels import labels_file
from potstill.errors import ConfigError, DataError
from potstill.rationale_generation.answers import Answer, Backend, Request, Tally, make_request
from potstill.rationale_generation.endpoint import Endpoint
from potstill.rationale_generation.journal import Journal
from potstill.rationale_generation.label_probabilities import label_probabilities
from potstill.rationale_generation.prompts import Prompts, load_prompts
from potstill.rationale_generation.selection import Canonical, Choice, Parse, choose, plain_label
from potstill.rationale_generation.settings import EndpointSettings, LocalSettings, Sampling
from potstill.runtime.atomic import replacing
from potstill.runtime.json_text import json_text

logger = logging.getLogger(__name__)

Form = Literal["chat", "completion"]
PROGRESS_STEPS = 20


@dataclass(frozen=True)
class GenerationReport:
    """Counts of a run, as in `llm/{split}_report.json`.

    Attributes:
        rows: Rows of the data set.
        wanted: Required answers; equal prompts count once.
        journaled: Required answers from earlier runs.
        tally: Counts of this run's requests.
        unanswered: Rows without answer; their text is empty.
        unparsed: Rows whose answers lack rationale or label.
        contradicting: Rows whose label differs from a known gold label.
        dropped: Contradicting rows whose text was removed.
        not_understood: Unusable answers by reason: `length` and `content_filter` (incomplete), `unfinished_thought`,
            `thoughts_only`, and `no_text_<reason>`.
        complete: Whether the set was written; otherwise the budget was spent, or the endpoint asked to wait too long.
        seconds: Duration of the run.
    """

    rows: int
    wanted: int
    journaled: int
    tally: Tally
    unanswered: int
    unparsed: int
    contradicting: int
    dropped: int
    not_understood: dict[str, int]
    complete: bool
    seconds: float

    def flat(self) -> dict[str, int | float | bool]:
        """All counts by name."""
        counts = asdict(self)
        tally, reasons = counts.pop("tally"), counts.pop("not_understood")
        del tally["said"]
        return {**tally, **counts, **{f"not_understood_{name}": count for name, count in reasons.items()}}


def generate(
    rows: Sequence[Mapping[str, Any]],
    *,
    split: str,
    folder: str | Path,
    task: str,
    backend: EndpointSettings | LocalSettings,
    sampling: Sampling,
    parse: Parse,
    canonical: Canonical = plain_label,
    form: Form = "chat",
    prompts_file: str | Path | None = None,
    shots: int | None = None,
    drop_contradicting: bool = False,
    chunk_rows: int = 1000,
    label_sets: Sequence[Sequence[str] | None] | None = None,
    wait: Callable[[float], object] | None = None,
) -> GenerationReport:
    """Generate rationales for the rows of a split, and write the published layout.

    Every answer is appended to `llm/{split}_journal.jsonl` at once. The same call resumes a run that was killed, or
    that spent its budget: only missing answers are requested.

    Args:
        rows: Rows of the data set in order, with the fields of the task's prompts.
        split: `train`, `valid` or `test`, the prefix of the files.
        folder: Folder of the data set; files are written into its `llm/`.
        task: Name of the prompts.
        backend: The model.
        sampling: Sampling of answers, and their number per row.
        parse: Splits an answer into (rationale, label), or returns None.
        canonical: Normalizes a label for comparison, such as the value of an equation; None for an invalid label.
        form: `chat` (messages) or `completion` (one text).
        prompts_file: A user's own prompts.
        shots: Number of demonstrations; None for all.
        drop_contradicting: Whether to remove the text of rows whose label differs from the gold label.
        chunk_rows: Rows per file.
        label_sets: Possible labels of each row, or None; with `sampling.logprobs`, their probabilities are written into
            `llm/{split}_labels.json`.
        wait: Sleeps for a number of seconds between retries; for tests.

    Returns:
        The counts, which are also in `llm/{split}_report.json`.

    Raises:
        ConfigError: An invalid option, or an endpoint that does not answer or rejects the key.
        DataError: A row lacks a field, another process writes the journal, the folder has answers without a journal, no
            row was answered, or the folder cannot be written.
        ModelError: The model does not exist, or does not generate.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", split):
        raise ConfigError(f"generation.split={split}: expected a name such as train")
    if chunk_rows < 1:
        raise ConfigError(f"generation.chunk_rows={chunk_rows}: expected 1 or more")
    if form not in ("chat", "completion"):
        raise ConfigError(f"generation.form={form}: expected chat or completion")
    began = time.monotonic()
    prompts = load_prompts(task, prompts_file, shots)
    requests = _requests(rows, prompts, form, backend, sampling)
    golds = _golds(rows, prompts, needed=drop_contradicting)
    target = Path(folder).expanduser() / "llm"
    with Journal(target / f"{split}_journal.jsonl") as journal:
        if not journal.lines and _chunks(target, split):
            raise DataError(f"{target}: has {split}_CoT files without a journal; choose another folder")
        distinct = {request.key: request for row in requests for request in row}
        pending = [request for key, request in distinct.items() if key not in journal.answers]
        held = len(distinct) - len(pending)
        logger.info("%d answers are required, %d of them are in %s", len(distinct), held, journal.path)
        tally = (
            _ask(pending, backend, sampling, prompts.stop, journal, held > 0, wait) if pending else Tally()
        )
        read = {key: _read(answer, prompts) for key in distinct if (answer := journal.answers.get(key))}
        reasons = Counter(sorted(reason for _, reason in read.values() if reason is not None))
        found = [
            [text for one in row if one.key in read and (text := read[one.key][0]) is not None]
            for row in requests
        ]
        choices = [choose(texts, parse, canonical, gold) for texts, gold in zip(found, golds, strict=True)]
        texts = [_text(choice, drop_contradicting) for choice in choices]
        states = Counter(choice.state for choice in choices)
        if rows and states["unanswered"] == len(rows) and not tally.ended_early:
            raise DataError(
                f"generation: none of {len(rows)} rows was answered ({tally.failed} requests failed, "
                f"{tally.malformed} answers malformed, {tally.empty} empty, {tally.refused} rejected"
                f"{''.join(f', {count} {name}' for name, count in reasons.items())}); nothing is written"
                + (f"; error of the endpoint: {tally.said}" if tally.said else "")
                + ("; increase generation.max_tokens" if reasons["no_text_length"] else "")
            )
        report = GenerationReport(
            rows=len(rows),
            wanted=len(distinct),
            journaled=held,
            tally=tally,
            unanswered=states["unanswered"],
            unparsed=states["unparsed"],
            contradicting=states["contradicting"],
            dropped=states["contradicting"] if drop_contradicting else 0,
            not_understood=dict(reasons),
            complete=not tally.ended_early,
            seconds=round(time.monotonic() - began, 3),
        )
        files = {target / f"{split}_report.json": json_text(report.flat(), indent=1)}
        soft = None
        if label_sets is not None and sampling.logprobs:
            answers = [
                {
                    text: journal.answers[one.key]
                    for one in reversed(row)
                    if (text := read.get(one.key, ("",))[0])
                }
                for row in requests
            ]
            soft = _label_probabilities(
                texts, answers, label_sets, parse, lettered="{letter}" in prompts.answer
            )
            logger.info("%d of %d rows have label probabilities", len(soft) - soft.count(None), len(soft))
        if report.complete:
            if soft is not None:
                files[labels_file(target, split)] = json_text(soft)
            else:  # remove the file of an earlier run with log-probabilities
                labels_file(target, split).unlink(missing_ok=True)
            for number, start in enumerate(range(0, len(texts), chunk_rows)):
                files[target / f"{split}_CoT_{number}.json"] = json_text(texts[start : start + chunk_rows])
        _write(files)
        if report.complete:
            for stale in _chunks(target, split) - files.keys():  # files of an earlier, longer run
                stale.unlink()
    return report


def _requests(
    rows: Sequence[Mapping[str, Any]],
    prompts: Prompts,
    form: Form,
    backend: EndpointSettings | LocalSettings,
    sampling: Sampling,
) -> list[list[Request]]:
    """The requests of the samples of each row."""
    identity, made = backend.identity(), []
    for number, row in enumerate(rows):
        try:
            prompt = prompts.chat(row) if form == "chat" else prompts.completion(row)
        except DataError as error:
            raise DataError(f"row {number}: {error}") from None
        made.append(
            [
                make_request(prompt, identity, sampling, prompts.stop, sample)
                for sample in range(sampling.samples)
            ]
        )
    return made


def _golds(rows: Sequence[Mapping[str, Any]], prompts: Prompts, needed: bool) -> list[str | None]:
    """Gold labels; None for rows without one, which is an error if they are needed."""
    golds: list[str | None] = []
    for number, row in enumerate(rows):
        if row.get(prompts.label_field) is None and not needed:
            golds.append(None)
            continue
        try:
            golds.append(prompts.label(row))
        except DataError as error:
            raise DataError(f"row {number}: {error}") from None
    return golds


def _ask(
    pending: Sequence[Request],
    settings: EndpointSettings | LocalSettings,
    sampling: Sampling,
    stop: tuple[str, ...],
    journal: Journal,
    accepted: bool,
    wait: Callable[[float], object] | None,
) -> Tally:
    backend: Backend
    if isinstance(settings, EndpointSettings):
        endpoint = Endpoint(settings, sampling, stop, accepted=accepted, wait=wait)
        endpoint.check()
        backend = endpoint
    else:
        from potstill.rationale_generation.local import LocalModel  # torch, only where it is needed

        backend = LocalModel(settings, sampling, stop)
    done, every = 0, max(1, len(pending) // PROGRESS_STEPS)
    guard = threading.Lock()

    def record(request: Request, answer: Answer) -> None:
        nonlocal done
        journal.add(request.key, answer)
        with guard:
            done += 1
            if done % every == 0:
                logger.info("%d of %d answers", done, len(pending))

    return backend.answer(pending, record)


def _label_probabilities(
    texts: Sequence[str],
    answers: Sequence[Mapping[str, Answer]],
    label_sets: Sequence[Sequence[str] | None],
    parse: Parse,
    *,
    lettered: bool,
) -> list[dict[str, float] | None]:
    """Probabilities of the choices of each row from the selected answer, or None."""
    found: list[dict[str, float] | None] = []
    for text, own, choices in zip(texts, answers, label_sets, strict=True):
        kept, parsed = own.get(text), parse(text)
        if kept is None or parsed is None or not choices:
            found.append(None)
            continue
        found.append(label_probabilities(kept, parsed[1], choices, lettered=lettered))
    return found


def _read(answer: Answer, prompts: Prompts) -> tuple[str | None, str | None]:
    """The usable text of an answer (None without text, "" if it is unusable), and the reason if it is not usable."""
    if not answer.text.strip():
        return None, f"no_text_{answer.reason}"
    if answer.cut_off:
        return "", answer.reason
    text = prompts.clean(answer.text)
    if text is None:
        return "", "unfinished_thought"
    return text, None if text else "thoughts_only"


def _text(choice: Choice, drop_contradicting: bool) -> str:
    return "" if drop_contradicting and choice.state == "contradicting" else choice.text


def _chunks(target: Path, split: str) -> set[Path]:
    name = re.compile(rf"{re.escape(split)}_CoT_\d+\.json(\.gz)?")
    return {path for path in target.iterdir() if name.fullmatch(path.name)}


def _write(files: Mapping[Path, str]) -> None:
    """Write files completely: all under temporary names first, then each renamed."""
    with ExitStack() as stack:
        for path, content in files.items():
            stack.enter_context(replacing(path)).write_text(content, encoding="utf-8")
