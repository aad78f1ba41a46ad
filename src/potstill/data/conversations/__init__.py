"""Conversations: prompts and the completions that a causal language model learns."""
