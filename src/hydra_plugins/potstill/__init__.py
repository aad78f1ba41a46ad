"""What Hydra finds of ours: `hydra/launcher=ray` and `hydra/sweeper=optuna`. Hydra imports it at every start."""
