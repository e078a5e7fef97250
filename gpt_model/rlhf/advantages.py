"""What each action was worth: rewards a token, generalised advantage estimation, whitening, and the
penalty's coefficient. No network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gpt_model.rlhf.episodes import Episodes

ERROR_CLIP = 0.2  # of the proportional error (Ziegler et al. 2019, section 2.2)


@dataclass(frozen=True)
class Worth:
    """Of each action, [all actions]: the whitened advantage, and what was gained from there on. 0
    where the reward is not a number.
    """

    advantages: Tensor
    returns: Tensor
    counted: Tensor  # bool: of an episode whose reward is a number


def gae(rewards: Tensor, values: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns of one episode's actions, each [actions], from its rewards and the
    values before them.

    Schulman et al. 2016, equation 16, without discount (InstructGPT, appendix C.4); after the last
    action nothing more is gained.
    """
    gained, worths = rewards.tolist(), values.tolist()
    advantages = [0.0] * len(gained)
    carried = after = 0.0
    for step in reversed(range(len(gained))):
        carried = gained[step] + after - worths[step] + smoothing * carried
        after = worths[step]
        advantages[step] = carried
    found = torch.tensor(advantages, dtype=values.dtype)
    return found, found + values


def worth(
    episodes: Episodes, coefficient: float, smoothing: float, unfinished: float = 0.0
) -> Worth:
    """Of a whole batch: the reward at the last action, minus coefficient · log-ratio to the
    reference at each; whitened over them all. `unfinished`: what is taken off the reward of an
    answer that was cut.
    """
    counted, last = episodes.rewards.isfinite(), paid(episodes, unfinished)
    sizes = episodes.actions.tolist()
    penalties = (-coefficient * (episodes.policy - episodes.reference).double()).split(sizes)
    found = []
    for number, (penalty, values) in enumerate(
        zip(penalties, episodes.values.double().split(sizes), strict=True)
    ):
        rewards = penalty.clone()
        rewards[-1] += torch.nan_to_num(last[number], nan=0.0, posinf=0.0, neginf=0.0)
        found.append(gae(rewards, values, smoothing))
    mask = counted.repeat_interleave(episodes.actions)
    advantages, returns = (torch.cat(column) for column in zip(*found, strict=True))
    return Worth(
        torch.where(mask, whitened(advantages, mask), 0.0).float(),
        torch.where(mask, returns, 0.0).float(),
        mask,
    )


def paid(episodes: Episodes, unfinished: float) -> Tensor:
    """The reward of each answer, less `unfinished` where it was cut: [episodes]."""
    return episodes.rewards.double() - unfinished * ~episodes.ended


def whitened(values: Tensor, counted: Tensor) -> Tensor:
    """With mean 0 and variance 1 over those that count; a single one, or all alike, with mean 0."""
    own = values[counted]
    spread = own.std(correction=0) if len(own) else values.new_zeros(())
    return (values - own.mean()) / (spread + 1e-8) if len(own) else values


def next_coefficient(
    coefficient: float, kl: float, episodes: int, target: float, horizon: int
) -> float:
    """The penalty's coefficient after a batch whose mean KL an episode was `kl` (Ziegler et al.
    2019, section 2.2).
    """
    error = min(ERROR_CLIP, max(-ERROR_CLIP, kl / target - 1))
    return coefficient * (1 + error * episodes / horizon)
