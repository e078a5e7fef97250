"""What a score is, and which scores a recipe's artifacts have: each with interval, split, sample
size and baseline, or why it was not run.

A number without an interval, a split and a size is no score. What stands beside them on the page is
`scorecard_published.py`'s.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from assets.contract import Artifact, Inputs, Metrics
from assets.report import scorecard_tables as tables
from assets.report.finetuned import CONSTANT, SCORE_NAMES, adapted, parts_of
from assets.stages import base_model
from assets.stages.rankings import BAG_OF_WORDS, NO_WORDS
from gpt_model.evaluation.results import Results, ScoreRow
from gpt_model.evaluation.suites import (
    Cloze,
    Data,
    Dataset,
    Labelled,
    LastWord,
    Passages,
    PublishedRow,
    TaskMetadata,
    suite_tasks,
)
from gpt_model.finetuning.entry import SPLITS, TaskEntry

HELD_OUT = "held out"
ZERO_SHOT_AFTER = "zero_shot_after/"  # how the names of the suites of aligned models begin


def scaled(value: float, factor: float) -> str:
    return tables.number(value) if factor == 1 else f"{value * factor:.2f}"


@dataclass(frozen=True)
class Score:
    """One number with what makes it worth something: its interval, its baseline, its sample size,
    and how to walk back.
    """

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
    split: str = ""
    lower_is_better: bool = False
    note: str = ""
    # "%" where the value is in hundredths already; else a share, or whatever the metric is in
    scale: str = ""
    published: Mapping[str, str] | None = (
        # {task, metric} of the published numbers it stands beside, and what `differs`, if known
        None
    )
    paper: str | None = (
        None  # the generation whose protocol it is, where the published name alone does not say
    )
    shots: str | None = None  # zero, one or few
    k: str = ""  # demonstrations that fitted, on average, of those asked for
    available: int | None = None  # examples that the split has
    overlap: float | None = None  # % of the task's 8-grams that stand in the training text

    @property
    def sure(self) -> bool:
        """Whether it may be shown: with interval, split and size."""
        return (
            self.low is not None
            and self.high is not None
            and bool(self.split)
            and bool(self.examples)
        )

    @property
    def verdict(self) -> str:
        """Against the best baseline, interval and all."""
        if self.against is None or self.low is None or self.high is None:
            return ""
        if self.low <= self.against <= self.high:
            return "undecided"
        return "better" if (self.value < self.against) == self.lower_is_better else "worse"

    def interval(self, factor: float = 1.0) -> str:
        """ "0.321 – 0.402"; with a factor of 100, "32.10 – 40.20" """
        return (
            f"{scaled(self.low or 0.0, factor)} – {scaled(self.high or 0.0, factor)}"
            if self.sure
            else ""
        )

    def on(self) -> str:
        """ "500 of 1,300 examples, validation" """
        of = (
            f" of {self.available:,}"
            if self.available and self.examples and self.available > self.examples
            else ""
        )
        return f"{self.examples:,}{of} {self.unit}, {self.split}" if self.sure else ""


@dataclass(frozen=True)
class NotRun:
    """A score that was asked for and whose data cannot be had here."""

    asset: str
    fingerprint: str
    name: str
    reason: str
    published: tuple[Mapping[str, str], ...] = ()
    paper: str | None = None

    @property
    def short_reason(self) -> str:
        """Without what to do about it, which stands under the artifact."""
        return self.reason.partition(";")[0]


def collect(recipe: str, inputs: Inputs) -> tuple[list[Score], list[NotRun]]:
    """Every score of the inputs, from the metrics their stages report, and what was not run here."""
    found = list(_collected(recipe, inputs))
    return [one for one in found if isinstance(one, Score)], [
        one for one in found if isinstance(one, NotRun)
    ]


def _collected(recipe: str, inputs: Inputs) -> Iterator[Score | NotRun]:
    for name, artifact in inputs.items():
        asset, reason = f"{recipe}/{name}", base_model.not_run(artifact)
        if artifact.stage == "finetuned":
            yield from _finetuned_scores(asset, artifact)
        elif reason:
            yield NotRun(asset, artifact.fingerprint, name, reason)
        elif artifact.stage == "pretrained":
            whole, *by_source = _pretrained_scores(asset, artifact, inputs)
            yield whole
            if (
                "/" not in name
                # of an experiment's many models one figure each: the rest is on its page and in the
                # artifact
            ):
                yield from by_source
        elif artifact.stage == "reward_model":
            yield from _reward_model_scores(asset, artifact)
        elif artifact.stage == "preferences":
            yield from _win_rates(asset, artifact)
        elif artifact.stage == "zero_shot" and not name.startswith(
            ZERO_SHOT_AFTER
        ):  # those stand side by side under "Alignment"
            yield from _zero_shot_scores(asset, artifact, inputs)


def _pretrained_scores(asset: str, artifact: Artifact, inputs: Inputs) -> Iterator[Score]:
    metrics, corpus, tokens = artifact.metrics, inputs["corpus"], inputs["tokens"].metrics
    caveat = base_model.caveat(artifact, inputs)
    xz = (
        {}
        if caveat
        else {source: corpus.metrics[f"xz/{source}/bpb"] for source in _weights(corpus)}
    )  # xz reads the text itself
    sources = sorted(key.split("/")[1] for key in metrics if fnmatch(key, "held_out/*/bpb"))
    by_source = [
        Score(
            asset,
            artifact.fingerprint,
            f"bits per byte, {source}",
            metrics[f"held_out/{source}/bpb"],
            metrics.get(f"held_out/{source}/bpb_low"),
            metrics.get(f"held_out/{source}/bpb_high"),
            f"xz -9e {xz[source]:.3f}" if xz else "",
            xz.get(source),
            int(tokens[f"held_out/{source}/tokens"]),
            "tokens",
            HELD_OUT,
            lower_is_better=True,
            note=f"every held-out token. {caveat}"
            if caveat
            else "every held-out token; xz primed with the same training text",
        )
        for source in sources
    ]
    yield _by_mixture(by_source, [_weights(corpus)[source] for source in sources], metrics, caveat)
    yield from by_source


def _weights(corpus: Artifact) -> dict[str, float]:
    return {source["name"]: float(source["weight"]) for source in corpus.config["sources"]}


def _by_mixture(scores: list[Score], weights: list[float], metrics: Metrics, caveat: str) -> Score:
    """The sources' bits per byte, and xz's, weighted as they are trained on. The interval takes the
    sources for independent.
    """
    shares = [weight / (sum(weights) or 1.0) for weight in weights]
    value, uniform = metrics["held_out/bpb"], metrics["uniform_bpb"]
    xz = (
        None
        if caveat
        else sum(
            share * (score.against or 0.0) for share, score in zip(shares, scores, strict=True)
        )
    )
    known = all(score.low is not None for score in scores)
    half = (
        sum(
            (share * (score.value - (score.low or 0.0))) ** 2
            for share, score in zip(shares, scores, strict=True)
        )
        ** 0.5
    )
    return Score(
        scores[0].asset,
        scores[0].fingerprint,
        "bits per byte, by mixture",
        value,
        value - half if known else None,
        value + half if known else None,
        f"uniform {uniform:.3f}" if xz is None else f"xz -9e {xz:.3f}, uniform {uniform:.3f}",
        uniform if xz is None else xz,
        sum(score.examples or 0 for score in scores),
        "tokens",
        HELD_OUT,
        lower_is_better=True,
        note=f"sources weighted as they are trained on. {caveat}"
        if caveat
        else "sources, and xz's figures of them, weighted as they are trained on",
    )


def _finetuned_scores(asset: str, artifact: Artifact) -> Iterator[Score | NotRun]:
    m, entry = artifact.metrics, TaskEntry.model_validate(artifact.config["source"])
    row, parts = entry.published, entry.published.parts if entry.published else {}
    if reason := base_model.not_run(artifact):
        rows = tuple(row.place(task) for task in (row.task, *parts.values())) if row else ()
        yield NotRun(asset, artifact.fingerprint, SCORE_NAMES[entry.metric], reason, rows, "gpt1")
        return
    note = f"trained on {tables.share_of(int(m['training_examples']), int(m['training_examples_available']))}"
    available = int(m["test_examples_available"])
    how = adapted(artifact.config, m)
    note += "".join(f"; {told}" for told in (entry.description, how) if told)
    for key in entry.reported():
        constant = (
            {"majority" if key == "accuracy" else "one answer": m[CONSTANT[key]]}
            if CONSTANT.get(key) in m
            else {}
        )
        random = f"random {m[f'random_{key}']:.3f} ({m[f'random_{key}_low']:.3f}–{m[f'random_{key}_high']:.3f})"
        yield Score(
            asset,
            artifact.fingerprint,
            SCORE_NAMES[key],
            m[key],
            m[f"{key}_low"],
            m[f"{key}_high"],
            ", ".join([*(f"{name} {value:.3f}" for name, value in constant.items()), random]),
            max([*constant.values(), m[f"random_{key}"]]),
            int(m["test_examples"]),
            split=test_split(entry),
            note=note,
            paper="gpt1",
            published=row.place(row.task) if row and row.metric == key else None,
            available=available,
        )
    for part in parts_of(m):
        key = entry.metric
        yield Score(
            asset,
            artifact.fingerprint,
            f"{SCORE_NAMES[key]}, {part}",
            m[f"{part}/{key}"],
            m[f"{part}/{key}_low"],
            m[f"{part}/{key}_high"],
            examples=int(m[f"{part}/test_examples"]),
            split=test_split(entry, part),
            note=note,
            paper="gpt1",
            published=row.place(parts[part]) if row and part in parts else None,
        )
    yield Score(
        asset,
        artifact.fingerprint,
        "transfer",
        m["transfer"],
        m["transfer_low"],
        m["transfer_high"],
        "no transfer 0",
        0.0,
        int(m["test_examples"]),
        split=test_split(entry),
        available=available,
        note=f"{SCORE_NAMES[entry.metric]} over the same network fine-tuned from random weights"
        + (f"; {how}" if how else ""),
    )


def test_split(entry: TaskEntry, part: str | None = None) -> str:
    """What the task is tested on: its owners' name of the split on the hub, the file given in its
    place, or plain "test".
    """
    source = entry.source
    if source.hub is not None and source.splits is not None:
        tests = source.splits.tests()
        return tests[part] if part in tests else " and ".join(tests.values())
    own = (
        f" of {Path(source.names()[-1]).name}"
        if source.package is None and source.file is not None
        else ""
    )
    return f"test{own}" + (f", {part}" if part else "")


def _reward_model_scores(asset: str, artifact: Artifact) -> Iterator[Score]:
    m = artifact.metrics
    if "accuracy" in m:
        words = m.get(f"{BAG_OF_WORDS}/accuracy")
        beside = f"{words:.3f}" if words is not None else f"not run ({NO_WORDS})"
        yield Score(
            asset,
            artifact.fingerprint,
            "pairwise accuracy",
            m["accuracy"],
            m["accuracy_low"],
            m["accuracy_high"],
            f"bag of words {beside}, chance 0.500",
            max(words or 0.0, 0.5),
            int(m["comparisons"]),
            "comparisons",
            HELD_OUT,
        )


def _win_rates(asset: str, artifact: Artifact) -> Iterator[Score]:
    """By the judge, which no model was trained to please; the reward model's are under "Alignment"."""
    m = artifact.metrics
    for name in m:
        step, _, judge = name.partition("/")
        if judge == "judge" and "_over_" in step:
            model, over = (part.replace("_", " ") for part in step.split("_over_"))
            yield Score(
                asset,
                artifact.fingerprint,
                f"{model} over {over}, win rate",
                m[name],
                m[f"{name}_low"],
                m[f"{name}_high"],
                "no difference 0.500",
                0.5,
                int(m["prompts"]),
                "prompts",
                HELD_OUT,
                note="by a judge that no model was trained to please",
            )


