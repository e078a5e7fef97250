"""Which examples are met when, in training and in evaluation. A training batch is a pure function
of (seed, step).

Examples of like length go together, so that little is padding: in training within a pool of a few
batches (which examples share a pool, and the order of the batches, are drawn anew each epoch), in
evaluation over all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor

from gpt_model.errors import UserError
from gpt_model.finetuning.heads import Batch, TaskModel
from gpt_model.finetuning.input_forms import Laid
from gpt_model.training.batching import TASK_TOKENS, micro_batch_count, pooled_epoch, token_batches

POOL_BATCHES = 16  # sorted by length together


def collate(examples: Sequence[Laid]) -> Batch:
    """A padded batch. All examples have the same number of rows."""
    rows = [row for example in examples for row in example.rows]
    tokens = torch.zeros(
        len(rows), max(map(len, rows)), dtype=torch.long
    )  # padding's id is no matter: nothing real looks right
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    lengths = torch.tensor([len(row) for row in rows])
    labels = torch.tensor([example.target or example.label for example in examples])
    return Batch(tokens, lengths, labels, len(examples[0].rows))


@dataclass(frozen=True)
class TrainingBatches:
    """The batches of some epochs over `examples`, and this rank's parts of each.

    As in the released code the last, partial batch of an epoch is left out; which examples are in
    it changes with the epoch.
    """

    examples: Sequence[Laid]
    batch: int  # examples an optimizer step, all ranks together
    seed: int
    rank: int = 0
    world_size: int = 1
    micro_rows: int | None = None  # rows of a micro-batch; default: as many as TASK_TOKENS hold
    _drawn: dict[int, list[list[int]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )  # the last epoch asked for

    def __post_init__(self) -> None:
        if len(self.examples) < self.batch:
            raise UserError(
                f"There are {len(self.examples)} training examples, fewer than the {self.batch} of one batch. "
                "Lower `finetuning.batch`, raise the task's `finetuning.examples`, or give the task more rows."
            )
        if self.batch < self.world_size:
            raise UserError(
                f"`finetuning.batch` is {self.batch}, fewer examples than the {self.world_size} processes: use fewer, or raise it."
            )

    @property
    def steps_per_epoch(self) -> int:
        return len(self.examples) // self.batch

    @cached_property
    def parts(self) -> int:
        """Micro-batches of a batch, over all ranks."""
        longest = max(example.length for example in self.examples)
        rows = self.micro_rows or max(1, TASK_TOKENS // longest)
        each = max(1, rows // len(self.examples[0].rows))  # examples a micro-batch
        return micro_batch_count(self.batch, each, self.batch, self.world_size)

    def epoch(self, number: int) -> list[list[int]]:
        """Indices of the examples in each batch of epoch `number` (from 0)."""
        if number not in self._drawn:
            self._drawn.clear()
            lengths = [example.length for example in self.examples]
            self._drawn[number] = pooled_epoch(lengths, self.batch, POOL_BATCHES, self.seed, number)
        return self._drawn[number]

    def micro_batches(self, step: int) -> list[list[Laid]]:
        """This rank's parts of the batch of `step` (from 0). Every part has examples of all the
        batch's lengths, and none is empty.
        """
        number, at = divmod(step, self.steps_per_epoch)
        chosen = self.epoch(number)[at]
        return [
            [self.examples[i] for i in chosen[part :: self.parts]]
            for part in range(self.rank, self.parts, self.world_size)
        ]


@torch.no_grad()
def class_logits(
    model: TaskModel, examples: Sequence[Laid], rank: int = 0, world_size: int = 1
) -> Tensor:
    """Class logits [examples, classes] in the order given, on the CPU; the ranks share the work and
    all have the whole result.

    Which examples are padded together does not depend on the number of ranks, so neither does the
    result. `model` is in eval mode.
    """
    device = model.head.weight.device
    logits = torch.zeros(len(examples), model.classes, device=device)
    tokens = [example.length * len(example.rows) for example in examples]
    # the longest first: memory is at its peak at once, and work ends evenly
    parts = token_batches(tokens, TASK_TOKENS, order="longest", padded=True)
    for number, chosen in enumerate(parts):
        if number % world_size == rank:
            made, _ = model(collate([examples[i] for i in chosen]).to(device))
            logits[torch.tensor(chosen, device=device)] = made.float()
    if world_size > 1:
        dist.all_reduce(logits)  # the others' rows are zero here, so the sum is exact
    return logits.cpu()
