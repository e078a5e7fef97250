"""Fine-tuning one decoder on one task: GPT-1's objective and schedule (Radford et al. 2018,
sections 3.2 and 4.1) in the one loop.

Whether the decoder's weights were pre-trained or drawn at random is the caller's matter; both are
fine-tuned by this, alike. What is done is kept in a folder, so that a killed run goes on where it
was and a finished one is not repeated.
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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gpt_model.finetuning.batches import TrainingBatches, class_logits, collate
from gpt_model.finetuning.entry import SplitName
from gpt_model.finetuning.heads import Batch, TaskModel
from gpt_model.finetuning.input_forms import Laid
from gpt_model.finetuning.metrics import Scoring
from gpt_model.ops.cross_entropy import linear_cross_entropy
from gpt_model.progress import Progress
from gpt_model.training.loop import Execution, Hook, Settings, train
from gpt_model.training.schedules import warmup_linear
from gpt_model.transformer import IGNORED

DONE, SCORES, BEST = "done.json", "validation.json", "best.safetensors"


@dataclass(frozen=True)
class FineTuning:
    """How: the recipe's section. The paper's values: 3 epochs, batch 32, 6.25e-5, warm-up 0.2 %, λ
    0.5, dropout 0.1, decay 0.01.
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


@dataclass(frozen=True)
class FineTuned:
    """What came of it. The model handed in then has the weights of the epoch that was best on
    validation.
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
    among them, then over sequences. Its softmax is over the vocabulary and the specials, and of a
    gpt1 over all rows of the released code's one matrix `we`, which has the positions in use for
    its last rows.
    """

    unit = "examples"
    flops_per_unit = 0.0  # lengths differ too much for one figure

    def __init__(self, batches: TrainingBatches, auxiliary_weight: float, positions: int) -> None:
        """`positions` in use: tokens of the longest row of all splits, which the released code
        shrinks its context to.
        """
        self.batches, self.auxiliary_weight, self.positions = batches, auxiliary_weight, positions

    def units_before(self, step: int) -> int:
        return step * self.batches.batch

    def micro_batches(self, step: int) -> list[Batch]:
        return [collate(part) for part in self.batches.micro_batches(step)]

    def loss(
        self, model: nn.Module, micro_batch: Batch
    ) -> tuple[Tensor, Mapping[str, tuple[object, object]]]:
        assert isinstance(model, TaskModel)
        batch = micro_batch.to(model.head.weight.device)
        embeddings = model.gpt.embeddings()
        logits, states = model(batch, embeddings)
        loss = F.cross_entropy(logits.float(), batch.labels)
        count = len(batch.labels)
        figures: dict[str, tuple[object, object]] = {"label_loss": (loss.detach() * count, count)}
        if batch.labels.dim() == 1:
            figures["accuracy"] = ((logits.argmax(1) == batch.labels).sum(), count)
        if self.auxiliary_weight:
            text_loss = self._text_loss(model, batch, states, embeddings)
            figures["text_loss"] = (text_loss.detach() * len(batch.lengths), len(batch.lengths))
            loss = loss + self.auxiliary_weight * text_loss
        # The loop averages over parts as if they were equal; a batch that does not divide evenly
        # has parts one example apart.
        return loss * (count * self.batches.parts / self.batches.batch), figures

    def _text_loss(
        self, model: TaskModel, batch: Batch, states: Tensor, embeddings: tuple[Tensor, Tensor]
    ) -> Tensor:
        tokens, positions = embeddings
        head = (
            torch.cat([tokens, positions[: self.positions]])
            if model.gpt.config.family == "gpt1"
            else tokens
        )
        shares = 1.0 / ((batch.lengths - 1) * len(batch.lengths))  # of each token of a sequence
        by_token = shares[:, None].expand(batch.tokens.shape).flatten()
        return linear_cross_entropy(
            states.flatten(0, 1), head, next_tokens(batch).flatten(), IGNORED, by_token
        )


def next_tokens(batch: Batch) -> Tensor:
    """What each position is to predict: [rows, time], IGNORED from Extract on."""
    targets = torch.full_like(batch.tokens, IGNORED)
    targets[:, :-1] = batch.tokens[:, 1:]
    time = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
    return targets.masked_fill(time >= batch.lengths[:, None] - 1, IGNORED)


