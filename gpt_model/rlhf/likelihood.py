"""How likely a model finds whole answers: log-probabilities, each answer read once after its
prompt. No gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gpt_model.ops.cross_entropy import linear_cross_entropy_by_row
from gpt_model.ops.varlen import PackedSequences
from gpt_model.rlhf.episodes import places
from gpt_model.training.batching import token_batches
from gpt_model.transformer import GPT


@torch.no_grad()
def log_probabilities(
    model: GPT,
    texts: Sequence[Sequence[int]],
    answers: Sequence[int],
    temperature: float = 1.0,
    precision: str = "float32",
) -> list[float]:
    """log π(answer | prompt) in nats, of each text, whose last `answers` tokens are the answer. At
    a temperature: of what is sampled at it.

    The model is used in the mode it is in.
    """
    device = model.wte.weight.device
    found = [0.0] * len(texts)
    for part in token_batches([len(text) for text in texts]):
        rows = PackedSequences.of([texts[number] for number in part], device)
        sizes = torch.tensor([answers[number] for number in part], device=device)
        at = before(rows, sizes)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            states = model.states_of(rows)[at].float() / temperature
        by_token = -linear_cross_entropy_by_row(
            states, model.wte.weight, rows.tokens[at + 1]
        ).double()
        for number, tokens in zip(part, by_token.split(sizes.tolist()), strict=True):
            found[number] = float(tokens.sum())
    return found


def before(rows: PackedSequences, answers: Tensor) -> Tensor:
    """Where the states stand that the answers' tokens are predicted from: [tokens of all answers]."""
    lengths = torch.tensor(rows.lengths, device=answers.device)
    return places(rows.starts, lengths - answers, answers)
