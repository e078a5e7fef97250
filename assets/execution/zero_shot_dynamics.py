"""Runs the zero_shot_dynamics stage (GPT-1, figure 2 right)."""

from __future__ import annotations

from pathlib import Path

from assets.contract import Built, Config, Inputs, Metrics, Progress, Verdict
from assets.stages.experiments import LSTM as LSTM_ASSET
from assets.stages.experiments import TASK_FORMS
from assets.store.home import downloads_folder
from gpt_model.errors import Unavailable
from gpt_model.experiments.document import read_document, write_document
from gpt_model.experiments.gpt1_figure2_right_zero_shot_dynamics import (
    LSTM,
    TRANSFORMER,
    ZeroShotDynamics,
    build_probes,
)
from gpt_model.statistics import ConfidenceInterval
from gpt_model.tokenizer import Tokenizer
from gpt_model.training.snapshots import snapshots


def run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Write experiment.json: each heuristic's score at each snapshot, for "pretrained" and, where
    there is one, the LSTM. Raises Unavailable where no heuristic has examples.
    """
    probes, missing = build_probes(
        config["tasks"],
        inputs["corpus"].path,
        Tokenizer.load(inputs["tokenizer"].path),
        config["examples"],
        config["split_seed"],
        downloads_folder(),
        progress,
    )
    if not probes:
        raise Unavailable("; ".join(f"{task}: {reason}" for task, reason in missing.items()))
    artifacts = {TRANSFORMER: inputs["pretrained"]}
    if LSTM_ASSET in inputs:
        artifacts[LSTM] = inputs[LSTM_ASSET]
    models = [
        (network, tokens, load)
        for network, artifact in artifacts.items()
        for tokens, load in snapshots(artifact.path)
    ]
    curves: dict[tuple[str, str], list[tuple[float, ConfidenceInterval]]] = {}
    for number, (network, tokens, load) in enumerate(models, 1):
        model = load().to(progress.profile.device).eval()
        for probe in probes:
            curves.setdefault((network, probe.task), []).append((tokens, probe.score(model)))
        progress.advance(number, len(models), "snapshots")
    dynamics = ZeroShotDynamics(probes, missing, curves)
    write_document(output, dynamics.document())
    return dynamics.metrics()


def something_is_learnt(built: Built) -> Verdict:
    """At least one heuristic of the Transformer ends with its whole interval above chance."""
    lows = {
        task: built.metrics[f"transformer/{task}_low"]
        for task in TASK_FORMS
        if f"transformer/{task}_low" in built.metrics
    }
    if not lows:
        return Verdict(True, "No heuristic of the Transformer could be run here.")
    document = read_document(built.output)
    chance = {str(row[0]): float(row[2]) for row in document.tables[0].rows}
    above = [task for task, low in lows.items() if low > chance[task]]
    return Verdict(
        bool(above),
        f"Above chance, interval and all: {', '.join(above) or 'none'} of {', '.join(lows)}.",
        {"above_chance": len(above)},
    )
