"""The decoder of the three papers, top to bottom: embeddings, blocks, tied head.

- GPT-1 (Radford et al. 2018, section 4.1): x = norm(x + attention(x)), x = norm(x + MLP(x)), and no
  final norm.
- GPT-2 (Radford et al. 2019, section 2.3): x = x + attention(norm(x)), x = x + MLP(norm(x)), and a
  final norm.
- GPT-3 (Brown et al. 2020, section 2.1): GPT-2, every second layer's attention locally banded
  (`gpt_model.ops.sliding_window`).
- Parameters carry GPT-2's released names and layouts (weights are [in, out]) in all three;
  `gpt_model.convert` knows the others'.
- Rows of different lengths are padded on the right: attention is causal, so no real token ever sees
  a pad, and no mask is needed.
- On a CPU the fused pieces are in `gpt_model.ops.cpu_kernels`, the loss in
  `gpt_model.ops.cross_entropy`; decoding is in `gpt_model.generation`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt_model.cache import Cache
from gpt_model.config import ModelConfig
from gpt_model.decoder import IGNORED, Decoder
from gpt_model.ops import cpu_kernels, varlen
from gpt_model.ops.conv1d import Projection
from gpt_model.ops.sliding_window import banded_attention
from gpt_model.ops.varlen import Ragged

__all__ = ["GPT", "IGNORED", "NORM_EPSILON", "Cache"]
NORM_EPSILON = 1e-5
GPT1_WIDTH = 768


class Attention(nn.Module):
    """Multi-head causal self-attention, over everything read or over the last `band` tokens."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.heads, self.dropout, self.band = (
            layer,
            config.heads,
            config.dropout,
            config.band_of(layer),
        )
        self.c_attn = Projection(config.width, 3 * config.width, bias=config.attention_bias)
        self.c_proj = Projection(config.width, config.width)

    def forward(self, x: Tensor, cache: Cache | None, rows: Ragged | None = None) -> Tensor:
        fused = self.c_attn(x)
        if rows is not None:
            return self.c_proj(
                varlen.attention(
                    fused[0], rows, self.heads, self.band, self.dropout if self.training else 0.0
                )[None]
            )
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in fused.chunk(3, dim=-1)
        )
        if cache is not None:
            cache.write(self.layer, fused)
        if cache is not None and not cache.fresh:
            y = cache.attend(self.layer, query, self.band)
        elif self.band is None:
            y = F.scaled_dot_product_attention(
                query, key, value, dropout_p=self.dropout if self.training else 0.0, is_causal=True
            )
        else:
            y = banded_attention(
                query, key, value, self.band, self.dropout if self.training else 0.0
            )
        return self.c_proj(y.transpose(1, 2).flatten(2))  # [batch, time, width]


class MLP(nn.Module):
    """Four times as wide, tanh-GELU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = Projection(config.width, 4 * config.width)
        self.c_proj = Projection(4 * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    """Attention, then MLP, each with its residual sum and its norm, in the family's order."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.dropout, self.norm_last = config.dropout, config.family == "gpt1"
        self.ln_1 = nn.LayerNorm(config.width, eps=NORM_EPSILON)
        self.attn = Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.width, eps=NORM_EPSILON)
        self.mlp = MLP(config)

    @property
    def plain(self) -> bool:
        """Whether the projections are their own weights and no more. Adapters (`gpt_model.lora`)
        are more, and kernels do not read them.
        """
        return all(
            type(one) is Projection
            for one in (self.attn.c_attn, self.attn.c_proj, self.mlp.c_fc, self.mlp.c_proj)
        )

    def forward(self, x: Tensor, cache: Cache | None, rows: Ragged | None = None) -> Tensor:
        """`rows`: x is [1, tokens, width], and these texts one after another."""
        if self.norm_last:
            x = self.ln_1(x + F.dropout(self.attn(x, cache, rows), self.dropout, self.training))
            return self.ln_2(x + F.dropout(self.mlp(x), self.dropout, self.training))
        dropout, band = self.dropout if self.training else 0.0, self.attn.band
        if (
            cache is None
            and self.plain
            and cpu_kernels.usable(x, dropout, band, rows.longest if rows else None)
        ):
            lengths = rows.lengths if rows else None
            x = cpu_kernels.attention_half(
                x, self.ln_1, self.attn.c_attn, self.attn.c_proj, self.attn.heads, band, lengths
            )
            return cpu_kernels.mlp_half(x, self.ln_2, self.mlp.c_fc, self.mlp.c_proj)
        x = x + F.dropout(self.attn(self.ln_1(x), cache, rows), self.dropout, self.training)
        return x + F.dropout(self.mlp(self.ln_2(x)), self.dropout, self.training)


