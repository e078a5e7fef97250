"""Fine-tuning one decoder on one task: GPT-1's objective and schedule (Radford et al. 2018,
sections 3.2 and 4.1) in the one loop.

Whether the decoder's weights were pre-trained or drawn at random is the caller's matter; both are
fine-tuned alike. A folder holds what is done, so that a killed run goes on where it was and a
finished one is not repeated.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from gpt_model.finetuning.batches import TrainingBatches, class_logits, collate
from gpt_model.finetuning.entry import SplitName
from gpt_model.finetuning.heads import Batch, TaskModel
from gpt_model.finetuning.input_forms import EncodedExample
from gpt_model.finetuning.metrics import Scoring
from gpt_model.io import write_json
from gpt_model.ops.cross_entropy import linear_cross_entropy
from gpt_model.progress import Progress
from gpt_model.training.batching import Idle, collated
from gpt_model.training.engine import Execution, evaluation_precision, of_rank_0, shard
from gpt_model.training.loop import Hook, train
from gpt_model.training.optimizer import TrainingSettings
from gpt_model.training.schedules import warmup_linear
from gpt_model.training.sharded import for_evaluation, is_sharded
from gpt_model.training.tuning import BestEpoch, best_epoch, epoch_ends, load_best
from gpt_model.transformer import IGNORED

DONE = "done.json"


@dataclass(frozen=True)
class FineTuning:
    """The recipe's section. The paper's values (Radford et al. 2018, section 4.1): 3 epochs, batch
    32, learning rate 6.25e-5, warm-up 0.2 %, λ 0.5, dropout 0.1, weight decay 0.01.
    """

    epochs: int
    batch: int  # examples an optimizer step
    learning_rate: float
    warmup: float  # share of the steps
    auxiliary_weight: float
    dropout: float
    weight_decay: float
    gradient_clip: float
    seed: int
    precision: Literal["float32", "bfloat16"] = "float32"

    def training(self, steps: int) -> TrainingSettings:
        """As the loop takes it, of so many steps."""
        return TrainingSettings(
            steps=steps,
            learning_rate=warmup_linear(self.learning_rate, warmup=self.warmup, steps=steps),
            weight_decay=self.weight_decay,
            gradient_clip=self.gradient_clip,
            precision=self.precision,
            seed=self.seed,
        )


@dataclass(frozen=True)
class FineTuned:
    """The result. The model that was handed in has the weights of the epoch that was best on
    validation, or at ZeRO 3 this rank's shares of them.
    """

    validation: list[float]  # the task's metric after each epoch
    best_epoch: int  # from 1; the first of equals
    loss: float  # L3 of the last step
    seconds: float  # of training, evaluation apart
    test_logits: list[list[float]] = field(repr=False)  # [test examples, classes]


class TaskObjective:
    """L3 = L2 + λ·L1 over labelled examples (equation 5): the labels' cross-entropy, and language
    modelling of the same text.

    L1 as in the released code (train.py): a mean over each sequence's tokens, Delim and Extract
    among them, then over sequences. Its softmax is over the vocabulary and the special tokens, and
    of a gpt1 over all rows of the released code's one matrix `we`, which has the positions in use
    for its last rows.
    """

    unit = "examples"
    flops_per_unit = 0.0  # lengths differ too much for one number

    def __init__(self, batches: TrainingBatches, auxiliary_weight: float, positions: int) -> None:
        """`positions` in use: tokens of the longest row of all splits, which the released code
        shrinks its context to.
        """
        self.batches, self.auxiliary_weight, self.positions = batches, auxiliary_weight, positions
        self.size = batches.size

    def units_before(self, step: int) -> int:
        return step * self.batches.batch

    def full_micro_batch(self, sequences: int) -> Batch:
        """Of as many times the longest training example, with its rows."""
        longest = max(self.batches.examples, key=lambda example: example.length)
        return collate([longest] * sequences)

    def micro_batches(self, step: int) -> list[Batch | Idle[Batch]]:
        parts, examples = self.batches.micro_batches(step), self.batches.batch_of(step)
        return collated(parts, collate, stand_in=examples[:1])

    def loss(
        self, model: nn.Module, micro_batch: Batch
    ) -> tuple[Tensor, Mapping[str, tuple[object, object]]]:
        """The micro-batch's part of L3 [], and metrics as (sum, count)."""
        assert isinstance(model, TaskModel)
        embeddings = model.gpt.embeddings() if self.auxiliary_weight else None
        logits, states = model(micro_batch, embeddings)
        loss = F.cross_entropy(logits.float(), micro_batch.labels)
        count = len(micro_batch.labels)
        metrics: dict[str, tuple[object, object]] = {"label_loss": (loss.detach() * count, count)}
        if micro_batch.labels.dim() == 1:
            metrics["accuracy"] = ((logits.argmax(1) == micro_batch.labels).sum(), count)
        if embeddings is not None:
            text_loss = self._text_loss(model, micro_batch, states, embeddings)
            metrics["text_loss"] = (
                text_loss.detach() * len(micro_batch.lengths),
                len(micro_batch.lengths),
            )
            loss = loss + self.auxiliary_weight * text_loss
        # The loop averages over parts as if they were equal; a batch that does not divide evenly
        # has parts one example apart.
        return loss * (count * self.batches.parts / self.batches.batch), metrics

    def _text_loss(
        self, model: TaskModel, batch: Batch, states: Tensor, embeddings: tuple[Tensor, Tensor]
    ) -> Tensor:
        """L1, a scalar. `states` [rows, time, width]; `embeddings`: tokens [vocabulary, width] and
        positions [context, width].
        """
        tokens, positions = embeddings
        head = (
            torch.cat([tokens, positions[: self.positions]])
            if model.gpt.config.family == "gpt1"
            else tokens
        )
        # Of each token of a sequence in the mean: [rows]
        shares = 1.0 / ((batch.lengths - 1) * len(batch.lengths))
        by_token = shares[:, None].expand(batch.tokens.shape).flatten()  # [rows * time]
        return linear_cross_entropy(
            states.flatten(0, 1), head, next_tokens(batch).flatten(), IGNORED, by_token
        )


