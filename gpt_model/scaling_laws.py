"""Scaling laws: the loss of models of one recipe as a function of compute, or of parameters and
data, with intervals. No training here.

- **Compute**: L = floor + scale · C^-exponent, fitted to ln L by least squares; the floor is 0 with
  few points (Kaplan et al. 2020, equation 1.3; Brown et al. 2020, figure 3.1, whose line is in
  `published/`). Prediction of a larger model: the law at its compute.
- **Parameters and data**: L = E + A/N^α + B/D^β by a Huber loss on ln L from many starts (Hoffmann
  et al. 2022, section 3.3, appendix D.2). Only where N and D were varied apart from each other:
  with as many tokens a parameter everywhere, A/N^α and B/D^β cannot be told apart.
- **Intervals**: a parametric bootstrap of the residuals. Each draw takes a spread from what so few
  residuals say of it (scaled inverse χ²), draws new losses round the fitted ones, and fits again; a
  prediction's draw has that spread's noise too. For a law that is linear in the logarithms this is
  Student's prediction interval; five points are known to be five points.

Compute is counted in petaflop/s-days of model FLOPs, loss in nats a token.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares, minimize

from gpt_model.io import rounded
from gpt_model.statistics import percentile_ends

PF_DAY = 1e15 * 86_400  # FLOPs
DRAWS, DRAWS_OF_FLOOR, DRAWS_OF_TERMS = 1000, 300, 200
# A floor is fitted from so many points on: with fewer the interval is all floor.
POINTS_FOR_A_FLOOR = 6
HUBER = 1e-3  # Hoffmann et al., appendix D.2

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Law:
    """L(C) = floor + scale · C^-exponent, and what it would have been with other luck."""

    floor: float
    scale: float
    exponent: float
    spread: float  # of ln L round it
    freedom: int  # points beyond the fitted parameters
    draws: Values  # [draws, 4]: floor, ln scale, exponent, noise of ln L

    def at(self, compute: float) -> float:
        return float(self.floor + self.scale * compute**-self.exponent)

    def interval(
        self, compute: float, level: float = 0.9, *, noise: bool = True
    ) -> tuple[float, float]:
        """Of a model's loss at `compute`, or without `noise` of the law itself there."""
        floor, scale, exponent, residual = self.draws.T
        with np.errstate(divide="ignore"):  # a floor of 0
            logs = np.logaddexp(np.log(floor), scale - exponent * np.log(compute)) + (
                residual if noise else 0.0
            )
        low, high = percentile_ends(logs, (1 - level) / 2)
        return float(np.exp(low)), float(np.exp(high))

    def exponent_interval(self, level: float = 0.9) -> tuple[float, float]:
        return percentile_ends(self.draws[:, 2], (1 - level) / 2)

    def as_json(self) -> dict[str, Any]:
        fields = {
            name: rounded(getattr(self, name)) for name in ("floor", "scale", "exponent", "spread")
        }
        return {
            **fields,
            "freedom": self.freedom,
            "draws": [[rounded(value) for value in draw] for draw in self.draws.tolist()],
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        return cls(**{**fields, "draws": np.array(fields["draws"])})


def fit_compute(compute: Sequence[float], losses: Sequence[float], seed: int = 0) -> Law:
    """The law through models of these computes and losses, a floor in it from `POINTS_FOR_A_FLOOR`
    points on. Three are the least.

    Raises ValueError where there are fewer, or all are of one compute.
    """
    x, y = np.log(np.asarray(compute, float)), np.log(np.asarray(losses, float))
    if len(x) < 3 or np.ptp(x) == 0:
        raise ValueError(
            f"{len(x)} models of {len(set(compute))} sizes: a law takes three models or more, of "
            "two sizes or more"
        )
    with_floor = len(x) >= POINTS_FOR_A_FLOOR and len(np.unique(x)) >= POINTS_FOR_A_FLOOR - 1
    freedom, draw = len(x) - (3 if with_floor else 2), np.random.default_rng(seed)
    law = _with_floor(x, y, _starts(x, y)) if with_floor else _power(x, y[None])[0]
    spread = float(np.sqrt(np.sum((y - _ln(law, x)) ** 2) / freedom))
    count = DRAWS_OF_FLOOR if with_floor else DRAWS
    spreads = spread * np.sqrt(freedom / draw.chisquare(freedom, count))
    others = _ln(law, x) + spreads[:, None] * draw.standard_normal((count, len(x)))
    refitted = (
        np.array([_with_floor(x, other, [law]) for other in others])
        if with_floor
        else _power(x, others)
    )
    draws = np.column_stack([refitted, spreads * draw.standard_normal(count)])
    return Law(float(law[0]), float(np.exp(law[1])), float(law[2]), spread, freedom, draws)


def _power(x: Values, y: Values) -> Values:
    """Least squares of each row of y [rows, points] on x: (0, ln scale, exponent) [rows, 3]."""
    middle = x.mean()
    slopes = (y * (x - middle)).sum(1) / ((x - middle) ** 2).sum()
    return np.column_stack([np.zeros(len(y)), y.mean(1) - slopes * middle, -slopes])


def _starts(x: Values, y: Values) -> list[Values]:
    lowest = np.exp(y.min())
    shares = (0.0, 0.3, 0.6, 0.9)
    return [
        np.array([share * lowest, *_power(x, np.log(np.exp(y) - share * lowest)[None])[0, 1:]])
        for share in shares
    ]


def _with_floor(x: Values, y: Values, starts: Sequence[Values]) -> Values:
    """Least squares of y on the law with a floor: the best from `starts`."""
    bounds = ([0.0, -np.inf, 0.0], [np.exp(y.min()), np.inf, np.inf])
    inside = [
        np.clip(start, np.add(bounds[0], 1e-12), np.subtract(bounds[1], 1e-9)) for start in starts
    ]
    fits = [
        least_squares(
            lambda law: _ln(law, x) - y,
            start,
            lambda law: _slope(law, x),
            bounds=bounds,
            x_scale=(1.0, 1.0, 0.1),
        )
        for start in inside
    ]
    best: Values = min(fits, key=lambda fit: float(fit.cost)).x
    return best


def _ln(law: Values, x: Values) -> Values:
    """ln L at x = ln C."""
    values: Values = np.log(law[0] + np.exp(law[1] - law[2] * x))
    return values


def _slope(law: Values, x: Values) -> Values:
    """The gradient of ln L by floor, ln scale and exponent: [points, 3]."""
    above = np.exp(law[1] - law[2] * x)
    return np.column_stack([np.ones_like(x), above, -x * above]) / (law[0] + above)[:, None]


@dataclass(frozen=True)
class Terms:
    """L(N, D) = E + A/N^α + B/D^β, and its draws [draws, 5] of ln E, ln A, ln B, α, β."""

    floor: float
    of_parameters: float
    of_data: float
    alpha: float
    beta: float
    draws: Values

    def at(self, parameters: float, tokens: float) -> float:
        return float(
            self.floor
            + self.of_parameters * parameters**-self.alpha
            + self.of_data * tokens**-self.beta
        )

    def interval(self, name: str, level: float = 0.9) -> tuple[float, float]:
        """Of "floor", "alpha" or "beta"."""
        column = {
            "floor": np.exp(self.draws[:, 0]),
            "alpha": self.draws[:, 3],
            "beta": self.draws[:, 4],
        }[name]
        return percentile_ends(column, (1 - level) / 2)

    def tokens_per_parameter(self, compute: float) -> float:
        """D/N where 6·N·D = compute (petaflop/s-days) is best spent (Hoffmann et al. 2022, equation
        4).
        """
        product = compute * PF_DAY / 6
        scale = (self.alpha * self.of_parameters / (self.beta * self.of_data)) ** (
            1 / (self.alpha + self.beta)
        )
        parameters = scale * product ** (self.beta / (self.alpha + self.beta))
        return float(product / parameters**2)


def why_not_terms(parameters: Sequence[float], tokens: Sequence[float]) -> str | None:
    """Why N and D of these models do not tell the two terms apart, or None where they do."""
    models = sorted(set(zip(parameters, tokens, strict=True)))
    if len(models) < 6:
        return f"{len(models)} different models are fewer than the six that five unknowns take"
    n, d = np.log(np.array(models)).T
    levels = [len(np.unique(np.round(values, 6))) for values in (n, d - n)]
    if min(levels) < 3:
        return (
            f"{levels[0]} sizes at {levels[1]} numbers of tokens a parameter; three of each are "
            "needed to tell size from data"
        )
    return None


def fit_terms(
    parameters: Sequence[float], tokens: Sequence[float], losses: Sequence[float], seed: int = 0
) -> Terms:
    """Hoffmann et al.'s parametric fit. Raises ValueError where `why_not_terms` has a reason."""
    if reason := why_not_terms(parameters, tokens):
        raise ValueError(reason)
    n, d, y = (np.log(np.asarray(values, float)) for values in (parameters, tokens, losses))
    grid = itertools.product(
        (-1.0, 0.0, 1.0), (0.0, 5.0, 10.0), (0.0, 5.0, 10.0), (0.2, 0.5, 1.0), (0.2, 0.5, 1.0)
    )
    best = min((_terms(n, d, y, np.array(start)) for start in grid), key=lambda fit: fit[0])[1]
    fitted = _ln_terms(best, n, d)[0]
    freedom, draw = max(1, len(y) - 5), np.random.default_rng(seed)
    spreads = np.sqrt(np.sum((y - fitted) ** 2) / draw.chisquare(freedom, DRAWS_OF_TERMS))
    others = fitted + spreads[:, None] * draw.standard_normal((DRAWS_OF_TERMS, len(y)))
    draws = np.array([_terms(n, d, other, best)[1] for other in others])
    floor, of_parameters, of_data = np.exp(best[:3]).tolist()
    alpha, beta = best[3:].tolist()
    return Terms(floor, of_parameters, of_data, alpha, beta, draws)


def _terms(n: Values, d: Values, y: Values, start: Values) -> tuple[float, Values]:
    """The Huber loss reached from a start, and where."""

    def loss(at: Values) -> tuple[float, Values]:
        values, gradient = _ln_terms(at, n, d)
        off = values - y
        small = np.abs(off) <= HUBER
        cost = np.where(small, off**2 / 2, HUBER * (np.abs(off) - HUBER / 2)).sum()
        return float(cost) / HUBER, gradient @ np.where(small, off, HUBER * np.sign(off)) / HUBER

    fit = minimize(
        loss,
        start,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 2000, "ftol": 1e-14, "gtol": 1e-9},
    )
    return float(fit.fun), np.asarray(fit.x)


def _ln_terms(at: Values, n: Values, d: Values) -> tuple[Values, Values]:
    """ln L of (ln E, ln A, ln B, α, β), and its gradient [5, models]."""
    e, a, b, alpha, beta = at
    parts = np.stack([np.full_like(n, e), a - alpha * n, b - beta * d])
    values = np.logaddexp.reduce(parts)
    shares = np.exp(parts - values)
    return values, np.stack([*shares, -n * shares[1], -d * shares[2]])
