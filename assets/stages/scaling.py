"""Stages `scaling_prediction` and `scaling`: what a ladder of models foretells of its largest, and
the laws through all of it.

The prediction is an artifact of its own, made from the smaller models alone: its fingerprint is a
hash over their digests and the largest one's planned size, and knows nothing of what became of
that. The laws are `gpt_model/scaling.py`'s.

    scaling_prediction    prediction.json: the law through the smaller models, the loss it gives the largest, its 90 % interval
    scaling               experiment.json · fit.json: the laws through all, with their draws · rules.yaml: for `depth: {rules: …}`
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from assets.contract import (
    Artifact,
    Built,
    Check,
    Config,
    Inputs,
    Metrics,
    Progress,
    Stage,
    Verdict,
)
from assets.report import experiment
from gpt_model.rounding import rounded

if TYPE_CHECKING:
    from gpt_model.scaling import Law, Terms

LEVEL = 0.9  # of the prediction's interval
PREDICTED, FIT, RULES = "prediction.json", "fit.json", "rules.yaml"
CURVE = 25  # points a law is drawn by


@dataclass(frozen=True)
class Point:
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
    metrics: Metrics


def points(inputs: Inputs) -> list[Point]:
    """The rungs among `inputs`, by compute."""
    vocab_size = int(inputs["tokenizer"].metrics["vocab_size"])
    rungs = [
        (name, artifact) for name, artifact in inputs.items() if artifact.stage == "pretrained"
    ]
    return sorted(
        (_point(name, artifact, vocab_size) for name, artifact in rungs),
        key=lambda point: (point.compute, point.name),
    )


def _point(name: str, artifact: Artifact, vocab_size: int) -> Point:
    shape, metrics = artifact.config["model"], artifact.metrics
    parameters, compute = _size(shape, metrics["tokens"], vocab_size)
    return Point(
        name.removeprefix("scaling/"),
        shape["family"],
        shape["layers"],
        shape["width"],
        artifact.config["pretraining"]["seed"],
        parameters,
        int(metrics["tokens"]),
        compute,
        metrics["held_out/loss"],
        metrics["held_out/bpb"],
        metrics,
    )


def _size(shape: Mapping[str, Any], tokens: float, vocab_size: int) -> tuple[int, float]:
    """N, and the compute of training it on so many tokens."""
    from gpt_model.config import ModelConfig
    from gpt_model.scaling import PF_DAY
    from gpt_model.sizing import counted

    model = ModelConfig(**shape, vocab_size=vocab_size)
    return counted(model), model.flops_per_token() * tokens / PF_DAY


@dataclass(frozen=True)
class Text:
    """The held-out text that every rung is measured on, and how sure what is measured on it is."""

    weights: Mapping[str, float]  # of its sources, as the mixture
    size: str  # in words

    @classmethod
    def of(cls, inputs: Inputs) -> Text:
        from gpt_model.data.shards import TokenData

        data = TokenData(inputs["tokens"].path)
        tokens = sum(len(data.tokens(source, "held_out")) for source in data.sources)
        return cls(data.weights, f"{tokens:,} held-out tokens")

    def half(self, point: Point, unit: Literal["loss", "bpb"]) -> float | None:
        """Half the 95 % interval of the mixture's loss: the sources', taken for independent. Nats a
        token are bits a byte times what a source has of bytes a token, which no model changes. None
        where no source has two windows.
        """
        metrics, halves = point.metrics, {}
        for name in self.weights:
            own = f"held_out/{name}/"
            if f"{own}bpb_low" in metrics:
                each = metrics[f"{own}{unit}"] / metrics[f"{own}bpb"]
                halves[name] = each * (metrics[f"{own}bpb_high"] - metrics[f"{own}bpb_low"]) / 2
        share = sum(self.weights[name] for name in halves)
        return (
            math.sqrt(
                sum((self.weights[name] / share * value) ** 2 for name, value in halves.items())
            )
            if share
            else None
        )

    def said(self, point: Point, unit: Literal["loss", "bpb"] = "loss", digits: int = 4) -> str:
        value, half = point.metrics[f"held_out/{unit}"], self.half(point, unit)
        return f"{value:.{digits}f}" + (
            "" if half is None else f" ({value - half:.{digits}f} to {value + half:.{digits}f})"
        )


# --- the prediction ---


def predict(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Fit the law through the smaller models, and say what the largest will come to."""
    from gpt_model.scaling import fit_compute

    fitted = points(inputs)
    law = fit_compute([point.compute for point in fitted], [point.loss for point in fitted])
    parameters, compute = _size(
        config["model"], config["tokens"], int(inputs["tokenizer"].metrics["vocab_size"])
    )
    low, high = law.interval(compute, config["level"])
    text = Text.of(inputs)
    told = {
        "target": {**config, "parameters": parameters, "compute": rounded(compute)},
        "loss": rounded(law.at(compute)),
        "low": rounded(low),
        "high": rounded(high),
        "fitted": [
            {
                "rung": point.name,
                "compute": rounded(point.compute),
                "loss": rounded(point.loss),
                "said": text.said(point),
            }
            for point in fitted
        ],
        "law": law.as_json(),
        "text": text.size,
    }
    (output / PREDICTED).write_text(json.dumps(told, sort_keys=True) + "\n", encoding="utf-8")
    return {
        "loss": law.at(compute),
        "loss_low": low,
        "loss_high": high,
        "exponent": law.exponent,
        "compute": compute,
    }


