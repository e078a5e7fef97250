"""ModelConfig: what a GPT's shape is, and every published size of the three papers by name. Not how
it is trained.

Where a paper's table and the arithmetic disagree, what was chosen stands beside the size.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from gpt_model.strict import Bounds, Context, Dropout, Heads, Layers, Strict, VocabSize, Width

Family = Literal["gpt1", "gpt2", "gpt3", "lstm"]
# GPT-3 gives no width of its banded layers; this is that of GPT-Neo, the public model that has them
DEFAULT_BAND = 256
Band = Annotated[int, Bounds(1, 2**20, "no context is longer", unit="tokens")]


class ModelShape(Strict):
    """The shape of a decoder, its vocabulary apart: the recipe's `model` section, whose vocabulary
    is the tokenizer's.

    The family is the paper's: gpt1 normalises after each residual sum and has no final norm
    (Radford et al. 2018, section 4.1); gpt2 normalises each sub-block's input, and once more at the
    end (Radford et al. 2019, section 2.3); gpt3 is gpt2 with every second layer's attention locally
    banded (Brown et al. 2020, section 2.1). lstm is not of them: it is what GPT-1's table 5 sets
    against its Transformer.
    """

    family: Family = Field(default="gpt2", description="whose architecture it has")
    layers: Layers
    width: Width = Field(description="of the residual stream; a multiple of heads")
    heads: Heads = Field(description="of attention, in each layer")
    context: Context = Field(description="longest sequence, tokens")
    dropout: Dropout = 0.0
    band: Band | None = Field(
        default=None, description="gpt3: tokens a banded layer sees, the query's own among them"
    )
    attention_bias: bool = Field(
        default=True,
        description="gpt3: false leaves query, key and value without biases, as GPT-Neo has them",
    )

    @model_validator(mode="before")
    @classmethod
    def _band_of_gpt3(cls, values: Any) -> Any:
        if (
            isinstance(values, dict)
            and values.get("family") == "gpt3"
            and values.get("band") is None
        ):
            return {**values, "band": DEFAULT_BAND}
        return values

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(
                f"width {self.width} is not divisible by heads {self.heads}: choose a multiple of "
                f"{self.heads}"
            )
        return self

    @model_validator(mode="after")
    def _only_gpt3_has_bands(self) -> Self:
        if self.family != "gpt3" and (self.band is not None or not self.attention_bias):
            field = "band" if self.band is not None else "attention_bias"
            raise ValueError(
                f"{field} belongs to family gpt3, and this is {self.family}: take it out, or write "
                "family: gpt3"
            )
        return self

    def band_of(self, layer: int) -> int | None:
        """How many tokens layer `layer` (from 0) sees, its own among them; None where it sees all.
        Dense first, then by turns.
        """
        return self.band if layer % 2 else None


class ModelConfig(ModelShape):
    """A whole decoder."""

    vocab_size: VocabSize = 50257

    @classmethod
    def published(cls, name: str) -> ModelConfig:
        """A published size, e.g. "gpt2-xl". Raises KeyError listing the names."""
        if name not in PUBLISHED:
            raise KeyError(f"no published size {name!r}; there are {', '.join(PUBLISHED)}")
        return PUBLISHED[name]

    def parameters(self) -> int:
        """Trainable parameters, the tied head counted once: V·d + T·d + L·(12d² + 13d), and 2d for
        the final norm where there is one.
        """
        d = self.width
        if (
            self.family == "lstm"
        ):  # four gates, each of d inputs and d states, and torch's two biases
            return self.vocab_size * d + self.layers * (8 * d * d + 8 * d)
        biases = 13 if self.attention_bias else 10
        final_norm = 0 if self.family == "gpt1" else 2 * d
        return (
            self.vocab_size * d
            + self.context * d
            + self.layers * (12 * d * d + biases * d)
            + final_norm
        )

    def flops_per_token(self) -> float:
        """Model FLOPs a trained token, forward and backward: 6N + 12·L·d·T (PaLM, Chowdhery et al.
        2022, appendix B).

        N leaves out the position embeddings, which are looked up and not multiplied; the tied token
        embedding is multiplied once, as the output head. A banded layer's T is its band.
        """
        if self.family == "lstm":
            return 6.0 * self.parameters()
        n = self.parameters() - self.context * self.width
        seen = sum(
            min(self.context, self.band_of(layer) or self.context) for layer in range(self.layers)
        )
        return 6.0 * n + 12.0 * self.width * seen


def _gpt2(layers: int, width: int, heads: int) -> ModelConfig:
    return ModelConfig(
        family="gpt2",
        layers=layers,
        width=width,
        heads=heads,
        context=1024,
        vocab_size=50257,
        dropout=0.0,
    )


def _gpt3(layers: int, width: int, heads: int) -> ModelConfig:
    return ModelConfig(
        family="gpt3",
        layers=layers,
        width=width,
        heads=heads,
        context=2048,
        vocab_size=50257,
        dropout=0.0,
    )


PUBLISHED: dict[str, ModelConfig] = {
    # Radford et al. 2018, section 4.1; the vocabulary is the released one: 40,000 merges, the
    # characters, <unk> and a line's end.
    "gpt1": ModelConfig(
        family="gpt1", layers=12, width=768, heads=12, context=512, vocab_size=40478, dropout=0.1
    ),
    # Radford et al. 2019, table 2; heads are those of the released models.
    "gpt2-small": _gpt2(12, 768, 12),
    "gpt2-medium": _gpt2(24, 1024, 16),
    "gpt2-large": _gpt2(36, 1280, 20),
    "gpt2-xl": _gpt2(48, 1600, 25),
    # Brown et al. 2020, table 2.1.
    "gpt3-small": _gpt3(12, 768, 12),
    "gpt3-medium": _gpt3(24, 1024, 16),
    "gpt3-large": _gpt3(24, 1536, 16),
    "gpt3-xl": _gpt3(
        24, 2048, 16
    ),  # printed: 24 heads of 128, which is 3,072 and not the 2,048 of d_model; 16 of 128 are
    "gpt3-2.7b": _gpt3(32, 2560, 32),
    "gpt3-6.7b": _gpt3(32, 4096, 32),
    "gpt3-13b": _gpt3(
        40, 5120, 40
    ),  # printed: d_model 5,140, which 40 heads of 128 do not make; 5,120 they do
    "gpt3-175b": _gpt3(96, 12288, 96),
}
