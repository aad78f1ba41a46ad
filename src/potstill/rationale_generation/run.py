"""Step 1 of distilling step-by-step (Hsieh et al. 2023): rationales of a language model for the rows of a data set.

They are written in the published layout: `llm/{split}_CoT_{i}.json`, lists with one answer per row in all.
"""

import itertools
import logging
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from potstill.data.rationales.soft_labels import labels_file
from potstill.errors import ConfigError, DataError, EndpointError
from potstill.rationale_generation.answers import Answer, Request, Tally, make_request
from potstill.rationale_generation.endpoint import Endpoint
from potstill.rationale_generation.journal import Journal
from potstill.rationale_generation.prompts import Prompts
from potstill.rationale_generation.selection import Canonical, Parse, choose, label_probabilities, plain_label
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
        del tally["last_error"]
        return {**tally, **counts, **{f"not_understood_{name}": count for name, count in reasons.items()}}


def generate(
    rows: Sequence[Mapping[str, Any]],
    *,
    split: str,
    folder: str | Path,
    prompts: Prompts,
    backend: EndpointSettings | LocalSettings,
    sampling: Sampling,
    parse: Parse,
    canonical: Canonical = plain_label,
    form: Form = "chat",
    drop_contradicting: bool = False,
    chunk_rows: int = 1000,
    label_sets: Sequence[Sequence[str] | None] | None = None,
    wait: Callable[[float], Awaitable[object]] | None = None,
) -> GenerationReport:
    """Generate rationales for the rows of a split, and write the published layout.

    Every answer is appended to `llm/{split}_journal.jsonl` at once. The same call resumes a run that was killed, or
    that spent its budget: only missing answers are requested.

    Args:
        rows: Rows of the data set in order, with the fields of the prompts.
        split: `train`, `valid` or `test`, the prefix of the files.
        folder: Folder of the data set; files are written into its `llm/`.
        prompts: Prompts of the task.
        backend: The model.
        sampling: Sampling of answers, and their number per row.
        parse: Splits an answer into (rationale, label), or returns None.
        canonical: Normalizes a label for comparison, such as the value of an equation; None for an invalid label.
        form: `chat` (messages) or `completion` (one text).
        drop_contradicting: Whether to remove the text of rows whose label differs from the gold label.
        chunk_rows: Rows per file.
        label_sets: Possible labels of each row, or None; with `sampling.logprobs`, their probabilities are written into
            `llm/{split}_labels.json`.
        wait: Waits a number of seconds between retries; for tests.

    Returns:
        The counts, which are also in `llm/{split}_report.json`.

    Raises:
        ConfigError: An invalid split, or a device that does not exist.
        EndpointError: The endpoint does not answer or rejects the key, or no row was answered.
        DataError: A row lacks a field, another process writes the journal, or the folder has answers without a journal.
        WriteError: The folder cannot be written.
        ModelError: The model does not exist, or does not generate.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", split):
        raise ConfigError(f"generation.split={split}: expected a name such as train")
    began = time.monotonic()
    requests, golds = _requests(rows, prompts, form, backend, sampling, need_labels=drop_contradicting)
    target = Path(folder).expanduser() / "llm"
    with Journal(target / f"{split}_journal.jsonl") as journal:
        if not journal.lines and _chunks(target, split):
            raise DataError(f"{target}: has {split}_CoT files without a journal; choose another folder")
        distinct = {request.key: request for row in requests for request in row}
        pending = [request for key, request in distinct.items() if key not in journal.answers]
        held = len(distinct) - len(pending)
        logger.info("%d answers are required, %d of them are in %s", len(distinct), held, journal.path)
        tally = _ask(pending, backend, sampling, prompts.stop, journal, held > 0, wait) if pending else Tally()
        read = {key: _read(answer, prompts) for key in distinct if (answer := journal.answers.get(key))}
        reasons = Counter(sorted(reason for _, reason in read.values() if reason is not None))
        found = [
            [text for one in row if one.key in read and (text := read[one.key][0]) is not None] for row in requests
        ]
        choices = [choose(texts, parse, canonical, gold) for texts, gold in zip(found, golds, strict=True)]
        dropped = "contradicting" if drop_contradicting else None
        texts = ["" if choice.state == dropped else choice.text for choice in choices]
        states = Counter(choice.state for choice in choices)
        if rows and states["unanswered"] == len(rows) and not tally.ended_early:
            raise _unanswered(len(rows), tally, reasons)
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
        if report.complete:
            if label_sets is not None and sampling.logprobs:
                answers = [
                    {text: journal.answers[one.key] for one in reversed(row) if (text := read.get(one.key, ("",))[0])}
                    for row in requests
                ]
                soft = _soft_labels(texts, answers, label_sets, parse, lettered="{letter}" in prompts.answer)
                files[labels_file(target, split)] = json_text(soft)
            else:  # remove the file of an earlier run with log-probabilities
                labels_file(target, split).unlink(missing_ok=True)
            for number, start in enumerate(range(0, len(texts), chunk_rows)):
                files[target / f"{split}_CoT_{number}.json"] = json_text(texts[start : start + chunk_rows])
        with ExitStack() as stack:  # all under temporary names first, then each is renamed
            for path, content in files.items():
                stack.enter_context(replacing(path)).write_text(content, encoding="utf-8")
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
    *,
    need_labels: bool,
) -> tuple[list[list[Request]], list[str | None]]:
    """The requests of each row's samples, and its gold label; None without one, unless labels are needed."""
    identity = backend.identity()
    requests: list[list[Request]] = []
    golds: list[str | None] = []
    for number, row in enumerate(rows):
        try:
            prompt = prompts.chat(row) if form == "chat" else prompts.completion(row)
            has_label = need_labels or row.get(prompts.label_field) is not None
            golds.append(prompts.label(row) if has_label else None)
        except DataError as error:
            raise type(error)(f"row {number}: {error}") from None
        samples = range(sampling.samples)
        requests.append([make_request(prompt, identity, sampling, prompts.stop, sample) for sample in samples])
    return requests, golds


