"""The decoder of the three papers, top to bottom: the base of any decoder, blocks, the GPT.

- GPT-1 (Radford et al. 2018, section 4.1): x = norm(x + attention(x)), x = norm(x + MLP(x)), and no
  final norm.
- GPT-2 (Radford et al. 2019, section 2.3): x = x + attention(norm(x)), x = x + MLP(norm(x)), and a
  final norm.
- GPT-3 (Brown et al. 2020, section 2.1): GPT-2 with "locally banded" attention in every second
  layer, a sliding window (`gpt_model.ops.sliding_window`).
- Parameters carry GPT-2's released names and layouts (weights are [in, out]) in all three;
  `gpt_model.convert` maps the others'.
- Initialisation is a function of the seed and each parameter's name: not of the device, the global
  RNG or the order of creation.
- Rows of different lengths are padded on the right: attention is causal, so no real token ever
  attends to padding, and no mask is needed.
- On a CPU the fused halves of a block are in `gpt_model.ops.cpu_kernels`, the loss in
  `gpt_model.ops.cross_entropy`; decoding is in `gpt_model.generation`.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt_model.config import ModelConfig
from gpt_model.kv_cache import Cache
from gpt_model.ops import cpu_kernels, varlen
from gpt_model.ops.conv1d import Conv1D
from gpt_model.ops.cross_entropy import linear_cross_entropy, linear_cross_entropy_by_row
from gpt_model.ops.sliding_window import sliding_window_attention
from gpt_model.ops.varlen import PackedSequences

NORM_EPSILON = 1e-5
GPT1_WIDTH = 768


D = TypeVar("D", bound="Decoder")
IGNORED = -100  # a target that is not scored


def generator_of(name: str, seed: int) -> torch.Generator:
    """The generator that draws the parameter `name`."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def look_up(tokens: Tensor, table: Tensor, *, is_head: bool) -> Tensor:
    """Rows of table [vocabulary, width] for tokens [...]: [..., width].

    `is_head`: the same pass multiplies by the table too, whose gradient is whole then. On a CPU the
    few rows looked up are added to it where it lies, not as a second whole one.
    """
    return F.embedding(tokens, table, sparse=is_head and tokens.device.type == "cpu")


