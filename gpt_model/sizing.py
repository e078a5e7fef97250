"""Sizing: what a number of layers sets besides itself: width, heads, learning rate, batch and
tokens. Arithmetic only.

The rules lead from a known model (an anchor) to one of another depth:

    width           aspect · layers, in whole heads of the anchor's width
    learning rate   ∝ width^-0.77: the slope through the eight sizes of GPT-3 (Brown et al. 2020,
                    table 2.1)
    batch           ∝ N^0.30, the slope through the same table, in doublings or halvings of the
                    anchor's: so it divides as the anchor's does
    tokens          as many for each parameter as the anchor's; without an anchor 20 (Hoffmann et
                    al. 2022, table 3)

N counts what is multiplied: all parameters, the tied embedding once, without positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import Field

from gpt_model.config import PUBLISHED, ModelConfig
from gpt_model.strict import BatchTokens, Bounds, LearningRate, Ratio, Strict, Width

DIGITS = 3  # of a learning rate


def counted(model: ModelConfig) -> int:
    """N: every parameter but the positions, which are looked up."""
    return model.parameters() - (0 if model.family == "lstm" else model.context * model.width)


Aspect = Annotated[float, Bounds(0, 200_000, "GPT-3's is 128, and no width is larger", above=True)]
Parameters = Annotated[int, Bounds(1, 10**14, "the largest published models have 1e12")]
Exponent = Annotated[float, Bounds(-10, 10, "published slopes are between -1 and 1")]


class Rules(Strict, strict=False):
    """The anchor, and how things grow from it. Without one: GPT-3 small, at Hoffmann et al.'s
    number of tokens a parameter.
    """

    aspect: Aspect = Field(default=64.0, description="width for each layer")
    head_width: Width = Field(default=64, description="width of an attention head")
    width: Width = Field(default=768, description="of the anchor")
    parameters: Parameters = Field(
        default=counted(PUBLISHED["gpt3-small"]), description="of the anchor, without positions"
    )
    learning_rate: LearningRate = Field(default=6e-4, description="of the anchor")
    learning_rate_exponent: Exponent = Field(default=-0.77, description="of the ratio of widths")
    batch_tokens: BatchTokens = Field(default=524_288, description="of the anchor")
    batch_exponent: Exponent = Field(default=0.30, description="of the ratio of parameters")
    tokens_per_parameter: Ratio = Field(default=20.0, description="how long a size is trained")

    @classmethod
    def of(cls, model: ModelConfig, pretraining: Mapping[str, Any]) -> Self:
        """Anchored at a model as it is trained."""
        return cls(
            aspect=model.width / model.layers,
            head_width=model.width // model.heads,
            width=model.width,
            parameters=counted(model),
            learning_rate=pretraining["learning_rate"],
            batch_tokens=pretraining["batch_tokens"],
            tokens_per_parameter=pretraining["tokens"] / counted(model),
        )


@dataclass(frozen=True)
class Size:
    model: ModelConfig
    learning_rate: float
    batch_tokens: int
    tokens: int


def sized(rules: Rules, layers: int, fixed: Mapping[str, Any]) -> Size:
    """The size of `layers` layers. `fixed`: the model's other fields, vocabulary among them; width
    and heads where they are given.

    Raises pydantic's ValidationError where they do not fit each other.
    """
    width = (
        fixed.get("width")
        or max(1, round(rules.aspect * layers / rules.head_width)) * rules.head_width
    )
    model = ModelConfig(
        **{
            **fixed,
            "layers": layers,
            "width": width,
            "heads": fixed.get("heads") or _heads(width, rules.head_width),
        }
    )
    grown = counted(model) / rules.parameters
    rate = rules.learning_rate * (width / rules.width) ** rules.learning_rate_exponent
    doublings = round(rules.batch_exponent * math.log2(grown))
    batch = max(1, round(rules.batch_tokens * 2.0**doublings / model.context)) * model.context
    tokens = max(1, round(rules.tokens_per_parameter * counted(model) / batch)) * batch
    return Size(model, float(f"{rate:.{DIGITS}g}"), batch, tokens)


def scaled_settings(
    pretraining: Mapping[str, Any],
    tokens: int,
    batch_tokens: int,
    context: int,
    learning_rate: float,
) -> dict[str, Any]:
    """What follows the length and the learning rate of a training's section, for others of them:
    numbers of tokens are the same shares of it, and Muon's own rate is the same multiple.
    """
    share = tokens / pretraining["tokens"]
    scaled: dict[str, Any] = {"warmup_tokens": round(pretraining.get("warmup_tokens", 0) * share)}
    if decay := pretraining.get("decay_tokens"):
        scaled["decay_tokens"] = max(scaled["warmup_tokens"] + 1, round(decay * share))
    if ramp := pretraining.get("batch_ramp"):
        first = (
            max(
                1, round(ramp["from_tokens"] * batch_tokens / pretraining["batch_tokens"] / context)
            )
            * context
        )
        scaled["batch_ramp"] = {
            "from_tokens": first,
            "over_tokens": max(1, round(ramp["over_tokens"] * share)),
        }
    if (muon := pretraining.get("muon")) and (rate := muon.get("learning_rate")):
        ratio = learning_rate / pretraining["learning_rate"]
        scaled["muon"] = {**muon, "learning_rate": rate * ratio}
    return scaled


def _heads(width: int, head_width: int) -> int:
    """Heads of about `head_width` that divide `width`."""
    return min(
        (n for n in range(1, width + 1) if width % n == 0),
        key=lambda n: abs(math.log(width / n / head_width)),
    )
