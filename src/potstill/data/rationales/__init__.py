"""Data sets of distilling step-by-step: inputs, labels, and rationales of an LLM."""
