"""Advantages and returns of sampled episodes: rewards a token, generalised advantage estimation,
whitening, and the coefficient of the KL penalty. No network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gpt_model.rlhf.episodes import Episodes

ERROR_CLIP = 0.2  # of the proportional error (Ziegler et al. 2019, section 2.2)


@dataclass(frozen=True)
class Advantages:
    """One number an action; 0 where the episode's reward is not a number."""

    advantages: Tensor  # [actions], whitened
    returns: Tensor  # [actions]
    mask: Tensor  # [actions], bool: the episode's reward is a number


def gae(rewards: Tensor, values: Tensor, gae_lambda: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns of an episode, each [actions].

    `rewards` [actions]; `values` [actions], of the states before them. Schulman et al. 2016,
    equation 16, without discount (InstructGPT, appendix C.4); the state after the last action has
    value 0.
    """
    reward, value = rewards.tolist(), values.tolist()
    advantages = [0.0] * len(reward)
    advantage = next_value = 0.0
    for step in reversed(range(len(reward))):
        advantage = reward[step] + next_value - value[step] + gae_lambda * advantage
        next_value = value[step]
        advantages[step] = advantage
    result = torch.tensor(advantages, dtype=values.dtype)
    return result, result + values


def compute_advantages(
    episodes: Episodes, kl_coefficient: float, gae_lambda: float, unfinished_penalty: float = 0.0
) -> Advantages:
    """Advantages of a whole batch, whitened over all its actions.

    The reward comes at the last action; each action pays kl_coefficient · its log-ratio to the
    reference. `unfinished_penalty` is taken off the reward of an answer that was cut.
    """
    finite, final = episodes.rewards.isfinite(), final_rewards(episodes, unfinished_penalty)
    counts = episodes.action_counts.tolist()
    log_ratios = (episodes.log_probs - episodes.reference_log_probs).double()
    penalties = (-kl_coefficient * log_ratios).split(counts)
    estimates = []
    for index, (penalty, values) in enumerate(
        zip(penalties, episodes.values.double().split(counts), strict=True)
    ):
        rewards = penalty.clone()
        rewards[-1] += torch.nan_to_num(final[index], nan=0.0, posinf=0.0, neginf=0.0)
        estimates.append(gae(rewards, values, gae_lambda))
    mask = finite.repeat_interleave(episodes.action_counts)
    advantages, returns = (torch.cat(column) for column in zip(*estimates, strict=True))
    return Advantages(
        torch.where(mask, whiten(advantages, mask), 0.0).float(),
        torch.where(mask, returns, 0.0).float(),
        mask,
    )


def final_rewards(episodes: Episodes, unfinished_penalty: float) -> Tensor:
    """The reward of each answer, less the penalty where it was cut: float64 [episodes]."""
    return episodes.rewards.double() - unfinished_penalty * ~episodes.ended


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """`values` [actions], shifted and scaled to mean 0 and variance 1 over `mask` [actions]. Equal
    values become 0.
    """
    counted = values[mask]
    if not len(counted):
        return values
    return (values - counted.mean()) / (counted.std(correction=0) + 1e-8)


def next_kl_coefficient(
    coefficient: float, kl: float, episodes: int, target: float, horizon: int
) -> float:
    """The penalty's coefficient after a batch of `episodes` whose mean KL was `kl` nats an episode
    (Ziegler et al. 2019, section 2.2).
    """
    error = min(ERROR_CLIP, max(-ERROR_CLIP, kl / target - 1))
    return coefficient * (1 + error * episodes / horizon)
