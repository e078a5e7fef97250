"""Supervised tuning on demonstrations (Ouyang et al. 2022, section 3.5 and appendix C.1): the objective, and every epoch's weights kept.

The loss is of what the assistant says and of nothing else, a mean over the batch's tokens of it. Dialogues of a batch lie one after another
with nothing between (`gpt_model.ragged`): none sees another. Pre-training text may be mixed in (appendix C.3), whole windows of it, of
which every token is predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpt_model.alignment.batches import Batches
from gpt_model.alignment.chat import Laid, Layout
from gpt_model.alignment.dialogue import Dialogue
from gpt_model.decoder import IGNORED
from gpt_model.loss import linear_cross_entropy, linear_cross_entropy_by_row
from gpt_model.ragged import Ragged, like_lengths
from gpt_model.training.loop import Execution
from gpt_model.training.snapshots import keep_in
from gpt_model.transformer import GPT

EPOCHS = "epochs"

# (which step, how many) -> windows of pre-training text, each as long as the context
Windows = Callable[[int, int], Sequence[Sequence[int]]]


def fitting(dialogues: Sequence[Dialogue], layout: Layout, context: int) -> tuple[list[Laid], dict[str, int]]:
    """Each dialogue as tokens; and how many were shortened, or left out.

    One longer than the context loses its oldest exchanges, the system's turn kept, while a question and an answer are left.
    """
    laid, counts = [], {"shortened": 0, "too_long": 0}
    for turns in dialogues:
        whole = layout.whole(turns)
        shorter = turns
        while len(whole.tokens) > context and (cut := _without_the_oldest(shorter)):
            shorter = cut
            whole = layout.whole(shorter)
        if len(whole.tokens) > context:
            counts["too_long"] += 1
            continue
        counts["shortened"] += shorter is not turns
        laid.append(whole)
    return laid, counts


def _without_the_oldest(turns: Dialogue) -> Dialogue | None:
    first = 1 if turns[0].role == "system" else 0
    return (*turns[:first], *turns[first + 2 :]) if len(turns) - first > 2 else None


@dataclass(frozen=True)
class Micro:
    """Texts that go through the model at once. `predicted` [n]: the states that predict; `targets` [n]; `total`: the batch's."""

    rows: Ragged
    predicted: Tensor
    targets: Tensor
    total: int
    parts: int

    def to(self, device: torch.device | str) -> Micro:
        return Micro(self.rows.to(device), self.predicted.to(device), self.targets.to(device), self.total, self.parts)


def micro_of(laid: Sequence[Laid], total: int = 0, parts: int = 1) -> Micro:
    """`total`: tokens to be predicted in the whole batch; those of `laid` by default."""
    rows = Ragged.of([one.tokens for one in laid])
    learnt = torch.tensor([flag for one in laid for flag in one.learnt])
    targets = learnt.nonzero()[:, 0]  # the first token of a dialogue is a marker, so each of these has one before it
    return Micro(rows, targets - 1, rows.tokens[targets], total or len(targets), parts)


class Supervised:
    """The objective. Items are the dialogues; after them, in each batch, `mixed` windows of pre-training text."""

    unit = "dialogues"

    def __init__(
        self, laid: Sequence[Laid], batches: Batches, flops_per_token: float, mixed: int = 0, windows: Windows | None = None
    ) -> None:
        self.laid, self.batches, self.mixed, self.windows = laid, batches, mixed, windows
        self.flops_per_unit = flops_per_token * sum(batches.sizes) / max(1, len(batches.sizes))

    def units_before(self, step: int) -> int:
        return step * self.batches.batch

    def micro_batches(self, step: int) -> list[Micro]:
        parts = [[self.laid[item] for item in part] for part in self.batches.parts(step)]
        if self.mixed and self.windows:
            windows = [Laid([*window], [False, *[True] * (len(window) - 1)]) for window in self.windows(step, self.mixed)]
            parts = self._with_windows(parts, windows)
        total = sum(sum(one.learnt) for part in parts for one in part)
        ranks = self.batches.world_size
        return [micro_of(part, total, len(parts)) for part in parts[self.batches.rank :: ranks]]

    def _with_windows(self, parts: list[list[Laid]], windows: Sequence[Laid]) -> list[list[Laid]]:
        """The windows in micro-batches of their own size, as many for every rank as its number allows; else beside the dialogues."""
        ranks = self.batches.world_size
        each = max(1, self.batches.micro_tokens // len(windows[0].tokens))
        number = min(-(-len(windows) // (each * ranks)), len(windows) // ranks) * ranks
        if number == 0:  # fewer windows than ranks: the shortest parts take them
            for window in windows:
                min(parts, key=lambda part: sum(len(one.tokens) for one in part)).append(window)
            return parts
        return parts + [list(windows[start::number]) for start in range(number)]

    def loss(self, model: nn.Module, micro_batch: Micro) -> tuple[Tensor, Mapping[str, tuple[Any, Any]]]:
        assert isinstance(model, GPT)
        micro = micro_batch.to(model.wte.weight.device)
        embeddings = model.embeddings()
        states = model.states_of(micro.rows, embeddings)[micro.predicted]
        mean = linear_cross_entropy(states, embeddings[0], micro.targets, IGNORED)
        count = len(micro.targets)
        return mean * (count * micro.parts / micro.total), {"nats": (mean.detach() * count, count)}


@torch.no_grad()
def held_out_loss(model: GPT, laid: Sequence[Laid], execution: Execution) -> float:
    """Nats a token of what assistants say. The ranks share the work. Collective where there are several."""
    parts = list(like_lengths([len(one.tokens) for one in laid]))
    sums = torch.zeros(2, dtype=torch.float64, device=execution.device)
    for part in parts[execution.rank :: execution.world_size]:
        micro = micro_of([laid[number] for number in part]).to(model.wte.weight.device)
        losses = linear_cross_entropy_by_row(model.states_of(micro.rows)[micro.predicted], model.wte.weight, micro.targets)
        sums += torch.stack([losses.double().sum(), torch.tensor(float(len(losses)), dtype=torch.float64)]).to(sums.device)
    if execution.world_size > 1:
        torch.distributed.all_reduce(sums)
    return float(sums[0] / max(1.0, float(sums[1])))


def keep_epoch(model: GPT, output: Path, epoch: int) -> None:
    """The weights after an epoch."""
    keep_in(output / EPOCHS / str(epoch), model)