def next_tokens(batch: Batch) -> Tensor:
    """The target of each position, [rows, time]: IGNORED from Extract on."""
    targets = torch.full_like(batch.tokens, IGNORED)
    targets[:, :-1] = batch.tokens[:, 1:]
    time = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
    return targets.masked_fill(time >= batch.lengths[:, None] - 1, IGNORED)


def fine_tune(
    model: TaskModel,
    splits: Mapping[SplitName, Sequence[EncodedExample]],
    settings: FineTuning,
    scoring: Scoring,
    execution: Execution,
    *,
    folder: Path,
    progress: Progress,
    rows: int | None = None,
) -> FineTuned:
    """Fine-tune `model` in place, and have it answer the test split with the weights of its best
    epoch on validation by `scoring`.

    Every rank calls it with the same arguments. `folder` keeps what a killed attempt had done; all
    ranks must see it. `splits`: training, validation and test. `rows` of a micro-batch. Raises
    UserError where there is less than a batch to train on, or training diverges.
    """
    folder.mkdir(parents=True, exist_ok=True)
    batches = TrainingBatches(
        splits["training"],
        settings.batch,
        settings.seed,
        execution.rank,
        execution.world_size,
        rows,
    )
    training = settings.training(settings.epochs * batches.steps_per_epoch)
    if sharded := is_sharded(model):
        shard(model, training, execution)  # the head too
    record = folder / DONE
    done = of_rank_0(json.loads(record.read_text(encoding="utf-8")) if record.is_file() else None)
    if done:
        load_best(model, folder)
        model.eval()
        return FineTuned(**done)

    def validation_score(model: nn.Module) -> float:
        assert isinstance(model, TaskModel)
        logits = class_logits(model, splits["validation"], execution)
        return scoring.of(splits["validation"], logits.tolist())

    metric = f"validation_{scoring.metric}"
    best = BestEpoch(folder, batches.steps_per_epoch, execution.rank, metric, validation_score)
    positions = max(example.length for examples in splits.values() for example in examples)
    outcome = train(
        model,
        TaskObjective(batches, settings.auxiliary_weight, positions),
        training,
        execution,
        checkpoints=folder / "checkpoints",
        progress=progress,
        hooks=[Hook(epoch_ends(batches.steps_per_epoch, settings.epochs), best, "by part")],
    )
    if execution.world_size > 1:
        dist.barrier()  # rank 0 has written the best epoch's weights
    if sharded:
        shard(model, training, execution)  # of which training left shapes alone
    load_best(model, folder)
    read = for_evaluation(model, execution.device)
    with evaluation_precision(execution, settings.precision):
        logits = class_logits(read, splits["test"], execution)
    scores = best.scores(settings.epochs)
    result = FineTuned(scores, best_epoch(scores), outcome.loss, outcome.seconds, logits.tolist())
    if execution.rank == 0:
        write_json(folder / DONE, asdict(result))
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return result