def _zero_shot_scores(asset: str, artifact: Artifact, inputs: Inputs) -> Iterator[Score | NotRun]:
    caveat = base_model.caveat(artifact, inputs)
    comparable: Metrics = inputs["corpus"].metrics if "corpus" in inputs and not caveat else {}
    results = Results.read(artifact.path)
    for missing in results.unavailable:
        metadata = _metadata(artifact, missing.suite, missing.task)
        published = (
            [missing.published]
            if missing.published
            else [_place(row) for row in metadata.published.values()]
        )
        yield NotRun(
            asset,
            artifact.fingerprint,
            f"{missing.suite} {missing.task}",
            missing.reason,
            tuple(published),
            _paper(missing.suite),
        )
    for row in results.scores:
        metadata = _metadata(artifact, row.suite, row.task)
        baseline, against = row.baseline, row.baseline_value
        if (
            row.metric == "bits_per_byte"
            and (against := comparable.get(f"xz/{row.task}/bpb")) is not None
        ):
            baseline = f"xz -9e {against:.3f}"
        place = metadata.published.get(row.metric)
        used = row.demonstrations
        yield Score(
            asset,
            artifact.fingerprint,
            f"{row.task} {row.metric}",
            row.value,
            row.low,
            row.high,
            baseline,
            against,
            row.examples,
            split=row.split or _split(metadata.data),
            lower_is_better=row.lower_is_better,
            note=_protocol(row, caveat),
            published=row.published or (_place(place) if place else None),
            paper=_paper(row.suite),
            shots=used.shots if used else None,
            k=f"{used.mean:.1f} of {used.requested}" if used and used.requested else "",
            available=row.available,
            overlap=row.overlap.percent if row.overlap else None,
        )


