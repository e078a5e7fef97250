"""Stages `scaling_prediction` and `scaling`: what a ladder of models foretells of its largest, and the laws through all of it.

The prediction is an artifact of its own, made from the smaller models alone: its fingerprint is a hash over their digests and the largest
one's planned size, and knows nothing of what became of that. The laws are `gpt_model/scaling.py`'s.

    scaling_prediction    prediction.json: the law through the smaller models, the loss it gives the largest, its 90 % interval
    scaling               experiment.json · fit.json: the laws through all, with their draws · rules.yaml: for `depth: {rules: …}`
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets import experiment_page
from assets.contract import Artifact, Built, Check, Config, Inputs, Metrics, Progress, Stage, Verdict

if TYPE_CHECKING:
    from gpt_model.scaling import Law, Terms

LEVEL = 0.9  # of the prediction's interval
PREDICTED, FIT, RULES = "prediction.json", "fit.json", "rules.yaml"
CURVE = 25  # points a law is drawn by


@dataclass(frozen=True)
class Point:
    """One trained model of the ladder."""

    name: str
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
    rungs = [(name, artifact) for name, artifact in inputs.items() if artifact.stage == "pretrained"]
    return sorted((_point(name, artifact, vocab_size) for name, artifact in rungs), key=lambda point: (point.compute, point.name))


def _point(name: str, artifact: Artifact, vocab_size: int) -> Point:
    shape, metrics = artifact.config["model"], artifact.metrics
    parameters, compute = _size(shape, metrics["tokens"], vocab_size)
    return Point(
        name.removeprefix("scaling/"), shape["layers"], shape["width"], artifact.config["pretraining"]["seed"], parameters,
        int(metrics["tokens"]), compute, metrics["held_out/loss"], metrics["held_out/bpb"], metrics,
    )  # fmt: skip


def _size(shape: Mapping[str, Any], tokens: float, vocab_size: int) -> tuple[int, float]:
    """N, and the compute of training it on so many tokens."""
    from gpt_model.config import ModelConfig
    from gpt_model.scaling import PF_DAY
    from gpt_model.sizing import counted

    model = ModelConfig(**shape, vocab_size=vocab_size)
    return counted(model), model.flops_per_token() * tokens / PF_DAY


# -- the prediction ------------------------------------------------------------------------------------------------------------------------


def predict(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Fit the law through the smaller models, and say what the largest will come to."""
    from gpt_model.scaling import fit_compute

    fitted = points(inputs)
    law = fit_compute([point.compute for point in fitted], [point.loss for point in fitted])
    parameters, compute = _size(config["model"], config["tokens"], int(inputs["tokenizer"].metrics["vocab_size"]))
    low, high = law.interval(compute, config["level"])
    told = {
        "target": {**config, "parameters": parameters, "compute": _short(compute)},
        "loss": _short(law.at(compute)), "low": _short(low), "high": _short(high),
        "fitted": [{"rung": point.name, "compute": _short(point.compute), "loss": _short(point.loss)} for point in fitted],
        "law": law.as_json(),
    }  # fmt: skip
    (output / PREDICTED).write_text(json.dumps(told, sort_keys=True) + "\n", encoding="utf-8")
    return {"loss": law.at(compute), "loss_low": low, "loss_high": high, "exponent": law.exponent, "compute": compute}


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _show_prediction(built: Built, folder: Path) -> None:
    told = json.loads((built.output / PREDICTED).read_text(encoding="utf-8"))
    rows = "".join(f"| {one['rung']} | {one['compute']:.3g} | {one['loss']:.4f} |\n" for one in told["fitted"])
    target = told["target"]
    (folder / "prediction.md").write_text(
        f"**{target['model']['layers']} layers of width {target['model']['width']}, {target['tokens']:,} tokens, {target['compute']:.3g} "
        f"petaflop/s-days: {told['loss']:.3f} nats a token ({told['low']:.3f} to {told['high']:.3f}, {target['level']:.0%}).**\n\n"
        f"From these alone:\n\n| model | petaflop/s-days | held-out loss, nats a token |\n|---|---|---|\n{rows}",
        encoding="utf-8",
    )


def _interval_is_finite(built: Built) -> Verdict:
    low, high = built.metrics["loss_low"], built.metrics["loss_high"]
    finite = math.isfinite(low) and math.isfinite(high)
    return Verdict(finite, f"{LEVEL:.0%} interval of the largest model's loss: {low:.3f} to {high:.3f}.")


# -- what came of it -----------------------------------------------------------------------------------------------------------------------