class GPT(Decoder):
    """A GPT. `GPT(config)(tokens)` are logits [batch, time, vocabulary]."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        # Made around empty tensors: nn.Embedding(…) would draw weights that `initialise` replaces,
        # and of a model without memory (`meta`) that imports torch's compiler, 2.5 s.
        self.wte = nn.Embedding.from_pretrained(
            torch.empty(config.vocab_size, config.width), freeze=False
        )  # also the output head
        self.wpe = nn.Embedding.from_pretrained(
            torch.empty(config.context, config.width), freeze=False
        )
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.ln_f = (
            nn.Identity()
            if config.family == "gpt1"
            else nn.LayerNorm(config.width, eps=NORM_EPSILON)
        )
        self.initialise(seed)

    def spread_of(self, name: str) -> float:
        """GPT-1: 0.02 (section 4.1). GPT-2 and GPT-3: 0.01 for position embeddings, else 0.02, and
        residual projections scaled by 1/sqrt(residual layers).

        GPT-1's 0.02 is that of a width of 768. At a width of 128 what a layer would add to the
        stream, which is normalised after each sum, were too small to learn from (training stayed at
        the words' frequencies); so a block's matrices keep the size of what they add. Standard
        deviations: GPT-2's released model.py; the scaling: GPT-2, section 2.3 (there are two
        residual layers a block).
        """
        if self.config.family == "gpt1":
            return (
                0.02 * math.sqrt(GPT1_WIDTH / self.config.width) if name.startswith("h.") else 0.02
            )
        if name.endswith("c_proj.weight"):
            return 0.02 / math.sqrt(2 * self.config.layers)
        return 0.01 if name.startswith("wpe") else 0.02

    @torch.no_grad()
    def loss_by_token(self, tokens: Tensor, targets: Tensor, cache: Cache | None = None) -> Tensor:
        """Cross-entropy in nats of every target: [batch, time], 0 where IGNORED. For evaluation:
        carries no gradient.
        """
        return self.losses_of(self.hidden(tokens, cache), targets)

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Rows of the tokens [vocabulary, width] and of the positions [context, width] as one pass
        uses them.

        In training GPT-1 drops out elements of the matrix itself, which is then looked up and is
        the output head too (released train.py, `we = dropout(we)`): states and head of one pass
        must come from one call of this. GPT-2 drops out the sum of the two instead.
        """
        if self.config.family == "gpt1" and self.training:
            return F.dropout(self.wte.weight, self.config.dropout), F.dropout(
                self.wpe.weight, self.config.dropout
            )
        return self.wte.weight, self.wpe.weight

    def hidden(
        self,
        tokens: Tensor,
        cache: Cache | None = None,
        lengths: Tensor | None = None,
        embeddings: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """States [batch, time, width] that the output head takes, of tokens [batch, time].
        `embeddings`: where the head is needed too.

        With a cache the tokens follow what each row has read, and are read into it: `lengths`
        [batch] says how many tokens of each row count (the rest is padding on the right); all of
        them by default.
        """
        time = tokens.shape[1]
        token_rows, position_rows = embeddings or self.embeddings()
        if cache is None:
            if time > self.config.context:
                raise ValueError(
                    f"{time} tokens are more than the context of {self.config.context}"
                )
            place = position_rows[:time]
        else:
            place = F.embedding(cache.begin(time), position_rows)
        x = F.embedding(tokens, token_rows) + place
        if self.config.family != "gpt1":
            x = F.dropout(x, self.config.dropout, self.training)
        for block in self.h:
            x = block(x, cache)
        if cache is not None:
            cache.end(time if lengths is None else lengths)
        return self.ln_f(x)

    def states_of(self, rows: Ragged, embeddings: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """States [tokens, width] of texts one after another, each read as if it stood alone
        (`gpt_model.ops.varlen`).
        """
        if rows.longest > self.config.context:
            raise ValueError(
                f"{rows.longest} tokens are more than the context of {self.config.context}"
            )
        token_rows, position_rows = embeddings or self.embeddings()
        x = F.embedding(rows.tokens, token_rows) + F.embedding(rows.positions, position_rows)
        x = x[None]
        if self.config.family != "gpt1":
            x = F.dropout(x, self.config.dropout, self.training)
        for block in self.h:
            x = block(x, None, rows)
        states: Tensor = self.ln_f(x)[0]
        return states

    def new_cache(self, rows: int, capacity: int | None = None) -> Cache:
        """An empty cache for `rows` rows of at most `capacity` tokens (the context by default)."""
        weight = self.wte.weight
        return Cache(
            self.config, rows, capacity or self.config.context, weight.device, weight.dtype
        )