def _ask(
    pending: Sequence[Request],
    backend: EndpointSettings | LocalSettings,
    sampling: Sampling,
    stop: tuple[str, ...],
    journal: Journal,
    accepted: bool,
    wait: Callable[[float], Awaitable[object]] | None,
) -> Tally:
    every = max(1, len(pending) // PROGRESS_STEPS)
    counted = itertools.count(1)

    def record(request: Request, answer: Answer) -> None:
        journal.add(request.key, answer)
        if (done := next(counted)) % every == 0:
            logger.info("%d of %d answers", done, len(pending))

    if isinstance(backend, EndpointSettings):
        endpoint = Endpoint(backend, sampling, stop, accepted=accepted, wait=wait)
        endpoint.check()
        return endpoint.answer(pending, record)
    from potstill.rationale_generation.local import LocalModel  # torch, only where it is needed

    return LocalModel(backend, sampling, stop).answer(pending, record)


def _soft_labels(
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
        if text in own and choices and (parsed := parse(text)) is not None:
            found.append(label_probabilities(own[text], parsed[1], choices, lettered=lettered))
        else:
            found.append(None)
    logger.info("%d of %d rows have label probabilities", len(found) - found.count(None), len(found))
    return found


def _unanswered(rows: int, tally: Tally, reasons: Mapping[str, int]) -> EndpointError:
    counts = "".join(f", {count} {name}" for name, count in reasons.items())
    return EndpointError(
        f"generation: none of {rows} rows was answered ({tally.failed} requests failed, {tally.malformed} answers "
        f"malformed, {tally.empty} empty, {tally.refused} rejected{counts}); nothing is written"
        + (f"; error of the endpoint: {tally.last_error}" if tally.last_error else "")
        + ("; increase generation.max_tokens" if "no_text_length" in reasons else "")
    )


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


def _chunks(target: Path, split: str) -> set[Path]:
    name = re.compile(rf"{re.escape(split)}_CoT_\d+\.json(\.gz)?")
    return {path for path in target.iterdir() if name.fullmatch(path.name)}