def run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Set the prediction against what came; fit again through all models; write the page, the laws and the rules."""
    from gpt_model.scaling import fit_compute, fit_terms, why_not_terms

    told = json.loads((inputs["scaling/prediction"].path / PREDICTED).read_text(encoding="utf-8"))
    largest = {name.removeprefix("scaling/") for name in config["largest"]}
    every = points(inputs)
    came = [point for point in every if point.name in largest]
    computes = [point.compute for point in every]
    loss, bpb = (fit_compute(computes, values) for values in ([point.loss for point in every], [point.bpb for point in every]))
    sizes = [float(point.parameters) for point in every], [float(point.tokens) for point in every]
    why = why_not_terms(*sizes)
    terms = None if why else fit_terms(*sizes, [point.loss for point in every])
    inside = sum(told["low"] <= point.loss <= told["high"] for point in came)
    _write_laws(output, config, every, {"loss": loss, "bpb": bpb}, terms)
    _write_page(output, inputs, told, every, came, loss, terms, why)
    low, high = loss.exponent_interval(LEVEL)
    metrics = {"exponent": loss.exponent, "exponent_low": low, "exponent_high": high, "floor": loss.floor}
    metrics |= {"predicted_loss": told["loss"], "predicted_low": told["low"], "predicted_high": told["high"]}
    return metrics | {"largest_loss": sum(point.loss for point in came) / len(came), "inside": inside / len(came)}


def _write_laws(output: Path, config: Config, every: Sequence[Point], laws: Mapping[str, Law], terms: Terms | None) -> None:
    import yaml

    from gpt_model.sizing import Rules

    ratios = [point.tokens / point.parameters for point in every]
    fit = {name: law.as_json() for name, law in laws.items()}
    span = {"compute": [_short(every[0].compute), _short(every[-1].compute)], "ratios": [_short(min(ratios)), _short(max(ratios))]}
    (output / FIT).write_text(json.dumps({**fit, **span, "models": len(every)}, sort_keys=True) + "\n", encoding="utf-8")
    best = terms.tokens_per_parameter(every[-1].compute) if terms else ratios[-1]
    law = "what is best at the largest model's compute, by the law of parameters and data"
    why = law if terms else "the ladder's own: nothing in it tells a better one"
    rules = Rules.model_validate({**config["rules"], "tokens_per_parameter": _short(best)})
    head = f"# Rules for `depth: {{layers: N, rules: …}}`, from a ladder of {len(every)} models. tokens_per_parameter is {why}.\n"
    (output / RULES).write_text(head + yaml.safe_dump(rules.model_dump(mode="json"), sort_keys=False), encoding="utf-8")


def _write_page(
    output: Path, inputs: Inputs, told: Mapping[str, Any], every: Sequence[Point], came: Sequence[Point], loss: Law, terms: Terms | None,
    why: str | None,
) -> None:  # fmt: skip
    from gpt_model.config import PUBLISHED
    from gpt_model.data.shards import TokenData
    from gpt_model.scaling import Law
    from gpt_model.sizing import counted

    weights, vocab_size = TokenData(inputs["tokens"].path).weights, inputs["tokenizer"].metrics["vocab_size"]
    embedded = [vocab_size * point.width / point.parameters for point in every]
    of_gpt3 = [model.vocab_size * model.width / counted(model) for name, model in PUBLISHED.items() if name.startswith("gpt3")]
    before, low, high = Law.from_json(told["law"]), told["low"], told["high"]
    inside = [low <= point.loss <= high for point in came]
    landed = "inside" if all(inside) else "outside" if not any(inside) else f"{sum(inside)} of {len(inside)} inside"
    seen = " and ".join(f"{point.loss:.3f}" for point in came)
    experiment_page.write(output, {
        "title": "Loss against compute, parameters and data",
        "source": "GPT-3, figure 3.1, and Hoffmann et al. 2022 for parameters and data",
        "summary": [
            f"The largest of the ladder, left out of the fit: {told['loss']:.3f} nats a token were predicted ({low:.3f} to {high:.3f}, "
            f"{told['target']['level']:.0%}) and {seen} came: {landed}.",
            f"Through all {len(every)} models: L = {_law(loss)}, C in petaflop/s-days of model FLOPs.",
            _terms(terms) if terms else f"No law of parameters and data apart: {why}.",
            f"{_published()}: of another tokenizer and another corpus, so that its losses are not comparable with these and only its slope "
            f"may be. Of GPT-3's parameters {_range(of_gpt3)} are the token embedding, of these {_range(embedded)}.",
        ],
        "tables": [_models(every, came, weights), _laws(loss, before, told, came)],
        "plots": [_plot(before, told, every, came)],
    })  # fmt: skip


def _law(law: Law) -> str:
    low, high = law.exponent_interval(LEVEL)
    floor = f"{law.floor:.3f} + " if law.floor else ""
    return f"{floor}{law.scale:.3g} · C^-{law.exponent:.4f} (exponent {low:.4f} to {high:.4f}, {LEVEL:.0%})"


def _terms(terms: Terms) -> str:
    ends = {name: " to ".join(f"{end:.3f}" for end in terms.interval(name, LEVEL)) for name in ("floor", "alpha", "beta")}
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


def _models(every: Sequence[Point], came: Sequence[Point], weights: Mapping[str, float]) -> dict[str, Any]:
    rows: list[list[Any]] = [
        [
            point.name, f"{point.layers} × {point.width}", point.seed, point.parameters, point.tokens, f"{point.compute:.3g}",
            f"{point.loss:.4f}", f"{point.bpb:.4f}{_interval(point.metrics, weights)}", "predicted" if point in came else "fitted",
        ]
        for point in every
    ]  # fmt: skip
    return {
        "caption": "The ladder. Held-out text of each source weighed as the mixture, the same for all models; 95 % intervals over its "
        "windows. As that text is shared, its windows move all models together and are no part of the laws' intervals.",
        "columns": ["model", "layers × width", "seed", "N", "D", "petaflop/s-days", "loss, nats a token", "bits per byte", "use"],
        "rows": rows,
    }  # fmt: skip


def _interval(metrics: Metrics, weights: Mapping[str, float]) -> str:
    """Of the mixture's bits per byte: the sources' intervals, taken for independent."""
    halves = {
        name: (metrics[f"held_out/{name}/bpb_high"] - metrics[f"held_out/{name}/bpb_low"]) / 2
        for name in weights
        if f"held_out/{name}/bpb_low" in metrics
    }
    if not halves:
        return ""
    share = sum(weights[name] for name in halves)
    half = math.sqrt(sum((weights[name] / share * value) ** 2 for name, value in halves.items()))
    return f" ({metrics['held_out/bpb'] - half:.4f} to {metrics['held_out/bpb'] + half:.4f})"


def _laws(loss: Law, before: Law, told: Mapping[str, Any], came: Sequence[Point]) -> dict[str, Any]:
    predicted, seen = f"{told['loss']:.3f} ({told['low']:.3f} to {told['high']:.3f})", " and ".join(f"{one.loss:.3f}" for one in came)
    rows = [
        ["without the largest", len(told["fitted"]), _law(before), f"{before.spread:.4f}", predicted],
        ["with the largest", len(told["fitted"]) + len(came), _law(loss), f"{loss.spread:.4f}", f"{seen} came"],
    ]
    return {
        "caption": "The law by compute. Intervals: a bootstrap of the residuals, in which few models tell little of their spread.",
        "columns": ["law", "models", "L", "spread of ln L", f"loss of the largest, {told['target']['level']:.0%}"],
        "rows": rows,
    }


def _plot(before: Law, told: Mapping[str, Any], every: Sequence[Point], came: Sequence[Point]) -> dict[str, Any]:
    first, last = every[0].compute, every[-1].compute
    x = [first * (last / first) ** (number / (CURVE - 1)) for number in range(CURVE)]
    ends = [before.interval(compute, LEVEL) for compute in x]
    small = [point for point in every if point not in came]
    coefficient, exponent = _gpt3()

    def dots(label: str, chosen: Sequence[Point]) -> dict[str, Any]:
        return {"label": label, "x": [point.compute for point in chosen], "y": [point.loss for point in chosen]}

    law: dict[str, Any] = {"label": f"law through those, {LEVEL:.0%}", "x": x, "y": [before.at(compute) for compute in x]}
    law |= {"low": [low for low, _ in ends], "high": [high for _, high in ends]}
    label = "GPT-3, figure 3.1 (another tokenizer and corpus)"
    published = {"label": label, "x": x, "y": [coefficient * compute**exponent for compute in x]}
    return {
        "title": "held-out loss", "x": "compute, petaflop/s-days", "y": "nats a token", "log_x": True,
        "series": [dots("fitted", small), law, dots("the largest", came), published], "levels": [],
    }  # fmt: skip


def _inside(built: Built) -> Verdict:
    metrics = built.metrics
    landed = "inside" if metrics["inside"] == 1 else "not inside"
    return Verdict(
        metrics["inside"] == 1,
        f"The largest model came to {metrics['largest_loss']:.3f} nats a token, {landed} the {LEVEL:.0%} interval predicted of it, "
        f"{metrics['predicted_low']:.3f} to {metrics['predicted_high']:.3f}.",
        {name: metrics[name] for name in ("largest_loss", "predicted_low", "predicted_high")},
    )


def _made_before(built: Built) -> Verdict:
    """By the manifests' clocks. Where a largest model was there already, the prediction still has nothing of it."""
    made = built.inputs["scaling/prediction"].manifest["provenance"]["ended"]
    began = min(built.inputs[name].manifest["provenance"]["started"] for name in built.config["largest"])
    if made <= began:
        return Verdict(True, f"The prediction was published at {made}; training of the largest model began at {began}.")
    said = f"Training of the largest model began at {began}, and the prediction was published at {made}"
    return Verdict(False, f"{said}: it is made from the others alone, but not before.")


PREDICTION = Stage(
    name="scaling_prediction",
    version="1",
    run=predict,
    description="What the smaller models of the ladder foretell of the largest, before that is trained.",
    checks=(Check("interval_is_finite", True, "The prediction has an interval.", _interval_is_finite),),
    show=_show_prediction,
)

SCALING = Stage(
    name="scaling",
    version="1",
    run=run,
    description="Loss of a ladder of models against compute, parameters and data; the largest predicted before it was trained.",
    checks=(
        Check("largest_inside", False, "The largest model lands inside the interval that was predicted of it.", _inside),
        Check("predicted_before", False, "The prediction was published before the largest model's training began.", _made_before),
    ),
    show=experiment_page.show,
)
