"""The scorecard: one page that says what was built from what, how good it is beside its baselines, and what it cost.

Hashed: `scorecard.json`, the scores and the fingerprints they come from. Beside it, unhashed because times and costs are in
them: `show/scorecard.html` (self-contained), its twin `show/scorecard.md` and `show/headline.json`. Each stage's own tables and
pictures are taken from its `show/` folder, so a new stage appears here by having one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from assets.contract import Artifact, Built, Check, Config, Inputs, Metrics, Progress, Stage, Verdict
from assets.scorecard_page import Section, Table, write_page


@dataclass(frozen=True)
class Score:
    """One number with what makes it worth something: its interval, its baseline, its sample size, and how to walk back."""

    asset: str
    name: str
    value: float
    low: float | None = None
    high: float | None = None
    baseline: str = ""  # "majority class 50.4 %"
    examples: int | None = None
    lower_is_better: bool = False
    note: str = ""


def run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    recipe = config["recipe"]["name"]
    scores = list(collect_scores(recipe, inputs))
    document = {
        "recipe": config["recipe"],
        "built_from": {name: {"fingerprint": a.fingerprint, "digest": a.digest} for name, a in sorted(inputs.items())},
        "scores": [asdict(score) for score in scores],
    }
    (output / "scorecard.json").write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    return {f"{score.asset.split('/', 1)[1]}/{score.name}": score.value for score in scores}


def collect_scores(recipe: str, inputs: Inputs) -> Iterator[Score]:
    """Every score of the inputs, from the metrics their stages report."""
    for name, artifact in inputs.items():
        asset, metrics = f"{recipe}/{name}", artifact.metrics
        if artifact.stage == "pretrained":
            yield from _pretrained_scores(asset, metrics, inputs["corpus"].metrics)
        elif artifact.stage == "finetuned":
            yield from _finetuned_scores(asset, metrics)
        elif artifact.stage == "zero_shot":
            yield from _zero_shot_scores(asset, artifact)


def _pretrained_scores(asset: str, metrics: Metrics, corpus: Metrics) -> Iterator[Score]:
    yield Score(
        asset,
        "bits per byte, held-out, by mixture",
        metrics["held_out/bpb"],
        baseline=f"uniform {metrics['uniform_bpb']:.2f}",
        lower_is_better=True,
        note="sources weighted as they are trained on",
    )
    for source in sorted(key.split("/")[1] for key in metrics if fnmatch(key, "held_out/*/bpb")):
        key = f"held_out/{source}/bpb"
        yield Score(
            asset,
            f"bits per byte, held-out {source}",
            metrics[key],
            metrics.get(f"{key}_low"),
            metrics.get(f"{key}_high"),
            baseline=f"xz -9e {corpus[f'xz/{source}/bpb']:.3f}",
            lower_is_better=True,
            note="every held-out token; xz primed with the same training text",
        )


def _finetuned_scores(asset: str, m: Metrics) -> Iterator[Score]:
    splits = ((split, int(m[f"{split}_examples"]), int(m[f"{split}_examples_available"])) for split in ("training", "test"))
    subset = ", ".join(f"{split} on {used:,}" + (f" of {all_:,} (seeded subset)" if used < all_ else "") for split, used, all_ in splits)
    examples = int(m["test_examples"])
    yield Score(
        asset,
        "accuracy",
        m["accuracy"],
        m["accuracy_low"],
        m["accuracy_high"],
        f"majority {m['majority']:.3f}, random weights {m['random_accuracy']:.3f}",
        examples,
        note=subset,
    )
    yield Score(asset, "transfer", m["transfer"], m["transfer_low"], m["transfer_high"], "0", examples, note="accuracy over random weights")


def _zero_shot_scores(asset: str, artifact: Artifact) -> Iterator[Score]:
    for row in json.loads((artifact.path / "results.json").read_text())["rows"]:
        yield Score(
            asset,
            f"{row['task']} {row['metric']}",
            row["value"],
            row.get("low"),
            row.get("high"),
            row.get("baseline", ""),
            row["examples"],
            row.get("lower_is_better", False),
            row.get("note", ""),
        )


def show(built: Built, folder: Path) -> None:
    """The page and its twin, from the stages' own pictures and tables."""
    recipe = built.config["recipe"]["name"]
    document = json.loads((built.output / "scorecard.json").read_text())
    scores = [Score(**score) for score in document["scores"]]
    sections = [
        Section("What was built from what", tables=[_lineage_table(recipe, built.inputs), _licence_table(built.inputs)]),
        *(Section(f"{recipe}/{name}", folder=artifact.path.parent / "show") for name, artifact in built.inputs.items()),
        Section("Time, memory and cost", tables=[_cost_table(built.inputs)]),
        Section("Forecast and outcome", tables=[_forecast_table(built.inputs)]),
    ]
    write_page(folder, f"Scorecard of {recipe}", built.config["recipe"].get("description", ""), _headline(scores), sections)


