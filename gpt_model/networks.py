"""The network of each family. Read `transformer.py` first."""

from __future__ import annotations

from gpt_model.config import ModelConfig
from gpt_model.lstm import LSTM
from gpt_model.transformer import GPT, Decoder


def build(config: ModelConfig, seed: int = 0) -> Decoder:
    """A decoder of this shape with fresh weights."""
    return LSTM(config, seed) if config.family == "lstm" else GPT(config, seed)
