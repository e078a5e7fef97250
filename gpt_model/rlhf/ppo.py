"""PPO-ptx as an objective of the training loop (Ouyang et al. 2022, section 3.5 and appendix C.4).

A step is a minibatch of episodes. It minimises the clipped surrogate (Schulman et al. 2017,
equation 7) plus the clipped value loss, each a mean over the minibatch's actions, plus γ times the
mean loss of pre-training text. γ weighs a mean over tokens, as the surrogate is one. `rollouts.py`
samples episodes and advances the moving average between batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gpt_model.data.sampler import Sampler
from gpt_model.log_probabilities import continuation_positions, loss_of_log_probabilities
from gpt_model.ops.varlen import PackedSequences
from gpt_model.rlhf.episodes import RolloutModels, critic_values
from gpt_model.rlhf.reward_model import RewardModel
from gpt_model.rlhf.rollouts import Rollouts
from gpt_model.training.batching import (
    Idle,
    MicroBatchSize,
    balanced_micro_batches,
    collated,
    epoch_order,
    micro_batch_count,
)
from gpt_model.training.engine import Execution
from gpt_model.transformer import GPT

METRICS = ("policy_loss", "value_error", "clip_fraction", "moved", "ptx_loss")


class ActorCritic(nn.Module):
    """All models of PPO, so that the engine shards all of them: policy and critic are trained,
    reference and reward model are not.
    """

    def __init__(
        self, policy: GPT, critic: RewardModel | None, reference: GPT, reward: RewardModel
    ) -> None:
        """Policy and reference begin alike, and so do critic and reward model. Without a critic the
        value is a fresh head on the policy's trunk. Policy and critic have no dropout: the ratio
        compares with the probability that an action was sampled with.
        """
        super().__init__()
        self.policy = policy
        if critic is None:
            self.critic: nn.Module = nn.Linear(policy.config.width, 1)
            nn.init.zeros_(self.critic.weight)
            nn.init.zeros_(self.critic.bias)
        else:
            self.critic = critic.requires_grad_(True)
        self.reference = reference.requires_grad_(False)
        self.reward = reward.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> ActorCritic:
        super().train(mode)
        self.reference.eval()
        self.reward.eval()
        return self

    def rollout_models(self) -> RolloutModels:
        return RolloutModels(self.policy, self.reference, self.reward, self.critic)


@dataclass(frozen=True)
class LossConfig:
    """How far ratios and values may move, and the weights of the losses beside the surrogate."""

    clip: float
    value_clip: float
    value_weight: float
    ptx_weight: float  # γ


@dataclass(frozen=True)
class EpisodeMicroBatch:
    """Some episodes of a minibatch."""

    rows: PackedSequences
    positions: Tensor  # [actions], of the states they were sampled from
    weights: Tensor  # [actions], in the loss
    old_log_probs: Tensor  # [actions], when they were sampled
    advantages: Tensor  # [actions]
    returns: Tensor  # [actions]
    old_values: Tensor  # [actions], when they were sampled


@dataclass(frozen=True)
class TextMicroBatch:
    """Some pre-training text of a minibatch."""

    inputs: Tensor  # [rows, context]
    targets: Tensor  # [rows, context]
    weight: float  # of its mean loss in the loss


class PPOObjective:
    """What an optimizer step minimises. A step belongs to batch step // steps_per_batch, which
    `rollouts` has on disk.
    """

    unit, flops_per_unit = "episodes", 0.0

    def __init__(
        self,
        rollouts: Rollouts,
        minibatch: int,
        temperature: float,
        losses: LossConfig,
        ptx: Sampler | None,
        execution: Execution,
        seed: int,
        longest: int,
        sequences: int | None = None,
    ) -> None:
        """`ptx`: a step's pre-training text, or None. `longest`: tokens of an episode that every
        model can read. `sequences` of a micro-batch, of as many.
        """
        step_tokens = minibatch * longest + (ptx.batches.tokens_of(0) if ptx else 0)
        item = max(longest, ptx.context if ptx else 0)
        self.size = MicroBatchSize(sequences, longest, step_tokens, longest_item=item)
        self.rollouts, self.minibatch, self.temperature = rollouts, minibatch, temperature
        self.losses, self.ptx, self.execution, self.seed = losses, ptx, execution, seed

    def units_before(self, step: int) -> int:
        config = self.rollouts.config
        return step * config.batch_size // config.steps_per_batch

    def full_micro_batch(self, sequences: int) -> EpisodeMicroBatch:
        """Of answers without a prompt."""
        rows = PackedSequences.of([[0] * self.size.context] * sequences)
        actions = torch.full((sequences,), self.size.context - 1)
        positions = continuation_positions(rows, actions)
        return EpisodeMicroBatch(rows, positions, *torch.zeros(5, len(positions)).unbind())

    def micro_batches(self, step: int) -> list[Any]:
        """This rank's: the episodes, then the pre-training text; their gradients add up (appendix
        C.4). Raises UserError where the policy has diverged, before the batch is trained on and
        after its metrics were reported.
        """
        if step % self.rollouts.config.steps_per_batch == 0:
            self.rollouts.check(step // self.rollouts.config.steps_per_batch)
        rank, ranks = self.execution.rank, self.execution.world_size
        parts, texts = self._parts(step), self._texts(step)
        # The loop takes the mean over micro-batches and ranks; the loss is their sum.
        count = len(texts) * ranks + len(parts)
        return [
            *collated(
                parts[rank::ranks],
                lambda part: self._episodes(step, part, count),
                stand_in=self._items(step)[:1],
            ),
            *(
                text if isinstance(text, Idle) else replace(text, weight=text.weight * count)
                for text in texts
            ),
        ]

    def _items(self, step: int) -> list[int]:
        """The episodes of a step's minibatch; each inner epoch visits the batch in another order.

        Episodes whose reward is not a number are in none: the critic's values of such a text may
        not be numbers either.
        """
        config = self.rollouts.config
        batch, within = divmod(step, config.steps_per_batch)
        epoch, minibatch = divmod(within, config.batch_size // self.minibatch)
        finite = self.rollouts.batch(batch).episodes.rewards.isfinite()
        shuffled = epoch_order(config.batch_size, self.seed, "minibatches", batch, epoch)
        order = [item for item in shuffled if finite[item]]
        first, end = (
            index * len(order) * self.minibatch // config.batch_size
            for index in (minibatch, minibatch + 1)
        )
        return order[first:end] or order[:1]

    def _parts(self, step: int) -> list[list[int]]:
        """The minibatch in micro-batches over all ranks, equally many for each, of similar size in
        tokens. The last may be empty.
        """
        batch = self.rollouts.batch(step // self.rollouts.config.steps_per_batch)
        return balanced_micro_batches(
            self._items(step),
            batch.episodes.lengths.tolist(),
            self.size.tokens,
            self.execution.world_size,
            snake=False,
        )

    def _episodes(self, step: int, part: Sequence[int], scale: int) -> EpisodeMicroBatch:
        batch = self.rollouts.batch(step // self.rollouts.config.steps_per_batch)
        episodes = batch.episodes
        counts = episodes.action_counts.tolist()
        total = sum(counts[item] for item in self._items(step))
        texts = episodes.texts()
        rows = PackedSequences.of([texts[item] for item in part])
        actions = episodes.action_counts[part]

        def of_part(values: Tensor) -> Tensor:
            """[actions of the batch] -> [actions of the part]."""
            by_episode = values.split(counts)
            return torch.cat([by_episode[item] for item in part])

        return EpisodeMicroBatch(
            rows,
            continuation_positions(rows, actions),
            torch.full((int(actions.sum()),), scale / total),
            of_part(episodes.log_probs),
            of_part(batch.advantages.advantages),
            of_part(batch.advantages.returns),
            of_part(episodes.values),
        )

    def _texts(self, step: int) -> list[TextMicroBatch | Idle[TextMicroBatch]]:
        """This rank's pre-training text of a step, equally many micro-batches on every rank."""
        if self.ptx is None:
            return []
        rank, ranks = self.execution.rank, self.execution.world_size
        inputs, targets, _ = self.ptx.batch(step, rank, ranks)
        sequences = self.ptx.batches.tokens_of(step) // self.ptx.context
        tokens = -(-sequences // ranks) * ranks * self.ptx.context
        count = micro_batch_count(tokens, self.size.tokens, sequences, ranks) // ranks
        parts = zip(np.array_split(inputs, count), np.array_split(targets, count), strict=True)
        token = torch.zeros(1, 1, dtype=torch.long)
        return [
            TextMicroBatch(
                torch.from_numpy(rows),
                torch.from_numpy(next_tokens),
                self.losses.ptx_weight * len(rows) / sequences,
            )
            if len(rows)
            else Idle(TextMicroBatch(token, token, 0.0))
            for rows, next_tokens in parts
        ]

    def loss(
        self, model: nn.Module, micro_batch: TextMicroBatch | EpisodeMicroBatch
    ) -> tuple[Tensor, Mapping[str, tuple[Any, Any]]]:
        """The micro-batch's loss [], and METRICS as (sum, count)."""
        assert isinstance(model, ActorCritic)
        if isinstance(micro_batch, TextMicroBatch):
            loss = model.policy(micro_batch.inputs, micro_batch.targets)
            rows = len(micro_batch.inputs)
            metrics = _metrics(ptx_loss=(loss.detach() * rows, rows))
            return loss * micro_batch.weight + 0 * self._touch_critic(model), metrics
        return self._episode_loss(model, micro_batch)

    def _touch_critic(self, model: ActorCritic) -> Tensor:
        """The value [] of one token.

        Touch the critic in every micro-batch: ZeRO-3 otherwise adds its gradient of the last step
        to this one's.
        """
        rows = PackedSequences.of([[0]], self.execution.device)
        return critic_values(model.critic, rows, model.policy.states_of(rows)).sum()

    def _episode_loss(
        self, model: ActorCritic, batch: EpisodeMicroBatch
    ) -> tuple[Tensor, Mapping[str, tuple[Any, Any]]]:
        """The clipped surrogate and value loss of a micro-batch of episodes [], and metrics."""
        states = model.policy.states_of(batch.rows)  # [tokens, width]
        targets = batch.rows.tokens[batch.positions + 1]  # [actions]
        clip, count = self.losses.clip, len(targets)

        def surrogate(log_probs: Tensor) -> Tensor:
            """Equation 7, negated: [actions] -> [actions]."""
            ratio = (log_probs - batch.old_log_probs).exp()
            clipped = ratio.clamp(1 - clip, 1 + clip)
            return -torch.minimum(ratio * batch.advantages, clipped * batch.advantages)

        loss, log_probs = loss_of_log_probabilities(
            states[batch.positions] / self.temperature,
            model.policy.wte.weight,
            targets,
            lambda log_probs: (surrogate(log_probs) * batch.weights).sum(),
        )
        values = critic_values(model.critic, batch.rows, states)[batch.positions].float()
        value_loss = clipped_value_loss(
            values, batch.old_values, batch.returns, self.losses.value_clip
        )
        log_ratio = log_probs - batch.old_log_probs
        ratio = log_ratio.exp()
        metrics = _metrics(
            policy_loss=(surrogate(log_probs).sum(), count),
            value_error=(((values.detach() - batch.returns) ** 2).sum(), count),
            clip_fraction=(((ratio - 1).abs() > clip).sum(), count),
            moved=((ratio - 1 - log_ratio).sum(), count),  # KL from the sampling policy
        )
        return loss + self.losses.value_weight * (value_loss * batch.weights).sum(), metrics


def _metrics(**values: tuple[Any, Any]) -> dict[str, tuple[Any, Any]]:
    return {name: values.get(name, (0.0, 0.0)) for name in METRICS}


def clipped_value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Half the larger squared error of the value and of the value within `clip` of the old one
    (lm-human-preferences, train_policy.py). All [actions].
    """
    clipped = old + (values - old).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)
