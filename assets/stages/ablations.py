"""Stage `ablations`: GPT-1, table 5. Each task without the auxiliary objective, without
pre-training, and with an LSTM, beside the whole.

An LSTM stands in the table where the recipe has one pre-trained alike. What a seed decides (fresh
weights, specials, head, order, dropout) differs between a cell's models; their data is the same,
and so are all settings but the one that is taken away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets.contract import Built, Check, Config, Inputs, Metrics, Progress, Stage, Verdict
from assets.recipe.recipe import Recipe
from assets.report import experiment
from assets.report.finetuned import SCORE_NAMES
from assets.stages.finetuning import task_names
from assets.stages.finetunings import Way, data_of, not_run, pin_tasks, scored, task_config
from assets.stages.lstm import LSTM, ONE_RUN
from gpt_model.errors import UserError

if TYPE_CHECKING:
    from assets.stages.finetuning_run import Prepared
    from gpt_model.finetuning.objective import FineTuning
    from gpt_model.statistics import Bootstrap
    from gpt_model.transformer import Decoder

SOURCE = "GPT-1, table 5"
TITLE = "What pre-training, the auxiliary objective and the Transformer are worth"
NAMES = {  # of a way to train, as the page has it, in the table's order
    "whole": "whole (with the auxiliary objective)",
    "no_pretraining": "without pre-training",
    "no_auxiliary": "without the auxiliary objective",
    "lstm": "LSTM, with the auxiliary objective",
}


def ablations_config(recipe: Recipe, base: Path) -> Config:
    assert recipe.experiments and recipe.experiments.ablations
    section = recipe.experiments.ablations
    if recipe.finetuning and not recipe.finetuning.auxiliary_weight:
        told = "It is 0, so there is no auxiliary objective to be left out: set it above 0 (the paper's is 0.5)."
        raise UserError(told, field="finetuning.auxiliary_weight")
    if not (tasks := section.tasks or task_names(recipe)):
        raise UserError(
            "There is no task to take anything away from: list some under finetuning.tasks.",
            field="experiments.ablations",
        )
    return {
        "tasks": [
            task_config(recipe, task, section, "experiments.ablations.tasks", base)
            for task in tasks
        ]
    }


def run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Write experiment.json."""
    from gpt_model.tokenizer import Tokenizer

    reason = inputs["pretrained"].not_run
    missing = [
        f"{one['task']}: not run here. {one['not_run']}."
        for one in config["tasks"]
        if "not_run" in one
    ]
    there = [one for one in config["tasks"] if "not_run" not in one]
    if reason or not there:
        not_run(
            output, progress, TITLE, SOURCE, [f"Not run here. {reason}."] if reason else missing
        )
        return {"not_run": 1.0}
    tokenizer, ways, found = Tokenizer.load(inputs["tokenizer"].path), _ways(inputs), []
    for number, task_config_ in enumerate(there):
        task, points, _ = scored(
            task_config_,
            ways,
            inputs["pretrained"],
            tokenizer,
            output,
            progress,
            (number, len(there)),
        )
        found.append((task, points))
    if progress.rank:
        return {}
    average = _average([points for _, points in found])
    names = [way.name for way in ways]
    experiment.write(output, _document(found, average, names, there[0]["seeds"], missing))
    metrics = {
        f"{task.task}/{name}": float(value)
        for task, points in found
        for name, value in zip(names, points.values, strict=True)
    }
    for place, name in enumerate(names):
        one, against = average.intervals()[place], average.interval(_against(place, len(names)))
        metrics[f"average/{name}"] = one.value
        if place:
            lost = {"loss": against.value, "loss_low": against.low, "loss_high": against.high}
            metrics |= {f"average/{name}_{end}": value for end, value in lost.items()}
    return metrics


def _ways(inputs: Inputs) -> list[Way]:
    from gpt_model import convert
    from gpt_model.finetuning.heads import with_specials
    from gpt_model.networks import build

    gpt = convert.load(inputs["pretrained"].path / "model")

    def grown(decoder: Decoder, how: FineTuning) -> tuple[Decoder, FineTuning]:
        return with_specials(decoder, how.dropout, how.seed), how

    ways = [
        Way("whole", lambda how: grown(gpt, how)),
        Way("no_pretraining", lambda how: (build(grown(gpt, how)[0].config, how.seed), how)),
        Way("no_auxiliary", lambda how: grown(gpt, replace(how, auxiliary_weight=0.0))),
    ]
    if LSTM in inputs:
        lstm = convert.load_decoder(inputs[LSTM].path / "model")
        ways.append(Way("lstm", lambda how: grown(lstm, how)))
    return ways


