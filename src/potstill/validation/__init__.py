"""Checks of parts of a composed configuration that methods and runs share, without torch."""
