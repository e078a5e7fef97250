"""Supervised tasks in GPT-1's manner: the catalogue, examples and their splits, layouts, the head,
fine-tuning, metrics.

`entry` and `examples` import no torch: a recipe is checked and a task is read without it.
"""
