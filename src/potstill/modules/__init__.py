"""LightningModules: thin wrappers that step, log and configure optimizers."""
