"""Stage `zero_shot_dynamics`: GPT-1, figure 2 right. What a model can do that was only pre-trained,
at each snapshot of its pre-training, for the Transformer and for an LSTM of its width trained
alike. The heuristics and their data are `probes.py`'s.

As in the figure each score is also put on a scale from chance (0) to the best published score of a
single model (1). Where the data is a stand-in, the scale is that of the paper's data set, and the
page says both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assets.contract import Built, Check, Config, Inputs, Metrics, Progress, Stage, Verdict
from assets.recipe.task_entries import resolved_entry
from assets.report import experiment
from assets.stages.lstm import ONE_RUN
from assets.stages.probes import TASKS, Probe, probes_of
from assets.store.home import downloads_folder
from gpt_model.errors import about_all_of

Point = tuple[
    float, float, float, float
]  # tokens trained on; score, and the ends of its 95 % interval
Curves = dict[tuple[str, str], list[Point]]  # (model, heuristic) -> its points


def run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Write experiment.json: each heuristic's score at each snapshot, for "pretrained" and, where
    there is one, "lstm".
    """
    from gpt_model.tokenizer import Tokenizer
    from gpt_model.training.snapshots import snapshots as snapshots_in

    tokenizer = Tokenizer.load(inputs["tokenizer"].path)
    probes, missing = probes_of(config, inputs, tokenizer, progress)
    if not probes:
        experiment.write(output, _document({}, missing, {}))
        return {"not_run": 1.0}
    kinds = {
        "Transformer": inputs["pretrained"],
        **({"LSTM": inputs["experiments/lstm"]} if "experiments/lstm" in inputs else {}),
    }
    curves: Curves = {}
    taken = {kind: list(snapshots_in(artifact.path)) for kind, artifact in kinds.items()}
    total, done = sum(map(len, taken.values())), 0
    for kind, snapshots in taken.items():
        for tokens, load in snapshots:
            model = load().to(progress.profile.device).eval()
            for probe in probes:
                curves.setdefault((kind, probe.task), []).append(
                    (tokens, *_score(probe, probe.answer(model)))
                )
            done += 1
            progress.advance(done, total, "snapshots")
    experiment.write(output, _document({probe.task: probe for probe in probes}, missing, curves))
    metrics = {f"{probe.task}/examples": float(len(probe.labels)) for probe in probes}
    for (kind, task), points in curves.items():
        for name, value in zip(("", "_low", "_high"), points[-1][1:], strict=True):
            metrics[f"{kind.lower()}/{task}{name}"] = value
    return metrics


# --- scores ---


def _score(probe: Probe, answers: Sequence[int]) -> tuple[float, float, float]:
    """The score and its 95 % interval."""
    from gpt_model.finetuning import metrics
    from gpt_model.statistics import wilson

    if probe.matthews:
        found = metrics.scores(
            list(probe.labels), list(answers), 2, [str(number) for number in range(len(answers))]
        )
        return found["matthews"], found["matthews_low"], found["matthews_high"]
    right = sum(a == b for a, b in zip(answers, probe.labels, strict=True))
    interval = wilson(right, len(probe.labels))
    return interval.value, interval.low, interval.high


def _scaled(probe: Probe, value: float) -> float:
    return (value - probe.chance) / (probe.best - probe.chance)


def _interval(point: Point) -> str:
    from gpt_model.statistics import ConfidenceInterval

    return str(ConfidenceInterval(*point[1:]))


def _on_the_scale(probe: Probe, point: Point) -> str:
    return _interval(
        (point[0], _scaled(probe, point[1]), _scaled(probe, point[2]), _scaled(probe, point[3]))
    )


