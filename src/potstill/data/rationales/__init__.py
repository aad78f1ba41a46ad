"""Sets of distilling step-by-step: inputs, labels, and rationales cut from what an LLM wrote."""
