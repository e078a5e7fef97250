"""The held-out prompts that models are compared on, and the others that an epoch is chosen on: a
choice flatters its own figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt_model.rlhf.records import Prompt, read_prompts

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
