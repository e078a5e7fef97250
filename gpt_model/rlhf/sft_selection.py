"""Selecting the SFT model: the supervised epoch whose answers the reward model scores highest
(Ouyang et al. 2022, section 3.5), and the prompts to select it on.

A selection flatters its own figure, so the prompts are others than those that models are compared
on, where there are enough. The stage `instructed` compares the epochs
(`assets/execution/sft_selection.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt_model.rlhf.answers import Answer
from gpt_model.rlhf.records import Prompt, read_prompts
from gpt_model.statistics import mean_interval

FEWEST = 50  # other prompts, without which an epoch is chosen on those that models are compared on


@dataclass(frozen=True)
class PromptSubset:
    """Both in the order of the file."""

    compared: list[Prompt]
    choosing: list[Prompt]
    left: int  # held-out prompts that ask nothing that `compared` asks

    @property
    def apart(self) -> bool:
        """Whether no prompt's text is in both."""
        return self.left >= FEWEST


def prompt_subset(prompts: Path, section: Mapping[str, Any]) -> PromptSubset:
    """`compared`: the first `section["prompts"]` of a permutation of the held-out prompts by
    `section["seed"]`; `choosing`: at most as many of the others.
    """
    held_out = read_prompts(prompts, "held_out")
    order = np.random.default_rng(section["seed"]).permutation(len(held_out)).tolist()
    first = order[: section["prompts"]]
    compared = {held_out[index].turns for index in first}
    others = [index for index in order[len(first) :] if held_out[index].turns not in compared]
    choosing = others[: section["prompts"]] if len(others) >= FEWEST else first
    return PromptSubset(
        [held_out[index] for index in sorted(first)],
        [held_out[index] for index in sorted(choosing)],
        len(others),
    )


@dataclass(frozen=True)
class Epoch:
    """The answers of one epoch's model, and their rewards."""

    number: int  # from 1
    rewards: list[float]
    answers: list[Answer]
    held_out_loss: float | None  # of supervised fine-tuning, after that epoch

    @property
    def reward(self) -> float:
        return sum(self.rewards) / len(self.rewards)

    def metrics(self) -> dict[str, Any]:
        low = high = self.reward
        if len(self.rewards) > 1:
            interval = mean_interval(self.rewards)
            low, high = interval.low, interval.high
        metrics = {
            "reward": self.reward,
            "reward_low": low,
            "reward_high": high,
            "ended": sum(answer.ended for answer in self.answers) / len(self.answers),
            "length": sum(len(answer.tokens) for answer in self.answers) / len(self.answers),
            "empty": sum(answer.empty for answer in self.answers),
            "prompts_cut": sum(answer.prompt_cut for answer in self.answers),
        }
        if self.held_out_loss is not None:
            metrics["held_out_loss"] = self.held_out_loss
        return metrics
