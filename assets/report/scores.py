"""The scores of a recipe's artifacts: each with its interval, split, sample size and baseline, or
with the reason why it was not run. What a score is, is in `score.py`.

`scorecard.py` shows the scores; `published.py` sets the published numbers beside them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from assets.contract import Artifact, Inputs, Metrics
from assets.report import tables
from assets.report.finetuned import adapted, cut_of_test, parts_of
from assets.report.score import NotRun, Score
from assets.stages import base_model
from assets.stages.alignment import BAG_OF_WORDS, NO_WORDS
from assets.stages.finetuning import CONSTANT
from gpt_model.evaluation.results import Results, ScoreRow
from gpt_model.evaluation.suites import (
    ROLLING,
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
from gpt_model.finetuning.entry import SCORE_NAMES, SPLITS, TaskEntry

HELD_OUT_SPLIT = "held out"
ZERO_SHOT_AFTER = "zero_shot_after/"  # how the names of the suites of aligned models begin


def collect(recipe: str, inputs: Inputs) -> tuple[list[Score], list[NotRun]]:
    """Every score of the inputs, and what was not run here."""
    results = [
        result
        for name, artifact in inputs.items()
        for result in _of_artifact(f"{recipe}/{name}", name, artifact, inputs)
    ]
    return (
        [result for result in results if isinstance(result, Score)],
        [result for result in results if isinstance(result, NotRun)],
    )


def _of_artifact(
    asset: str, name: str, artifact: Artifact, inputs: Inputs
) -> Iterator[Score | NotRun]:
    reason = artifact.not_run
    if artifact.stage == "finetuned":
        yield from _of_task(asset, artifact, reason)
    elif reason:
        yield NotRun(asset, artifact.fingerprint, name, reason)
    elif artifact.stage == "pretrained":
        mixture, *by_source = _of_held_out_text(asset, artifact, inputs)
        yield mixture
        if "/" not in name:  # of an experiment's many models its page has the rest
            yield from by_source
    elif artifact.stage == "reward_model":
        yield from _of_reward_model(asset, artifact)
    elif artifact.stage == "preferences":
        yield from _win_rates(asset, artifact)
    # The suites of aligned models stand side by side in the section about alignment.
    elif artifact.stage == "zero_shot" and not name.startswith(ZERO_SHOT_AFTER):
        yield from _of_suites(asset, artifact, inputs)


def _measured(metrics: Metrics, name: str) -> dict[str, Any]:
    """A metric with its interval as the fields of a score."""
    return {
        "value": metrics[name],
        "low": metrics.get(f"{name}_low"),
        "high": metrics.get(f"{name}_high"),
    }


def _of_held_out_text(asset: str, artifact: Artifact, inputs: Inputs) -> Iterator[Score]:
    """Bits per byte by mixture, then of each source, beside what xz makes of the same text."""
    metrics, corpus, tokens = artifact.metrics, inputs["corpus"], inputs["tokens"].metrics
    caveat = base_model.caveat(artifact, inputs)
    weights = {source["name"]: float(source["weight"]) for source in corpus.config["sources"]}
    sources = sorted(
        match[1] for key in metrics if (match := re.fullmatch(r"held_out/([^/]*)/bpb", key))
    )
    scores = []
    for source in sources:
        xz = None if caveat else corpus.metrics[f"xz/{source}/bpb"]  # xz reads the text itself
        score = Score(
            asset,
            artifact.fingerprint,
            f"bits per byte, {source}",
            **_measured(metrics, f"held_out/{source}/bpb"),
            baseline="" if xz is None else f"xz -9e {xz:.3f}",
            against=xz,
            examples=int(tokens[f"held_out/{source}/tokens"]),
            unit="tokens",
            split=HELD_OUT_SPLIT,
            lower_is_better=True,
            note=f"every held-out token: {base_model.READ_ON}. {caveat}"
            if caveat
            else f"every held-out token: {base_model.READ_ON}; xz primed with the same training "
            "text",
        )
        scores.append(score)
    yield _by_mixture(scores, [weights[source] for source in sources], metrics, caveat)
    yield from scores


def _by_mixture(scores: list[Score], weights: list[float], metrics: Metrics, caveat: str) -> Score:
    """The sources' bits per byte, and xz's, weighted as they are trained on. The interval takes the
    sources for independent.
    """
    total = sum(weights) or 1.0
    weighted = [(weight / total, score) for weight, score in zip(weights, scores, strict=True)]
    value, uniform = metrics["held_out/bpb"], metrics["uniform_bpb"]
    xz = None if caveat else sum(share * (score.against or 0.0) for share, score in weighted)
    known = all(score.low is not None for score in scores)
    half = (
        sum((share * (score.value - (score.low or 0.0))) ** 2 for share, score in weighted) ** 0.5
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
        HELD_OUT_SPLIT,
        lower_is_better=True,
        note=f"sources weighted as they are trained on. {caveat}"
        if caveat
        else "sources, and xz's figures of them, weighted as they are trained on",
    )


def _of_task(asset: str, artifact: Artifact, reason: str | None) -> Iterator[Score | NotRun]:
    """A task's metrics, those of the parts of its test split, and the transfer."""
    metrics, entry = artifact.metrics, TaskEntry.model_validate(artifact.config["source"])
    row, parts = entry.published, entry.published.parts if entry.published else {}
    if reason:
        rows = tuple(row.reference(task) for task in (row.task, *parts.values())) if row else ()
        yield NotRun(asset, artifact.fingerprint, SCORE_NAMES[entry.metric], reason, rows, "gpt1")
        return
    score = partial(Score, asset, artifact.fingerprint)
    how = adapted(artifact.config, metrics)
    examples, available = (
        int(metrics["training_examples"]),
        int(metrics["training_examples_available"]),
    )
    note = "; ".join(
        filter(None, (f"trained on {tables.share_of(examples, available)}", entry.description, how))
    )
    whole: dict[str, Any] = {
        "examples": int(metrics["test_examples"]),
        "available": int(metrics["test_examples_available"]),
        "split": test_split(entry),
        "cut": cut_of_test(metrics),
    }
    for key in entry.reported():
        baseline, against = _task_baselines(metrics, key)
        yield score(
            SCORE_NAMES[key],
            **_measured(metrics, key),
            baseline=baseline,
            against=against,
            **whole,
            note=note,
            paper="gpt1",
            published=row.reference(row.task) if row and row.metric == key else None,
        )
    for part in parts_of(metrics):
        bag_of_words = metrics.get(f"{BAG_OF_WORDS}/{part}/{entry.metric}")
        yield score(
            f"{SCORE_NAMES[entry.metric]}, {part}",
            **_measured(metrics, f"{part}/{entry.metric}"),
            baseline="" if bag_of_words is None else f"bag of words {bag_of_words:.3f}",
            against=bag_of_words,
            examples=int(metrics[f"{part}/test_examples"]),
            split=test_split(entry, part),
            note=note,
            paper="gpt1",
            published=row.reference(parts[part]) if row and part in parts else None,
        )
    name = SCORE_NAMES[entry.metric]
    yield score(
        "transfer",
        **_measured(metrics, "transfer"),
        baseline="no transfer 0",
        against=0.0,
        **whole,
        note=f"{name} over the same network fine-tuned from random weights"
        + (f"; {how}" if how else ""),
    )


