"""GPT-3, figure 3.1, on one's own models: held-out loss against compute, and what a ladder of small
models predicts of its largest. Parameters and data apart are Hoffmann et al.'s (2022).

The laws are `gpt_model/scaling_laws.py`'s. A prediction is made from the smaller models alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

from gpt_model.config import PUBLISHED, ModelConfig
from gpt_model.data.shards import TokenData
from gpt_model.io import rounded
from gpt_model.published import references
from gpt_model.scaling_laws import PF_DAY, Law, Terms, fit_compute, fit_terms, why_not_terms
from gpt_model.sizing import Rules, counted

CURVE_POINTS = 25  # that a law is drawn by
Unit = Literal["loss", "bpb"]


@dataclass(frozen=True)
class Rung:
    """One trained model of the ladder."""

    name: str
    family: str
    layers: int
    width: int
    seed: int
    parameters: int  # N, without positions
    tokens: int
    compute: float  # petaflop/s-days
    loss: float  # held out, nats a token, by mixture
    bpb: float
    metrics: Mapping[str, float]

    @classmethod
    def trained(
        cls,
        name: str,
        shape: Mapping[str, Any],
        vocab_size: int,
        seed: int,
        metrics: Mapping[str, float],
    ) -> Self:
        """From a recipe's `model` section, and the metrics of its pre-training."""
        parameters, compute = size_of(shape, vocab_size, metrics["tokens"])
        return cls(
            name,
            shape["family"],
            shape["layers"],
            shape["width"],
            seed,
            parameters,
            int(metrics["tokens"]),
            compute,
            metrics["held_out/loss"],
            metrics["held_out/bpb"],
            metrics,
        )


def size_of(shape: Mapping[str, Any], vocab_size: int, tokens: float) -> tuple[int, float]:
    """N, and the petaflop/s-days of training it on so many tokens."""
    model = ModelConfig(**shape, vocab_size=vocab_size)
    return counted(model), model.flops_per_token() * tokens / PF_DAY


@dataclass(frozen=True)
class HeldOutText:
    """The text that every rung is measured on, and the uncertainty of what is measured on it."""

    weights: Mapping[str, float]  # of its sources, as the mixture
    tokens: int

    @classmethod
    def of(cls, data: TokenData) -> Self:
        tokens = sum(len(data.tokens(source, "held_out")) for source in data.sources)
        return cls(data.weights, tokens)

    def __str__(self) -> str:
        return f"{self.tokens:,} held-out tokens"

    def half_width(self, rung: Rung, unit: Unit) -> float | None:
        """Half the 95 % interval of the mixture's loss, its sources taken for independent. None
        where no source has two windows.

        Nats a token are bits a byte times a source's bytes a token, which no model changes.
        """
        metrics, halves = rung.metrics, {}
        for name in self.weights:
            prefix = f"held_out/{name}/"
            if f"{prefix}bpb_low" in metrics:
                scale = metrics[f"{prefix}{unit}"] / metrics[f"{prefix}bpb"]
                width = metrics[f"{prefix}bpb_high"] - metrics[f"{prefix}bpb_low"]
                halves[name] = scale * width / 2
        share = sum(self.weights[name] for name in halves)
        if not share:
            return None
        return math.sqrt(
            sum((self.weights[name] / share * value) ** 2 for name, value in halves.items())
        )

    def format(self, rung: Rung, unit: Unit = "loss", digits: int = 4) -> str:
        """A rung's value with its 95 % interval."""
        value, half = rung.metrics[f"held_out/{unit}"], self.half_width(rung, unit)
        text = f"{value:.{digits}f}"
        if half is None:
            return text
        return f"{text} ({value - half:.{digits}f} to {value + half:.{digits}f})"


def predict(
    rungs: Sequence[Rung], target: Mapping[str, Any], vocab_size: int, text: HeldOutText
) -> tuple[dict[str, Any], dict[str, float]]:
    """The law through `rungs` at the compute of `target` (model, tokens, level): what
    prediction.json holds, and metrics.
    """
    law = fit_compute([rung.compute for rung in rungs], [rung.loss for rung in rungs])
    parameters, compute = size_of(target["model"], vocab_size, target["tokens"])
    low, high = law.interval(compute, target["level"])
    prediction = {
        "target": {**target, "parameters": parameters, "compute": rounded(compute)},
        "loss": rounded(law.at(compute)),
        "low": rounded(low),
        "high": rounded(high),
        "fitted": [
            {
                "rung": rung.name,
                "compute": rounded(rung.compute),
                "loss": rounded(rung.loss),
                "said": text.format(rung),
            }
            for rung in rungs
        ],
        "law": law.as_json(),
        "text": str(text),
    }
    metrics = {
        "loss": law.at(compute),
        "loss_low": low,
        "loss_high": high,
        "exponent": law.exponent,
        "compute": compute,
    }
    return prediction, metrics


