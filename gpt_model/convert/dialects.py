"""How each class of `transformers` calls our decoder's shape and weights, and what its config must
say to be the same function.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from gpt_model.config import Family, ModelConfig
from gpt_model.errors import UserError
from gpt_model.strict import dotted_location, sentence
from gpt_model.transformer import NORM_EPSILON

Weights = dict[str, Tensor]
PREFIX = "transformer."  # of every weight of theirs; files on the hub may leave it out
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")  # all of them end-of-text
DENSE, BANDED = "global", "local"  # GPT-Neo's words


@dataclass(frozen=True)
class Dialect:
    """One class. `fixed`: what its config must say; the first is what it says by default where the
    file is silent, and what we write.
    """

    family: Family
    model_type: str
    architecture: str
    fixed: Mapping[str, tuple[Any, ...]]
    shape: Mapping[str, str]  # ModelConfig's field -> theirs
    dropouts: tuple[str, ...]  # ours is one
    silent_dropout: float
    inner: str | None  # the field of the MLP's width, which is 4 × the width
    to_theirs: Callable[[Weights, ModelConfig], Weights]
    to_ours: Callable[[Weights, ModelConfig], Weights]

    @property
    def classifier(self) -> str:
        """The class of the same network that has labels in place of a vocabulary."""
        return re.sub("LMHeadModel|ForCausalLM", "ForSequenceClassification", self.architecture)

    def config(self, shape: ModelConfig, end_of_text: int | None) -> dict[str, Any]:
        """A decoder's shape as their config has it. Raises UserError where the class cannot be this
        decoder.
        """
        if self.family == "gpt3" and shape.attention_bias:
            raise UserError(
                "transformers has no class for this gpt3: its one with banded attention, "
                f"{self.architecture}, has no biases of query, key "
                "and value, and this model has them. A gpt3 with `attention_bias: false` in its "
                "recipe's model section fits it.",
                field="model.attention_bias",
            )
        return {
            **{field: fit[0] for field, fit in self.fixed.items()},
            **{theirs: getattr(shape, ours) for ours, theirs in self.shape.items()},
            **(
                {"attention_types": _attention_types(shape.layers)} if self.family == "gpt3" else {}
            ),
            **dict.fromkeys(self.dropouts, shape.dropout),
            **dict.fromkeys(SPECIAL, end_of_text),
            "model_type": self.model_type,
            "architectures": [self.architecture],
            "dtype": "float32",
        }

    def read(self, stored: Mapping[str, Any], where: str) -> ModelConfig:
        """The ModelConfig of a config dictionary of theirs. Raises UserError for a network that
        ours is not.
        """
        for field, fit in self.fixed.items():
            if (value := stored.get(field, fit[0])) not in fit:
                raise UserError(
                    f"{where}: {field} is {value!r}, but this decoder has "
                    f"{' or '.join(map(repr, fit))}. {_FITTING}"
                )
        if missing := [theirs for theirs in self.shape.values() if theirs not in stored]:
            raise UserError(f"{where} has no field {missing[0]!r}. {_FITTING}")
        fields = {ours: stored[theirs] for ours, theirs in self.shape.items()}
        wide, width = stored.get(self.inner) if self.inner else None, fields["width"]
        if wide is not None and isinstance(width, int) and wide != 4 * width:
            raise UserError(
                f"{where}: {self.inner} is {wide}, but this decoder's is 4 x the width = "
                f"{4 * width}. {_FITTING}"
            )
        dropouts = {field: float(stored.get(field, self.silent_dropout)) for field in self.dropouts}
        if len(set(dropouts.values())) > 1:
            raise UserError(
                f"{where}: {dropouts} differ, but this decoder has one dropout. Make them equal."
            )
        if self.family == "gpt3":
            _alternating(stored.get("attention_types"), fields["layers"], where)
            fields["attention_bias"] = False
        return shape_of(
            {"family": self.family, **fields, "dropout": next(iter(dropouts.values()))}, where
        )


_FITTING = "Give a model of GPT-1's, GPT-2's or GPT-Neo's architecture."


def shape_of(fields: Mapping[str, Any], where: str) -> ModelConfig:
    """A ModelConfig of what a file says. Raises UserError naming the file and field."""
    try:
        return ModelConfig(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{where}: {sentence(first, dotted_location(first['loc']))}") from error


def _attention_types(layers: int) -> list[Any]:
    """Dense and banded by turns, dense first, as GPT-Neo's config writes it."""
    pairs = [[[DENSE, BANDED], layers // 2]] if layers > 1 else []
    return pairs + ([[[DENSE], 1]] if layers % 2 else [])


def _alternating(types: Any, layers: Any, where: str) -> None:
    """Raises UserError where the layers' kinds of attention are not ours."""
    types = [[[DENSE, BANDED], 12]] if types is None else types
    try:
        kinds_by_layer = [kind for kinds, times in types for _ in range(times) for kind in kinds]
    except (TypeError, ValueError):
        kinds_by_layer = []
    if kinds_by_layer != [
        BANDED if layer % 2 else DENSE for layer in range(layers if isinstance(layers, int) else 0)
    ]:
        raise UserError(
            f"{where}: attention_types is {types!r}, but this decoder's {layers} layers are "
            f"{DENSE} and {BANDED} by turns, {DENSE} first. "
            f"{_FITTING}"
        )


# --- weights ---


def _same(weights: Weights, config: ModelConfig) -> Weights:
    return dict(weights)


GPT1_NAMES = {"wte.weight": "tokens_embed.weight", "wpe.weight": "positions_embed.weight"}


def _to_gpt1(weights: Weights, config: ModelConfig) -> Weights:
    return {GPT1_NAMES.get(name, name): tensor for name, tensor in weights.items()}


def _from_gpt1(weights: Weights, config: ModelConfig) -> Weights:
    ours = {theirs: name for name, theirs in GPT1_NAMES.items()}
    return {ours.get(name, name): tensor for name, tensor in weights.items()}


_QKV = tuple(f"attn.attention.{part}_proj.weight" for part in "qkv")
_NEO_NAMES = {
    "attn.c_proj": "attn.attention.out_proj",
    "mlp.c_fc": "mlp.c_fc",
    "mlp.c_proj": "mlp.c_proj",
}  # torch's Linear: [out, in]


def _to_neo(weights: Weights, config: ModelConfig) -> Weights:
    theirs, scale = dict(weights), 1 / math.sqrt(config.width // config.heads)
    for layer in range(config.layers):
        query, key, value = theirs.pop(f"h.{layer}.attn.c_attn.weight").chunk(3, dim=1)
        for name, part in zip(_QKV, (query * scale, key, value), strict=True):
            theirs[f"h.{layer}.{name}"] = part.t().contiguous()
        for ours, name in _NEO_NAMES.items():
            theirs[f"h.{layer}.{name}.weight"] = (
                theirs.pop(f"h.{layer}.{ours}.weight").t().contiguous()
            )
            theirs[f"h.{layer}.{name}.bias"] = theirs.pop(f"h.{layer}.{ours}.bias")
    return theirs


def _from_neo(weights: Weights, config: ModelConfig) -> Weights:
    ours, scale = dict(weights), math.sqrt(config.width // config.heads)
    for layer in range(config.layers):
        query, key, value = (ours.pop(f"h.{layer}.{name}").t() for name in _QKV)
        ours[f"h.{layer}.attn.c_attn.weight"] = torch.cat([query * scale, key, value], dim=1)
        for name, theirs in _NEO_NAMES.items():
            ours[f"h.{layer}.{name}.weight"] = (
                ours.pop(f"h.{layer}.{theirs}.weight").t().contiguous()
            )
            ours[f"h.{layer}.{name}.bias"] = ours.pop(f"h.{layer}.{theirs}.bias")
    return ours


_GPT2_SHAPE = {
    "vocab_size": "vocab_size",
    "context": "n_positions",
    "width": "n_embd",
    "layers": "n_layer",
    "heads": "n_head",
}
_COMMON: dict[str, tuple[Any, ...]] = {
    "layer_norm_epsilon": (NORM_EPSILON,),
    "tie_word_embeddings": (True,),
}

DIALECTS = (
    Dialect(
        family="gpt1",
        model_type="openai-gpt",
        architecture="OpenAIGPTLMHeadModel",
        fixed={**_COMMON, "afn": ("gelu",)},  # its name for the tanh one
        shape=_GPT2_SHAPE,
        dropouts=("embd_pdrop", "attn_pdrop", "resid_pdrop"),
        silent_dropout=0.1,
        inner=None,
        to_theirs=_to_gpt1,
        to_ours=_from_gpt1,
    ),
    Dialect(
        family="gpt2",
        model_type="gpt2",
        architecture="GPT2LMHeadModel",
        fixed={
            **_COMMON,
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
        },
        shape=_GPT2_SHAPE,
        dropouts=("embd_pdrop", "attn_pdrop", "resid_pdrop"),
        silent_dropout=0.1,
        inner="n_inner",
        to_theirs=_same,
        to_ours=_same,
    ),
    Dialect(
        family="gpt3",
        model_type="gpt_neo",
        architecture="GPTNeoForCausalLM",
        fixed={**_COMMON, "activation_function": ("gelu_new", "gelu_pytorch_tanh")},
        shape={
            "vocab_size": "vocab_size",
            "context": "max_position_embeddings",
            "width": "hidden_size",
            "layers": "num_layers",
            "heads": "num_heads",
            "band": "window_size",
        },
        dropouts=("embed_dropout", "attention_dropout", "resid_dropout"),
        silent_dropout=0.0,
        inner="intermediate_size",
        to_theirs=_to_neo,
        to_ours=_from_neo,
    ),
)


def of_family(family: Family) -> Dialect:
    """The class that a family is. Raises UserError for an LSTM, which is none."""
    if family == "lstm":
        raise UserError(
            "No class of transformers is this LSTM: it stays in the store, and is read by "
            "gpt_model.convert.load_decoder."
        )
    return next(dialect for dialect in DIALECTS if dialect.family == family)


def of_config(stored: Mapping[str, Any], where: str) -> Dialect:
    """The class that a config says it is of. Raises UserError."""
    model_type = stored.get("model_type")
    if dialect := next((dialect for dialect in DIALECTS if dialect.model_type == model_type), None):
        return dialect
    known = ", ".join(repr(dialect.model_type) for dialect in DIALECTS)
    raise UserError(
        f"{where}: model_type is {model_type!r}, but this decoder is one of {known}. {_FITTING}"
    )
