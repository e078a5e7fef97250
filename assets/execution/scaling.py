"""Runs the stages scaling_prediction and scaling (GPT-3, figure 3.1)."""

from __future__ import annotations

import json
import math
from pathlib import Path

import yaml

from assets.contract import Built, Config, Inputs, Metrics, Progress, Verdict
from assets.stages.experiments import FIT, PREDICTED, RULES, SCALING_LEVEL
from gpt_model.data.shards import TokenData
from gpt_model.experiments.document import write_document
from gpt_model.experiments.gpt3_figure3_1_scaling_law import HeldOutText, Ladder, Rung, predict
from gpt_model.io import dump_json


def run_prediction(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Write prediction.json: the law through the smaller models, and the largest's loss by it."""
    text = HeldOutText.of(TokenData(inputs["tokens"].path))
    prediction, metrics = predict(rungs(inputs), config, vocabulary(inputs), text)
    dump_json(output / PREDICTED, prediction, sort_keys=True)
    return metrics


def run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Write experiment.json, fit.json and rules.yaml: the prediction beside what came, and the laws
    through all models.
    """
    prediction = inputs["scaling/prediction"].path / PREDICTED
    names = {name.removeprefix("scaling/") for name in config["largest"]}
    trained = rungs(inputs)
    ladder = Ladder(
        trained,
        [rung for rung in trained if rung.name in names],
        json.loads(prediction.read_text(encoding="utf-8")),
        HeldOutText.of(TokenData(inputs["tokens"].path)),
        vocabulary(inputs),
        SCALING_LEVEL,
    )
    dump_json(output / FIT, ladder.fit(), sort_keys=True)
    rules = ladder.rules(config["rules"]).model_dump(mode="json")
    header = rules_header(len(trained), fitted=ladder.terms is not None)
    (output / RULES).write_text(
        "".join(f"# {line}\n" for line in header) + yaml.safe_dump(rules, sort_keys=False),
        encoding="utf-8",
    )
    write_document(output, ladder.document())
    return ladder.metrics()


def vocabulary(inputs: Inputs) -> int:
    return int(inputs["tokenizer"].metrics["vocab_size"])


def rungs(inputs: Inputs) -> list[Rung]:
    """The models among `inputs`, by compute."""
    trained = [
        Rung.trained(
            name.removeprefix("scaling/"),
            artifact.config["model"],
            vocabulary(inputs),
            artifact.config["pretraining"]["seed"],
            artifact.metrics,
        )
        for name, artifact in inputs.items()
        if artifact.stage == "pretrained"
    ]
    return sorted(trained, key=lambda rung: (rung.compute, rung.name))


def rules_header(models: int, fitted: bool) -> list[str]:
    """The header of rules.yaml: which rules this ladder was fitted for, and which are only passed
    on.
    """
    law = (
        "fitted here: best at the largest model's compute, by the law of parameters and data "
        f"through {models} models."
    )
    carried = (
        f"carried over, not fitted: the ladder's own of {models} models. A fit takes three sizes "
        "at three numbers of tokens a parameter."
    )
    return [
        "Rules for `depth: {layers: N, rules: …}`, as a scaling ladder left them.",
        f"tokens_per_parameter: {law if fitted else carried}",
        "learning_rate_exponent, batch_exponent: carried over, not fitted: slopes through GPT-3's "
        "table 2.1 (gpt_model/sizing.py).",
        "all else: carried over, the recipe's own model, at which the rules are anchored.",
    ]


def interval_is_finite(built: Built) -> Verdict:
    low, high = built.metrics["loss_low"], built.metrics["loss_high"]
    return Verdict(
        math.isfinite(low) and math.isfinite(high),
        f"{SCALING_LEVEL:.0%} interval of the largest model's loss: {low:.3f} to {high:.3f}.",
    )


def largest_inside(built: Built) -> Verdict:
    metrics = built.metrics
    landed = "inside" if metrics["inside"] == 1 else "not inside"
    ends = (
        f" (95 % over its windows: {metrics['largest_low']:.3f} to {metrics['largest_high']:.3f})"
        if "largest_low" in metrics
        else ""
    )
    return Verdict(
        metrics["inside"] == 1,
        f"The largest model came to {metrics['largest_loss']:.3f} nats a held-out token{ends}, "
        f"{landed} the {SCALING_LEVEL:.0%} interval predicted of it, "
        f"{metrics['predicted_low']:.3f} to {metrics['predicted_high']:.3f}.",
        {name: metrics[name] for name in ("largest_loss", "predicted_low", "predicted_high")},
    )


def predicted_before(built: Built) -> Verdict:
    """By the manifests' clocks. Where a largest model was built earlier, the prediction still has
    nothing of it.
    """
    published = built.inputs["scaling/prediction"].manifest["provenance"]["ended"]
    began = min(
        built.inputs[name].manifest["provenance"]["started"] for name in built.config["largest"]
    )
    if published <= began:
        return Verdict(
            True,
            f"The prediction was published at {published}; training of the largest model began at "
            f"{began}.",
        )
    return Verdict(
        False,
        f"Training of the largest model began at {began}, and the prediction was published at "
        f"{published}: it is made from the others alone, but not before.",
    )
