"""What a stage asks of the model it builds on, trained here or imported: its shape, its precision,
whether it exists. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assets.contract import Artifact, Built, Inputs
from gpt_model.config import ModelConfig
from gpt_model.errors import UserError
from gpt_model.io import dump_json

BASE = "base"  # the input whose model a stage trains further
# Folder of an artifact whose model was trained by LoRA, beside model/, where they are merged.
ADAPTERS = "adapters"
BITS_PER_BYTE = ("bpb", "bits_per_byte")  # how the name of such a metric ends
# How text is read for bits per byte, which depend on it: by the stages that train, and by a suite
READ_ON = "documents joined, read in windows of the context that overlap by half"
READ_ALONE = "each text read alone, in windows of the context that do not overlap"
# The whole ModelConfig, in the output of a stage whose section lacks the model's shape.
SHAPE = "shape.json"


def shape(artifact: Artifact) -> dict[str, Any]:
    """The shape of an artifact's model as a recipe's `model` section has it, without vocabulary."""
    if "model" in artifact.config:
        return dict(artifact.config["model"])
    config: dict[str, Any] = json.loads((artifact.path / SHAPE).read_text(encoding="utf-8"))
    return {key: value for key, value in config.items() if key != "vocab_size"}


def write_shape(config: ModelConfig, output: Path) -> None:
    dump_json(output / SHAPE, config.model_dump(), indent=1, sort_keys=True)


def precision(artifact: Artifact) -> Any:
    """The precision that the model was trained in, and is trained further in: float32 where it was
    imported.
    """
    for section in artifact.config.values():
        if isinstance(section, Mapping) and "precision" in section:
            return section["precision"]
    return "float32"


def require(artifact: Artifact) -> Artifact:
    """The artifact itself. Raises UserError where it was not run."""
    if reason := artifact.not_run:
        raise UserError(f"There is no model to go on from: {reason}.", field=".imported")
    return artifact


def caveat(of: Built | Artifact, inputs: Inputs) -> str:
    """The tokenizer's caveat about bits per byte, where `of` reports any; else "".

    The tokenizer is an input, or lies beside the model.
    """
    from gpt_model.tokenizer import Tokenizer  # plan reads shapes here, and needs no tokenizer

    locations = (("tokenizer", ""), ("imported", ""), ("pretrained", "model"))
    folders = [
        inputs[name].path / below
        for name, below in locations
        if name in inputs and not inputs[name].not_run
    ]
    if not folders or not any(name.endswith(BITS_PER_BYTE) for name in of.metrics):
        return ""
    return Tokenizer.load(folders[0]).caveat
