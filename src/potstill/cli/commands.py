"""The two commands: compose the configuration, refuse what is faulty, hand over to `runs` or `judging`.

Exit codes: 0 done; 2 a fault of the user's, one line on stderr; 1 a bug, with its traceback; 128 + n ended by signal n,
one line. Nothing here imports torch, so that a faulty configuration and `--help` take a second.
"""

from __future__ import annotations

import difflib
import errno
import logging
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from potstill.cli.multirun import MULTIRUN, Jobs, group_with_sweep, names_glue, spell_out
from potstill.cli.overrides import not_composable, readable
from potstill.config import config_folder, register
from potstill.config.defaults import settle
from potstill.errors import ConfigError, PotstillError, StageError, StoppedError, printable
from potstill.reporting.records import mask_record, mask_sweep_record
from potstill.runs import folder as run_folder
from potstill.runtime.atomic import DISK_ERRORS
from potstill.runtime.output_streams import outliving_readers
from potstill.runtime.process import have_home, is_first_rank, prepare
from potstill.runtime.redaction import mask_tracebacks, redact, remember_overrides, remember_references
from potstill.validation import validate_evaluate, validate_train
from potstill.validation.launch import RAY

LONGEST_NAME = 255  # bytes of a file or folder
TYPES = {
    "integer": "an integer",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list, [a,b]",
    "dict": "a dictionary, {key: value}",
}


def train() -> None:
    """Train, with the overrides of the command line."""
    with _writable_output():
        _run("train", _train)


def evaluate() -> None:
    """Evaluate, with the overrides of the command line."""
    with _writable_output():
        _run("evaluate", _evaluate)


@contextmanager
def _writable_output() -> Iterator[None]:
    """Fail at the end of a command whose standard output could not be written, but for want of a reader."""
    with outliving_readers() as out:
        try:
            yield
        except SystemExit as done:  # Hydra's, of --help
            if done.code:
                raise
        if out is None:
            return
        out.flush()
        if out.error is not None and not isinstance(out.error, BrokenPipeError):
            sys.stderr.write(
                f"error: standard output: cannot be written: {out.error.strerror}; files are not affected\n"
            )
            raise SystemExit(2)


def _continued(config: DictConfig) -> str:
    """How a run that a signal has ended is continued."""
    if config.get("stages") or config.get("stage") == "rationales":
        return "the same command continues from there"
    last = _output_folder() / "checkpoints" / "last.ckpt"
    if "objective" in config and last.is_file():
        return f"the same command with resume=auto continues from {last}"
    return "the same command starts again"


def _train(config: DictConfig) -> Any:
    if config.doctor and (config.stages or config.stage != "train"):
        what = "stages" if config.stages else f"stage={config.stage}"
        raise ConfigError(f"doctor=true: examines one training run, not {what}; leave one of them away")
    if config.stages:  # each is a process of its own; no torch in this one
        from potstill.runs.pipelines import run_recipe

        return run_recipe(config, _output_folder(), one_line)
    chosen = settle(config)
    validate_train(config)
    prepare()
    if config.stage == "rationales":  # torch only where the model runs in this process
        from potstill.runs.generate_rationales import explain

        run_folder.begin(_output_folder(), anew=config.overwrite)
        return explain(config, _output_folder())
    from potstill.runs.train import train as run  # torch, lightning and transformers are imported only now

    if config.doctor:
        from potstill.runs.doctor import examine

        examine(config)
        return _drop_untouched(_output_folder())
    if config.trainer.strategy == RAY:
        from potstill.runs.ray_workers import train_on_ray

        run_folder.begin(_output_folder(), anew=config.resume is None and config.ckpt_path is None)
        return train_on_ray(config, _output_folder())
    return run(config, _output_folder(), chosen)


def _evaluate(config: DictConfig) -> Any:
    validate_evaluate(config)
    run_folder.begin(_output_folder(), anew=config.overwrite)
    if config.sweep.folder is not None:  # tables of figures that there are; no torch
        from potstill.runs.sweep_tables import compare

        return compare(config, _output_folder())
    prepare()
    from potstill.runs.evaluate import evaluate as run

    return run(config, _output_folder())


class _Record(logging.LogRecord):
    """A line of the log without secrets and without what a terminal would act on."""

    def getMessage(self) -> str:  # noqa: N802
        return printable(redact(super().getMessage()))