def _show_prediction(built: Built, folder: Path) -> None:
    told = json.loads((built.output / PREDICTED).read_text(encoding="utf-8"))
    rows = "".join(
        f"| {one['rung']} | {one['compute']:.3g} | {one['said']} |\n" for one in told["fitted"]
    )
    target = told["target"]
    (folder / "prediction.md").write_text(
        f"**{target['model']['layers']} layers of width {target['model']['width']}, {target['tokens']:,} tokens, {target['compute']:.3g} "
        f"petaflop/s-days: {told['loss']:.3f} nats a token ({told['low']:.3f} to {told['high']:.3f}, {target['level']:.0%}).**\n\n"
        f"From these alone, of {told['text']}; 95 % intervals over its windows:\n\n"
        f"| model | petaflop/s-days | held-out loss, nats a token |\n|---|---|---|\n{rows}",
        encoding="utf-8",
    )


def _interval_is_finite(built: Built) -> Verdict:
    low, high = built.metrics["loss_low"], built.metrics["loss_high"]
    finite = math.isfinite(low) and math.isfinite(high)
    return Verdict(
        finite, f"{LEVEL:.0%} interval of the largest model's loss: {low:.3f} to {high:.3f}."
    )


# --- what came of it ---


def run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Set the prediction against what came; fit again through all models; write the page, the laws
    and the rules.
    """
    from gpt_model.scaling import fit_compute, fit_terms, why_not_terms

    told = json.loads((inputs["scaling/prediction"].path / PREDICTED).read_text(encoding="utf-8"))
    largest = {name.removeprefix("scaling/") for name in config["largest"]}
    every = points(inputs)
    came = [point for point in every if point.name in largest]
    computes = [point.compute for point in every]
    loss, bpb = (
        fit_compute(computes, values)
        for values in ([point.loss for point in every], [point.bpb for point in every])
    )
    sizes = [float(point.parameters) for point in every], [float(point.tokens) for point in every]
    why = why_not_terms(*sizes)
    terms = None if why else fit_terms(*sizes, [point.loss for point in every])
    inside = sum(told["low"] <= point.loss <= told["high"] for point in came)
    _write_laws(output, config, every, {"loss": loss, "bpb": bpb}, terms)
    text = Text.of(inputs)
    _write_page(output, inputs, text, told, every, came, loss, terms, why)
    low, high = loss.exponent_interval(LEVEL)
    metrics = {
        "exponent": loss.exponent,
        "exponent_low": low,
        "exponent_high": high,
        "floor": loss.floor,
    }
    metrics |= {
        "predicted_loss": told["loss"],
        "predicted_low": told["low"],
        "predicted_high": told["high"],
    }
    metrics |= {
        "largest_loss": sum(point.loss for point in came) / len(came),
        "inside": inside / len(came),
    }
    if halves := [
        half for point in came if (half := text.half(point, "loss")) is not None
    ]:  # of the same windows: they do not average out
        half = sum(halves) / len(halves)
        metrics |= {
            "largest_low": metrics["largest_loss"] - half,
            "largest_high": metrics["largest_loss"] + half,
        }
    return metrics


def _write_laws(
    output: Path,
    config: Config,
    every: Sequence[Point],
    laws: Mapping[str, Law],
    terms: Terms | None,
) -> None:
    import yaml

    from gpt_model.sizing import Rules

    ratios = [point.tokens / point.parameters for point in every]
    fit = {name: law.as_json() for name, law in laws.items()}
    span = {
        "compute": [rounded(every[0].compute), rounded(every[-1].compute)],
        "ratios": [rounded(min(ratios)), rounded(max(ratios))],
    }
    told = {**fit, **span, "models": len(every), "family": every[0].family}
    (output / FIT).write_text(json.dumps(told, sort_keys=True) + "\n", encoding="utf-8")
    best = terms.tokens_per_parameter(every[-1].compute) if terms else ratios[-1]
    rules = Rules.model_validate({**config["rules"], "tokens_per_parameter": rounded(best)})
    head = "".join(
        f"# {line}\n" for line in _where_rules_are_from(len(every), fitted=terms is not None)
    )
    (output / RULES).write_text(
        head + yaml.safe_dump(rules.model_dump(mode="json"), sort_keys=False), encoding="utf-8"
    )


def _where_rules_are_from(models: int, fitted: bool) -> list[str]:
    """The header of rules.yaml: which rules this ladder was fitted for, and which are only passed
    on.
    """
    law = f"fitted here: best at the largest model's compute, by the law of parameters and data through {models} models."
    own = f"carried over, not fitted: the ladder's own of {models} models. A fit takes three sizes at three numbers of tokens a parameter."
    return [
        "Rules for `depth: {layers: N, rules: …}`, as a scaling ladder left them.",
        f"tokens_per_parameter: {law if fitted else own}",
        "learning_rate_exponent, batch_exponent: carried over, not fitted: slopes through GPT-3's table 2.1 (gpt_model/sizing.py).",
        "all else: carried over, the recipe's own model, at which the rules are anchored.",
    ]


def _write_page(
    output: Path,
    inputs: Inputs,
    text: Text,
    told: Mapping[str, Any],
    every: Sequence[Point],
    came: Sequence[Point],
    loss: Law,
    terms: Terms | None,
    why: str | None,
) -> None:
    from gpt_model.config import PUBLISHED
    from gpt_model.scaling import Law
    from gpt_model.sizing import counted

    vocab_size = inputs["tokenizer"].metrics["vocab_size"]
    embedded = [vocab_size * point.width / point.parameters for point in every]
    of_gpt3 = [
        model.vocab_size * model.width / counted(model)
        for name, model in PUBLISHED.items()
        if name.startswith("gpt3")
    ]
    before, low, high = Law.from_json(told["law"]), told["low"], told["high"]
    inside = [low <= point.loss <= high for point in came]
    landed = (
        "inside"
        if all(inside)
        else "outside"
        if not any(inside)
        else f"{sum(inside)} of {len(inside)} inside"
    )
    experiment.write(
        output,
        {
            "title": "Loss against compute, parameters and data",
            "source": "GPT-3, figure 3.1, and Hoffmann et al. 2022 for parameters and data",
            "summary": [
                f"The largest of the ladder, left out of the fit: {told['loss']:.3f} nats a token were predicted ({low:.3f} to {high:.3f}, "
                f"{told['target']['level']:.0%}) and {_seen(came, text)} came: {landed}. Of {text.size}; 95 % of what came, over its windows.",
                f"Through all {len(every)} models: L = {_law(loss)}, C in petaflop/s-days of model FLOPs.",
                _terms(terms) if terms else f"No law of parameters and data apart: {why}.",
                f"{_published()}: of another tokenizer and another corpus, so that its losses are not comparable with these and only its slope "
                f"may be. Of GPT-3's parameters {_range(of_gpt3)} are the token embedding, of these {_range(embedded)}.",
            ],
            "tables": [_models(every, came, text), _laws(loss, before, told, came, text)],
            "plots": [_plot(before, told, every, came)],
        },
    )


def _law(law: Law) -> str:
    low, high = law.exponent_interval(LEVEL)
    floor = f"{law.floor:.3f} + " if law.floor else ""
    return f"{floor}{law.scale:.3g} · C^-{law.exponent:.4f} (exponent {low:.4f} to {high:.4f}, {LEVEL:.0%})"


def _terms(terms: Terms) -> str:
    ends = {
        name: " to ".join(f"{end:.3f}" for end in terms.interval(name, LEVEL))
        for name in ("floor", "alpha", "beta")
    }
    return (
        f"By parameters and data: L = {terms.floor:.3f} + {terms.of_parameters:.3g}/N^{terms.alpha:.3f} + "
        f"{terms.of_data:.3g}/D^{terms.beta:.3f}; {LEVEL:.0%} of the floor {ends['floor']}, "
        f"of the exponents {ends['alpha']} and {ends['beta']}."
    )


def _range(shares: Sequence[float]) -> str:
    return f"{min(shares):.2g} to {max(shares):.2g}"


def _gpt3() -> tuple[float, float]:
    """Coefficient and exponent of GPT-3's line."""
    from gpt_model.published import references

    printed = {one.metric: one.value for one in references(task="scaling law", generation="gpt3")}
    return printed["coefficient"], printed["exponent"]


