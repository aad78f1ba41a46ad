"""The command line: the two Hydra entry points, overrides, and errors as exit codes."""
