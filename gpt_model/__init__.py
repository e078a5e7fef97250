"""gpt_model: what a GPT is. Tokenizer, data, model, training, tasks, evaluation; knows neither
Dagster nor MLflow.

`GPT` is loaded on first use, so that reading a recipe or a tokenizer never imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpt_model.config import ModelConfig

if TYPE_CHECKING:
    from gpt_model.transformer import GPT

__all__ = ["GPT", "ModelConfig"]


def __getattr__(name: str) -> Any:
    if name == "GPT":
        # Imports torch, which takes a second.
        from gpt_model.transformer import GPT

        return GPT
    raise AttributeError(f"module 'gpt_model' has no attribute {name!r}")
