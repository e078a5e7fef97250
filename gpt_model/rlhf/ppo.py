"""PPO-ptx as an objective of the training loop (Ouyang et al. 2022, section 3.5 and appendix C.4):
what an optimizer step minimises.

A step is a minibatch: the clipped surrogate (Schulman et al. 2017, equation 7) and the clipped
value loss of its episodes, each a mean over the minibatch's actions, and γ times the mean loss of
as many tokens of pre-training text as were asked for. γ multiplies a mean over tokens, as the
surrogate is one. Episodes, advantages and the moving average are made between batches
(`rollouts.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gpt_model.data.sampler import Sampler
from gpt_model.ops.cross_entropy import linear_cross_entropy, linear_cross_entropy_by_row
from gpt_model.ops.varlen import PackedSequences
from gpt_model.rlhf.episodes import Cast, places, values_of
from gpt_model.rlhf.reward_model import RewardModel
from gpt_model.rlhf.rollouts import Rollouts
from gpt_model.training.batching import (
    TRAINING_TOKENS,
    balanced_micro_batches,
    epoch_order,
    micro_batch_count,
)
from gpt_model.training.settings import Execution
from gpt_model.transformer import GPT, with_rows

FIGURES = ("policy_loss", "value_error", "clip_fraction", "moved", "ptx_loss")


class Actors(nn.Module):
    """All that PPO needs, so that the engine shares out all of it: policy and value are trained,
    reference and reward model are not.
    """

    def __init__(self, start: GPT, reward: RewardModel, *, shared: bool, seed: int) -> None:
        """The policy starts as a copy of `start`, which becomes the reference itself; the value
        model as a copy of `reward`, or as a fresh head on the policy's trunk. Without dropout: what
        an action was chosen with is what its ratio is taken to.
        """
        super().__init__()
        self.policy = with_rows(start, 0, 0.0, seed)
        if shared:
            self.value: nn.Module = nn.Linear(start.config.width, 1)
            nn.init.zeros_(self.value.weight)
            nn.init.zeros_(self.value.bias)
        else:
            self.value = copy.deepcopy(reward)
            self.value.gpt = with_rows(reward.gpt, 0, 0.0, seed)
            self.value.requires_grad_(True)
        self.reference, self.reward = start.requires_grad_(False), reward.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Actors:
        super().train(mode)
        self.reference.eval()
        self.reward.eval()
        return self

    def cast(self) -> Cast:
        return Cast(self.policy, self.reference, self.reward, self.value)


@dataclass(frozen=True)
class Losses:
    """How they are weighted."""

    clip: float
    value_clip: float
    value_weight: float
    ptx_weight: float  # γ


@dataclass(frozen=True)
class Actions:
    """A micro-batch of episodes. Everything but `rows` is [actions]."""

    rows: PackedSequences
    chosen_at: Tensor  # where the states stand that they are chosen from
    share: Tensor  # of each in the loss
    old: Tensor  # log-probability when they were made
    advantages: Tensor
    returns: Tensor
    values: Tensor  # when they were made


@dataclass(frozen=True)
class Text:
    """A micro-batch of pre-training text: [rows, context] each."""

    inputs: Tensor
    targets: Tensor
    share: float  # of its mean loss in the loss


class PPO:
    """The objective. A step belongs to batch step // steps_each, whose episodes `rollouts` has on
    disk.
    """

    unit, flops_per_unit = "episodes", 0.0

    def __init__(
        self,
        rollouts: Rollouts,
        minibatch: int,
        temperature: float,
        losses: Losses,
        ptx: Sampler | None,
        execution: Execution,
        seed: int,
    ) -> None:
        """`ptx`: a step's pre-training text, or none. Raises ValueError where a minibatch is
        smaller than the ranks are many.
        """
        if minibatch < execution.world_size:
            raise ValueError(
                f"a minibatch of {minibatch} episodes cannot be shared out to {execution.world_size} processes"
            )
        self.rollouts, self.minibatch, self.temperature, self.losses = (
            rollouts,
            minibatch,
            temperature,
            losses,
        )
        self.ptx, self.execution, self.seed = ptx, execution, seed

    def units_before(self, step: int) -> int:
        each = self.rollouts.making.steps_each
        return step * self.rollouts.making.batch // each

    def micro_batches(self, step: int) -> list[Text | Actions]:
        """This rank's: the episodes, then the pre-training text, whose gradients add up (appendix
        C.4). Raises UserError where the policy has run away: before anything is learnt from such a
        batch, and after what is known of it was told.
        """
        if step % self.rollouts.making.steps_each == 0:
            self.rollouts.check(step // self.rollouts.making.steps_each)
        rank, ranks = self.execution.rank, self.execution.world_size
        parts = self._parts(step)
        texts = self._texts(step)
        both = len(texts) + len(parts) // ranks
        # The loop takes the mean over micro-batches and ranks; a sum is meant.
        own: list[Text | Actions] = [
            Text(one.inputs, one.targets, one.share * both * ranks) for one in texts
        ]
        return [*(self._actions(step, part, both * ranks) for part in parts[rank::ranks]), *own]

    def _items(self, step: int) -> list[int]:
        """The episodes of a step's minibatch: each inner epoch meets the batch in another order.
        Those whose reward is not a number are in none, as what such a text makes of the value model
        may not be one either; some stand twice where ranks are more than the rest.
        """
        making, ranks = self.rollouts.making, self.execution.world_size
        batch, within = divmod(step, making.steps_each)
        epoch, at = divmod(within, making.batch // self.minibatch)
        counted = self.rollouts.batch(batch).episodes.rewards.isfinite()
        whole = epoch_order(making.batch, self.seed, "minibatches", batch, epoch)
        order = [item for item in whole if counted[item]]
        first, end = (place * len(order) * self.minibatch // making.batch for place in (at, at + 1))
        own = order[first:end] or order[:1]
        return own if len(own) >= ranks else (own * ranks)[:ranks]

    def _parts(self, step: int) -> list[list[int]]:
        """Those in micro-batches, over all ranks, as many for each: of like size in tokens, none
        empty.
        """
        lengths = self.rollouts.batch(
            step // self.rollouts.making.steps_each
        ).episodes.lengths.tolist()
        return balanced_micro_batches(
            self._items(step), lengths, TRAINING_TOKENS, self.execution.world_size, snake=False
        )

    def _actions(self, step: int, part: list[int], scale: int) -> Actions:
        batch = self.rollouts.batch(step // self.rollouts.making.steps_each)
        episodes, device = batch.episodes, self.execution.device
        sizes = episodes.actions.tolist()
        total = sum(sizes[item] for item in self._items(step))
        texts = episodes.texts()
        rows = PackedSequences.of([texts[item] for item in part], device)
        actions = episodes.actions[part].to(device)

        def of(values: Tensor) -> Tensor:
            each = values.split(sizes)
            return torch.cat([each[item] for item in part]).to(device)

        worth = batch.worth
        return Actions(
            rows,
            places(rows.starts, episodes.before[part].to(device), actions),
            torch.full((int(actions.sum()),), scale / total, device=device),
            of(episodes.policy),
            of(worth.advantages),
            of(worth.returns),
            of(episodes.values),
        )

    def _texts(self, step: int) -> list[Text]:
        """This rank's pre-training text of a step, as many micro-batches on every rank."""
        if self.ptx is None:
            return []
        rank, ranks = self.execution.rank, self.execution.world_size
        inputs, targets, _ = self.ptx.batch(step, rank, ranks)
        whole = self.ptx.batches.of(step) // self.ptx.context
        tokens = -(-whole // ranks) * ranks * self.ptx.context
        parts = micro_batch_count(tokens, TRAINING_TOKENS, whole, ranks) // ranks
        split = zip(np.array_split(inputs, parts), np.array_split(targets, parts), strict=True)
        there = [
            [torch.from_numpy(one).to(self.execution.device) for one in pair] for pair in split
        ]
        return [Text(ins, outs, self.losses.ptx_weight * len(ins) / whole) for ins, outs in there]

    def loss(
        self, model: nn.Module, micro_batch: Text | Actions
    ) -> tuple[Tensor, Mapping[str, tuple[Any, Any]]]:
        assert isinstance(model, Actors)
        if isinstance(micro_batch, Text):
            loss = model.policy(micro_batch.inputs, micro_batch.targets)
            rows = len(micro_batch.inputs)
            return loss * micro_batch.share + 0 * self._one_value(model), _figures(
                ptx_loss=(loss.detach() * rows, rows)
            )
        return self._of_actions(model, micro_batch)

    def _one_value(self, model: Actors) -> Tensor:
        """The worth of one token. DeepSpeed takes it that each micro-batch of a step goes through
        the same weights: of those that some do not, ZeRO 3 adds the last step's gradient to this
        one's.
        """
        rows = PackedSequences.of([[0]], self.execution.device)
        return values_of(model.value, rows, model.policy.states_of(rows)).sum()

    def _of_actions(
        self, model: Actors, own: Actions
    ) -> tuple[Tensor, Mapping[str, tuple[Any, Any]]]:
        states = model.policy.states_of(own.rows)
        acting = states[own.chosen_at] / self.temperature
        targets = own.rows.tokens[own.chosen_at + 1]
        clip, count = self.losses.clip, len(targets)

        def surrogate(logs: Tensor) -> Tensor:
            ratio = (logs - own.old).exp()
            return -torch.minimum(
                ratio * own.advantages, ratio.clamp(1 - clip, 1 + clip) * own.advantages
            )

        loss, logs = through(
            acting,
            model.policy.wte.weight,
            targets,
            lambda logs: (surrogate(logs) * own.share).sum(),
        )
        values = values_of(model.value, own.rows, states)[own.chosen_at].float()
        error = clipped_value_loss(values, own.values, own.returns, self.losses.value_clip)
        ratio = (logs - own.old).exp()
        figures = _figures(
            policy_loss=(surrogate(logs).sum(), count),
            value_error=(((values.detach() - own.returns) ** 2).sum(), count),
            clip_fraction=(((ratio - 1).abs() > clip).sum(), count),
            moved=((ratio - 1 - (logs - own.old)).sum(), count),
        )
        return loss + self.losses.value_weight * (error * own.share).sum(), figures


def _figures(**known: tuple[Any, Any]) -> dict[str, tuple[Any, Any]]:
    return {name: known.get(name, (0.0, 0.0)) for name in FIGURES}


def clipped_value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Of each action: the worse of the value and of one no further than `clip` from what it was
    (the predecessor's train_policy.py).
    """
    near = old + (values - old).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)


def through(
    states: Tensor, weight: Tensor, targets: Tensor, make: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """`make` of the targets' log-probabilities, differentiable in states and head, and the
    log-probabilities [rows].

    Full logits never exist: the gradient by the log-probabilities is taken first, and is what each
    row's cross-entropy is weighted with.
    """
    with torch.no_grad():
        logs = -linear_cross_entropy_by_row(states.float(), weight, targets)
    with torch.enable_grad():
        leaf = logs.clone().requires_grad_()
        made = make(leaf)
        (slope,) = torch.autograd.grad(made, leaf)
    carrier = linear_cross_entropy(states, weight, targets, shares=-slope)
    return made.detach() + carrier - carrier.detach(), logs


def constant_rate(peak: float, warmup_batches: int, steps_each: int) -> Callable[[int], float]:
    """A line from a tenth of it over the first batches, then constant (appendix C.4)."""

    def rate(step: int) -> float:
        batch = step // steps_each
        return peak * (0.1 + 0.9 * batch / warmup_batches) if batch < warmup_batches else peak

    return rate
