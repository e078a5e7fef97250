"""What every tuning of a pre-trained model shares: SFT, reward model, DPO, PPO and GPT-1's tasks.

Here: settings out of a recipe section, the steps after which a run is evaluated, and which of its
epochs is retained. What is minimised is each one's objective (`rlhf`, `finetuning`), the loop
`loop.py`, which examples a step takes `batching.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from gpt_model import convert
from gpt_model.io import write_json
from gpt_model.training.engine import of_rank_0
from gpt_model.training.optimizer import TrainingSettings
from gpt_model.training.schedules import warmup_cosine_by_step
from gpt_model.training.sharded import filling, reading, weight_of
from gpt_model.training.snapshots import save_model
from gpt_model.transformer import Decoder

EPOCHS = "epochs"  # the folder of an artifact that retains every epoch's model
SCORES, BEST = "validation.json", "best.safetensors"


def cosine_settings(section: Mapping[str, Any], steps: int) -> TrainingSettings:
    """A section of the recipe's `alignment` that trains with a warm-up and a cosine."""
    learning_rate = warmup_cosine_by_step(
        section["learning_rate"],
        steps=steps,
        warmup=section["warmup"],
        final=section["final_learning_rate"],
    )
    return TrainingSettings.of(section, steps, learning_rate)


def evaluation_steps(steps: int, evaluations: int, *, at_start: bool = False) -> list[int]:
    """After which steps a run is evaluated: evenly spaced, the last at the end; with `at_start`
    once more before the first step.
    """
    first = 0 if at_start else 1
    return sorted(
        {
            max(first, round(steps * number / evaluations))
            for number in range(first, evaluations + 1)
        }
    )


def epoch_ends(steps_per_epoch: int, epochs: int) -> range:
    """After which step each epoch ends."""
    return range(steps_per_epoch, epochs * steps_per_epoch + 1, steps_per_epoch)


def best_epoch(scores: Sequence[float]) -> int:
    """The epoch, from 1, with the highest of these scores; of equals the first."""
    return max(range(len(scores)), key=lambda index: (scores[index], -index)) + 1


def save_epoch(model: Decoder, output: Path, epoch: int) -> None:
    """The model after an epoch, for good, without its tokenizer."""
    save_model(model, epoch_folder(output, epoch))


def epoch_folder(artifact: Path, epoch: int) -> Path:
    """Where `save_epoch` puts a model."""
    return artifact / EPOCHS / str(epoch)


class BestEpoch:
    """A hook "by part" after each epoch: scores the model, and retains the weights of the best
    epoch so far in `folder`; of equals the first (GPT-1's released code's rule).

    What is on disk is a function of the epoch, so an epoch that is run again after a kill leaves
    what it left before.
    """

    def __init__(
        self,
        folder: Path,
        steps_per_epoch: int,
        rank: int,
        metric: str,
        score: Callable[[nn.Module], float],
    ) -> None:
        """`score` is collective and the same on every rank, reported as `metric`. Rank 0 writes, a
        parameter at a time.
        """
        self.folder, self.steps_per_epoch, self.rank = folder, steps_per_epoch, rank
        self.metric, self.score = metric, score
        path = folder / SCORES
        stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        stored = of_rank_0(stored)  # by which ranks enter what is collective
        self._scores = {int(epoch): float(value) for epoch, value in stored.items()}

    def scores(self, epochs: int) -> list[float]:
        """Of each of the first `epochs` epochs."""
        return [self._scores[epoch] for epoch in range(1, epochs + 1)]

    def __call__(self, step: int, model: nn.Module) -> Mapping[str, float]:
        epoch = step // self.steps_per_epoch
        self._scores[epoch] = self.score(model)
        if best_epoch(self.scores(epoch)) == epoch:
            with reading(model):
                if self.rank == 0:
                    shapes = {name: shown.shape for name, shown in model.named_parameters()}
                    partial = self.folder / f"{BEST}.part"
                    convert.stream_tensors(partial, shapes, lambda name: weight_of(model, name))
                    partial.replace(self.folder / BEST)
        if self.rank == 0:
            write_json(self.folder / SCORES, self._scores)
        return {self.metric: self._scores[epoch]}


def load_best(model: nn.Module, folder: Path) -> None:
    """Give what this rank has of `model` the weights that `BestEpoch` retained in `folder`."""
    with filling(model) as targets:
        convert.read_elements(folder / BEST, targets)
