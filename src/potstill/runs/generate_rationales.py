"""`stage=rationales`: a language model writes rationales for the rows of a set."""

from __future__ import annotations

import logging
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.config import TrainConfig
from potstill.config.data import SetDataConfig, data_of
from potstill.data.rationales.files import records_of
from potstill.data.rationales.parsing import NLI_LABELS, NLI_SETS, parse
from potstill.data.rationales.readers import stored_rows
from potstill.data.rationales.sets import by_value
from potstill.data.rationales.soft_labels import FIELD, labels_file, read_probabilities
from potstill.evaluation.equations import value_of
from potstill.rationale_generation.prompts import Prompts, load_prompts
from potstill.rationale_generation.run import generate
from potstill.rationale_generation.selection import Canonical, Parse, plain_label
from potstill.runs.summary import provenance, write_config, write_summary
from potstill.runtime.atomic import write_whole
from potstill.runtime.json_text import json_text, parse_json
from potstill.validation.generation import backend_of, own_rows_file, sampling_of, target_of, task_of

log = logging.getLogger(__name__)


def generate_rationales(config: TrainConfig, folder: Path) -> float:
    """Generate the rationales of a split; writes summary.json.

    They are written to `llm/<split>_CoT_<i>.json` in the folder of the published set or of the user's file. For a
    user's file there is also `llm/<split>.jsonl`: its rows with `rationale` and `llm_label`, for `data.train_files`.

    Returns:
        The share of answers that were parsed into a rationale and a label; 0 without answers.

    Raises:
        PotstillError: unusable rows, prompts or model.
    """
    data, settings = data_of(config, SetDataConfig), config.generation
    own = bool(data.train_files)
    prompts = load_prompts(task_of(data), settings.prompts, settings.shots)
    rows = _rows(config)[: data.max_examples]
    target = target_of(config)
    parse_answer = _parser(data, prompts)
    report = generate(
        rows,
        split=settings.split,
        folder=target,
        prompts=prompts,
        backend=backend_of(settings),
        sampling=sampling_of(config),
        parse=parse_answer,
        canonical=_canonical(data),
        form="chat" if settings.form == "chat" else "completion",
        drop_contradicting=settings.drop_contradicting,
        chunk_rows=settings.chunk_rows,
        label_sets=[_label_set(data, row) for row in rows],
    )
    if own and report.complete:
        _write_rows(target, settings.split, rows, parse_answer)
    answered = report.rows - report.unanswered
    share = (answered - report.unparsed) / max(answered, 1)
    figures = {f"generation/{name}": value for name, value in report.flat().items()}
    write_config(folder, config)
    write_summary(folder, {**figures, "generation/understood": share, **provenance(config)})
    log.info("%s", ", ".join(f"{value:,} {name}" for name, value in report.flat().items() if name != "complete"))
    if report.unparsed:
        cut_off = sum(count for name, count in report.not_understood.items() if name.endswith("length"))
        log.warning(
            "%d of %d answers could not be parsed%s",
            report.unparsed,
            answered,
            f"; {cut_off} reached generation.max_tokens={settings.max_tokens}; increase it" if cut_off else "",
        )
    if report.complete:
        log.info("%s; train with data.rationales=%s", target / "llm", target / "llm")
    elif report.tally.requested_wait:
        log.warning(
            "the endpoint asks to wait for %.0f s, longer than generation.longest_wait_seconds=%s; "
            "run the same command after that, it continues from %s",
            report.tally.requested_wait,
            settings.longest_wait_seconds,
            target / "llm",
        )
    else:
        log.warning("the budget is used up; the same command continues from %s", target / "llm")
    return share


def _rows(config: TrainConfig) -> list[Mapping[str, Any]]:
    data = data_of(config, SetDataConfig)
    if data.train_files:
        path = Path(data.train_files[0]).expanduser()
        return [record for _, record in records_of(path, "data.train_files")]
    return list(stored_rows(Path(str(data.folder)).expanduser(), str(data.set), config.generation.split))


def _parser(data: SetDataConfig, prompts: Prompts) -> Parse:
    """Parser of answers: that of the set, or one for the answer template of the prompts."""
    if data.set is not None and not data.train_files:

        def cut(answer: str) -> tuple[str, str] | None:
            found = parse(str(data.set), answer)
            return (found.rationale or "", found.label or "") if found.whole else None

        return cut
    template = re.escape(prompts.answer.strip())
    for name in ("rationale", "label", "letter"):
        group = rf"(?P<{name}>.+?)" if name != "label" else r"(?P<label>[^\n]+?)"
        template = template.replace(re.escape(f"{{{name}}}"), group, 1)
    pattern = re.compile(re.sub(r"(\\ )+", r"\\s+", template) + r"\s*", re.DOTALL)

    def match(answer: str) -> tuple[str, str] | None:
        found = pattern.fullmatch(answer.strip())
        return (found["rationale"].strip(), found["label"].strip()) if found else None

    return match


def _canonical(data: SetDataConfig) -> Canonical:
    if by_value(data.set or ""):

        def value(label: str) -> Hashable | None:
            found = value_of(label)
            return None if found is None else round(found, 6) or float(f"{found:.6g}")

        return value
    return plain_label


def _label_set(data: SetDataConfig, row: Mapping[str, Any]) -> Sequence[str] | None:
    """Possible labels of a row; None for free text."""
    if data.set in NLI_SETS:
        return NLI_LABELS
    choices = row.get("choices")
    return choices if isinstance(choices, list) and all(isinstance(one, str) for one in choices) else None


def _write_rows(target: Path, split: str, rows: list[Mapping[str, Any]], parse_answer: Parse) -> None:
    """Write the user's rows with the parsed answers; readers treat an empty rationale as unparsed."""
    answers: list[str] = []
    number = 0
    while (path := target / "llm" / f"{split}_CoT_{number}.json").is_file():
        answers += parse_json(path.read_text(encoding="utf-8"))
        number += 1
    soft = read_probabilities(labels_file(target / "llm", split), len(rows))
    lines = []
    for row, answer, probabilities in zip(rows, answers, soft, strict=True):
        rationale, label = parse_answer(answer) or ("", "")
        record = {**row, "rationale": rationale, "llm_label": label}
        record |= {} if probabilities is None else {FIELD: probabilities}
        lines.append(json_text(record, ensure_ascii=False))
    path = own_rows_file(target, split)
    write_whole(path, "".join(f"{line}\n" for line in lines))
    log.info("%s; train with data.train_files=[%s]", path, path)