LEFT_TO_THE_SECTION = ("byte_perplexity", "word_perplexity")  # the same figure as bits per byte, on another scale


def _headline(scores: list[Score]) -> Table:
    columns = ["asset", "score", "value", "95 % interval", "beside", "examples", "protocol", "walk it back, make it again"]
    rows = [
        [
            score.asset,
            score.name + (" ↓" if score.lower_is_better else ""),
            _number(score.value),
            f"{_number(score.low)} – {_number(score.high)}" if score.low is not None and score.high is not None else "",
            score.baseline,
            f"{score.examples:,}" if score.examples else "",
            score.note,
            f"`gpt-lineage trace {score.asset}` `gpt-lineage reproduce {score.asset}`",
        ]
        for score in scores
        if not score.name.endswith(LEFT_TO_THE_SECTION)
    ]
    return Table("Scores", columns, rows, "↓: lower is better.")


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}"


def _lineage_table(recipe: str, inputs: Inputs) -> Table:
    rows = [
        [
            f"{recipe}/{name}",
            a.fingerprint[:12],
            a.digest[:12],
            ", ".join(entry["name"] for entry in a.manifest["inputs"]) or "–",
            str(a.manifest["provenance"]["git"]["commit"] or "")[:12],
        ]
        for name, a in inputs.items()
    ]
    return Table("Lineage", ["artifact", "fingerprint", "digest", "from", "commit"], rows)


def _licence_table(inputs: Inputs) -> Table:
    rows = [
        [
            s["name"],
            f"{s.get('weight', 1.0):g}",
            s.get("package") or s.get("hub") or str(s.get("path")),
            (s.get("sha256") or s.get("revision") or "")[:12],
            s.get("licence") or "not stated",
        ]
        for s in inputs["corpus"].config["sources"]
    ]
    return Table("Sources and licences", ["source", "weight", "from", "pinned", "licence"], rows)


def _cost_table(inputs: Inputs) -> Table:
    rows, total = [], 0.0
    for name, artifact in inputs.items():
        known = artifact.manifest["provenance"]
        seconds = float(known["stage_seconds"])
        total += seconds
        size = _size(artifact)
        rows.append(
            [
                name,
                f"{seconds:.1f}",
                f"{seconds * known['ranks'] * known['threads'] / 3600:.4f}",
                f"{known['peak_memory_bytes'] / 1e6:.0f}",
                f"{size / 1e6:.1f}",
            ]
        )
    rows.append(["all", f"{total:.1f}", "", "", ""])
    return Table("Cost by stage", ["stage", "seconds in the stage", "core hours", "peak memory, MB", "size, MB"], rows)


def _forecast_table(inputs: Inputs) -> Table:
    rows = []
    for name, artifact in inputs.items():
        forecast: Mapping[str, Any] = artifact.manifest["provenance"]["forecast"]
        outcome = {
            "seconds": float(artifact.manifest["provenance"]["stage_seconds"]),
            "loss": artifact.metrics.get("held_out/bpb"),
            "bytes": float(_size(artifact)),
        }
        for quantity, value in outcome.items():
            told = forecast.get(quantity)
            if told and value is not None:
                inside = "inside" if told["low"] <= value <= told["high"] else "outside"
                rows.append([name, quantity, f"{told['expected']:.4g}", f"{told['low']:.4g} to {told['high']:.4g}", f"{value:.4g}", inside])
    return Table("Forecast, made before each build", ["stage", "quantity", "forecast", "interval", "outcome", "interval held?"], rows)


def _size(artifact: Artifact) -> int:
    """Bytes of its hashed files."""
    return sum(file["size"] for file in artifact.manifest["files"])


def _every_score_finite(built: Built) -> Verdict:
    document = json.loads((built.output / "scorecard.json").read_text())
    wrong = [score["name"] for score in document["scores"] if not abs(score["value"]) < float("inf")]
    return Verdict(
        not wrong, f"{len(document['scores'])} scores" + (f"; not finite: {', '.join(wrong)}" if wrong else ", every one finite")
    )


SCORECARD = Stage(
    name="scorecard",
    version="1",
    run=run,
    description="Every score beside its baselines, with its interval, its cost and the way back to the text it came from.",
    kinds=("python", "html"),
    checks=(Check("scores_finite", True, "Every score is a finite number.", _every_score_finite),),
    show=show,
)
