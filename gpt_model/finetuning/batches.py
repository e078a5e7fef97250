"""Batches of encoded examples, in training and in evaluation, padded to a rectangle.

Examples of like length go together, so that little is padding: in training within a pool of a few
batches (`training.batching.pooled_epoch`), in evaluation over all examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from gpt_model.errors import UserError
from gpt_model.finetuning.heads import Batch, TaskModel
from gpt_model.finetuning.input_forms import EncodedExample
from gpt_model.training.ahead import on_device
from gpt_model.training.batching import (
    TASK_TOKENS,
    MicroBatchSize,
    micro_batch_count,
    pooled_epoch,
    token_batches,
)
from gpt_model.training.engine import ALONE, Execution
from gpt_model.training.shared_batches import results_of_items

POOL_BATCHES = 16  # batches' examples that are sorted by length together


def collate(examples: Sequence[EncodedExample]) -> Batch:
    """A padded batch. All examples have the same number of rows."""
    rows = [row for example in examples for row in example.rows]
    # Padding is after all real tokens, which never attend to the right: its id does not matter.
    tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)  # [rows, time]
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = torch.tensor(row)
    lengths = torch.tensor([len(row) for row in rows])  # [rows]
    # [examples], or [examples, classes] on a scale of ratings
    labels = torch.tensor([example.target or example.label for example in examples])
    return Batch(tokens, lengths, labels, len(examples[0].rows))


class TrainingBatches:
    """The batches of some epochs over `examples`, and this rank's micro-batches of each.

    As in the released code the last, partial batch of an epoch is left out; which examples are in
    it changes with the epoch.
    """

    def __init__(
        self,
        examples: Sequence[EncodedExample],
        batch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        rows: int | None = None,
    ) -> None:
        """`batch`: examples an optimizer step, all ranks together. `rows` of a micro-batch; by
        default as many as TASK_TOKENS hold. Raises UserError where there is less than a batch.
        """
        if len(examples) < batch:
            raise UserError(
                f"There are {len(examples)} training examples, fewer than the {batch} of one "
                "batch. Lower `finetuning.batch`, raise the task's `finetuning.examples`, or give "
                "the task more rows."
            )
        self.examples, self.batch, self.seed = examples, batch, seed
        self.rank, self.world_size = rank, world_size
        longest = max(example.length for example in examples)
        example = longest * len(examples[0].rows)
        self.size = MicroBatchSize(None, example, batch * example, tokens=TASK_TOKENS)
        if rows:
            self.size.fit(max(1, rows * longest // example))
        self.steps_per_epoch = len(examples) // batch
        self.epoch = lru_cache(maxsize=1)(self._epoch)  # steps ask for one after the other

    @property
    def parts(self) -> int:
        """Micro-batches of a batch, over all ranks."""
        examples = self.size.sequences
        return micro_batch_count(self.batch, examples, self.batch, self.world_size)

    def _epoch(self, number: int) -> list[list[int]]:
        """Indices of the examples in each batch of epoch `number` (from 0)."""
        lengths = [example.length for example in self.examples]
        return pooled_epoch(lengths, self.batch, POOL_BATCHES, self.seed, number)

    def micro_batches(self, step: int) -> list[list[EncodedExample]]:
        """This rank's part of the batch of `step` (from 0). Each micro-batch has examples of all
        the batch's lengths; the last may be empty.
        """
        batch = self.batch_of(step)
        return [batch[part :: self.parts] for part in range(self.rank, self.parts, self.world_size)]

    def batch_of(self, step: int) -> list[EncodedExample]:
        """The examples of `step` (from 0), all ranks together."""
        epoch, index = divmod(step, self.steps_per_epoch)
        return [self.examples[example] for example in self.epoch(epoch)[index]]


@torch.no_grad()
def class_logits(
    model: TaskModel, examples: Sequence[EncodedExample], execution: Execution = ALONE
) -> Tensor:
    """Class logits [examples, classes] in the order given, on the CPU. The ranks share the work,
    and all have the whole result. Collective where there are several.

    Which examples are padded together does not depend on the number of ranks, so neither does the
    result. `model` is on the device in evaluation mode, or what a `ShardedModel` shows.
    """

    def answer(indices: Sequence[int]) -> list[list[float]]:
        logits, _ = model(
            on_device(collate([examples[index] for index in indices]), execution.device)
        )
        answers: list[list[float]] = logits.float().tolist()
        return answers

    tokens = [example.length * len(example.rows) for example in examples]
    # The longest first: memory is at its peak at once, and the ranks finish together.
    batches = token_batches(tokens, TASK_TOKENS, order="longest", padded=True)
    logits = results_of_items(answer, batches, execution, model)
    return torch.tensor(logits).view(len(examples), model.classes)
