"""The model that pre-training begins with and ends with: fresh, or imported, whole or beside adapters
(LoRA).
"""

from __future__ import annotations

from pathlib import Path

from assets.contract import Config, Inputs, Metrics
from assets.stages.base_model import ADAPTERS, BASE, require, shape, write_shape
from gpt_model import convert, lora
from gpt_model.config import ModelConfig
from gpt_model.networks import build
from gpt_model.transformer import GPT, Decoder


def trained_shape(config: Config, inputs: Inputs, vocab_size: int) -> ModelConfig:
    """The recipe's shape with the tokenizer's vocabulary, or the imported model's shape."""
    return ModelConfig(
        **(shape(require(inputs, BASE)) if BASE in inputs else config["model"]),
        vocab_size=vocab_size,
    )


def begin(config: Config, inputs: Inputs, expected: ModelConfig, seed: int) -> Decoder:
    """The model to train: fresh weights, or the imported model, with adapters where the recipe has
    `lora`.
    """
    if BASE not in inputs:
        return build(expected, seed)
    gpt = convert.load(inputs[BASE].path / "model")
    if "lora" in config:
        lora.adapt(gpt, lora.LoRA(**config["lora"]), seed)
    return gpt


def end(model: Decoder, config: Config, inputs: Inputs, output: Path) -> Metrics:
    """After training an imported model: write its shape, which the section lacks, save and merge
    its adapters, and count them.
    """
    if BASE not in inputs:
        return {}
    write_shape(model.config, output)
    if "lora" not in config:
        return {}
    assert isinstance(model, GPT)
    return lora.keep_and_merge(model, model, lora.LoRA(**config["lora"]), output / ADAPTERS)