def _published() -> str:
    coefficient, exponent = _gpt3()
    return f"GPT-3's line, L = {coefficient} · C^{exponent} (figure 3.1)"


def _seen(came: Sequence[Point], text: Text) -> str:
    return " and ".join(text.said(point, digits=3) for point in came)


def _models(every: Sequence[Point], came: Sequence[Point], text: Text) -> dict[str, Any]:
    rows: list[list[Any]] = [
        [
            point.name,
            f"{point.layers} × {point.width}",
            point.seed,
            point.parameters,
            point.tokens,
            f"{point.compute:.3g}",
            text.said(point),
            text.said(point, "bpb"),
            "predicted" if point in came else "fitted",
        ]
        for point in every
    ]
    return {
        "caption": f"The ladder, on {text.size}, the same for all models, each source weighed as the mixture; 95 % intervals over its "
        "windows, of nats as of bits per byte, by each source's bytes a token. As that text is shared, its windows move all models "
        "together and are no part of the laws' intervals.",
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


def _laws(
    loss: Law, before: Law, told: Mapping[str, Any], came: Sequence[Point], text: Text
) -> dict[str, Any]:
    predicted, seen = (
        f"{told['loss']:.3f} ({told['low']:.3f} to {told['high']:.3f})",
        _seen(came, text),
    )
    rows = [
        [
            "without the largest",
            len(told["fitted"]),
            _law(before),
            f"{before.spread:.4f}",
            predicted,
        ],
        [
            "with the largest",
            len(told["fitted"]) + len(came),
            _law(loss),
            f"{loss.spread:.4f}",
            f"{seen} came",
        ],
    ]
    return {
        "caption": "The law by compute. Intervals: a bootstrap of the residuals, in which few models tell little of their spread.",
        "columns": [
            "law",
            "models",
            "L",
            "spread of ln L",
            f"loss of the largest, {told['target']['level']:.0%}",
        ],
        "rows": rows,
    }


def _plot(
    before: Law, told: Mapping[str, Any], every: Sequence[Point], came: Sequence[Point]
) -> dict[str, Any]:
    first, last = every[0].compute, every[-1].compute
    x = [first * (last / first) ** (number / (CURVE - 1)) for number in range(CURVE)]
    ends = [before.interval(compute, LEVEL) for compute in x]
    small = [point for point in every if point not in came]
    coefficient, exponent = _gpt3()

    def dots(label: str, chosen: Sequence[Point]) -> dict[str, Any]:
        return {
            "label": label,
            "x": [point.compute for point in chosen],
            "y": [point.loss for point in chosen],
        }

    law: dict[str, Any] = {
        "label": f"law through those, {LEVEL:.0%}",
        "x": x,
        "y": [before.at(compute) for compute in x],
    }
    law |= {"low": [low for low, _ in ends], "high": [high for _, high in ends]}
    label = "GPT-3, figure 3.1 (another tokenizer and corpus)"
    published = {"label": label, "x": x, "y": [coefficient * compute**exponent for compute in x]}
    return {
        "title": "held-out loss",
        "x": "compute, petaflop/s-days",
        "y": "nats a token",
        "log_x": True,
        "series": [dots("fitted", small), law, dots("the largest", came), published],
        "levels": [],
    }


def _inside(built: Built) -> Verdict:
    metrics = built.metrics
    landed = "inside" if metrics["inside"] == 1 else "not inside"
    sure = (
        f" (95 % over its windows: {metrics['largest_low']:.3f} to {metrics['largest_high']:.3f})"
        if "largest_low" in metrics
        else ""
    )
    return Verdict(
        metrics["inside"] == 1,
        f"The largest model came to {metrics['largest_loss']:.3f} nats a held-out token{sure}, {landed} the {LEVEL:.0%} interval predicted "
        f"of it, {metrics['predicted_low']:.3f} to {metrics['predicted_high']:.3f}.",
        {name: metrics[name] for name in ("largest_loss", "predicted_low", "predicted_high")},
    )


def _made_before(built: Built) -> Verdict:
    """By the manifests' clocks. Where a largest model was there already, the prediction still has
    nothing of it.
    """
    made = built.inputs["scaling/prediction"].manifest["provenance"]["ended"]
    began = min(
        built.inputs[name].manifest["provenance"]["started"] for name in built.config["largest"]
    )
    if made <= began:
        return Verdict(
            True,
            f"The prediction was published at {made}; training of the largest model began at {began}.",
        )
    said = f"Training of the largest model began at {began}, and the prediction was published at {made}"
    return Verdict(False, f"{said}: it is made from the others alone, but not before.")


PREDICTION = Stage(
    name="scaling_prediction",
    version="2",
    run=predict,
    description="What the smaller models of the ladder foretell of the largest, before that is trained.",
    checks=(
        Check("interval_is_finite", True, "The prediction has an interval.", _interval_is_finite),
    ),
    show=_show_prediction,
)

SCALING = Stage(
    name="scaling",
    version="2",
    run=run,
    description="Loss of a ladder of models against compute, parameters and data; the largest predicted before it was trained.",
    checks=(
        Check(
            "largest_inside",
            False,
            "The largest model lands inside the interval that was predicted of it.",
            _inside,
        ),
        Check(
            "predicted_before",
            False,
            "The prediction was published before the largest model's training began.",
            _made_before,
        ),
    ),
    show=experiment.show,
)
