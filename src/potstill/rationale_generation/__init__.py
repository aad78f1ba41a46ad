"""Rationales from a language model: prompts, endpoints, local models, and runs that survive a kill."""
