"""The two commands: compose the configuration, reject an invalid one, and start the run. No torch before that.

Exit codes: 0 done; 2 a user error, one line on stderr; 1 an internal error with its traceback; 128 + n stopped by
signal n, one line.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import yaml
from hydra import version
from hydra._internal.utils import _run_hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from potstill.cli.multirun import MULTIRUN, Jobs, expand, group_with_sweep, names_glue
from potstill.cli.overrides import command_line, readable
from potstill.config import SCHEMAS, Command, EvaluateConfig, TrainConfig, config_folder, register
from potstill.config.overrides import composition_error, message_of
from potstill.config.typed import typed
from potstill.errors import ConfigError, PotstillError, StageError, StoppedError, WriteError, printable
from potstill.reporting.records import mask_record, mask_sweep_record
from potstill.runs import folder as run_folder
from potstill.runs.checks import validate_evaluate, validate_train
from potstill.runtime.atomic import DISK_ERRORS
from potstill.runtime.output_streams import outliving_readers
from potstill.runtime.process import have_home, importing, is_first_rank, prepare
from potstill.runtime.redaction import mask_tracebacks, redact, remember_overrides, remember_references
from potstill.validation.generation import OUTPUTS, RATIONALES, REPEATED
from potstill.validation.launch import RAY

MAX_NAME_BYTES = 255  # of a file or folder


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
    """Exit with code 2 after a command whose standard output could not be written; a closed pipe is not an error."""
    with outliving_readers() as out:
        try:
            yield
        except SystemExit as done:  # Hydra's, after --help
            if done.code:
                raise
        if out is None:
            return
        out.flush()
        if out.error is not None and not isinstance(out.error, BrokenPipeError):
            reason = f"{out.error.strerror}; all files were written [{WriteError.code}]"
            sys.stderr.write(f"error: standard output: {reason}\n")
            raise SystemExit(2)


def _train(config: TrainConfig) -> Any:
    if config.doctor and (config.stages or config.stage != "train"):
        key = "stages" if config.stages else f"stage={config.stage}"
        raise ConfigError(f"doctor=true with {key}: examines one training run; give one of the two")
    if config.stages:  # each is a process of its own
        from potstill.runs.pipelines import run_pipeline

        return run_pipeline(config, _output_folder())
    validate_train(config)
    prepare()
    if config.stage == OUTPUTS:
        from potstill.runs.teacher_outputs import store_teacher_outputs

        run_folder.begin(_output_folder(), anew=config.overwrite)
        return store_teacher_outputs(config, _output_folder())
    if config.stage == RATIONALES:  # torch only if the model runs in this process
        from potstill.runs.generate_rationales import generate_rationales

        run_folder.begin(_output_folder(), anew=config.overwrite)
        return generate_rationales(config, _output_folder())
    with importing():
        from potstill.runs.train import train as run  # torch, lightning and transformers are imported here

    if config.doctor:
        from potstill.runs.doctor import examine

        examine(config)
        return _drop_untouched(_output_folder())
    if config.trainer.strategy == RAY:
        from potstill.runs.ray_workers import train_on_ray

        run_folder.begin(_output_folder(), anew=config.resume is None and config.ckpt_path is None)
        return train_on_ray(config, _output_folder())
    return run(config, _output_folder())


def _evaluate(config: EvaluateConfig) -> Any:
    validate_evaluate(config)
    run_folder.begin(_output_folder(), anew=config.overwrite)
    if config.sweep.folder is not None:
        from potstill.runs.sweep_tables import compare

        return compare(config, _output_folder())
    prepare()
    with importing():
        from potstill.runs.evaluate import evaluate as run
    return run(config, _output_folder())


class _Record(logging.LogRecord):
    """A log record without secrets and control characters."""

    def getMessage(self) -> str:  # noqa: N802
        return printable(redact(super().getMessage()))


class _Job:
    """The function that Hydra calls: runs a task with its folder claimed, and reports its errors.

    Args:
        task: of the command.
        schema: of its options.
        jobs: of the command.
    """

    def __init__(self, task: Callable[[Any], Any], schema: type[Command], jobs: Jobs):
        self.task, self.schema, self.jobs, self.started = task, schema, jobs, False

    def __call__(self, config: DictConfig) -> Any:
        self.started = True
        try:
            mask_record()
            remember_references(OmegaConf.to_yaml(config))
            self.jobs.begin()
            if self.jobs.is_sweep and is_first_rank():
                run_folder.claim(_output_folder(), run_folder.kind_of(config), config)
            self.jobs.forget_error()
            group_with_sweep(config, self.jobs.folder)
            return self.task(typed(config, self.schema))
        except StoppedError as stopped:
            raise StoppedError(f"{stopped}; {_how_to_continue(config)}", stopped.signal) from None
        except Exception as error:
            return self._failed(error)
        finally:
            run_folder.release(_output_folder())

    def _failed(self, error: Exception) -> None:
        """Exit, or in a sweep record the error and let Hydra continue with the other jobs."""
        internal = not isinstance(error, StageError) and not _is_user_error(error)
        if self.jobs.is_sweep:
            line = redact(f"{type(error).__name__}: {_one_space(str(error))}") if internal else one_line(error)
            self.jobs.fail(line, printed=not internal and not self.jobs.in_other_process)
        if internal or (self.jobs.in_other_process and not isinstance(error, StageError)):
            raise error
        if self.jobs.is_sweep:
            return
        if not isinstance(error, OSError | StageError):
            _drop_untouched(_output_folder())
        _exit(one_line(error), error.code if isinstance(error, StageError) else 2)


def _run(name: str, task: Callable[[Any], Any]) -> None:
    have_home()
    register()
    logging.setLogRecordFactory(_Record)
    logging.raiseExceptions = False  # on a full disk each log line would add a traceback
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them
    remember_overrides(sys.argv[1:])
    mask_tracebacks()
    job = _Job(task, SCHEMAS[name], Jobs())
    try:
        parser, arguments = command_line(readable(name, expand(name, sys.argv[1:])))
        try:
            version.setbase("1.3")
            _run_hydra(arguments, parser, job, str(config_folder()), name)
        except Exception as error:
            # The job reports its own errors. Before it Hydra and OmegaConf raise any type for an override.
            if not isinstance(error, HydraException | OmegaConfBaseException) and (
                job.started or isinstance(error, PotstillError | OSError | yaml.YAMLError)
            ):
                raise
            multirun = bool(arguments.multirun)
            raise composition_error(name, arguments.overrides, error, multirun=multirun) from error
        except SystemExit as done:  # Hydra's, after --help
            if done.code or job.started or not _is_reader_gone():
                raise
            raise SystemExit(128 + signal.SIGPIPE) from None  # as shells report it
        finally:
            mask_sweep_record()
            if names_glue(sys.argv[1:]) and job.jobs.folder is not None:
                from potstill.runs.sweep_tables import write_glue

                write_glue(job.jobs.folder)
        if job.jobs.errors:
            raise SystemExit(2)
    except run_folder.RejectedFolder as rejected:
        _exit(one_line(rejected.error))
    except (PotstillError, OSError, yaml.YAMLError) as error:
        if job.started and not _is_user_error(error):
            raise
        _exit(one_line(error))


def _output_folder() -> Path:
    return Path(HydraConfig.get().runtime.output_dir)


def _drop_untouched(folder: Path) -> None:
    """Remove the output folder of a rejected run if it holds nothing but Hydra's record."""
    if run_folder.is_untouched(folder):
        shutil.rmtree(folder, ignore_errors=True)


