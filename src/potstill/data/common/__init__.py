"""Text files, tokenizers, batches and steps that all kinds of data share."""
