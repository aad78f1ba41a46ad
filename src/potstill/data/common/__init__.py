"""Text files, tokenizers, stores, batches and steps for all kinds of data."""
