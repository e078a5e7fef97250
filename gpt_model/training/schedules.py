"""Learning-rate schedules and the batch ramp (GPT-3, appendix B): pure functions of the step, or of
the tokens seen before it, as the papers give them. No torch.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator

Schedule = Callable[[int], float]  # of the step about to be taken, counted from 0


class BatchSchedule:
    """How many tokens each step takes, all ranks together: `size` of them, or a ramp up to that
    (GPT-3, appendix B).

    On a ramp the batch lies on a straight line from `ramp_from` tokens before the first step to
    `size` once `ramp_over` tokens are seen. It is rounded to a whole multiple of `ramp_from`, and
    does not depend on the number of ranks. The table below has a line for each such multiple, not
    for each step.
    """

    def __init__(self, size: int, ramp_from: int | None = None, ramp_over: int = 0) -> None:
        """`ramp_from` is at most `size`."""
        self.size = size
        # Of each stretch of equal batches: steps and tokens before it, and its batch
        self._steps, self._tokens, self._sizes = [0], [0], [size]
        if ramp_from is None or ramp_from == size:
            return
        self._sizes = [ramp_from]
        while (batch := self._sizes[-1]) < size:
            multiple = batch // ramp_from
            # The line crosses half way to the next multiple after this many tokens.
            end = min(
                ramp_over,
                -(-(2 * multiple - 1) * ramp_from * ramp_over // (2 * (size - ramp_from))),
            )
            steps = max(0, -(-(end - self._tokens[-1]) // batch))
            self._steps.append(self._steps[-1] + steps)
            self._tokens.append(self._tokens[-1] + steps * batch)
            ramping = self._tokens[-1] < ramp_over
            self._sizes.append(min(size, batch + ramp_from) if ramping else size)

    def tokens_of(self, step: int) -> int:
        """Tokens of a step."""
        return self._sizes[bisect_right(self._steps, step) - 1]

    def tokens_before(self, step: int) -> int:
        """Tokens of all steps before a step."""
        stretch = bisect_right(self._steps, step) - 1
        return self._tokens[stretch] + (step - self._steps[stretch]) * self._sizes[stretch]

    def stretches(self, steps: int) -> Iterator[tuple[int, int]]:
        """(tokens of a step, how many such steps there are) within the first `steps`, in order."""
        ends = [*self._steps[1:], steps]
        for begin, end, size in zip(self._steps, ends, self._sizes, strict=True):
            if (count := min(end, steps) - begin) > 0:
                yield size, count

    def steps_within(self, tokens: int) -> int:
        """Steps that `tokens` tokens are enough for."""
        stretch = bisect_right(self._tokens, tokens) - 1
        return self._steps[stretch] + (tokens - self._tokens[stretch]) // self._sizes[stretch]

    def nearest_step(self, tokens: float) -> int:
        """Steps after which the number of tokens seen is nearest to `tokens`."""
        below = self.steps_within(math.floor(tokens))
        remainder = tokens - self.tokens_before(below)
        return below + (remainder > self.tokens_before(below + 1) - tokens)


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
        return _cosine(peak, final, progress)

    return rate


def by_step(rate: Callable[[float], float], batches: BatchSchedule) -> Schedule:
    """A step takes the rate at the middle of its batch, so that the first and the last step both
    learn something.
    """
    return lambda step: rate(batches.tokens_before(step) + batches.tokens_of(step) / 2)


def warmup_cosine_by_step(peak: float, *, steps: int, warmup: float, final: float) -> Schedule:
    """Tuning on comparisons and demonstrations: linear over the share `warmup` of the steps, then a
    cosine down to `final` · peak at the last one.
    """
    warmup_steps = warmup * steps

    def rate(step: int) -> float:
        if step + 1 <= warmup_steps:
            return peak * (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1.0, steps - 1 - warmup_steps)
        return _cosine(peak, final, min(1.0, max(0.0, progress)))

    return rate


def _cosine(peak: float, final: float, progress: float) -> float:
    """From `peak` at progress 0 down to `final` · peak at progress 1."""
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))


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


def warmup_constant(peak: float, warmup_batches: int, steps_per_batch: int) -> Schedule:
    """PPO (InstructGPT, appendix C.4): linear from a tenth of the peak over the first batches of
    episodes, then constant.
    """

    def rate(step: int) -> float:
        batch = step // steps_per_batch
        return peak * (0.1 + 0.9 * batch / warmup_batches) if batch < warmup_batches else peak

    return rate
