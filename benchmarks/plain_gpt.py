"""What anyone would write: GPT-2 and its training loop in nanoGPT's manner, on CPU threads.

The parameters are ours': learned positions, biases, tied head. Attention is torch's
scaled_dot_product_attention, the loss torch's cross_entropy over all logits, the optimizer torch's
fused AdamW, clipped; matrices decay, vectors do not.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainBlock(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention_in, self.attention_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, time, width] -> the same."""
        dropout = self.dropout if self.training else 0.0
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.attention_in(self.norm_1(x)).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        mixed = self.attention_out(mixed.transpose(1, 2).flatten(2))
        x = x + F.dropout(mixed, dropout)
        return x + F.dropout(self.narrow(F.gelu(self.wide(self.norm_2(x)))), dropout)


class PlainGPT(nn.Module):
    def __init__(self, shape: dict[str, Any], vocabulary: int) -> None:
        super().__init__()
        width = shape["width"]
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(shape["context"], width)
        self.dropout = nn.Dropout(shape["dropout"])
        self.blocks = nn.ModuleList(
            PlainBlock(width, shape["heads"], shape["dropout"]) for _ in range(shape["layers"])
        )
        self.norm = nn.LayerNorm(width)
        residual = ("attention_out.weight", "narrow.weight")
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                depth = 2 * shape["layers"] if name.endswith(residual) else 1
                nn.init.normal_(parameter, std=0.02 / math.sqrt(depth))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The mean loss [] of tokens and targets [batch, time]."""
        return F.cross_entropy(self.logits(tokens).flatten(0, 1), targets.flatten())

    def logits(self, tokens: Tensor) -> Tensor:
        """tokens [batch, time] -> [batch, time, vocabulary]."""
        x = self.dropout(self.tokens(tokens) + self.positions.weight[: tokens.shape[1]])
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


class PlainLoop:
    def __init__(
        self,
        model: PlainGPT,
        micro_batch: int,
        precision: str,
        betas: tuple[float, float] = (0.9, 0.95),
    ) -> None:
        """`micro_batch`: sequences. `precision`: of the factors of products."""
        self.model, self.micro_batch = model.train(), micro_batch
        self.bfloat16 = precision == "bfloat16"
        matrices, vectors = (
            [p for p in model.parameters() if (p.dim() > 1) is wanted] for wanted in (True, False)
        )
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
            lr=1e-3,
            betas=betas,
            fused=True,
        )

    def step(self, tokens: Tensor, rate: float = 1e-3) -> None:
        """One optimizer step on tokens [sequences, context + 1]."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        parts = tokens.split(self.micro_batch)
        for part in parts:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
                loss = self.model(part[:, :-1], part[:, 1:])
            (loss / len(parts)).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
