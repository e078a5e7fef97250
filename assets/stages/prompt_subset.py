"""Which held-out prompts models are compared on, and on which others an epoch is chosen, as a
choice flatters its own figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt_model.rlhf.records import Prompt

# prompts that an epoch is chosen on, if they are not to be those that models are compared on
FEWEST = 50


@dataclass(frozen=True)
class Drawn:
    """Both in the order of the file."""

    compared: list[Prompt]
    choosing: list[Prompt]
    left: int  # prompts that ask nothing that `compared` asks

    @property
    def apart(self) -> bool:
        """Whether no words are in both."""
        return self.left >= FEWEST


def drawn(prompts: Path, section: Mapping[str, Any]) -> Drawn:
    """The first `section["prompts"]` of a permutation of the held-out ones by `section["seed"]`;
    those after them, at most as many.
    """
    import numpy as np

    from gpt_model.rlhf.records import read_prompts

    found = read_prompts(prompts, "held_out")
    order = np.random.default_rng(section["seed"]).permutation(len(found)).tolist()
    first = order[: section["prompts"]]
    words = {found[place].turns for place in first}
    others = [place for place in order[len(first) :] if found[place].turns not in words]
    choosing = others[: section["prompts"]] if len(others) >= FEWEST else first
    return Drawn(
        [found[place] for place in sorted(first)],
        [found[place] for place in sorted(choosing)],
        len(others),
    )
