"""Supervised tuning on demonstrations (Ouyang et al. 2022, section 3.5 and appendix C.1): the
objective, and every epoch's weights kept.

The loss is of what the assistant says and of nothing else, a mean over the batch's tokens of it.
Dialogues of a batch lie one after another with nothing between (`gpt_model.ops.varlen`): none sees
another. Pre-training text may be mixed in (appendix C.3), whole windows of it, of which every token
is predicted. The loss is then (1 − share) · the mean over the assistant's tokens + share · the mean
over the text's: in one mean over all of them the text would be most of it, windows being so much
longer than answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpt_model.ops.cross_entropy import linear_cross_entropy, linear_cross_entropy_by_row
from gpt_model.ops.varlen import PackedSequences
from gpt_model.rlhf.chat_template import Laid, Layout
from gpt_model.rlhf.dialogue import Dialogue
from gpt_model.training.batching import EpochBatches, micro_batch_count, token_batches
from gpt_model.training.loop import Execution
from gpt_model.training.snapshots import keep_in
from gpt_model.transformer import GPT, IGNORED

EPOCHS = "epochs"

# (which step, how many) -> windows of pre-training text, each as long as the context
Windows = Callable[[int, int], Sequence[Sequence[int]]]


def fitting(
    dialogues: Sequence[Dialogue], layout: Layout, context: int
) -> tuple[list[Laid], dict[str, int]]:
    """Each dialogue as tokens; and how many were shortened, or left out.

    One longer than the context loses its oldest exchanges, the system's turn kept, while a question
    and an answer are left.
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
    """Texts that go through the model at once. `predicted` [n]: the states that predict; `targets`
    [n], the first `said` of them what assistants say, the others pre-training text's; `weights`: of
    a token of either kind in the loss.
    """

    rows: PackedSequences
    predicted: Tensor
    targets: Tensor
    said: int
    weights: tuple[float, float] = (1.0, 1.0)

    def to(self, device: torch.device | str) -> Micro:
        return replace(
            self,
            rows=self.rows.to(device),
            predicted=self.predicted.to(device),
            targets=self.targets.to(device),
        )


def micro_of(
    laid: Sequence[Laid], windows: Sequence[Laid] = (), weights: tuple[float, float] = (1.0, 1.0)
) -> Micro:
    """Dialogues and, after them, windows of pre-training text."""
    rows = PackedSequences.of([one.tokens for one in (*laid, *windows)])
    learnt = torch.tensor([flag for one in (*laid, *windows) for flag in one.learnt])
    targets = learnt.nonzero()[
        :, 0
    ]  # the first token of a dialogue is a marker, so each of these has one before it
    return Micro(
        rows, targets - 1, rows.tokens[targets], sum(sum(one.learnt) for one in laid), weights
    )


Part = tuple[list[Laid], list[Laid]]  # dialogues and windows that make a micro-batch


class Supervised:
    """The objective. Items are the dialogues; beside them, in each batch, `mixed` windows of
    pre-training text, `share` of the loss.
    """

    unit = "dialogues"

    def __init__(
        self,
        laid: Sequence[Laid],
        batches: EpochBatches,
        flops_per_token: float,
        mixed: int = 0,
        windows: Windows | None = None,
        share: float = 0.0,
    ) -> None:
        self.laid, self.batches, self.mixed, self.windows, self.share = (
            laid,
            batches,
            mixed,
            windows,
            share,
        )
        self.flops_per_unit = flops_per_token * sum(batches.lengths) / max(1, len(batches.lengths))

    def units_before(self, step: int) -> int:
        return self.batches.items_before(step)

    def micro_batches(self, step: int) -> list[Micro]:
        parts: list[Part] = [
            ([self.laid[item] for item in part], []) for part in self.batches.partition(step)
        ]
        if self.mixed and self.windows:
            windows = [
                Laid([*window], [False, *[True] * (len(window) - 1)])
                for window in self.windows(step, self.mixed)
            ]
            parts = self._with_windows(parts, windows)
        # The loop takes the mean over micro-batches and ranks; a sum over them is meant.
        said, text = (
            max(1, sum(sum(one.learnt) for part in parts for one in part[kind])) for kind in (0, 1)
        )
        weights = ((1 - self.share) * len(parts) / said, self.share * len(parts) / text)
        return [
            micro_of(*part, weights) for part in parts[self.batches.rank :: self.batches.world_size]
        ]

    def _with_windows(self, parts: list[Part], windows: Sequence[Laid]) -> list[Part]:
        """The windows in micro-batches of their own size, as many for every rank as its number
        allows; else beside the dialogues.
        """
        ranks = self.batches.world_size
        each = max(1, self.batches.micro_tokens // len(windows[0].tokens))
        number = micro_batch_count(len(windows), each, len(windows), ranks)
        if number == 0:  # fewer windows than ranks: the shortest parts take them
            for window in windows:
                min(parts, key=lambda part: sum(len(one.tokens) for kind in part for one in kind))[
                    1
                ].append(window)
            return parts
        return parts + [([], list(windows[start::number])) for start in range(number)]

    def loss(
        self, model: nn.Module, micro_batch: Micro
    ) -> tuple[Tensor, Mapping[str, tuple[Any, Any]]]:
        """Figures: nats a token of what assistants say (`nats`), and of the text where there is
        some (`text_nats`).
        """
        assert isinstance(model, GPT)
        micro = micro_batch.to(model.wte.weight.device)
        embeddings = model.embeddings()
        states = model.states_of(micro.rows, embeddings)[micro.predicted]
        losses: list[Tensor] = []
        figures: dict[str, tuple[Any, Any]] = {}
        kinds = {
            "nats": slice(micro.said),
            **({"text_nats": slice(micro.said, None)} if self.mixed else {}),
        }
        for (name, part), weight in zip(kinds.items(), micro.weights, strict=False):
            targets = micro.targets[part]
            figures[name] = (0.0, len(targets))
            if len(targets):
                mean = linear_cross_entropy(states[part], embeddings[0], targets, IGNORED)
                losses.append(mean * (len(targets) * weight))
                figures[name] = (mean.detach() * len(targets), len(targets))
        return torch.stack(losses).sum(), figures


@torch.no_grad()
def held_out_loss(model: GPT, laid: Sequence[Laid], execution: Execution) -> float:
    """Nats a token of what assistants say. The ranks share the work. Collective where there are
    several.
    """
    parts = token_batches([len(one.tokens) for one in laid])
    sums = torch.zeros(2, dtype=torch.float64, device=execution.device)
    for part in parts[execution.rank :: execution.world_size]:
        micro = micro_of([laid[number] for number in part]).to(model.wte.weight.device)
        losses = linear_cross_entropy_by_row(
            model.states_of(micro.rows)[micro.predicted], model.wte.weight, micro.targets
        )
        sums += torch.stack(
            [losses.double().sum(), torch.tensor(float(len(losses)), dtype=torch.float64)]
        ).to(sums.device)
    if execution.world_size > 1:
        torch.distributed.all_reduce(sums)
    return float(sums[0] / max(1.0, float(sums[1])))


def keep_epoch(model: GPT, output: Path, epoch: int) -> None:
    """The weights after an epoch."""
    keep_in(output / EPOCHS / str(epoch), model)