def _average(tasks: Sequence[Bootstrap]) -> Bootstrap:
    """Of the tasks, each counting alike, as the table's; their resamples are independent, as their
    examples are.
    """
    import numpy as np

    from gpt_model.statistics import Bootstrap

    return Bootstrap(
        np.mean([one.values for one in tasks], 0), np.mean([one.samples for one in tasks], 0)
    )


def _against(place: int, count: int) -> list[float]:
    """Weights of the whole minus way `place`."""
    return [float(n == 0) - float(n == place) for n in range(count)]


def _document(
    found: Sequence[tuple[Prepared, Bootstrap]],
    average: Bootstrap,
    names: Sequence[str],
    seeds: int,
    missing: Sequence[str],
) -> dict[str, Any]:
    heads = [f"{task.task} ({SCORE_NAMES[task.scoring.metric]})" for task, _ in found]
    every = [average, *(points for _, points in found)]
    scores = [
        [NAMES[name], *(str(points.intervals()[place]) for points in every)]
        for place, name in enumerate(names)
    ]
    lost = [
        [NAMES[name], *(_signed(points.interval(_against(place, len(names)))) for points in every)]
        for place, name in enumerate(names)
        if place
    ]
    data = "; ".join(data_of(task) for task, _ in found)
    over = "test examples and seeds" if seeds > 1 else "test examples"
    tables = [
        {
            "caption": f"Scores on the test splits, means of {seeds} seeds. {data}.",
            "columns": ["", "average", *heads],
            "rows": scores,
        },
        {
            "caption": "What is lost against the whole, on the same examples.",
            "columns": ["", "average", *heads],
            "rows": lost,
        },
        *_published(),
    ]
    return {
        "title": TITLE,
        "source": SOURCE,
        "summary": [
            *(f"{row[0].capitalize()}: {row[1]} lost on average." for row in lost),
            *missing,
            f"Intervals: 95 %, a bootstrap over {over}; of differences, in pairs.",
            ONE_RUN,
        ],
        "tables": tables,
        "plots": [_plot(every, heads, names)],
    }


def _plot(every: Sequence[Bootstrap], heads: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """A place a task and one for the average of several, the ways side by side."""
    shown, series = every if len(heads) > 1 else every[1:], []
    for place, name in enumerate(names):
        ours = [points.intervals()[place] for points in shown]
        beside = [number + 0.12 * (place - (len(names) - 1) / 2) for number in range(len(shown))]
        ends = {end: [getattr(one, end) for one in ours] for end in ("low", "high")}
        series.append({"label": NAMES[name], "x": beside, "y": [one.value for one in ours], **ends})
    places = ["average", *heads][-len(shown) :]
    return {
        "title": TITLE,
        "x": "task (score)",
        "y": "score",
        "log_x": False,
        "series": series,
        "levels": [],
        "places": places,
    }


def _published() -> list[dict[str, Any]]:
    """The paper's own table."""
    from gpt_model.published import references

    rows: dict[str, dict[str, str]] = {}
    for one in references(generation="gpt1", role="paper"):
        if one.source.endswith("table 5"):
            rows.setdefault(one.model, {})[f"{one.task} / {one.metric}"] = one.printed
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    cells: list[list[str]] = [
        [model, *(row.get(column, "–") for column in columns)] for model, row in rows.items()
    ]
    return [{"caption": "GPT-1's own table 5, in %.", "columns": ["", *columns], "rows": cells}]


def _signed(one: Any) -> str:
    return f"{one:+.3f}"


def _lost(name: str) -> Any:
    def verdict(built: Built) -> Verdict:
        m: Mapping[str, float] = built.metrics
        if f"average/{name}_loss" not in m:
            return Verdict(True, "Not run here.")
        ends = {end: m[f"average/{name}_{end}"] for end in ("loss", "loss_low", "loss_high")}
        said = f"{NAMES[name].capitalize()}: {ends['loss']:+.3f} [{ends['loss_low']:+.3f}, {ends['loss_high']:+.3f}] lost on average."
        return Verdict(ends["loss_low"] > 0, said, ends)

    return verdict


ABLATIONS = Stage(
    name="ablations",
    version="5",
    run=run,
    description="Tasks without the auxiliary objective, without pre-training, and with an LSTM (GPT-1, table 5).",
    kinds=("pytorch", "deepspeed"),
    checks=(
        experiment.WHOLE,
        Check(
            "pretraining_helps",
            False,
            "Without pre-training something is lost on average, interval and all.",
            _lost("no_pretraining"),
        ),
        Check(
            "transformer_helps",
            False,
            "With an LSTM something is lost on average, interval and all.",
            _lost("lstm"),
        ),
    ),
    show=experiment.show,
    pin=pin_tasks,
    ranks="profile",
    pool="training",
)