def _paper(suite: str) -> str | None:
    """gpt1, gpt2 or gpt3, where the suite is named after it: it has that paper's protocols."""
    match = re.match(r"gpt\d(?=_)", suite)
    return match.group() if match else None


def _place(row: PublishedRow) -> dict[str, str]:
    return row.model_dump(exclude_defaults=True)


def _protocol(row: ScoreRow, caveat: str) -> str:
    """What no other column says: counts, shots and overlap have theirs."""
    notes = [row.description] if row.description else []
    if "_top_" in row.metric:
        notes.append("its surest answers")
    if row.too_long:
        notes.append(f"{row.too_long:,} more have an answer longer than the context")
    text = "; ".join(notes)
    return f"{text} {caveat}" if caveat and row.metric.endswith(base_model.BITS_PER_BYTE) else text


def _metadata(artifact: Artifact, suite: str, task: str) -> TaskMetadata:
    """What the suite says of a task. Rows of one task may be named by source or by shots, after its
    name or in its place.
    """
    known = {one.name: one.metadata for one in suite_tasks(suite, artifact.config["suites"][suite])}
    near = max(
        (name for name in known if task.startswith(name)), key=len, default=next(iter(known))
    )
    return known[near]


def _split(data: Data) -> str:
    """Which split a suite's task reads, or the file in its place."""
    if isinstance(data, Labelled):
        return "all splits" if len(data.splits) == len(SPLITS) else " and ".join(data.splits)
    if isinstance(data, Dataset):
        source = data.source
        return (
            source.split
            if source.hub is not None
            else Path(source.path or source.package or "").name
        )
    return HELD_OUT if isinstance(data, (Passages, LastWord, Cloze)) else "generated"