def _document(
    probes: Mapping[str, Probe], missing: Mapping[str, str], curves: Curves
) -> dict[str, Any]:
    """The experiment's page: where the scales begin and end, every point, and the plot."""
    ends = [
        f"{task}, {kind}: {_interval(points[-1])} at the end, chance {probes[task].chance:.3f}."
        for (kind, task), points in curves.items()
    ]
    scales = {
        "caption": "Where each scale begins and ends.",
        "columns": ["heuristic", "data", "chance (0)", "best published (1)", "examples"],
        "rows": [
            [one.task, one.what, round(one.chance, 3), one.against, len(one.labels)]
            for one in probes.values()
        ],
    }
    points_table = {
        "caption": "Accuracy, of acceptability Matthews' coefficient, at each snapshot; 95 % intervals over the examples, which are of all "
        "splits, as nothing is trained on them.",
        "columns": ["heuristic", "model", "tokens trained on", "score", "on the scale", "examples"],
        "rows": [
            [
                task,
                kind,
                f"{point[0]:,.0f}",
                _interval(point),
                _on_the_scale(probes[task], point),
                len(probes[task].labels),
            ]
            for (kind, task), points in curves.items()
            for point in points
        ],
    }
    return {
        "title": "Zero-shot behaviour against pre-training",
        "source": "GPT-1, figure 2 (right)",
        "summary": [
            *ends,
            *(f"{task}: not run here. {why}." for task, why in missing.items()),
            *([ONE_RUN] if probes else []),
        ],
        "tables": [scales, points_table] if probes else [],
        "plots": [
            _plot(kind, probes, curves) for kind in dict.fromkeys(kind for kind, _ in curves)
        ],
    }


def _plot(kind: str, probes: Mapping[str, Probe], curves: Curves) -> dict[str, Any]:
    series = []
    for task, points in (
        (task, points) for (other, task), points in curves.items() if other == kind
    ):
        y, low, high = ([_scaled(probes[task], point[i]) for point in points] for i in (1, 2, 3))
        series.append(
            {"label": task, "x": [point[0] for point in points], "y": y, "low": low, "high": high}
        )
    return {
        "title": f"zero-shot scores of the {kind}",
        "x": "tokens trained on",
        "y": "0: chance, 1: best published",
        "log_x": True,
        "series": series,
        "levels": [{"label": "chance", "y": 0.0}],
    }


def _rises(built: Built) -> Verdict:
    """At least one heuristic of the Transformer ends with its whole interval above chance."""
    above = {}
    for task in TASKS:
        if (low := built.metrics.get(f"transformer/{task}_low")) is not None:
            above[task] = low
    if not above:
        return Verdict(True, "No heuristic of the Transformer could be run here.")
    document = experiment.read(built.output)
    chance = {str(row[0]): float(row[2]) for row in document.tables[0].rows}
    clear = [task for task, low in above.items() if low > chance[task]]
    return Verdict(
        bool(clear),
        f"Above chance, interval and all: {', '.join(clear) or 'none'} of {', '.join(above)}.",
        {"above_chance": len(clear)},
    )


def pin(config: Config, base: Path) -> Config:
    """Each task tied to its data, or `not_run`, why that cannot be had here."""
    tasks: dict[str, Any] = {}
    for task, told in config["tasks"].items():
        with about_all_of(task):
            entry, reason = (
                resolved_entry(told["entry"], base, downloads_folder()) if told else (None, None)
            )
        tasks[task] = told and {**told, "entry": entry, **({"not_run": reason} if reason else {})}
    return {**config, "tasks": tasks}


ZERO_SHOT_DYNAMICS = Stage(
    name="zero_shot_dynamics",
    version="4",
    run=run,
    description="GPT-1's zero-shot heuristics at each snapshot of pre-training, Transformer and LSTM (figure 2, right).",
    kinds=("pytorch",),
    checks=(
        experiment.WHOLE,
        Check(
            "something_is_learnt",
            False,
            "A heuristic of the Transformer ends above chance, interval and all.",
            _rises,
        ),
    ),
    show=experiment.show,
    pin=pin,
    pool="training",
)
