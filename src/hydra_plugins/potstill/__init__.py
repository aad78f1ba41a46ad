"""Hydra plugins `hydra/launcher=ray` and `hydra/sweeper=optuna`; Hydra imports them at every start."""
