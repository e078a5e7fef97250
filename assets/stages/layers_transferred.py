"""Stage `layers_transferred`: GPT-1, figure 2 left. A task's score against how many of the
pre-trained layers are kept, from none to all.

At 0 the embeddings alone are kept, as in the released code; a model that keeps nothing stands
beside the curve as a level. What a seed decides (fresh layers, specials, head, order, dropout)
differs between a point's models; their data is the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets.contract import Built, Check, Config, Inputs, Metrics, Progress, Stage, Verdict
from assets.recipe.recipe import Recipe
from assets.report import experiment
from assets.report.finetuned import SCORE_NAMES
from assets.stages.finetunings import Way, data_of, not_run, pin_tasks, scored, task_config
from gpt_model.errors import UserError

if TYPE_CHECKING:
    from assets.stages.finetuning_run import Prepared
    from gpt_model.finetuning.objective import FineTuning
    from gpt_model.statistics import ConfidenceInterval
    from gpt_model.transformer import GPT

SOURCE = "GPT-1, figure 2 (left)"
TITLE = "What each transferred layer is worth"


def layers_transferred_config(recipe: Recipe, base: Path) -> Config:
    assert recipe.experiments and recipe.experiments.layers_transferred
    section = recipe.experiments.layers_transferred
    if recipe.model and section.layers and max(section.layers) > recipe.model.layers:
        told = f"{max(section.layers)} layers cannot be transferred from a model of {recipe.model.layers}: leave it out."
        raise UserError(told, field="experiments.layers_transferred.layers")
    task = task_config(recipe, section.task, section, "experiments.layers_transferred.task", base)
    return {"tasks": [task], "layers": sorted(set(section.layers)) if section.layers else None}


def run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Write experiment.json."""
    from gpt_model import convert
    from gpt_model.statistics import slope_weights
    from gpt_model.tokenizer import Tokenizer

    [task_config] = config["tasks"]
    if reason := inputs["pretrained"].not_run or task_config.get("not_run"):
        not_run(
            output, progress, TITLE, SOURCE, [f"{task_config['task']}: not run here. {reason}."]
        )
        return {"not_run": 1.0}
    gpt = convert.load(inputs["pretrained"].path / "model")
    layers = config["layers"] or list(range(gpt.config.layers + 1))
    ways = [_way(gpt, kept) for kept in (-1, *layers)]
    tokenizer = Tokenizer.load(inputs["tokenizer"].path)
    task, points, own = scored(
        task_config, ways, inputs["pretrained"], tokenizer, output, progress, (0, 1)
    )
    if progress.rank:
        return {}
    nothing, *curve = points.intervals()
    slope = points.interval([0.0, *slope_weights(layers)])
    gain = points.interval([0.0, -1.0, *[0.0] * (len(layers) - 2), 1.0])
    rows = [
        [_name(kept), str(one), ", ".join(f"{value:.3f}" for value in own[_name(kept)])]
        for kept, one in zip((-1, *layers), (nothing, *curve), strict=True)
    ]
    experiment.write(
        output, _document(task, layers, nothing, curve, slope, gain, rows, task_config["seeds"])
    )
    found = {
        f"{kept}/{task.scoring.metric}": one.value for kept, one in zip(layers, curve, strict=True)
    }
    found |= {
        "nothing": nothing.value,
        "slope": slope.value,
        "slope_low": slope.low,
        "slope_high": slope.high,
    }
    return {
        **found,
        "gain": gain.value,
        "gain_low": gain.low,
        "gain_high": gain.high,
        "test_examples": float(len(task.laid["test"])),
    }


def _way(gpt: GPT, layers: int) -> Way:
    from gpt_model.experiments.layers_transferred import transferred
    from gpt_model.finetuning.heads import with_specials

    def begin(how: FineTuning) -> tuple[Any, FineTuning]:
        return transferred(with_specials(gpt, how.dropout, how.seed), layers, how.seed), how

    return Way(_name(layers), begin)


def _name(layers: int) -> str:
    return "nothing" if layers < 0 else "embeddings" if layers == 0 else f"embeddings and {layers}"


def _document(
    task: Prepared,
    layers: list[int],
    nothing: ConfidenceInterval,
    curve: list[ConfidenceInterval],
    slope: ConfidenceInterval,
    gain: ConfidenceInterval,
    rows: list[list[str]],
    seeds: int,
) -> dict[str, Any]:
    name = SCORE_NAMES[task.scoring.metric]
    series = {
        "label": task.task,
        "x": layers,
        **{end: [getattr(one, end) for one in curve] for end in ("low", "high")},
    }
    return {
        "title": TITLE,
        "source": SOURCE,
        "summary": [
            f"{task.task}: each transferred layer is worth {_signed(slope)} in {name} (slope over {layers[0]} to {layers[-1]} layers); "
            f"all of them are worth {_signed(gain)} over {_name(layers[0])} alone.",
            *_published(),
            f"Intervals: 95 %, a bootstrap over test examples and {'seeds' if seeds > 1 else 'not over seeds, as there is one'}.",
        ],
        "tables": [
            {
                "caption": f"{name.capitalize()} on the test split by what is transferred; {seeds} seeds. {data_of(task)}.",
                "columns": ["transferred", name, "each seed"],
                "rows": rows,
            }
        ],
        "plots": [
            {
                "title": task.task,
                "x": "layers transferred, beside the embeddings",
                "y": name,
                "log_x": False,
                "series": [{**series, "y": [one.value for one in curve]}],
                "levels": [{"label": "nothing transferred", "y": nothing.value}],
            }
        ],
    }


def _published() -> list[str]:
    """What the paper has of it."""
    from gpt_model.published import references

    of_it = [
        one
        for one in references(generation="gpt1", role="paper")
        if "transferred" in one.task or "transferring" in one.task
    ]
    return [
        f"{one.source}: {one.task}, {one.model}: {one.printed} {one.unit}{f', {one.note}' if one.note else ''}."
        for one in of_it
    ]


def _signed(one: ConfidenceInterval) -> str:
    return f"{one:+.4f}"


def _layers_help(built: Built) -> Verdict:
    m = built.metrics
    if "not_run" in m:
        return Verdict(True, "Not run here.")
    said = f"A transferred layer is worth {m['slope']:+.4f} [{m['slope_low']:+.4f}, {m['slope_high']:+.4f}]."
    return Verdict(
        m["slope_low"] > 0, said, {name: m[name] for name in ("slope", "slope_low", "slope_high")}
    )


LAYERS_TRANSFERRED = Stage(
    name="layers_transferred",
    version="3",
    run=run,
    description="A task's score against how many of the pre-trained layers are kept (GPT-1, figure 2 left).",
    kinds=("pytorch", "deepspeed"),
    checks=(
        experiment.WHOLE,
        Check(
            "layers_help",
            False,
            "The slope of the score over layers is above 0, interval and all.",
            _layers_help,
        ),
    ),
    show=experiment.show,
    pin=pin_tasks,
    ranks="profile",
    pool="training",
)
