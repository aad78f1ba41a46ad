"""Text corpora for language models: sources, binarization, the store, masking, the data module."""
