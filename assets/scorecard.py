"""The scorecard: one page that says what was built from what, how good it is beside its baselines, and what it cost.

Hashed: `scorecard.json`, the scores and the fingerprints they come from. Beside it, unhashed because times and costs are in
them: `show/scorecard.html` (self-contained), its twin `show/scorecard.md` and `show/headline.json`. Each stage's own tables and
pictures are taken from its `show/` folder, so a new stage appears here by having one; the page's own tables are `scorecard_tables.py`'s.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path

from assets import scorecard_tables as tables
from assets.contract import Artifact, Built, Check, Config, Inputs, Metrics, Progress, Stage, Verdict
from assets.finetuning_page import CONSTANT, SCORE_NAMES
from assets.resources.store import SHORT
from assets.scorecard_page import Section, Table, write_page


@dataclass(frozen=True)
class Score:
    """One number with what makes it worth something: its interval, its baseline, its sample size, and how to walk back."""

    asset: str
    fingerprint: str
    name: str
    value: float
    low: float | None = None
    high: float | None = None
    baseline: str = ""  # "majority 0.504"
    against: float | None = None  # the best of the baselines
    examples: int | None = None
    unit: str = "examples"
    lower_is_better: bool = False
    note: str = ""

    @property
    def verdict(self) -> str:
        """Against the best baseline, interval and all."""
        if self.against is None or self.low is None or self.high is None:
            return ""
        if self.low <= self.against <= self.high:
            return "undecided"
        return "better" if (self.value < self.against) == self.lower_is_better else "worse"


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
        if artifact.stage == "pretrained":
            yield from _pretrained_scores(f"{recipe}/{name}", artifact, inputs)
        elif artifact.stage == "finetuned":
            yield from _finetuned_scores(f"{recipe}/{name}", artifact)
        elif artifact.stage == "zero_shot":
            yield from _zero_shot_scores(f"{recipe}/{name}", artifact, inputs["corpus"].metrics)


def _pretrained_scores(asset: str, artifact: Artifact, inputs: Inputs) -> Iterator[Score]:
    metrics, corpus, tokens = artifact.metrics, inputs["corpus"], inputs["tokens"].metrics
    sources = sorted(key.split("/")[1] for key in metrics if fnmatch(key, "held_out/*/bpb"))
    by_source = [
        Score(
            asset,
            artifact.fingerprint,
            f"bits per byte, held-out {source}",
            metrics[f"held_out/{source}/bpb"],
            metrics.get(f"held_out/{source}/bpb_low"),
            metrics.get(f"held_out/{source}/bpb_high"),
            f"xz -9e {corpus.metrics[f'xz/{source}/bpb']:.3f}",
            corpus.metrics[f"xz/{source}/bpb"],
            int(tokens[f"held_out/{source}/tokens"]),
            "tokens",
            lower_is_better=True,
            note="every held-out token; xz primed with the same training text",
        )
        for source in sources
    ]
    weights = {source["name"]: float(source["weight"]) for source in corpus.config["sources"]}
    yield _by_mixture(by_source, [weights[source] for source in sources], metrics)
    yield from by_source


def _by_mixture(scores: list[Score], weights: list[float], metrics: Metrics) -> Score:
    """The sources' bits per byte, and xz's, weighted as they are trained on. The interval takes the sources for independent."""
    shares = [weight / (sum(weights) or 1.0) for weight in weights]
    value, xz = metrics["held_out/bpb"], sum(share * (score.against or 0.0) for share, score in zip(shares, scores, strict=True))
    known = all(score.low is not None for score in scores)
    half = sum((share * (score.value - (score.low or 0.0))) ** 2 for share, score in zip(shares, scores, strict=True)) ** 0.5
    return Score(
        scores[0].asset,
        scores[0].fingerprint,
        "bits per byte, held-out, by mixture",
        value,
        value - half if known else None,
        value + half if known else None,
        f"xz -9e {xz:.3f}, uniform {metrics['uniform_bpb']:.3f}",
        xz,
        sum(score.examples or 0 for score in scores),
        "tokens",
        lower_is_better=True,
        note="sources, and xz's figures of them, weighted as they are trained on",
    )


def _finetuned_scores(asset: str, artifact: Artifact) -> Iterator[Score]:
    m, examples = artifact.metrics, int(artifact.metrics["test_examples"])
    note = ", ".join(f"{split} on {tables.share_of(int(m[f'{split}_examples']), int(m[f'{split}_examples_available']))}"
                     for split in ("training", "test"))  # fmt: skip
    for key in ("accuracy", *artifact.config["source"].get("scores", ())):
        constant = {"majority" if key == "accuracy" else "one answer": m[CONSTANT[key]]} if key in CONSTANT else {}
        beside = {**constant, "random weights": m[f"random_{key}"]}
        yield Score(
            asset,
            artifact.fingerprint,
            SCORE_NAMES[key],
            m[key],
            m[f"{key}_low"],
            m[f"{key}_high"],
            ", ".join(f"{name} {value:.3f}" for name, value in beside.items()),
            max(beside.values()),
            examples,
            note=note,
        )
    yield Score(
        asset, artifact.fingerprint, "transfer", m["transfer"], m["transfer_low"], m["transfer_high"], "no transfer 0", 0.0, examples,
        note="accuracy over the same network fine-tuned from random weights",
    )  # fmt: skip


def _zero_shot_scores(asset: str, artifact: Artifact, corpus: Metrics) -> Iterator[Score]:
    for row in json.loads((artifact.path / "results.json").read_text(encoding="utf-8"))["rows"]:
        baseline, against = row["baseline"], row["baseline_value"]
        if row["metric"] == "bits_per_byte" and (against := corpus.get(f"xz/{row['task']}/bpb")) is not None:
            baseline = f"xz -9e {against:.3f}"
        too_long = f"{row['too_long']:,} more have an answer longer than the context" if row["too_long"] else ""
        yield Score(
            asset,
            artifact.fingerprint,
            f"{row['task']} {row['metric']}",
            row["value"],
            row["low"],
            row["high"],
            baseline,
            against,
            row["examples"],
            lower_is_better=row["lower_is_better"],
            note="; ".join(filter(None, (tables.share_of(row["examples"], row["available"]), too_long, row["description"]))),
        )


def show(built: Built, folder: Path) -> None:
    """The page and its twin, from the stages' own pictures and tables."""
    recipe, inputs = built.config["recipe"]["name"], built.inputs
    document = json.loads((built.output / "scorecard.json").read_text())
    scores = [Score(**score) for score in document["scores"]]
    sections = [
        Section("What was built from what", [tables.lineage(recipe, inputs), tables.data(recipe, inputs)]),
        Section("Time, memory and cost", [tables.cost(inputs), tables.forecasts(inputs)]),
        *(Section(f"{recipe}/{name}", folder=artifact.path.parent / "show") for name, artifact in inputs.items()),
        Section("Checks", [tables.checks(recipe, inputs)]),
    ]
    write_page(folder, f"Scorecard of {recipe}", built.config["recipe"]["description"], tables.facts(inputs), headline(scores), sections)