def _task_baselines(metrics: Metrics, key: str) -> tuple[str, float]:
    """ "majority 0.504, bag of words 0.642, random 0.510", and the best of them. A build of before
    there was a bag of words has none.
    """
    names = {
        "majority" if key == "accuracy" else "one answer": CONSTANT.get(key, ""),
        "bag of words": f"{BAG_OF_WORDS}/{key}",
        "random": f"random_{key}",
    }
    values = {name: metrics[metric] for name, metric in names.items() if metric in metrics}
    text = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
    return text, max(values.values())


def test_split(entry: TaskEntry, part: str | None = None) -> str:
    """What the task is tested on: its owners' name of the split on the hub, the file given in its
    stead, or plain "test".
    """
    source = entry.source
    tests = source.tests()
    chosen = [tests[part]] if part in tests else list(tests.values())
    if source.hub is not None:
        return " and ".join(chosen)
    files = " and ".join(Path(file).name for file in chosen) if source.package is None else ""
    return ("test of " + files if files else "test") + (f", {part}" if part else "")


def _of_reward_model(asset: str, artifact: Artifact) -> Iterator[Score]:
    metrics = artifact.metrics
    if "accuracy" not in metrics:
        return
    bag_of_words = metrics.get(f"{BAG_OF_WORDS}/accuracy")
    baseline = f"not run ({NO_WORDS})" if bag_of_words is None else f"{bag_of_words:.3f}"
    yield Score(
        asset,
        artifact.fingerprint,
        "pairwise accuracy",
        **_measured(metrics, "accuracy"),
        baseline=f"bag of words {baseline}, chance 0.500",
        against=max(bag_of_words or 0.0, 0.5),
        examples=int(metrics["comparisons"]),
        unit="comparisons",
        split=HELD_OUT_SPLIT,
    )


