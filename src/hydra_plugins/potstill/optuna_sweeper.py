"""Sweeper in which Optuna proposes the options of the next jobs from the results of earlier ones.

Hydra's own Optuna sweeper requires Optuna 2 and cannot prune. This one works with any launcher: jobs report every
validation in a journal in the sweep's folder, which also tells them whether they are pruned.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep, Transformer
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from potstill.errors import ConfigError
from potstill.runtime.atomic import write_whole
from potstill.runtime.packages import require_packages

JOURNAL = "study.journal"
RESULTS = "optimization_results.yaml"


class OptunaSweeper(Sweeper):
    """Runs the missing trials; the same command in the same folder continues a search.

    Args:
        n_trials: total number of jobs.
        n_jobs: number of parallel jobs, if the launcher supports it.
        direction: minimize or maximize the value of a job: its validation perplexity or its benchmark's metric.
        seed: of the proposals.
    """

    def __init__(self, n_trials: int, n_jobs: int, direction: str, seed: int) -> None:
        self.n_trials, self.n_jobs, self.direction, self.seed = n_trials, n_jobs, direction, seed

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Check the settings and create the launcher.

        Raises:
            PackageError: Optuna is not installed.
            ConfigError: a setting is invalid.
        """
        require_packages("hydra/sweeper=optuna", "optuna", "optuna")
        if self.direction not in ("minimize", "maximize"):
            raise ConfigError(f"hydra.sweeper.direction={self.direction}: one of minimize, maximize")
        for name, value in (("n_trials", self.n_trials), ("n_jobs", self.n_jobs)):
            if value < 1:
                raise ConfigError(f"hydra.sweeper.{name}={value}: expected at least 1")
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> dict[str, Any]:
        """Run the trials.

        Args:
            arguments: overrides; those with several values, ranges or intervals span the search space.

        Returns:
            Options and value of the best trial.

        Raises:
            ConfigError: an empty search space, or an unsupported sweep.
        """
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        parsed = OverridesParser.create(config_loader=self.hydra_context.config_loader).parse_overrides(arguments)
        space = {str(own.input_line).partition("=")[0]: distribution(own) for own in parsed if own.is_sweep_override()}
        if not space:
            raise ConfigError(
                "hydra/sweeper=optuna: empty search space; give a list or optimizer.lr='interval(1e-5,1e-3)'"
            )
        fixed = [str(own.input_line) for own in parsed if not own.is_sweep_override()]
        folder = Path(str(self.config.hydra.sweep.dir)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            study_name="potstill",
            storage=JournalStorage(JournalFileBackend(str(folder / JOURNAL))),
            direction=optuna.study.StudyDirection[self.direction.upper()],
            load_if_exists=True,
        )
        for stale in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):  # of a killed sweep
            study.tell(stale.number, state=optuna.trial.TrialState.FAIL)
        # Proposals are a function of the seed and the number of earlier ones.
        study.sampler = optuna.samplers.TPESampler(seed=self.seed + len(study.trials))
        while (done := len(study.trials)) < self.n_trials:
            trials = [study.ask(space) for _ in range(min(self.n_jobs, self.n_trials - done))]
            jobs = [
                [
                    *fixed,
                    *(f"{key}={trial.params[key]}" for key in space),
                    f"trial.journal={folder / JOURNAL}",
                    f"trial.number={trial.number}",
                ]
                for trial in trials
            ]
            for trial, ended in zip(trials, self.launcher.launch(jobs, initial_job_idx=done), strict=True):
                _tell(study, trial, ended)
            write_whole(folder / RESULTS, OmegaConf.to_yaml(OmegaConf.create(best_of(study))))
        return best_of(study)


def distribution(override: Override) -> Any:
    """The Optuna distribution of an override.

    Args:
        override: `key=a,b`, `choice(a,b)`, `range(1,9,step=2)`, `interval(0,1)`, `int(interval(1,4))`,
            `tag(log,interval(1e-5,1e-3))`.

    Raises:
        ConfigError: another kind of sweep.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if isinstance(value, ChoiceSweep):
        return CategoricalDistribution([str(text) for text in override.sweep_iterator(transformer=Transformer.encode)])
    if isinstance(value, RangeSweep):
        start, stop, step = value.start or 0, value.stop, value.step
        if all(isinstance(part, int) for part in (start, stop, step)):
            return IntDistribution(int(start), int(stop) - 1, step=int(step))  # type: ignore[arg-type]
        return FloatDistribution(float(start), float(stop), step=float(step))  # type: ignore[arg-type]
    if isinstance(value, IntervalSweep):
        low, high, log = value.start, value.end, "log" in value.tags
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log)
        return FloatDistribution(float(low), float(high), log=log)  # type: ignore[arg-type]
    raise ConfigError(f"{override.input_line}: expected a list, range(...) or interval(...)")


def best_of(study: Any) -> dict[str, Any]:
    """Options, value and number of the best completed trial, if any, and the number of trials by state."""
    found: dict[str, Any] = {"name": "optuna"}
    counts = Counter(trial.state.name.lower() for trial in study.trials)
    if counts["complete"]:
        best = study.best_trial
        found |= {"best_params": dict(best.params), "best_value": best.value, "best_job": best.number}
    return {**found, "trials": dict(counts)}


def _tell(study: Any, trial: Any, ended: JobReturn) -> None:
    from optuna.trial import TrialState

    value = ended._return_value if ended.status == JobStatus.COMPLETED else None
    if not isinstance(value, int | float) or value != value:
        study.tell(trial, state=TrialState.FAIL)  # the job has reported its error
    elif study.trials[trial.number].user_attrs.get("pruned"):
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, float(value))
