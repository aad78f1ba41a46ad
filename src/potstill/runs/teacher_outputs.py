"""`stage=teacher_outputs`: a server computes the stores that a run reads in its teacher's place."""

from __future__ import annotations

import logging
from pathlib import Path

from potstill.config import TrainConfig
from potstill.methods import method_of
from potstill.runs.summary import provenance, write_config, write_summary

log = logging.getLogger(__name__)


def store_teacher_outputs(config: TrainConfig, folder: Path) -> float:
    """Compute the stores of the training and the evaluation text; writes summary.json.

    Returns:
        The share that is stored; below 1 if the budget is spent, or the server asks to wait for long.

    Raises:
        PotstillError: text, tokenizer, server or stores that cannot be used.
    """
    found = method_of(config).store_served(config)
    tally = found.tally
    figures = {found.unit: found.wanted, "stored": found.stored, "requests": tally.asked + tally.retried}
    figures |= {"retried": tally.retried, "failed": tally.failed, "malformed": tally.malformed}
    figures["input_tokens"] = tally.input_tokens
    write_config(folder, config)
    write_summary(folder, {**{f"teacher_outputs/{name}": n for name, n in figures.items()}, **provenance(config)})
    cache = config.teacher.cache
    if found.stored == found.wanted:
        log.info("%s; train with %s, and without teacher.model", cache.folder, found.reading)
    elif tally.requested_wait:
        log.warning("the server asks to wait for %.0f s; the same command continues after that", tally.requested_wait)
    else:
        log.warning("the budget is used up; the same command continues from %s", cache.folder)
    return found.stored / max(found.wanted, 1)
