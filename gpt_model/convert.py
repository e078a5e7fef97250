"""To and from the `transformers` library's GPT-2, and to and from a folder that its Auto classes load. Safetensors only.

Our parameters carry the same names and layouts, so conversion copies bits and computes nothing: a round trip is exact.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpt_model.config import ModelConfig
from gpt_model.errors import CorruptFile, UserError
from gpt_model.transformer import GPT, NORM_EPSILON

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

# What a checkpoint's config.json must say for our decoder to be the same function, and what `transformers` assumes where it is silent.
FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (NORM_EPSILON,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}
SILENT = {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "scale_attn_weights": True, "tie_word_embeddings": True}
SILENT |= {"scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")  # ours is one
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")  # all of them end-of-text


def to_transformers(model: GPT, end_of_text: int | None = None) -> GPT2LMHeadModel:
    """The same network as a `transformers.GPT2LMHeadModel`, weights copied, in eval mode.

    `end_of_text` is the tokenizer's id of it: it becomes the start, stop and padding token of `generate()`.
    """
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

    with torch.device("meta"):
        other = GPT2LMHeadModel(GPT2Config.from_dict(_config(model.config, end_of_text)))
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    other.transformer.load_state_dict(weights, assign=True)
    other.tie_weights()
    other.generation_config = GenerationConfig(**_generation(model.config, end_of_text))
    return other.eval()


def _config(shape: ModelConfig, end_of_text: int | None) -> dict[str, Any]:
    """A decoder's shape in the words of `transformers`' GPT2Config."""
    return {
        **{field: fit[0] for field, fit in FIXED.items()},
        "architectures": ["GPT2LMHeadModel"],
        "dtype": "float32",
        "vocab_size": shape.vocab_size,
        "n_positions": shape.context,
        "n_embd": shape.width,
        "n_layer": shape.layers,
        "n_head": shape.heads,
        **dict.fromkeys(DROPOUTS, shape.dropout),
        **dict.fromkeys(SPECIAL, end_of_text),
    }


def _generation(shape: ModelConfig, end_of_text: int | None) -> dict[str, Any]:
    """`generate()`'s defaults: it ends with the context, where the positions do (a pipeline's own default is 256 new tokens)."""
    return {"max_length": shape.context, **dict.fromkeys(SPECIAL, end_of_text)}


def from_transformers(other: GPT2LMHeadModel) -> GPT:
    """Our decoder with the weights of a `transformers.GPT2LMHeadModel`. Raises UserError where it is not the same function."""
    config = _shape(other.config.to_dict(), "the transformers model's config")
    return _filled(config, other.transformer.state_dict(), "the transformers model")


def save(model: GPT, folder: Path | str, end_of_text: int | None = None) -> None:
    """Write config.json, generation_config.json and model.safetensors, which `AutoModelForCausalLM.from_pretrained` loads.

    The same model gives the same bytes, and `transformers`, which takes seconds to import, is not needed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, contents in {"config": _config, "generation_config": _generation}.items():
        text = json.dumps(contents(model.config, end_of_text), indent=2, sort_keys=True) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    weights = {f"transformer.{name}": tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def load(folder: Path | str) -> GPT:
    """A decoder from a folder that `save` or `transformers` wrote. Raises UserError naming the file and field that do not fit."""
    folder = Path(folder)
    config_file, weights_file = folder / "config.json", folder / "model.safetensors"
    for file in (config_file, weights_file):
        if not file.is_file():
            raise UserError(f"{folder} is not a model folder: it has no {file.name}. Give a folder with config.json and model.safetensors.")
    try:
        stored = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptFile(f"{config_file} is not JSON: {error}.") from error
    config = _shape(stored, str(config_file))
    try:
        weights = load_file(weights_file)
    except (SafetensorError, ValueError) as error:
        raise CorruptFile(f"{weights_file} is not a whole safetensors file: {error}. Fetch or export it again.") from error
    return _filled(config, weights, str(weights_file))


def _shape(stored: dict[str, Any], where: str) -> ModelConfig:
    """The ModelConfig of a GPT-2 config dictionary. Raises UserError for a network that ours is not."""
    for field, fit in FIXED.items():
        found = stored.get(field, SILENT.get(field))
        if found not in fit:
            raise UserError(f"{where}: {field} is {found!r}, but this decoder has {' or '.join(map(repr, fit))}. Give a GPT-2 model.")
    width, wide = stored.get("n_embd"), stored.get("n_inner")
    if wide is not None and isinstance(width, int) and wide != 4 * width:
        raise UserError(f"{where}: n_inner is {wide}, but this decoder's is 4 x n_embd = {4 * width}. Give a GPT-2 model.")
    dropouts = {field: float(stored.get(field, 0.1)) for field in DROPOUTS}
    if len(set(dropouts.values())) > 1:
        raise UserError(f"{where}: {dropouts} differ, but this decoder has one dropout. Make them equal.")
    try:
        return ModelConfig(
            layers=stored["n_layer"],
            width=stored["n_embd"],
            heads=stored["n_head"],
            context=stored["n_positions"],
            vocab_size=stored["vocab_size"],
            dropout=dropouts["resid_pdrop"],
        )
    except KeyError as error:
        raise UserError(f"{where} has no field {error}. Give a GPT-2 model's config.") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']} (found {first['input']!r}).") from error


def _filled(config: ModelConfig, weights: dict[str, Tensor], where: str) -> GPT:
    """A GPT of this shape with these weights. Raises UserError naming the tensors that are missing, surplus or of another shape."""
    with torch.device("meta"):
        model = GPT(config)
    expected = model.state_dict()
    found = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    head = found.pop("lm_head.weight", None)
    if head is not None and "wte.weight" in found and not torch.equal(head, found["wte.weight"]):
        raise UserError(f"{where}: lm_head.weight differs from wte.weight, but this decoder's head is tied to its embedding.")
    found = {name: tensor for name, tensor in found.items() if not name.endswith((".attn.bias", ".attn.masked_bias"))}  # causal masks
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise UserError(f"{where} has no tensor {name}, which its config's shape needs. Export the model again.")
        if name not in expected:
            raise UserError(f"{where} has a tensor {name} that its config's shape has no place for. Give a GPT-2 model.")
        if found[name].shape != expected[name].shape:
            raise UserError(f"{where}: {name} has shape {list(found[name].shape)}, its config needs {list(expected[name].shape)}.")
    model.load_state_dict({name: tensor.to(torch.float32, copy=True) for name, tensor in found.items()}, assign=True)
    return model.requires_grad_(True)
