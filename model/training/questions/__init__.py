"""Passages with questions and answers for the question-answering adapter: written frames, filled by chance.

`python -m model.training.questions OUTPUT.jsonl` writes the examples that the recipe trains on.
"""
