"""Checkpoints on disk: Hugging Face folders and GGUF files, read under one contract."""