def _win_rates(asset: str, artifact: Artifact) -> Iterator[Score]:
    """By the judge, which no model was trained to please; the reward model's are in the section
    about alignment.
    """
    metrics = artifact.metrics
    for name in metrics:
        step, _, judge = name.partition("/")
        if judge != "judge" or "_over_" not in step:
            continue
        model, over = (part.replace("_", " ") for part in step.split("_over_"))
        yield Score(
            asset,
            artifact.fingerprint,
            f"{model} over {over}, win rate",
            **_measured(metrics, name),
            baseline="no difference 0.500",
            against=0.5,
            examples=int(metrics["prompts"]),
            unit="prompts",
            split=HELD_OUT_SPLIT,
            note="by a judge that no model was trained to please",
        )


def _of_suites(asset: str, artifact: Artifact, inputs: Inputs) -> Iterator[Score | NotRun]:
    caveat = base_model.caveat(artifact, inputs)
    xz: Metrics = inputs["corpus"].metrics if "corpus" in inputs and not caveat else {}
    results = Results.read(artifact.path)
    for missing in results.unavailable:
        metadata = _metadata(artifact, missing.suite, missing.task)
        rows = [missing.published] if missing.published else map(_row, metadata.published.values())
        yield NotRun(
            asset,
            artifact.fingerprint,
            f"{missing.suite} {missing.task}",
            missing.reason,
            tuple(rows),
            _paper(missing.suite),
        )
    for row in results.scores:
        metadata = _metadata(artifact, row.suite, row.task)
        baseline, against = row.baseline, row.baseline_value
        if row.metric == "bits_per_byte":
            against = xz.get(f"xz/{row.task}/bpb")
            baseline = baseline if against is None else f"xz -9e {against:.3f}"
        published = metadata.published.get(row.metric)
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
            published=row.published or (_row(published) if published else None),
            paper=_paper(row.suite),
            shots=used.shots if used else None,
            k=f"{used.mean:.1f} of {used.requested}" if used and used.requested else "",
            available=row.available,
            overlap=row.overlap.percent if row.overlap else None,
            cut=row.cut_text,
        )


def _paper(suite: str) -> str | None:
    """gpt1, gpt2 or gpt3, where the suite is named after it: it has that paper's protocols."""
    match = re.match(r"gpt\d(?=_)", suite)
    return match.group() if match else None


def _row(published: PublishedRow) -> dict[str, str]:
    """Where a paper's number of the same kind stands: a row of gpt_model/published."""
    return published.model_dump(exclude_defaults=True)


def _protocol(row: ScoreRow, caveat: str) -> str:
    """What no other column says: counts, shots and overlap have theirs."""
    parts = [
        row.description,
        base_model.READ_ALONE if row.metric in ROLLING else "",
        "its surest answers" if "_top_" in row.metric else "",
        row.left_out,
        row.lowered_limit,
        row.fewer_demonstrations,
    ]
    of_text = caveat and row.metric.endswith(base_model.BITS_PER_BYTE)
    return "; ".join(filter(None, parts)) + (f" {caveat}" if of_text else "")


def _metadata(artifact: Artifact, suite: str, task: str) -> TaskMetadata:
    """What the suite says of a task. A row may be named by its source or its shots, after the
    task's name or instead of it.
    """
    tasks = suite_tasks(suite, artifact.config["suites"][suite])
    matches = [entry for entry in tasks if task.startswith(entry.name)]
    return max(matches, key=lambda entry: len(entry.name), default=tasks[0]).metadata


def _split(data: Data) -> str:
    """Which split a suite's task reads, or the file in its stead."""
    if isinstance(data, Labelled):
        return "all splits" if len(data.splits) == len(SPLITS) else " and ".join(data.splits)
    if isinstance(data, Dataset):
        source = data.source
        file = source.path or source.package or ""
        return Path(file).name if source.hub is None else source.split
    return HELD_OUT_SPLIT if isinstance(data, (Passages, LastWord, Cloze)) else "generated"
