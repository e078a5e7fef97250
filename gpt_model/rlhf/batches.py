"""Which dialogues are met when, in every step that tunes on a fixed set of them. A batch is a pure
function of (seed, step). No torch.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from gpt_model.training.settings import Settings

MICRO_TOKENS = (
    2048  # a rank and forward pass, unless the profile says otherwise: as in pre-training
)


class Batches:
    """`sizes`: tokens of each item. Each epoch meets all of them once, in another order, in as few
    batches as may be, of sizes that differ by one at most: `batch`, or one more where a step would
    have fewer than there are ranks.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        batch: int,
        epochs: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        micro_tokens: int = MICRO_TOKENS,
    ) -> None:
        """`batch`: items an optimizer step, all ranks together. Raises ValueError where there are
        fewer, or fewer items, than ranks.
        """
        self.sizes, self.epochs, self.seed = sizes, epochs, seed
        self.rank, self.world_size, self.micro_tokens = rank, world_size, micro_tokens
        if (most := min(batch, len(sizes))) < world_size:
            raise ValueError(
                f"{most} of {len(sizes)} items a step are fewer than {world_size} processes"
            )
        self.steps_per_epoch = min(math.ceil(len(sizes) / batch), len(sizes) // world_size)
        self.steps = epochs * self.steps_per_epoch
        self._epoch = lru_cache(maxsize=2)(self._drawn)

    def before(self, step: int) -> int:
        """Items of all steps before a step, each as often as it was met."""
        epoch, at = divmod(step, self.steps_per_epoch)
        return epoch * len(self.sizes) + at * len(self.sizes) // self.steps_per_epoch

    def items(self, step: int) -> list[int]:
        """Indices of the items of a step, all ranks together."""
        epoch = step // self.steps_per_epoch
        first = epoch * len(self.sizes)
        return self._epoch(epoch)[self.before(step) - first : self.before(step + 1) - first]

    def _drawn(self, epoch: int) -> list[int]:
        order = list(range(len(self.sizes)))
        random.Random(f"{self.seed} {epoch}").shuffle(order)
        return order

    def parts(self, step: int) -> list[list[int]]:
        """The items of a step in micro-batches, over all ranks, as many for each rank: of like size
        in tokens, none empty.
        """
        items = sorted(self.items(step), key=lambda item: (-self.sizes[item], item))
        wanted = math.ceil(sum(self.sizes[item] for item in items) / self.micro_tokens)
        number = min(-(-wanted // self.world_size), len(items) // self.world_size) * self.world_size
        parts: list[list[int]] = [[] for _ in range(number)]
        for place, item in enumerate(
            items
        ):  # there and back, so that no part has the longer one each time
            turn, at = divmod(place, number)
            parts[number - 1 - at if turn % 2 else at].append(item)
        return parts

    def micro_batches(self, step: int) -> list[list[int]]:
        """This rank's."""
        return self.parts(step)[self.rank :: self.world_size]


def cosine(peak: float, *, steps: int, warmup: float, final: float) -> Callable[[int], float]:
    """A straight line from 0 over the share `warmup` of the steps, then a cosine down to `final` ·
    peak at the last one.
    """
    before = warmup * steps

    def rate(step: int) -> float:
        if step + 1 <= before:
            return peak * (step + 1) / before
        progress = (step - before) / max(1.0, steps - 1 - before)
        return peak * (
            final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))
        )

    return rate


def settings_of(section: Mapping[str, Any], steps: int) -> Settings:
    """A section of the recipe's `alignment` as the loop takes it."""
    return Settings(
        steps=steps,
        learning_rate=cosine(
            section["learning_rate"],
            steps=steps,
            warmup=section["warmup"],
            final=section["final_learning_rate"],
        ),
        betas=tuple(section["betas"]),
        weight_decay=section["weight_decay"],
        gradient_clip=section["gradient_clip"],
        precision=section["precision"],
        seed=section["seed"],
    )