def _how_to_continue(config: DictConfig) -> str:
    if config.get("stages") or config.get("stage") in REPEATED:
        return "the same command continues from there"
    last = _output_folder() / "checkpoints" / "last.ckpt"
    if "objective" in config and last.is_file():
        return f"the same command with resume=auto continues from {last}"
    return "the same command starts again"


def _is_user_error(error: Exception) -> bool:
    """Whether an error is the user's or the machine's; any other is internal."""
    if isinstance(error, PotstillError | OmegaConfBaseException | yaml.YAMLError):
        return True
    return isinstance(error, OSError) and error.errno in DISK_ERRORS


def _exit(line: str, code: int = 2) -> NoReturn:
    sys.stderr.write(f"error: {line}\n")
    raise SystemExit(code)


def _is_reader_gone() -> bool:
    """Whether standard output is a closed pipe, as in `train.py --help | head`."""
    if sys.stdout is None:
        return False
    sys.stdout.flush()
    return isinstance(getattr(sys.stdout, "error", None), BrokenPipeError)


def one_line(error: Exception) -> str:
    """An error as one line with the key, the value, what is valid and its code; without secrets and controls."""
    line = printable(redact(_line(error)).replace("\n", "\\n").replace("\t", "\\t"))
    return line if isinstance(error, StageError) else f"{line} [{_code(error)}]"


def _code(error: Exception) -> str:
    """The stable code of an error; errors of Hydra, OmegaConf and YAML are those of a configuration."""
    if isinstance(error, PotstillError):
        return error.code
    return WriteError.code if isinstance(error, OSError) else ConfigError.code


def _line(error: Exception) -> str:
    if isinstance(error, HydraException | OmegaConfBaseException):
        return message_of(error)
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return _long_name(str(error.filename or ""))
    if isinstance(error, OSError):
        reason = os.strerror(error.errno) if error.errno else str(error)
        path = error.filename or "the output folder"
        return f"hydra.run.dir: cannot write {path}: {reason}; name a writable folder"
    return _one_space(str(error))


def _long_name(path: str) -> str:
    """Error of a path that is too long, with the key that it was given under, or that folders are named by."""
    name = next((part for part in Path(path).parts if len(os.fsencode(part)) > MAX_NAME_BYTES), path)
    given = (word.partition("=") for word in sys.argv[1:])
    default = "hydra.sweep.subdir" if {*MULTIRUN} & {*sys.argv[1:]} else "hydra.run.dir"
    key = next((key.lstrip("+") for key, _, value in given if name and name in value), default)
    return f"{key}: a name of {len(os.fsencode(name))} bytes, {name[:40]}...: use at most {MAX_NAME_BYTES} bytes"


def _one_space(text: str) -> str:
    return " ".join(text.split())
