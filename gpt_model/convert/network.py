"""A decoder from weights by name, ours or those of a class of `transformers`, and a model of that
class from a decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gpt_model.config import ModelConfig
from gpt_model.convert.dialects import PREFIX, SPECIAL, Dialect, Weights, of_config, of_family
from gpt_model.errors import UserError
from gpt_model.lstm import build
from gpt_model.transformer import GPT, Decoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MASKS = (
    ".attn.bias",
    ".attn.masked_bias",
    ".attn.attention.bias",
    ".attn.attention.masked_bias",
    "position_ids",
)  # old files have them

EMBEDDINGS = ("wte.weight", "tokens_embed.weight")  # which the head is tied to


def to_transformers(model: GPT, end_of_text: int | None = None) -> PreTrainedModel:
    """The same network as a model of its class in `transformers`, weights copied, in eval mode.
    Raises UserError where none is.

    `end_of_text` is the tokenizer's id of it: it becomes the start, stop and padding token of
    `generate()`.
    """
    # A second or more to import, and our own model folders are read and written without it.
    import transformers
    from transformers.initialization import no_init_weights

    dialect = of_family(model.config.family)
    kind = getattr(transformers, dialect.architecture)
    config = kind.config_class.from_dict(dialect.config(model.config, end_of_text))
    with no_init_weights():
        other = kind(config)
    weights = {name: tensor.clone() for name, tensor in theirs(model, dialect).items()}
    other.base_model.load_state_dict(weights, assign=True)
    other.tie_weights()
    other.generation_config = transformers.GenerationConfig(**generation(model.config, end_of_text))
    result: PreTrainedModel = other.eval()
    return result


def from_transformers(other: PreTrainedModel) -> GPT:
    """Our decoder with the weights of a model of `transformers`. Raises UserError where it is not
    the same function.
    """
    stored, where = other.config.to_dict(), "the transformers model"
    dialect = of_config(stored, f"{where}'s config")
    model = filled(
        dialect.read(stored, f"{where}'s config"), dict(other.state_dict()), where, dialect
    )
    assert isinstance(model, GPT)  # no class of transformers is read as anything else
    return model


def theirs(model: Decoder, dialect: Dialect) -> Weights:
    """The weights under their names, without the prefix."""
    return dialect.to_theirs(
        {name: tensor.detach() for name, tensor in model.state_dict().items()}, model.config
    )


def with_vocabulary(model: GPT, size: int) -> GPT:
    """The same network with the first `size` rows of its vocabulary."""
    weights = {
        name: tensor[:size] if name == EMBEDDINGS[0] else tensor
        for name, tensor in model.state_dict().items()
    }
    config = model.config.model_copy(update={"vocab_size": size})
    cut = filled(config, weights, "the model")
    assert isinstance(cut, GPT)  # as it was
    return cut


def generation(shape: ModelConfig, end_of_text: int | None) -> dict[str, Any]:
    """`generate()`'s defaults: it ends with the context, where the positions do (a pipeline's own
    default is 256 new tokens).
    """
    return {"max_length": shape.context, **dict.fromkeys(SPECIAL, end_of_text)}


def filled(
    config: ModelConfig, weights: Weights, where: str, dialect: Dialect | None = None
) -> Decoder:
    """A decoder of this shape with copies of these weights, ours or those of `dialect`.

    Raises UserError naming the tensors that are missing, surplus or of another shape.
    """
    with torch.device("meta"):
        model = build(config)
    expected: dict[str, Tensor] = dict(model.state_dict())
    if dialect:
        expected = dialect.to_theirs(expected, config)
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}
    head, embedding = (
        tensors.pop("lm_head.weight", None),
        next((name for name in EMBEDDINGS if name in tensors), None),
    )
    if head is not None and embedding and not torch.equal(head, tensors[embedding]):
        raise UserError(
            f"{where}: lm_head.weight differs from {embedding}, but this decoder's head is tied to "
            "its embedding."
        )
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(MASKS)}
    require_shapes(
        {name: list(tensor.shape) for name, tensor in expected.items()},
        {name: list(tensor.shape) for name, tensor in tensors.items()},
        where,
    )
    tensors = {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}
    model.load_state_dict(dialect.to_ours(tensors, config) if dialect else tensors, assign=True)
    return model.requires_grad_(True)


def require_shapes(
    expected: Mapping[str, list[int]], shapes: Mapping[str, list[int]], where: str
) -> None:
    """Raises UserError naming the first tensor that is missing, surplus or of another shape."""
    for name in sorted(expected.keys() | shapes.keys()):
        if name not in shapes:
            raise UserError(
                f"{where} has no tensor {name}, which its config's shape needs. Export the model "
                "again."
            )
        if name not in expected:
            raise UserError(
                f"{where} has a tensor {name} that its config's shape has no place for. Give "
                "another model."
            )
        if shapes[name] != expected[name]:
            raise UserError(
                f"{where}: {name} has shape {shapes[name]}, its config needs {expected[name]}."
            )
