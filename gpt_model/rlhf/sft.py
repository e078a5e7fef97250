"""Supervised fine-tuning on demonstrations (Ouyang et al. 2022, section 3.5 and appendix C.1).

The loss is a mean over the assistant's tokens of a batch. Dialogues of a batch are packed
(`gpt_model.ops.varlen`): none attends to another. Pre-training text may be mixed in (appendix C.3),
in windows of which every token is predicted. The loss is then (1 − share) · the mean over the
assistant's tokens + share · the mean over the text's. One mean over both would be mostly text:
windows are much longer than answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gpt_model.ops.cross_entropy import linear_cross_entropy, linear_cross_entropy_by_row
from gpt_model.ops.varlen import PackedSequences
from gpt_model.rlhf.chat_template import ChatTemplate, EncodedDialogue
from gpt_model.rlhf.dialogue import Dialogue
from gpt_model.training.ahead import on_device
from gpt_model.training.batching import (
    ENCODED_ROWS,
    EpochBatches,
    Idle,
    chunks,
    micro_batch_count,
    token_batches,
)
from gpt_model.training.engine import ALONE, Execution
from gpt_model.training.sharded import reading
from gpt_model.training.shared_batches import results_of_items
from gpt_model.transformer import GPT, IGNORED

# (step, count) -> windows of pre-training text, each as long as the context
Windows = Callable[[int, int], Sequence[Sequence[int]]]


def encode_dialogues(
    dialogues: Sequence[Dialogue],
    template: ChatTemplate,
    context: int,
    execution: Execution = ALONE,
) -> tuple[list[EncodedDialogue], dict[str, int]]:
    """Each dialogue as tokens; and how many were shortened, or left out as too long. Collective
    where there are several ranks.

    A dialogue longer than the context loses its oldest exchanges, while one is left; the system
    turn stays.
    """

    def encode(items: Sequence[int]) -> list[tuple[EncodedDialogue, bool]]:
        return [_encode(dialogues[item], template, context) for item in items]

    result, counts = [], {"shortened": 0, "too_long": 0}
    rows = chunks(len(dialogues), ENCODED_ROWS)
    for encoded, shortened in results_of_items(encode, rows, execution):
        if len(encoded.tokens) > context:
            counts["too_long"] += 1
            continue
        counts["shortened"] += shortened
        result.append(encoded)
    return result, counts


def _encode(turns: Dialogue, template: ChatTemplate, context: int) -> tuple[EncodedDialogue, bool]:
    """A dialogue in at most `context` tokens, if it can be; and whether it was shortened."""
    encoded, shorter = template.encode(turns), turns
    while len(encoded.tokens) > context and (rest := _without_oldest_exchange(shorter)):
        shorter = rest
        encoded = template.encode(shorter)
    return encoded, shorter is not turns


def _without_oldest_exchange(turns: Dialogue) -> Dialogue | None:
    first = 1 if turns[0].role == "system" else 0
    return (*turns[:first], *turns[first + 2 :]) if len(turns) - first > 2 else None


@dataclass(frozen=True)
class SFTMicroBatch:
    """Packed dialogues and windows of text. The first `assistant_tokens` of the targets are the
    assistant's, the others pre-training text's.
    """

    rows: PackedSequences
    positions: Tensor  # [targets], of the states that predict them
    targets: Tensor  # [targets], tokens
    assistant_tokens: int
    weights: tuple[float, float] = (1.0, 1.0)  # in the loss, of a token of either kind


def collate(
    dialogues: Sequence[EncodedDialogue],
    windows: Sequence[EncodedDialogue] = (),
    weights: tuple[float, float] = (1.0, 1.0),
) -> SFTMicroBatch:
    """Dialogues, then windows of pre-training text."""
    texts = (*dialogues, *windows)
    rows = PackedSequences.of([text.tokens for text in texts])
    loss_mask = torch.tensor([flag for text in texts for flag in text.loss_mask])
    # A text's first token carries no loss, so each of these has one before it.
    targets = loss_mask.nonzero()[:, 0]
    assistant_tokens = sum(sum(dialogue.loss_mask) for dialogue in dialogues)
    return SFTMicroBatch(rows, targets - 1, rows.tokens[targets], assistant_tokens, weights)


# The dialogues and the windows of a micro-batch.
Part = tuple[list[EncodedDialogue], list[EncodedDialogue]]


class SFTObjective:
    """What an optimizer step minimises. Beside a batch's dialogues stand `mixed` windows of
    pre-training text, `share` of the loss.
    """

    unit = "dialogues"

    def __init__(
        self,
        dialogues: Sequence[EncodedDialogue],
        batches: EpochBatches,
        flops_per_token: float,
        mixed: int = 0,
        windows: Windows | None = None,
        share: float = 0.0,
    ) -> None:
        self.dialogues, self.batches, self.size = dialogues, batches, batches.size
        self.mixed, self.windows, self.share = mixed, windows, share
        self.flops_per_unit = flops_per_token * sum(batches.lengths) / max(1, len(batches.lengths))

    def units_before(self, step: int) -> int:
        return self.batches.items_before(step)

    def full_micro_batch(self, sequences: int) -> SFTMicroBatch:
        """Of answers without a prompt."""
        text = EncodedDialogue([0] * self.size.context, [False, *[True] * (self.size.context - 1)])
        return collate([text] * sequences)

    def micro_batches(self, step: int) -> list[SFTMicroBatch | Idle[SFTMicroBatch]]:
        parts: list[Part] = [
            ([self.dialogues[item] for item in part], []) for part in self.batches.partition(step)
        ]
        if self.mixed and self.windows:
            windows = [
                EncodedDialogue([*window], [False, *[True] * (len(window) - 1)])
                for window in self.windows(step, self.mixed)
            ]
            parts = self._with_windows(parts, windows)
        # The loop takes the mean over micro-batches and ranks; the loss is their sum.
        assistant, text = (
            max(1, sum(sum(encoded.loss_mask) for part in parts for encoded in part[kind]))
            for kind in (0, 1)
        )
        weights = ((1 - self.share) * len(parts) / assistant, self.share * len(parts) / text)
        rank, ranks = self.batches.rank, self.batches.world_size
        stand_in = parts[0][0][:1]
        return [
            collate(*part, weights) if any(part) else Idle(collate(stand_in))
            for part in parts[rank::ranks]
        ]

    def _with_windows(self, parts: list[Part], windows: Sequence[EncodedDialogue]) -> list[Part]:
        """The windows in micro-batches of their own, equally many for every rank; beside the
        dialogues, or alone on a rank that has none, where there are fewer windows than ranks.
        """
        ranks = self.batches.world_size
        per_part = max(1, self.size.tokens // len(windows[0].tokens))
        if len(windows) < ranks:
            for window in windows:
                shortest = min(
                    parts, key=lambda part: sum(len(text.tokens) for kind in part for text in kind)
                )
                shortest[1].append(window)
            return parts
        count = micro_batch_count(len(windows), per_part, len(windows), ranks)
        return parts + [([], list(windows[start::count])) for start in range(count)]

    def loss(
        self, model: nn.Module, micro_batch: SFTMicroBatch
    ) -> tuple[Tensor, Mapping[str, tuple[Any, Any]]]:
        """The micro-batch's loss [], and as (sum, count) the nats of the assistant's tokens
        (`nats`), and of the text's where there is some (`text_nats`).
        """
        assert isinstance(model, GPT)
        embeddings = model.embeddings()
        every_state = model.states_of(micro_batch.rows, embeddings)  # [tokens, width]
        states = every_state[micro_batch.positions]  # [targets, width]
        losses: list[Tensor] = []
        metrics: dict[str, tuple[Any, Any]] = {}
        kinds = {"nats": slice(micro_batch.assistant_tokens)}
        if self.mixed:
            kinds["text_nats"] = slice(micro_batch.assistant_tokens, None)
        for (name, part), weight in zip(kinds.items(), micro_batch.weights, strict=False):
            targets = micro_batch.targets[part]
            metrics[name] = (0.0, len(targets))
            if len(targets):
                mean = linear_cross_entropy(states[part], embeddings[0], targets, IGNORED)
                losses.append(mean * (len(targets) * weight))
                metrics[name] = (mean.detach() * len(targets), len(targets))
        return torch.stack(losses).sum(), metrics


@torch.no_grad()
def held_out_loss(model: GPT, dialogues: Sequence[EncodedDialogue], execution: Execution) -> float:
    """Nats a token of the assistant's. The ranks share the work. Collective."""
    batches = token_batches([len(dialogue.tokens) for dialogue in dialogues])
    sums = torch.zeros(2, dtype=torch.float64, device=execution.device)  # nats, tokens
    with reading(model):
        for indices in batches[execution.rank :: execution.world_size]:
            batch = on_device(collate([dialogues[index] for index in indices]), execution.device)
            losses = linear_cross_entropy_by_row(
                model.states_of(batch.rows)[batch.positions], model.wte.weight, batch.targets
            )
            tokens = torch.tensor(float(len(losses)), dtype=torch.float64, device=losses.device)
            sums += torch.stack([losses.double().sum(), tokens]).to(sums.device)
    if execution.world_size > 1:
        torch.distributed.all_reduce(sums)
    return float(sums[0] / max(1.0, float(sums[1])))
