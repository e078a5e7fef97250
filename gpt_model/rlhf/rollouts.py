"""Rollout batches of PPO: between two batches, sample the next one's episodes with the weights as
they are, and advance the moving average of the weights.

    rollouts/batch-000007.safetensors        episodes, advantages, KL coefficient, metrics
    rollouts/batch-000007/                   a batch in progress: what a kill leaves (`episodes.py`)
    rollouts/average-000007/                 the moving average, each rank's share (`ema.py`)

The training loop checkpoints only after its hooks. A step is a function of (settings, step, these
files), and these are a function of the weights at their own step. So a killed run, in the middle of
sampling too, ends where it would have. Files stay as long as a checkpoint may need them.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed
from safetensors.torch import load_file
from torch import Tensor

from gpt_model.errors import UserError
from gpt_model.rlhf import ema
from gpt_model.rlhf.advantages import (
    Advantages,
    compute_advantages,
    final_rewards,
    next_kl_coefficient,
)
from gpt_model.rlhf.episodes import Episodes, RolloutModels, roll_out
from gpt_model.rlhf.rollout_engine import (
    DecoderEngine,
    RolloutEngine,
    SamplingParams,
    write_tensors,
)
from gpt_model.training.batching import ROLLOUT_EPISODES, epoch_order
from gpt_model.training.engine import Execution

COUNTS = ("empty", "not_a_number")  # metrics that are also summed over batches
# Share of the first answers that end. Below it, later answers that do not end are no divergence.
ENDING = 0.2
# Newest batches whose files stay, beside those that checkpoints need: one may be being written.
RETAINED_BATCHES = 3


@dataclass(frozen=True)
class Limits:
    """A run stops beyond these (the recipe's `ppo.stop`)."""

    kl: float
    length: float
    reward: float


@dataclass(frozen=True)
class RolloutConfig:
    """How batches are sampled and rewarded."""

    prompts: Sequence[Sequence[int]]  # tokens of each
    sampling: SamplingParams
    batch_size: int  # episodes
    batches: int
    steps_per_batch: int  # optimizer steps
    kl_coefficient: float  # at first
    unfinished_penalty: float  # taken off the reward of an answer that was cut
    kl_target: tuple[float, int] | None  # nats an episode and horizon, of an adaptive coefficient
    gae_lambda: float
    ema_decay: float
    seed: int
    limits: Limits
    chunk: int = ROLLOUT_EPISODES

    def prompt_ids(self, batch: int) -> list[int]:
        """The prompts of a batch's episodes: all prompts in turn, in another order each epoch."""
        count = len(self.prompts)
        episodes = range(batch * self.batch_size, (batch + 1) * self.batch_size)
        return [
            epoch_order(count, self.seed, "prompts", epoch)[index]
            for epoch, index in (divmod(episode, count) for episode in episodes)
        ]


@dataclass(frozen=True)
class RolloutBatch:
    """A batch's episodes and advantages, the KL coefficient they paid, and metrics."""

    episodes: Episodes
    advantages: Advantages
    kl_coefficient: float
    metrics: Mapping[str, float]
    initial: Mapping[str, float]  # `initial_metrics` of the first batch


class Rollouts:
    """Samples batches and reads them. `between` is the loop's hook; a step reads its own batch."""

    def __init__(
        self,
        folder: Path,
        checkpoints: Path | None,
        config: RolloutConfig,
        execution: Execution,
        engine: RolloutEngine | None = None,
    ) -> None:
        """`engine`: what answers the prompts; by default our decoder."""
        self.folder, self.checkpoints = folder, checkpoints
        self.config, self.execution = config, execution
        self.engine: RolloutEngine = engine or DecoderEngine()
        self._read: tuple[int, RolloutBatch] | None = None
        self._last_call: float | None = None

    @property
    def steps(self) -> list[int]:
        """The steps after which `between` is called: before each batch, and after the last."""
        return [batch * self.config.steps_per_batch for batch in range(self.config.batches + 1)]

    def between(self, step: int, models: RolloutModels) -> dict[str, float]:
        """Advance the average, and sample the next batch. Returns its metrics. Collective: a hook
        "by part".
        """
        batch = step // self.config.steps_per_batch
        if batch:
            decay = self.config.ema_decay
            ema.advance(self.folder, batch, models.policy, models.reference, decay, self.execution)
        metrics: dict[str, float] = {}
        if batch < self.config.batches:
            if not self._path(batch).is_file():
                self._sample(batch, models)
            torch.distributed.barrier()
            metrics = dict(self.batch(batch).metrics)
        if self.execution.rank == 0:
            self._remove_old_files(batch)
        torch.distributed.barrier()
        return {**metrics, **self._speed()}

    def batch(self, number: int) -> RolloutBatch:
        """A batch that was sampled, from disk."""
        if self._read is None or self._read[0] != number:
            self._read = number, _load(self._path(number))
        return self._read[1]

    def _path(self, batch: int) -> Path:
        return self.folder / f"batch-{batch:06d}.safetensors"

    def _sample(self, batch: int, models: RolloutModels) -> None:
        config, ranks = self.config, self.execution.world_size
        chunks = self.folder / f"batch-{batch:06d}"
        digest = hashlib.sha256(f"{config.seed} rollouts {batch}".encode()).digest()
        paths = roll_out(
            self.engine,
            models,
            config.prompts,
            config.prompt_ids(batch),
            config.sampling,
            int.from_bytes(digest[:7], "big"),
            chunks,
            min(config.chunk, -(-config.batch_size // ranks)),
            self.execution,
        )
        if self.execution.rank == 0:
            previous = self.batch(batch - 1) if batch else None
            sampled = self._batch_of(Episodes.load(paths), previous)
            write_tensors(_as_tensors(sampled), self._path(batch))
            shutil.rmtree(chunks, ignore_errors=True)

    def _batch_of(self, episodes: Episodes, previous: RolloutBatch | None) -> RolloutBatch:
        penalty = self.config.unfinished_penalty
        coefficient = self._kl_coefficient(previous)
        advantages = compute_advantages(episodes, coefficient, self.config.gae_lambda, penalty)
        metrics = batch_metrics(episodes, advantages, coefficient, penalty)
        for name in COUNTS:
            before = previous.metrics[f"{name}_so_far"] if previous else 0.0
            metrics[f"{name}_so_far"] = metrics[name] + before
        initial = previous.initial if previous else initial_metrics(episodes)
        return RolloutBatch(episodes, advantages, coefficient, metrics, initial)

    def _kl_coefficient(self, previous: RolloutBatch | None) -> float:
        if previous is None:
            return self.config.kl_coefficient
        if self.config.kl_target is None:
            return previous.kl_coefficient
        return next_kl_coefficient(
            previous.kl_coefficient,
            previous.metrics["kl"],
            self.config.batch_size,
            *self.config.kl_target,
        )

    def check(self, number: int) -> None:
        """Raises UserError where a sampled batch shows that the policy has diverged, or that the
        reward model is broken.
        """
        batch = self.batch(number)
        if reason := divergence(
            batch.metrics, batch.initial, self.config.limits, len(batch.episodes)
        ):
            raise UserError(
                f"PPO was stopped before batch {number + 1} of {self.config.batches}: {reason}",
                field="ppo",
            )

    def _remove_old_files(self, batch: int) -> None:
        """Remove what no checkpoint can need any more."""
        checkpoints = self.checkpoints.glob("step-*") if self.checkpoints else ()
        needed = {_number(path) // self.config.steps_per_batch for path in checkpoints}
        for path in self.folder.glob("*-*"):
            number = _number(path)
            if number <= batch - RETAINED_BATCHES and number not in needed:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _speed(self) -> dict[str, float]:
        """Episodes a second, sampled and trained on; the loop's own figure leaves sampling out."""
        last, self._last_call = self._last_call, time.perf_counter()
        if last is None:
            return {}
        return {"episodes_per_second": self.config.batch_size / (self._last_call - last)}


def _number(path: Path) -> int:
    """7 of "batch-000007.safetensors" or "step-7"."""
    return int(path.name.split("-")[1].split(".")[0])


def batch_metrics(
    episodes: Episodes, advantages: Advantages, kl_coefficient: float, unfinished_penalty: float
) -> dict[str, float]:
    """Means over a batch's episodes. Metrics of the reward leave out episodes whose reward is not a
    number.
    """
    finite, kl = episodes.rewards.isfinite(), episodes.kl()
    penalised = final_rewards(episodes, unfinished_penalty)[finite] - kl_coefficient * kl[finite]
    returns = advantages.returns[advantages.mask].double()
    residual = returns - episodes.values[advantages.mask].double()
    variance = float(returns.var(correction=0)) if len(returns) else 0.0
    return {
        "reward": _mean(episodes.rewards.double()[finite]),
        "reward_with_penalty": _mean(penalised),
        "kl": _mean(kl),
        "kl_coefficient": kl_coefficient,
        "entropy": _mean(episodes.entropy),
        "length": _mean(episodes.action_counts),
        "ended": _mean(episodes.ended),
        "empty": float(((episodes.action_counts == 1) & episodes.ended).sum()),
        "not_a_number": float((~finite).sum()),
        "explained_variance": 1 - float(residual.var(correction=0)) / variance if variance else 0.0,
    }


def initial_metrics(episodes: Episodes) -> dict[str, float]:
    """What `divergence` compares later batches with."""
    rewards = episodes.rewards.double()[episodes.rewards.isfinite()]
    return {
        "reward": _mean(rewards),
        "reward_std": float(rewards.std(correction=0)) if len(rewards) else 0.0,
        "length": _mean(episodes.action_counts),
        "ended": _mean(episodes.ended),
    }


def _mean(values: Tensor) -> float:
    """Of values [n]; NaN where there are none."""
    return float(values.double().mean()) if len(values) else math.nan


def divergence(
    metrics: Mapping[str, float], initial: Mapping[str, float], limits: Limits, episodes: int
) -> str | None:
    """Why training must stop, and what to change in the recipe; None where it may go on."""
    if metrics["not_a_number"] > episodes / 2:
        return (
            f"the reward of {metrics['not_a_number']:.0f} of {episodes} answers is not a number. "
            "The reward model is broken: look at its checks, and train it anew."
        )
    if not metrics["kl"] <= limits.kl:
        return (
            f"the policy is {metrics['kl']:.1f} nats an answer from the reference, and stop.kl is "
            f"{limits.kl:g}. Lower ppo.learning_rate, raise ppo.kl, or give ppo.adaptive_kl a "
            "target."
        )
    length, first = metrics["length"], initial["length"]
    if not first / limits.length <= length <= first * limits.length:
        return (
            f"answers are {length:.1f} tokens long, {first:.1f} at the start, and stop.length "
            f"allows {limits.length:g} times more or less. The reward model may prefer length: "
            "raise ppo.kl, lower ppo.learning_rate, or look at what it was trained on."
        )
    if initial["ended"] > ENDING and metrics["ended"] < initial["ended"] / limits.length:
        return (
            f"{metrics['ended']:.0%} of the answers end before max_new_tokens, "
            f"{initial['ended']:.0%} at the start, and stop.length allows {limits.length:g} times "
            "fewer. The reward model may prefer length: set ppo.unfinished, or raise ppo.kl or "
            "max_new_tokens."
        )
    std, moved = initial["reward_std"], abs(metrics["reward"] - initial["reward"])
    if std and moved > limits.reward * std:
        return (
            f"the mean reward is {metrics['reward']:.2f}, {initial['reward']:.2f} at the start: "
            f"{moved / std:.1f} of its standard deviations there, and stop.reward is "
            f"{limits.reward:g}. The policy is likely to exploit the reward model: raise ppo.kl or "
            "lower ppo.learning_rate."
        )
    return None


def _as_tensors(batch: RolloutBatch) -> dict[str, Tensor]:
    """The batch as its file has it: tensors [episodes], [tokens] or [actions], and numbers as
    float64 [], exact to the bit.
    """
    numbers = {"kl_coefficient": batch.kl_coefficient}
    numbers |= {f"metrics/{name}": value for name, value in batch.metrics.items()}
    numbers |= {f"initial/{name}": value for name, value in batch.initial.items()}
    return {
        **batch.episodes.tensors(),
        "advantages": batch.advantages.advantages,
        "returns": batch.advantages.returns,
        "mask": batch.advantages.mask,
        **{name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()},
    }


def _load(path: Path) -> RolloutBatch:
    tensors = load_file(path)
    metrics, initial = (
        {
            name.removeprefix(kind): float(value)
            for name, value in tensors.items()
            if name.startswith(kind)
        }
        for kind in ("metrics/", "initial/")
    )
    advantages = Advantages(tensors["advantages"], tensors["returns"], tensors["mask"])
    coefficient = float(tensors["kl_coefficient"])
    return RolloutBatch(Episodes.from_tensors(tensors), advantages, coefficient, metrics, initial)
