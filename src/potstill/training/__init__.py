"""LightningModules, the optimizer step, callbacks and strategies."""