def _run(name: str, task: Callable[[DictConfig], Any]) -> None:
    have_home()
    register()
    logging.setLogRecordFactory(_Record)
    logging.raiseExceptions = False  # a log on a full disk would add a traceback for each line
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them its own way
    started, jobs, glue = False, Jobs(), names_glue(sys.argv[1:])
    remember_overrides(sys.argv[1:])
    mask_tracebacks()

    def job(config: DictConfig) -> Any:
        nonlocal started
        started = True
        try:
            mask_record()
            remember_references(OmegaConf.to_yaml(config))
            jobs.begin()
            if jobs.sweeping and is_first_rank():
                run_folder.claim(_output_folder(), run_folder.kind_of(config), config)
            jobs.forget_fault()
            group_with_sweep(config, jobs.folder)
            return task(config)
        except StoppedError as stopped:
            raise StoppedError(f"{stopped}; {_continued(config)}", stopped.signal) from None
        except StageError as failed:
            if jobs.sweeping:  # the other jobs go on
                return jobs.fail(redact(str(failed)))
            sys.stderr.write(f"error: {printable(redact(str(failed)))}\n")
            raise SystemExit(failed.code) from None
        except Exception as fault:
            if not _can_be_mended(fault):  # a bug; Hydra goes on with the other jobs and raises it in the end
                if jobs.sweeping:
                    jobs.fail(redact(f"{type(fault).__name__}: {_flat(str(fault))}"), told=False)
                raise
            if jobs.sweeping:  # the other jobs go on
                jobs.fail(one_line(fault), told=not jobs.away)
                if jobs.away:
                    raise
                return None
            if not isinstance(fault, OSError):
                _drop_untouched(_output_folder())
            _refuse(fault)
        finally:
            run_folder.release(_output_folder())

    main = hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=name)
    try:
        sys.argv[1:] = readable(name, spell_out(name, sys.argv[1:]))
        try:
            main(job)()
        except SystemExit as done:  # Hydra's, of --help
            if done.code or started or not _is_reader_gone():
                raise
            raise SystemExit(128 + signal.SIGPIPE) from None  # as the shell reports it
        finally:
            mask_sweep_record()
            if glue and jobs.folder is not None:
                from potstill.runs.sweep_tables import write_glue

                write_glue(jobs.folder)
        if jobs.faults:
            raise SystemExit(2)
    except run_folder.RejectedFolder as rejected:
        _refuse(rejected.fault)
    except (HydraException, OmegaConfBaseException, PotstillError, yaml.YAMLError) as fault:
        _refuse(fault)
    except Exception as fault:
        # User errors were caught in the job: another one is internal, except for the folder of a sweep's next job.
        if started and not _can_be_mended(fault):
            raise
        # Before a job Hydra and OmegaConf raise whatever they meet when they apply an override that does not fit.
        _refuse(
            fault if isinstance(fault, OSError) else ConfigError(not_composable(name, sys.argv[1:], fault))
        )


def _output_folder() -> Path:
    return Path(HydraConfig.get().runtime.output_dir)


def _drop_untouched(folder: Path) -> None:
    """Remove the output folder of a rejected run where nothing but the record of that is in it."""
    if run_folder.is_untouched(folder):
        shutil.rmtree(folder, ignore_errors=True)


def _can_be_mended(fault: Exception) -> bool:
    """Whether a fault is the user's or the machine's; any other is a bug."""
    if isinstance(fault, PotstillError | OmegaConfBaseException):
        return True
    return isinstance(fault, OSError) and fault.errno in DISK_ERRORS


def _refuse(fault: Exception) -> None:
    sys.stderr.write(f"error: {one_line(fault)}\n")
    raise SystemExit(2)


def _is_reader_gone() -> bool:
    """Whether nobody reads standard output any more, `train.py --help | head`."""
    if sys.stdout is None:
        return False
    sys.stdout.flush()
    return isinstance(getattr(sys.stdout, "error", None), BrokenPipeError)


def one_line(fault: Exception) -> str:
    """An error as one line that names the key, the value and what is right; no secrets, nothing acts on a terminal."""
    return printable(redact(_line(fault)).replace("\n", "\\n").replace("\t", "\\t"))


def _line(fault: Exception) -> str:
    if isinstance(fault, MissingConfigException):
        return _unknown_option(fault)
    if isinstance(fault, OSError) and fault.errno == errno.ENAMETOOLONG:
        return _long_name(str(fault.filename or ""))
    if isinstance(fault, OSError):
        what = os.strerror(fault.errno) if fault.errno else str(fault)
        where = fault.filename or "the output folder"
        return f"hydra.run.dir: cannot write {where}: {what}; name a folder that can be written"
    if isinstance(fault, HydraException | OmegaConfBaseException):
        return _composing(fault)
    return _flat(str(fault))