LEFT_TO_THE_SECTION = ("byte_perplexity", "word_perplexity")  # the same figure as bits per byte, on another scale


def headline(scores: list[Score]) -> Table:
    """Every score with its interval, what it stands beside, and its commands: by fingerprint, which no retraining moves."""
    columns = ["artifact", "score", "value", "95 % interval", "beside", "verdict", "on", "protocol", "walk it back, make it again"]
    rows = [
        [
            score.asset,
            score.name + (" ↓" if score.lower_is_better else ""),
            tables.number(score.value),
            f"{tables.number(score.low)} – {tables.number(score.high)}" if score.low is not None and score.high is not None else "",
            score.baseline,
            score.verdict,
            f"{score.examples:,} {score.unit}" if score.examples else "",
            score.note,
            " ".join(f"`gpt-lineage {command} {score.fingerprint[:SHORT]}`" for command in ("trace", "reproduce")),
        ]
        for score in scores
        if not score.name.endswith(LEFT_TO_THE_SECTION)
    ]
    note = "↓: lower is better. Better or worse: than the best it stands beside, interval and all; undecided: that lies in the interval."
    return Table("Scores", columns, rows, note, short=("artifact", "score", "value", "beside", "verdict"))


def _every_score_finite(built: Built) -> Verdict:
    document = json.loads((built.output / "scorecard.json").read_text())
    wrong = [score["name"] for score in document["scores"] if not abs(score["value"]) < float("inf")]
    return Verdict(
        not wrong, f"{len(document['scores'])} scores" + (f"; not finite: {', '.join(wrong)}" if wrong else ", every one finite")
    )


SCORECARD = Stage(
    name="scorecard",
    version="2",
    run=run,
    description="Every score beside its baselines, with its interval, its cost and the way back to the text it came from.",
    kinds=("python", "html"),
    checks=(Check("scores_finite", True, "Every score is a finite number.", _every_score_finite),),
    show=show,
)
