"""Recipes that are small enough to build, or to read only, in seconds."""

from __future__ import annotations

from typing import Any

from assets.recipe.recipe import Recipe

# A recipe's file as far as its alignment, which follows from line 6 on.
TALK = """\
name: talk
corpus: {sources: [{name: notes, path: "notes.txt"}]}
tokenizer: {vocab_size: 300}
model: {layers: 2, width: 32, heads: 2, context: 64}
pretraining: {tokens: 4096, batch_tokens: 512, learning_rate: 1e-3}
"""


def small_recipe(**sections: Any) -> Recipe:
    """A model of two layers on notes.txt; `sections` stand in place of its own, or beside them."""
    small = {
        "name": "small",
        "corpus": {"sources": [{"name": "notes", "path": "notes.txt", "documents": "lines"}]},
        "tokenizer": {"vocab_size": 300},
        "model": {"layers": 2, "width": 32, "heads": 2, "context": 32},
        "pretraining": {"tokens": 20_480, "batch_tokens": 512, "learning_rate": 1e-3},
    }
    return Recipe.model_validate(small | sections)
