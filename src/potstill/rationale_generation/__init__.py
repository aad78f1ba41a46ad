"""Generation of rationales with a language model: prompts, endpoints, local models, and a journal of answers."""