@dataclass(frozen=True)
class Ladder:
    """All rungs, by compute, beside what the smaller ones predicted of the largest."""

    rungs: Sequence[Rung]
    largest: Sequence[Rung]  # a seed each
    prediction: Mapping[str, Any]
    text: HeldOutText
    vocab_size: int
    level: float  # of the intervals of laws

    @cached_property
    def loss(self) -> Law:
        return fit_compute([r.compute for r in self.rungs], [r.loss for r in self.rungs])

    @cached_property
    def bpb(self) -> Law:
        return fit_compute([r.compute for r in self.rungs], [r.bpb for r in self.rungs])

    @property
    def _parameters_and_tokens(self) -> tuple[list[float], list[float]]:
        return [float(r.parameters) for r in self.rungs], [float(r.tokens) for r in self.rungs]

    @property
    def why_not_terms(self) -> str | None:
        return why_not_terms(*self._parameters_and_tokens)

    @cached_property
    def terms(self) -> Terms | None:
        """The law of parameters and data, where they were varied apart from each other."""
        if self.why_not_terms:
            return None
        return fit_terms(*self._parameters_and_tokens, [rung.loss for rung in self.rungs])

    @property
    def inside(self) -> list[bool]:
        """Whether each of the largest landed in the interval that was predicted."""
        low, high = self.prediction["low"], self.prediction["high"]
        return [low <= rung.loss <= high for rung in self.largest]

    @property
    def ratios(self) -> list[float]:
        """Tokens a parameter of each rung."""
        return [rung.tokens / rung.parameters for rung in self.rungs]

    def metrics(self) -> dict[str, float]:
        low, high = self.loss.exponent_interval(self.level)
        count = len(self.largest)
        metrics = {
            "exponent": self.loss.exponent,
            "exponent_low": low,
            "exponent_high": high,
            "floor": self.loss.floor,
            "predicted_loss": self.prediction["loss"],
            "predicted_low": self.prediction["low"],
            "predicted_high": self.prediction["high"],
            "largest_loss": sum(rung.loss for rung in self.largest) / count,
            "inside": sum(self.inside) / count,
        }
        widths = [self.text.half_width(rung, "loss") for rung in self.largest]
        halves = [half for half in widths if half is not None]
        if halves:  # over the same windows, so they do not average out
            half = sum(halves) / len(halves)
            metrics |= {
                "largest_low": metrics["largest_loss"] - half,
                "largest_high": metrics["largest_loss"] + half,
            }
        return metrics

    def fit(self) -> dict[str, Any]:
        """What fit.json holds: the laws with their draws, and the span they are fitted over."""
        computes = self.rungs[0].compute, self.rungs[-1].compute
        return {
            "loss": self.loss.as_json(),
            "bpb": self.bpb.as_json(),
            "compute": [rounded(compute) for compute in computes],
            "ratios": [rounded(min(self.ratios)), rounded(max(self.ratios))],
            "models": len(self.rungs),
            "family": self.rungs[0].family,
        }

    def rules(self, anchor: Mapping[str, Any]) -> Rules:
        """`anchor` (the recipe's rules) with the best tokens a parameter at the largest compute; of
        a ladder without `terms`, with its own.
        """
        best = (
            self.terms.tokens_per_parameter(self.rungs[-1].compute)
            if self.terms
            else self.ratios[-1]
        )
        return Rules.model_validate({**anchor, "tokens_per_parameter": rounded(best)})

    def document(self) -> dict[str, Any]:
        prediction = self.prediction
        embedded = [self.vocab_size * rung.width / rung.parameters for rung in self.rungs]
        embedded_gpt3 = [
            model.vocab_size * model.width / counted(model)
            for name, model in PUBLISHED.items()
            if name.startswith("gpt3")
        ]
        coefficient, exponent = published_line()
        inside = self.inside
        landed = (
            "inside"
            if all(inside)
            else f"{sum(inside)} of {len(inside)} inside"
            if any(inside)
            else "outside"
        )
        return {
            "title": "Loss against compute, parameters and data",
            "source": "GPT-3, figure 3.1, and Hoffmann et al. 2022 for parameters and data",
            "summary": [
                f"The largest of the ladder, left out of the fit: {prediction['loss']:.3f} nats a "
                f"token were predicted ({prediction['low']:.3f} to {prediction['high']:.3f}, "
                f"{prediction['target']['level']:.0%}) and {self._largest_losses()} came: "
                f"{landed}. Of {self.text}; 95 % of what came, over its windows.",
                f"Through all {len(self.rungs)} models: L = {self._formula(self.loss)}, C in "
                "petaflop/s-days of model FLOPs.",
                self._terms_formula(self.terms)
                if self.terms
                else f"No law of parameters and data apart: {self.why_not_terms}.",
                f"GPT-3's line, L = {coefficient} · C^{exponent} (figure 3.1): of another "
                "tokenizer and another corpus, so that its losses are not comparable with these "
                f"and only its slope may be. Of GPT-3's parameters {_range(embedded_gpt3)} are the "
                "token "
                f"embedding, of these {_range(embedded)}.",
            ],
            "tables": [self._rungs_table(), self._laws_table()],
            "plots": [self._plot()],
        }

    @cached_property
    def _predicting_law(self) -> Law:
        """The law through the smaller rungs, as it is in the prediction."""
        return Law.from_json(self.prediction["law"])

    def _formula(self, law: Law) -> str:
        low, high = law.exponent_interval(self.level)
        floor = f"{law.floor:.3f} + " if law.floor else ""
        return (
            f"{floor}{law.scale:.3g} · C^-{law.exponent:.4f} "
            f"(exponent {low:.4f} to {high:.4f}, {self.level:.0%})"
        )

    def _terms_formula(self, terms: Terms) -> str:
        ends = {
            name: " to ".join(f"{end:.3f}" for end in terms.interval(name, self.level))
            for name in ("floor", "alpha", "beta")
        }
        return (
            f"By parameters and data: L = {terms.floor:.3f} + "
            f"{terms.of_parameters:.3g}/N^{terms.alpha:.3f} + "
            f"{terms.of_data:.3g}/D^{terms.beta:.3f}; {self.level:.0%} of the floor "
            f"{ends['floor']}, of the exponents {ends['alpha']} and {ends['beta']}."
        )

    def _largest_losses(self) -> str:
        return " and ".join(self.text.format(rung, digits=3) for rung in self.largest)

    def _rungs_table(self) -> dict[str, Any]:
        rows: list[list[Any]] = [
            [
                rung.name,
                f"{rung.layers} × {rung.width}",
                rung.seed,
                rung.parameters,
                rung.tokens,
                f"{rung.compute:.3g}",
                self.text.format(rung),
                self.text.format(rung, "bpb"),
                "predicted" if rung in self.largest else "fitted",
            ]
            for rung in self.rungs
        ]
        return {
            "caption": f"The ladder, on {self.text}, the same for all models, each source weighed "
            "as the mixture; 95 % intervals over its windows, of nats as of bits per byte, by each "
            "source's bytes a token. As that text is shared, its windows move all models together "
            "and are no part of the laws' intervals.",
            "columns": [
                "model",
                "layers × width",
                "seed",
                "N",
                "D",
                "petaflop/s-days",
                "loss, nats a token",
                "bits per byte",
                "use",
            ],
            "rows": rows,
        }

    def _laws_table(self) -> dict[str, Any]:
        prediction, before = self.prediction, self._predicting_law
        fitted = len(prediction["fitted"])
        predicted = (
            f"{prediction['loss']:.3f} ({prediction['low']:.3f} to {prediction['high']:.3f})"
        )
        rows = [
            [
                "without the largest",
                fitted,
                self._formula(before),
                f"{before.spread:.4f}",
                predicted,
            ],
            [
                "with the largest",
                fitted + len(self.largest),
                self._formula(self.loss),
                f"{self.loss.spread:.4f}",
                f"{self._largest_losses()} came",
            ],
        ]
        return {
            "caption": "The law by compute. Intervals: a bootstrap of the residuals, in which few "
            "models tell little of their spread.",
            "columns": [
                "law",
                "models",
                "L",
                "spread of ln L",
                f"loss of the largest, {prediction['target']['level']:.0%}",
            ],
            "rows": rows,
        }

    def _plot(self) -> dict[str, Any]:
        law, (coefficient, exponent) = self._predicting_law, published_line()
        first, last = self.rungs[0].compute, self.rungs[-1].compute
        steps = CURVE_POINTS - 1
        x = [first * (last / first) ** (number / steps) for number in range(CURVE_POINTS)]
        ends = [law.interval(compute, self.level) for compute in x]
        small = [rung for rung in self.rungs if rung not in self.largest]
        return {
            "title": "held-out loss",
            "x": "compute, petaflop/s-days",
            "y": "nats a token",
            "log_x": True,
            "series": [
                _dots("fitted", small),
                {
                    "label": f"law through those, {self.level:.0%}",
                    "x": x,
                    "y": [law.at(compute) for compute in x],
                    "low": [low for low, _ in ends],
                    "high": [high for _, high in ends],
                },
                _dots("the largest", self.largest),
                {
                    "label": "GPT-3, figure 3.1 (another tokenizer and corpus)",
                    "x": x,
                    "y": [coefficient * compute**exponent for compute in x],
                },
            ],
            "levels": [],
        }


def _dots(label: str, rungs: Sequence[Rung]) -> dict[str, Any]:
    return {
        "label": label,
        "x": [rung.compute for rung in rungs],
        "y": [rung.loss for rung in rungs],
    }


def _range(shares: Sequence[float]) -> str:
    return f"{min(shares):.2g} to {max(shares):.2g}"


def published_line() -> tuple[float, float]:
    """Coefficient and exponent of GPT-3's line."""
    line = references(task="scaling law", generation="gpt3")
    numbers = {number.metric: number.value for number in line}
    return numbers["coefficient"], numbers["exponent"]