def _long_name(path: str) -> str:
    """Of a path that is too long: the key that it was given under, or that folders are named by."""
    name = next((part for part in Path(path).parts if len(os.fsencode(part)) > LONGEST_NAME), path)
    given = (word.partition("=") for word in sys.argv[1:])
    made = "hydra.sweep.subdir" if {*MULTIRUN} & {*sys.argv[1:]} else "hydra.run.dir"
    key = next((key.lstrip("+") for key, _, value in given if name and name in value), made)
    return (
        f"{key}: a name of {len(os.fsencode(name))} bytes, {name[:40]}...: too long; "
        f"use names of up to {LONGEST_NAME} bytes"
    )


def _unknown_option(fault: MissingConfigException) -> str:
    """Hydra's own message lists its search path; the options are what a user needs."""
    if (fault.missing_cfg_file or "").startswith("hydra/launcher/submitit_"):
        return "hydra/launcher: hydra_submitit_launcher is not installed; pip install 'potstill[submitit]'"
    if not fault.missing_cfg_file or not fault.options:
        return _flat(str(fault).partition("Config search path")[0])
    group, _, option = fault.missing_cfg_file.rpartition("/")
    close = difflib.get_close_matches(option, fault.options, n=1)
    guess = f"; did you mean `{group}={close[0]}`?" if close else ""
    return f"{group}={option}: no such option; one of {', '.join(fault.options)}{guess}"


def _composing(fault: Exception) -> str:
    """What Hydra says of an override that does not fit the schema, without its advice for developers."""
    text = str(fault)
    if unknown := re.match(r"Could not override '(.+)'\.\s+To append to your config use \+(.*)", text):
        if free := _free_dictionary(unknown[1]):
            return f"{unknown[2]}: not in {free} yet; to add it, write +{unknown[2]}"
        return f"{unknown[2]}: no such key{_closest(unknown[1])}"
    if sweep := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '(.+?)'", text):
        return (
            f"{sweep[1]}: several values are a sweep, with -m; one value that is a list is written key=[a,b], one text "
            "with commas \"key='a,b'\""
        )
    cause = _first_line(fault.__cause__) if fault.__cause__ else ""
    if wrong := re.match(r"Error merging override (.*)", text):
        return f"{wrong[1].lstrip('+')}: {_expected(cause)}"
    key = re.search(r"full_key: (\S+)", f"{text}\n{fault.__cause__}")
    text = _flat(f"{_first_line(fault)} {cause}")
    return f"{key[1]}: {text}" if key and key[1] not in text else text


def _expected(text: str) -> str:
    """OmegaConf's words about a type, as what is expected."""
    if kind := re.search(r"could not be converted to (\w+)|is not a valid (\w+)", text):
        name = (kind[1] or kind[2]).lower()
        return f"expected {TYPES.get(name, f'a value of type {name}')}"
    if "is not a ListConfig" in text:
        return f"expected {TYPES['list']}"
    return "expected a value, not null" if "is not Optional" in text else text


def _first_line(fault: BaseException) -> str:
    return str(fault).strip().partition("\n")[0]


def _flat(text: str) -> str:
    return " ".join(text.split())


def _closest(wanted: str) -> str:
    wanted = wanted.partition("@")[0]
    known = _known_keys() + [path.name for path in config_folder().iterdir() if path.is_dir()]
    # A key is misspelled in its last part more often than misplaced, so compare whole paths.
    close = difflib.get_close_matches(wanted, known, n=1, cutoff=0.6)
    return f"; did you mean `{close[0]}`?" if close else "; --help lists the groups, `--cfg job` all keys"


def _free_dictionary(key: str) -> str | None:
    """The section that takes any key, such as `student.config`, where `key` is in one."""
    from potstill.config import EvaluateConfig, TrainConfig

    parts = key.split(".")
    for schema in map(OmegaConf.structured, (TrainConfig, EvaluateConfig)):
        for depth in range(1, len(parts) + 1):
            section = ".".join(parts[:depth])
            node = OmegaConf.select(schema, section)
            if isinstance(node, DictConfig) and OmegaConf.get_type(node) is dict:
                return section
    return None


def _known_keys() -> list[str]:
    from potstill.config import EvaluateConfig, TrainConfig

    def walk(node: Any, prefix: str = "") -> list[str]:
        keys = []
        for key in node:
            path = f"{prefix}{key}"
            keys.append(path)
            child = node._get_node(key)
            if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
                keys += walk(child, f"{path}.")
        return keys

    return sorted({*walk(OmegaConf.structured(TrainConfig)), *walk(OmegaConf.structured(EvaluateConfig))})
