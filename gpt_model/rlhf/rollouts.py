"""Between two batches of PPO: the episodes of the next one, made with the weights as they are, and
the moving average of the weights.

    rollouts/batch-000007.safetensors        the episodes, what their actions were worth, and what the next batch is made from
    rollouts/batch-000007/chunk-00003…       some of them, while the batch is being made: what a kill in the middle of it leaves
    rollouts/average-000007.safetensors      the moving average (`ema.py`)

The training loop makes a checkpoint only after its hooks, and what a step does is a function of
(settings, step, these files), which are a function of the weights at their own step. So a killed
run, in the middle of a batch's making too, ends where it would have. Files are kept as long as a
checkpoint may ask for them.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from safetensors.torch import load_file
from torch import Tensor

from gpt_model.errors import UserError
from gpt_model.rlhf import ema
from gpt_model.rlhf.advantages import Worth, next_coefficient, paid, worth
from gpt_model.rlhf.episodes import Asking, Cast, Episodes, keep, roll_out
from gpt_model.training.batching import epoch_order
from gpt_model.training.settings import Execution

CHUNK = 64  # episodes that a rank makes together, unless the profile says otherwise
COUNTS = ("empty", "not_a_number")  # which are added up over batches, too
# of the first answers: where fewer end before their longest, nothing is said of later ones that do
# not
ENDING = 0.2
# of the newest batches' files, beside those of the batches that checkpoints are of: one may be
# being written
KEPT = 3


@dataclass(frozen=True)
class Limits:
    """What a run is stopped beyond (the recipe's `ppo.stop`)."""

    kl: float
    length: float
    reward: float


@dataclass(frozen=True)
class Making:
    """How batches are made. `prompts`: the tokens of each."""

    prompts: Sequence[Sequence[int]]
    how: Asking
    batch: int
    batches: int
    steps_each: int  # optimizer steps a batch
    coefficient: float  # of the penalty, at first
    unfinished: float  # taken off the reward of an answer that was cut
    target: tuple[float, int] | None  # KL an episode and horizon, where the coefficient is steered
    smoothing: float  # λ
    decay: float  # of the moving average
    seed: int
    limits: Limits
    chunk: int = CHUNK

    def asked(self, batch: int) -> list[int]:
        """Which prompts a batch's episodes answer: all of them in another order each time round."""
        numbers = range(batch * self.batch, (batch + 1) * self.batch)
        return [
            epoch_order(len(self.prompts), self.seed, "prompts", epoch)[index]
            for epoch, index in (divmod(number, len(self.prompts)) for number in numbers)
        ]


@dataclass(frozen=True)
class Batch:
    """One batch's episodes and their worth; the coefficient they were penalised with; what is told
    of them, and of the first batch.
    """

    episodes: Episodes
    worth: Worth
    coefficient: float
    told: Mapping[str, float]
    first: Mapping[str, float]


class Rollouts:
    """Keeps and finds batches. `between` is the loop's hook; a step reads the batch it belongs to."""

    def __init__(
        self, folder: Path, checkpoints: Path | None, making: Making, execution: Execution
    ) -> None:
        self.folder, self.checkpoints, self.making, self.execution = (
            folder,
            checkpoints,
            making,
            execution,
        )
        self._read: tuple[int, Batch] | None = None
        self._mark: float | None = None

    @property
    def steps(self) -> list[int]:
        """After which steps `between` is called: before each batch, and after the last."""
        return [batch * self.making.steps_each for batch in range(self.making.batches + 1)]

    def between(self, step: int, cast: Cast) -> dict[str, float]:
        """Take the weights into the average, and make the next batch with them. What is told of it.
        Collective.
        """
        batch = step // self.making.steps_each
        if batch and self.execution.rank == 0:
            ema.advance(self.folder, batch, cast.policy, cast.reference, self.making.decay)
        told: dict[str, float] = {}
        if batch < self.making.batches:
            if not self._path(batch).is_file():
                self._make(batch, cast)
            torch.distributed.barrier()
            told = dict(self.batch(batch).told)
        if self.execution.rank == 0:
            self._forget(batch)
        torch.distributed.barrier()
        return {**told, **self._speed()}

    def batch(self, number: int) -> Batch:
        """What is on the disk of a batch."""
        if self._read is None or self._read[0] != number:
            self._read = number, _loaded(self._path(number))
        return self._read[1]

    def _path(self, batch: int) -> Path:
        return self.folder / f"batch-{batch:06d}.safetensors"

    def _make(self, batch: int, cast: Cast) -> None:
        making, ranks = self.making, self.execution.world_size
        chunks = self.folder / f"batch-{batch:06d}"
        size = min(making.chunk, -(-making.batch // ranks))
        seed = int.from_bytes(
            hashlib.sha256(f"{making.seed} rollouts {batch}".encode()).digest()[:7], "big"
        )
        share = size, self.execution.rank, ranks
        paths = list(
            roll_out(cast, making.prompts, making.asked(batch), making.how, seed, chunks, share)
        )
        torch.distributed.barrier()  # now each is there
        if self.execution.rank == 0:
            episodes = Episodes.together([Episodes.of(load_file(path)) for path in paths])
            before = self.batch(batch - 1) if batch else None
            coefficient = self._coefficient(before)
            values = worth(episodes, coefficient, making.smoothing, making.unfinished)
            told = described(episodes, values, coefficient, making.unfinished)
            told |= {
                f"{name}_so_far": told[name] + (before.told[f"{name}_so_far"] if before else 0.0)
                for name in COUNTS
            }
            kept = Batch(
                episodes, values, coefficient, told, before.first if before else first_of(episodes)
            )
            keep(_as_tensors(kept), self._path(batch))
            shutil.rmtree(chunks, ignore_errors=True)

    def _coefficient(self, before: Batch | None) -> float:
        if before is None or self.making.target is None:
            return before.coefficient if before else self.making.coefficient
        return next_coefficient(
            before.coefficient, before.told["kl"], self.making.batch, *self.making.target
        )

    def check(self, number: int) -> None:
        """Raises UserError where, by a batch that was made, the policy has run away, or the reward
        model has nothing to say.
        """
        batch = self.batch(number)
        if reason := diverged(batch.told, batch.first, self.making.limits, len(batch.episodes)):
            raise UserError(
                f"PPO was stopped before batch {number + 1} of {self.making.batches}: {reason}",
                field="ppo",
            )

    def _forget(self, batch: int) -> None:
        """Remove what no checkpoint can ask for any more."""
        steps = (
            [int(path.name.split("-")[1].split(".")[0]) for path in self.checkpoints.glob("step-*")]
            if self.checkpoints
            else []
        )
        needed = {step // self.making.steps_each for step in steps}
        for path in self.folder.glob("*-*"):
            of = int(path.name.split("-")[1].split(".")[0])
            if of <= batch - KEPT and of not in needed:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _speed(self) -> dict[str, float]:
        """Episodes a second, the making and the learning of them; the loop's own figure is of the
        learning alone.
        """
        mark, self._mark = self._mark, time.perf_counter()
        return (
            {} if mark is None else {"episodes_per_second": self.making.batch / (self._mark - mark)}
        )


# --- what is told of a batch ---


def described(
    episodes: Episodes, values: Worth, coefficient: float, unfinished: float
) -> dict[str, float]:
    """Means over a batch's episodes; of what hangs on the reward, over those whose reward is a
    number.
    """
    counted, kl = episodes.rewards.isfinite(), episodes.kl()
    rewards = episodes.rewards.double()[counted]
    returns = values.returns[values.counted].double()
    residual = returns - episodes.values[values.counted].double()
    spread = float(returns.var(correction=0)) if len(returns) else 0.0
    return {
        "reward": _mean(rewards),
        "reward_with_penalty": _mean(
            paid(episodes, unfinished)[counted] - coefficient * kl[counted]
        ),
        "kl": _mean(kl),
        "kl_coefficient": coefficient,
        "entropy": _mean(episodes.entropy),
        "length": _mean(episodes.actions),
        "ended": _mean(episodes.ended),
        "empty": float(((episodes.actions == 1) & episodes.ended).sum()),
        "not_a_number": float((~counted).sum()),
        "explained_variance": 1 - float(residual.var(correction=0)) / spread if spread else 0.0,
    }


def first_of(episodes: Episodes) -> dict[str, float]:
    """What later batches are held against."""
    rewards = episodes.rewards.double()[episodes.rewards.isfinite()]
    spread = float(rewards.std(correction=0)) if len(rewards) else 0.0
    return {
        "reward": _mean(rewards),
        "reward_spread": spread,
        "length": _mean(episodes.actions),
        "ended": _mean(episodes.ended),
    }


def _mean(values: Tensor) -> float:
    return float(values.double().mean()) if len(values) else math.nan


def diverged(
    told: Mapping[str, float], first: Mapping[str, float], limits: Limits, episodes: int
) -> str | None:
    """Why training must not go on, and what to change in the recipe; None where it may."""
    if told["not_a_number"] > episodes / 2:
        count = f"{told['not_a_number']:.0f} of {episodes}"
        return f"the reward of {count} answers is not a number. The reward model is broken: look at its checks, and train it anew."
    if not told["kl"] <= limits.kl:
        return (
            f"the policy is {told['kl']:.1f} nats an answer from the reference, and stop.kl is {limits.kl:g}. "
            "Lower ppo.learning_rate, raise ppo.kl, or give ppo.adaptive_kl a target."
        )
    if not first["length"] / limits.length <= told["length"] <= first["length"] * limits.length:
        return (
            f"answers are {told['length']:.1f} tokens long, {first['length']:.1f} at the start, and stop.length allows "
            f"{limits.length:g} times more or less. The reward model may prefer length: raise ppo.kl, lower ppo.learning_rate, or look at "
            "what it was trained on."
        )
    if first["ended"] > ENDING and told["ended"] < first["ended"] / limits.length:
        return (
            f"{told['ended']:.0%} of the answers end before max_new_tokens, {first['ended']:.0%} at the start, and stop.length allows "
            f"{limits.length:g} times fewer. The reward model may prefer length: set ppo.unfinished, or raise ppo.kl or max_new_tokens."
        )
    moved = abs(told["reward"] - first["reward"])
    if first["reward_spread"] and moved > limits.reward * first["reward_spread"]:
        return (
            f"the mean reward is {told['reward']:.2f}, {first['reward']:.2f} at the start: {moved / first['reward_spread']:.1f} of its "
            f"standard deviations there, and stop.reward is {limits.reward:g}. The policy is likely to exploit the reward model: raise "
            "ppo.kl or lower ppo.learning_rate."
        )
    return None


# --- on disk ---


def _as_tensors(batch: Batch) -> dict[str, Tensor]:
    numbers: dict[str, Any] = {"coefficient": batch.coefficient}
    numbers |= {f"told/{name}": value for name, value in batch.told.items()} | {
        f"first/{name}": v for name, v in batch.first.items()
    }
    worths = {
        "advantages": batch.worth.advantages,
        "returns": batch.worth.returns,
        "counted": batch.worth.counted,
    }
    as_they_are = {
        name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()
    }  # to the bit
    return {**batch.episodes.tensors(), **worths, **as_they_are}


def _loaded(path: Path) -> Batch:
    found = load_file(path)
    values = Worth(found["advantages"], found["returns"], found["counted"])
    told, first = (
        {name.split("/")[1]: float(v) for name, v in found.items() if name.startswith(kind)}
        for kind in ("told/", "first/")
    )
    return Batch(Episodes.of(found), values, float(found["coefficient"]), told, first)
