"""What a stage asks of the model it builds on, trained here or imported: its shape, its precision,
whether it is there at all.

And what is done with one that is trained on, whole or beside adapters (LoRA). torch is imported by
what only a worker calls.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets.contract import NOT_RUN, Artifact, Built, Config, Inputs, Metrics
from gpt_model.config import ModelConfig
from gpt_model.errors import UserError

if TYPE_CHECKING:
    from gpt_model.transformer import Decoder

BASE = "base"  # the input of a stage that goes on training a model
# folder of an artifact whose model was trained by LoRA, beside model/, which has them merged
ADAPTERS = "adapters"
BITS_PER_BYTE = ("bpb", "bits_per_byte")  # how such a metric's name ends
# in the output of a stage whose section does not say its model's shape: the whole ModelConfig
SHAPE = "shape.json"


def shape(artifact: Artifact) -> dict[str, Any]:
    """The shape of an artifact's model as a recipe's `model` section has it, the vocabulary apart."""
    if "model" in artifact.config:
        return dict(artifact.config["model"])
    found: dict[str, Any] = json.loads((artifact.path / SHAPE).read_text(encoding="utf-8"))
    return {key: value for key, value in found.items() if key != "vocab_size"}


def write_shape(config: ModelConfig, output: Path) -> None:
    (output / SHAPE).write_text(
        json.dumps(config.model_dump(), indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )


def precision(artifact: Artifact) -> Any:
    """What the model was trained in, and is trained on in; of an imported one, what its weights are
    held in.
    """
    section: Mapping[str, Any] = artifact.config.get("pretraining", {})
    return section.get("precision", "float32")


def not_run(artifact: Artifact) -> str | None:
    """Why there is nothing in the artifact, where its data could not be had here."""
    path = artifact.path / NOT_RUN
    reason: str | None = (
        json.loads(path.read_text(encoding="utf-8"))["not_run"] if path.is_file() else None
    )
    return reason


def write_not_run(output: Path, reason: str) -> None:
    (output / NOT_RUN).write_text(
        json.dumps({"not_run": reason}, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def require(inputs: Inputs, name: str) -> Artifact:
    """An input that a stage cannot do without. Raises UserError where nothing is in it."""
    if reason := not_run(inputs[name]):
        raise UserError(f"There is no model to go on from: {reason}.", field=".imported")
    return inputs[name]


def caveat(of: Built | Artifact, inputs: Inputs) -> str:
    """What has to be said beside the bits per byte that `of` reports, if anything: the tokenizer in
    `inputs`, or the model's, knows.
    """
    from gpt_model.tokenizer import Tokenizer

    places = (("tokenizer", ""), ("imported", ""), ("pretrained", "model"))
    folders = [
        inputs[name].path / below
        for name, below in places
        if name in inputs and not not_run(inputs[name])
    ]
    if not folders or not any(name.endswith(BITS_PER_BYTE) for name in of.metrics):
        return ""
    return Tokenizer.load(folders[0]).caveat


# --- trained on ---


def trained_shape(config: Config, inputs: Inputs, vocab_size: int) -> ModelConfig:
    """The recipe's shape with the tokenizer's vocabulary; or that of the model it goes on from."""
    return ModelConfig(
        **(shape(require(inputs, BASE)) if BASE in inputs else config["model"]),
        vocab_size=vocab_size,
    )


def begin(config: Config, inputs: Inputs, expected: ModelConfig, seed: int) -> Decoder:
    """What training starts from: fresh weights, or the model it goes on from, with adapters beside
    it where the recipe has `lora`.
    """
    from gpt_model import convert, lora
    from gpt_model.networks import build

    if BASE not in inputs:
        return build(expected, seed)
    gpt = convert.load(inputs[BASE].path / "model")
    if "lora" in config:
        lora.adapt(gpt, lora.LoRA(**config["lora"]), seed)
    return gpt


def end(model: Decoder, config: Config, inputs: Inputs, output: Path) -> Metrics:
    """After training: adapters, if there are, are kept, merged and counted; the shape is written
    where the section does not say it.
    """
    from gpt_model import lora
    from gpt_model.transformer import GPT

    if BASE not in inputs:
        return {}
    write_shape(model.config, output)
    if "lora" not in config:
        return {}
    assert isinstance(model, GPT)
    return lora.keep_and_merge(model, model, lora.LoRA(**config["lora"]), output / ADAPTERS)
