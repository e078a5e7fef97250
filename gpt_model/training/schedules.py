"""Learning rates and batch sizes: pure functions of the step, or of the tokens seen before it, as
the papers have them. No torch.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable

Schedule = Callable[[int], float]  # of the step about to be taken, counted from 0


class Batches:
    """How many tokens each step takes, all ranks together: `size` of them, or a ramp up to that
    (GPT-3, appendix B).

    On a ramp the batch lies on a straight line from `ramp_from` tokens before the first step to
    `size` once `ramp_over` tokens are seen, rounded to a whole multiple of `ramp_from`: so ranks
    that share out that many sequences share out every batch, and which batches there are does not
    hang on how many ranks there are. The table below has a line for each such multiple, not for
    each step.
    """

    def __init__(self, size: int, ramp_from: int | None = None, ramp_over: int = 0) -> None:
        """`ramp_from` is at most `size`."""
        self.size = size
        self._steps, self._seen, self._sizes = (
            [0],
            [0],
            [size],
        )  # of each stretch of equal batches: steps and tokens before it, its batch
        if ramp_from is None or ramp_from == size:
            return
        self._sizes = [ramp_from]
        while (batch := self._sizes[-1]) < size:
            multiple = (
                batch // ramp_from
            )  # the line crosses half way to the next one after this many tokens
            end = min(
                ramp_over,
                -(-(2 * multiple - 1) * ramp_from * ramp_over // (2 * (size - ramp_from))),
            )
            steps = max(0, -(-(end - self._seen[-1]) // batch))
            self._steps.append(self._steps[-1] + steps)
            self._seen.append(self._seen[-1] + steps * batch)
            self._sizes.append(min(size, batch + ramp_from) if self._seen[-1] < ramp_over else size)

    def of(self, step: int) -> int:
        """Tokens of a step."""
        return self._sizes[bisect_right(self._steps, step) - 1]

    def before(self, step: int) -> int:
        """Tokens of all steps before a step."""
        stretch = bisect_right(self._steps, step) - 1
        return self._seen[stretch] + (step - self._steps[stretch]) * self._sizes[stretch]

    def within(self, tokens: int) -> int:
        """Steps that `tokens` tokens are enough for."""
        stretch = bisect_right(self._seen, tokens) - 1
        return self._steps[stretch] + (tokens - self._seen[stretch]) // self._sizes[stretch]

    def nearest(self, tokens: float) -> int:
        """Steps after which the number of tokens seen is nearest to `tokens`."""
        below = self.within(math.floor(tokens))
        return below + (tokens - self.before(below) > self.before(below + 1) - tokens)


def warmup_cosine(
    peak: float, *, warmup: float, decay: float, final: float
) -> Callable[[float], float]:
    """Of the tokens seen: linear from 0 over `warmup`, a cosine down to `final` · peak at `decay`,
    and that from there on.

    GPT-3, appendix B: final 0.1 after 260 billion tokens of 300. GPT-1, section 4.1: final 0; its
    2,000 updates are tokens too, as its batch is constant. Both counts are from the first token on,
    so the cosine's own stretch is `decay` - `warmup`.
    """

    def rate(tokens: float) -> float:
        if tokens < warmup:
            return peak * tokens / warmup
        progress = min(1.0, (tokens - warmup) / (decay - warmup)) if decay > warmup else 1.0
        return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))

    return rate


def by_step(rate: Callable[[float], float], batches: Batches) -> Schedule:
    """A step takes the rate at the middle of its batch, so that the first and the last step both
    learn something.
    """
    return lambda step: rate(batches.before(step) + batches.of(step) / 2)


def warmup_linear(peak: float, *, warmup: float, steps: int) -> Schedule:
    """GPT-1's fine-tuning (section 4.1, released opt.py): x/warmup · (1 - x) up to the share
    `warmup` of the steps, 1 - x after it.

    x is the share of the steps taken before, so the first step, whose rate is 0, only fills the
    moments.
    """

    def rate(step: int) -> float:
        x = step / steps
        return peak * (min(1.0, x / warmup) if warmup else 1.0) * (1 - x)

    return rate