def fine_tune(
    model: TaskModel,
    splits: Mapping[SplitName, Sequence[Laid]],
    how: FineTuning,
    scoring: Scoring,
    execution: Execution,
    *,
    folder: Path,
    progress: Progress,
    micro_rows: int | None = None,
) -> FineTuned:
    """Fine-tune `model` in place, and have it answer the test split with the weights of its best
    epoch on validation by `scoring`.

    Every rank calls it with the same arguments. `folder` keeps what a killed attempt had done; all
    ranks must see it. `splits`: training, validation and test. Raises UserError where there is less
    than a batch to train on, or training diverges.
    """
    if (folder / DONE).is_file():
        model.load_state_dict(load_file(folder / BEST))
        model.eval()
        return FineTuned(**json.loads((folder / DONE).read_text()))
    folder.mkdir(parents=True, exist_ok=True)
    batches = TrainingBatches(
        splits["training"], how.batch, how.seed, execution.rank, execution.world_size, micro_rows
    )
    keeper = _BestEpoch(folder, splits["validation"], scoring, batches.steps_per_epoch, execution)
    positions = max(example.length for examples in splits.values() for example in examples)
    steps = how.epochs * batches.steps_per_epoch
    settings = Settings(
        steps=steps,
        learning_rate=warmup_linear(how.learning_rate, warmup=how.warmup, steps=steps),
        weight_decay=how.weight_decay,
        gradient_clip=how.gradient_clip,
        precision=how.precision,
        seed=how.seed,
    )
    ends = range(batches.steps_per_epoch, steps + 1, batches.steps_per_epoch)
    outcome = train(
        model,
        TaskObjective(batches, how.auxiliary_weight, positions),
        settings,
        execution,
        checkpoints=folder / "checkpoints",
        progress=progress,
        hooks=[Hook(ends, keeper)],
    )
    if execution.world_size > 1:
        dist.barrier()  # rank 0 has written the best epoch's weights
    model.load_state_dict(load_file(folder / BEST))
    model.to(execution.device).eval()
    logits = class_logits(model, splits["test"], execution.rank, execution.world_size)
    scores = [keeper.scores[epoch] for epoch in sorted(keeper.scores)]
    done = FineTuned(
        scores, keeper.best(how.epochs), outcome.loss, outcome.seconds, logits.tolist()
    )
    if execution.rank == 0:
        _write(folder / DONE, json.dumps(asdict(done)))
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return done


class _BestEpoch:
    """After each epoch: the task's metric on validation, and the weights kept if no epoch before
    was as good (the released code's rule).

    What is on disk is a function of the epoch, so an epoch that is run again after a kill leaves
    what it left before.
    """

    def __init__(
        self,
        folder: Path,
        validation: Sequence[Laid],
        scoring: Scoring,
        steps_per_epoch: int,
        execution: Execution,
    ) -> None:
        self.folder, self.validation, self.scoring = folder, validation, scoring
        self.steps_per_epoch, self.execution = steps_per_epoch, execution
        kept = folder / SCORES
        self.scores = (
            {int(epoch): value for epoch, value in json.loads(kept.read_text()).items()}
            if kept.is_file()
            else {}
        )

    def best(self, epochs: int) -> int:
        """The best of the first so many epochs, from 1."""
        return max(range(1, epochs + 1), key=lambda epoch: (self.scores[epoch], -epoch))

    def __call__(self, step: int, model: nn.Module) -> Mapping[str, float]:
        assert isinstance(model, TaskModel)
        epoch = step // self.steps_per_epoch
        logits = class_logits(
            model, self.validation, self.execution.rank, self.execution.world_size
        )
        self.scores[epoch] = self.scoring.of(self.validation, logits.tolist())
        if self.execution.rank == 0:
            if self.best(epoch) == epoch:
                weights = {
                    name: tensor.detach().cpu().contiguous()
                    for name, tensor in model.state_dict().items()
                }
                part = self.folder / f"{BEST}.part"
                save_file(weights, part)
                part.replace(self.folder / BEST)
            _write(self.folder / SCORES, json.dumps(self.scores))
        return {f"validation_{self.scoring.metric}": self.scores[epoch]}


def _write(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    part.replace(path)
