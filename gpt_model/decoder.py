"""Decoder: what any next-token model here can do, however it reads: a GPT (`transformer.py`), or
the LSTM set against it (`lstm.py`).

- A subclass makes states of tokens (`hidden`); logits, losses and fresh weights are the same for
  all, with the head tied to the embedding.
- Initialisation is a function of the seed and each parameter's name: not of the device, the global
  RNG or the order of creation.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt_model.config import ModelConfig
from gpt_model.ops.cross_entropy import linear_cross_entropy, linear_cross_entropy_by_row

D = TypeVar("D", bound="Decoder")
IGNORED = -100  # a target that is not scored


def generator_of(name: str, seed: int) -> torch.Generator:
    """What the parameter `name` is drawn by."""
    own_seed = int.from_bytes(
        hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "little", signed=True
    )
    return torch.Generator("cpu").manual_seed(own_seed)


class Decoder(nn.Module, ABC):
    """`model(tokens)` are logits; `model(tokens, targets)` is the mean loss, which is what an
    engine calls.
    """

    config: ModelConfig
    wte: nn.Embedding  # also the output head

    @abstractmethod
    def hidden(self, tokens: Tensor, *, embeddings: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """States [batch, time, width] that the output head takes, of tokens [batch, time].
        `embeddings`: where the head is needed too.
        """

    @abstractmethod
    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Rows of the tokens [vocabulary, width] and of the positions [context, width] as one pass
        uses them; states and head of one pass come from one call of this.
        """

    @abstractmethod
    def spread_of(self, name: str) -> float:
        """The standard deviation that the matrix `name` is drawn with."""

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Fresh weights: matrices from a normal distribution, gains 1, biases 0."""
        for name, parameter in self.named_parameters():
            if parameter.is_meta:  # shapes only, e.g. while a checkpoint is being loaded
                continue
            if parameter.dim() == 1:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
                continue
            parameter.copy_(
                torch.normal(
                    0.0, self.spread_of(name), parameter.shape, generator=generator_of(name, seed)
                )
            )

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
        rows = self.embeddings()
        return linear_cross_entropy(
            self.hidden(tokens, embeddings=rows).flatten(0, 1), rows[0], targets.flatten(), IGNORED
        )

    @torch.no_grad()
    def loss_by_token(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats of every target: [batch, time], 0 where IGNORED. For evaluation:
        carries no gradient.
        """
        return self.losses_of(self.hidden(tokens), targets)

    @torch.no_grad()
    def losses_of(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The same of states [batch, time, width] that are there already."""
        scored = targets != IGNORED
        losses = torch.zeros(targets.shape, dtype=torch.float32, device=targets.device)
        losses[scored] = linear_cross_entropy_by_row(
            hidden[scored], self.wte.weight, targets[scored]
        )
        return losses


def build(config: ModelConfig, seed: int = 0) -> Decoder:
    """A decoder of this shape with fresh weights."""
    if config.family == "lstm":
        from gpt_model.lstm import LSTM

        return LSTM(config, seed)
    from gpt_model.transformer import GPT

    return GPT(config, seed)


def with_rows(model: D, rows: int, dropout: float, seed: int) -> D:
    """A copy of `model` with dropout, and `rows` rows more in its vocabulary, for new tokens, drawn
    as fresh ones are.
    """
    known = model.config.vocab_size
    grown = cast(
        "D",
        build(
            model.config.model_copy(update={"vocab_size": known + rows, "dropout": dropout}), seed
        ),
    )
    weights = model.state_dict()
    weights["wte.weight"] = torch.cat([weights["wte.weight"], grown.wte.weight[known:].detach()])
    grown.load_state_dict(weights)
    return grown
