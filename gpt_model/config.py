"""ModelConfig: what a GPT's shape is, and every published GPT-2 size by name. Not how it is trained.

Published sizes and parameter counts: Radford et al. 2019, table 2 (layers, width), with the released models' heads.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ModelShape(BaseModel):
    """The shape of a decoder, its vocabulary apart: the recipe's `model` section, whose vocabulary is the tokenizer's."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    family: Literal["gpt2"] = "gpt2"
    layers: int = Field(ge=1)
    width: int = Field(ge=1)
    heads: int = Field(ge=1)
    context: int = Field(ge=2, description="longest sequence, tokens")
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}: choose a multiple of {self.heads}")
        return self


class ModelConfig(ModelShape):
    """A whole decoder."""

    vocab_size: int = Field(default=50257, ge=2)

    @classmethod
    def published(cls, name: str) -> ModelConfig:
        """A published size, e.g. "gpt2-xl". Raises KeyError listing the names."""
        if name not in PUBLISHED:
            raise KeyError(f"no published size {name!r}; there are {', '.join(PUBLISHED)}")
        return PUBLISHED[name]

    def parameters(self) -> int:
        """Trainable parameters, tied head counted once: V·d + T·d + L·(12d² + 13d) + 2d."""
        d = self.width
        return self.vocab_size * d + self.context * d + self.layers * (12 * d * d + 13 * d) + 2 * d

    def flops_per_token(self) -> float:
        """Model FLOPs a trained token, forward and backward: 6N + 12·L·d·T (PaLM, Chowdhery et al. 2022, appendix B).

        N leaves out the position embeddings, which are looked up and not multiplied; the tied token embedding is multiplied
        once, as the output head.
        """
        n = self.parameters() - self.context * self.width
        return 6.0 * n + 12.0 * self.layers * self.width * self.context


def _gpt2(layers: int, width: int, heads: int) -> ModelConfig:
    return ModelConfig(family="gpt2", layers=layers, width=width, heads=heads, context=1024, vocab_size=50257, dropout=0.0)


PUBLISHED: dict[str, ModelConfig] = {  # GPT-2, table 2; heads from the released hparams
    "gpt2-small": _gpt2(12, 768, 12),
    "gpt2-medium": _gpt2(24, 1024, 16),
    "gpt2-large": _gpt2(36, 1280, 20),
    "gpt2-xl": _gpt2(48, 1600, 25),
}