class Decoder(nn.Module, ABC):
    """Any next-token model: a GPT, or the LSTM that GPT-1 compares it with (`lstm.py`).

    `model(tokens)` returns logits, `model(tokens, targets)` the mean loss, as an engine calls it. A
    subclass turns tokens into states (`hidden`); logits, losses and fresh weights are the same for
    all, with the head tied to the embedding.
    """

    config: ModelConfig
    wte: nn.Embedding  # also the output head

    @abstractmethod
    def hidden(self, tokens: Tensor, *, embeddings: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """States [batch, time, width] for the output head, of tokens [batch, time].

        `embeddings`: those of this pass, where the caller needs the head too (`look_up`).
        """

    @abstractmethod
    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Token embeddings [vocabulary, width] and position embeddings [context, width] as one
        pass uses them. States and head of one pass come from one call.
        """

    @abstractmethod
    def init_std(self, name: str) -> float:
        """The standard deviation of the fresh matrix `name`."""

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Fresh weights: matrices from a normal distribution, gains 1, biases 0."""
        for name, parameter in self.named_parameters():
            if not parameter.is_meta:  # shapes only, e.g. while a checkpoint is being loaded
                parameter.copy_(self.fresh(name, parameter.shape, seed))

    def fresh(self, name: str, shape: torch.Size, seed: int) -> Tensor:
        """The fresh values of the parameter `name`, of this shape [...]."""
        if len(shape) == 1:
            return torch.full(shape, 1.0 if name.endswith("weight") else 0.0)
        return torch.normal(0.0, self.init_std(name), shape, generator=generator_of(name, seed))

    def weight(self, name: str) -> Tensor:
        """The parameter `name`, whole [...]. An engine that shares out the parameters among ranks
        puts its own in place of this.
        """
        return self.get_parameter(name).detach()

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """tokens [batch, time] -> logits [batch, time, vocabulary]; with targets [batch, time], the
        mean loss in nats instead.
        """
        if targets is not None:
            return self.loss(tokens, targets)
        return F.linear(self.hidden(tokens), self.wte.weight)

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats over the targets [batch, time] that are not IGNORED. Full
        logits never exist.
        """
        embeddings = self.embeddings()
        hidden = self.hidden(tokens, embeddings=embeddings).flatten(0, 1)
        return linear_cross_entropy(hidden, embeddings[0], targets.flatten(), IGNORED)

    @torch.no_grad()
    def loss_by_token(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats of every target: [batch, time], 0 where IGNORED. For evaluation:
        carries no gradient.
        """
        return self.losses_of(self.hidden(tokens), targets)

    @torch.no_grad()
    def losses_of(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """`loss_by_token` of hidden states [batch, time, width] for targets [batch, time]."""
        scored = targets != IGNORED
        losses = torch.zeros(targets.shape, dtype=torch.float32, device=targets.device)
        losses[scored] = linear_cross_entropy_by_row(
            hidden[scored], self.wte.weight, targets[scored]
        )
        return losses


class Attention(nn.Module):
    """Multi-head causal self-attention, over all earlier tokens or over the last `band`."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.heads = layer, config.heads
        self.dropout, self.band = config.dropout, config.band_of(layer)
        self.c_attn = Conv1D(config.width, 3 * config.width, bias=config.attention_bias)
        self.c_proj = Conv1D(config.width, config.width)

    def forward(
        self, x: Tensor, cache: Cache | None, packed: PackedSequences | None = None
    ) -> Tensor:
        """x [batch, time, width] -> [batch, time, width]; see `Block` for `packed`."""
        fused = self.c_attn(x)  # [batch, time, 3 * width]
        dropout = self.dropout if self.training else 0.0
        if packed is not None:
            y = varlen.attention(fused[0], packed, self.heads, self.band, dropout)
            return self.c_proj(y[None])
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in fused.chunk(3, dim=-1)
        )
        if cache is not None:
            cache.write(self.layer, fused)
        if cache is not None and not cache.fresh:
            y = cache.attend(self.layer, query, self.band)
        elif self.band is None:
            y = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        else:
            y = sliding_window_attention(query, key, value, self.band, dropout)
        return self.c_proj(y.transpose(1, 2).flatten(2))  # [batch, time, width]


class MLP(nn.Module):
    """Four times as wide, tanh-GELU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = Conv1D(config.width, 4 * config.width)
        self.c_proj = Conv1D(4 * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, time, width] -> [batch, time, width]."""
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
        """Whether no adapter (`gpt_model.lora`) stands beside a projection: the fused kernels read
        the projections' weights alone.
        """
        return all(
            type(layer) is Conv1D
            for layer in (self.attn.c_attn, self.attn.c_proj, self.mlp.c_fc, self.mlp.c_proj)
        )

    def forward(
        self, x: Tensor, cache: Cache | None, packed: PackedSequences | None = None
    ) -> Tensor:
        """x [batch, time, width] -> [batch, time, width]. With `packed`, x is [1, tokens, width]:
        these sequences one after another.
        """
        if self.norm_last:
            x = self.ln_1(x + F.dropout(self.attn(x, cache, packed), self.dropout, self.training))
            return self.ln_2(x + F.dropout(self.mlp(x), self.dropout, self.training))
        dropout, band = self.dropout if self.training else 0.0, self.attn.band
        longest = packed.longest if packed else None
        if cache is None and self.plain and cpu_kernels.usable(x, dropout, band, longest):
            lengths = packed.lengths if packed else None
            x = cpu_kernels.attention_half(
                x, self.ln_1, self.attn.c_attn, self.attn.c_proj, self.attn.heads, band, lengths
            )
            return cpu_kernels.mlp_half(x, self.ln_2, self.mlp.c_fc, self.mlp.c_proj)
        x = x + F.dropout(self.attn(self.ln_1(x), cache, packed), self.dropout, self.training)
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

    def init_std(self, name: str) -> float:
        """GPT-1: 0.02 (section 4.1). GPT-2 and GPT-3: 0.01 for position embeddings, else 0.02, and
        residual projections scaled by 1/sqrt(residual layers).

        GPT-1's 0.02 belongs to a width of 768. At a width of 128 a layer's contribution to the
        residual stream, which is normalised after each sum, was too small to learn from: training
        stayed at the unigram loss. So a block's matrices scale with the width. Standard deviations:
        GPT-2's released model.py; the scaling: GPT-2, section 2.3 (two residual layers a block).
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
        """Token embeddings [vocabulary, width] and position embeddings [context, width] as one
        pass uses them.

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
        """States [batch, time, width] for the output head, of tokens [batch, time].

        With a cache the tokens continue each row and are written into it: `lengths` [batch] says
        how many tokens of each row count (the rest is padding on the right), by default all.
        `embeddings`: those of this pass, where the caller needs the head too (`look_up`).
        """
        time = tokens.shape[1]
        token_rows, position_rows = embeddings or self.embeddings()
        if cache is None:
            if time > self.config.context:
                raise ValueError(
                    f"{time} tokens are more than the context of {self.config.context}"
                )
            position = position_rows[:time]
        else:
            position = F.embedding(cache.begin(time), position_rows)
        x = look_up(tokens, token_rows, is_head=embeddings is not None) + position
        if self.config.family != "gpt1":
            x = F.dropout(x, self.config.dropout, self.training)
        for block in self.h:
            x = block(x, cache)
        if cache is not None:
            cache.end(time if lengths is None else lengths)
        return self.ln_f(x)

    def states_of(
        self, packed: PackedSequences, embeddings: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """States [tokens, width] of packed sequences, each as if it stood alone. `embeddings`: as
        `hidden` takes them.
        """
        if packed.longest > self.config.context:
            raise ValueError(
                f"{packed.longest} tokens are more than the context of {self.config.context}"
            )
        token_rows, position_rows = embeddings or self.embeddings()
        x = look_up(packed.tokens, token_rows, is_head=embeddings is not None)
        x = x + F.embedding(packed.positions, position_rows)
        x = x[None]
        if self.config.family != "gpt1":
            x = F.dropout(x, self.config.dropout, self.training)
        for block in self.h:
            x = block(x, None, packed)
        states: Tensor = self.ln_f(x)[0]
        return states

    def new_cache(self, rows: int, capacity: int | None = None) -> Cache:
        """An empty cache for `rows` rows of at most `capacity` tokens (the context by default): on
        a GPU in the precision of autocast, else in that of the weights.
        """
        weight = self.wte.weight
        reduced = weight.is_cuda and torch.is_autocast_enabled("cuda")
        kind = torch.get_autocast_dtype("cuda") if reduced else weight.dtype
        return Cache(self.config, rows, capacity or self.config.context, weight.device, kind)


def with_rows(model: D, rows: int, dropout: float, seed: int) -> D:
    """A copy of `model` with dropout, and `rows` rows more in its vocabulary, for new tokens, drawn
    as fresh ones are.
    """
    known = model.config.vocab_size
    config = model.config.model_copy(update={"vocab_size": known + rows, "dropout": dropout})
    grown = type(model)(config, seed)
    weights = model.state_dict()
    weights["wte.weight"] = torch.cat([weights["wte.weight"], grown.wte.weight[known:].detach()])
    grown.load_state_dict(weights)
    return grown
