"""The LSTM that GPT-1's table 5 sets against its Transformer: embedding, one layer of units, tied
head (Radford et al. 2018, section 5). Also the network of each family.

The paper's has a single layer; here it has as many units as the Transformer is wide, so that
everything round it (vocabulary, head, task heads, batches) is the same. It reads from the first
token on: a sequence's `context` bounds what is read, not what could be.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt_model.config import ModelConfig
from gpt_model.transformer import GPT, Decoder, look_up


class LSTM(Decoder):
    """`LSTM(config)(tokens)` are logits. `config.layers` of `config.width` units; heads and
    positions it has none.
    """

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding.from_pretrained(
            torch.empty(config.vocab_size, config.width), freeze=False
        )
        self.cells = nn.LSTM(
            config.width,
            config.width,
            config.layers,
            batch_first=True,
            dropout=config.dropout if config.layers > 1 else 0.0,
        )
        self.initialise(seed)

    def init_std(self, name: str) -> float:
        """0.02 for the embedding, as GPT-1's; 1/sqrt(width) for the units, so that activations
        neither grow nor fade.
        """
        return 0.02 if name.startswith("wte") else self.config.width**-0.5

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Token embeddings [vocabulary, width] as GPT-1's: in training, elements of the matrix are
        dropped, for lookup and head alike. Positions are [0, width]: there are none.
        """
        rows = F.dropout(self.wte.weight, self.config.dropout) if self.training else self.wte.weight
        return rows, rows.new_empty(0, self.config.width)

    def hidden(self, tokens: Tensor, *, embeddings: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """States [batch, time, width] after each of tokens [batch, time], padded on the right."""
        if tokens.shape[1] > self.config.context:
            raise ValueError(
                f"{tokens.shape[1]} tokens are more than the context of {self.config.context}"
            )
        rows, _ = embeddings or self.embeddings()
        states, _ = self.cells(look_up(tokens, rows, is_head=embeddings is not None))
        return F.dropout(states, self.config.dropout, self.training)


def build(config: ModelConfig, seed: int = 0) -> Decoder:
    """A decoder of this shape with fresh weights."""
    return LSTM(config, seed) if config.family == "lstm" else GPT(config, seed)
