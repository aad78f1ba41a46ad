"""Pure functions on tensors; they know nothing of models, data or configuration."""
