"""Runs the stage `judge`: fit a bag of words on the judge's part of the comparisons."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from assets.contract import Built, Config, Inputs, Metrics, Progress, Verdict
from assets.stages.alignment import JUDGE_FILE, TRAINED_ON
from gpt_model.bag_of_words import BagOfWords
from gpt_model.errors import UserError
from gpt_model.io import dump_json, read_json_lines, write_json_lines
from gpt_model.rlhf import ranking_agreement
from gpt_model.rlhf.records import Ranking, read_comparisons


def run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Fit the judge, and measure it on the held-out rankings: neither it nor the reward model was
    trained on those.
    """
    folder = inputs["comparisons"].path
    available = read_comparisons(folder, "judge") if (folder / "judge.jsonl").is_file() else []
    training, held_out = (read_comparisons(folder, split) for split in ("training", "held_out"))
    elsewhere = texts_of([*training, *held_out])
    independent = {
        row: ranking for row, ranking in enumerate(available) if not texts_of([ranking]) & elsewhere
    }
    usable = {row: ranking for row, ranking in independent.items() if ranking.pairs()}
    if not usable:
        reason = (
            "none of the judge's comparisons is left"
            if available
            else "comparisons keep no part for a judge"
        )
        return _not_run(output, progress, reason)
    try:
        judge = BagOfWords.fit(list(usable.values()))
    except UserError as error:
        return _not_run(output, progress, str(error).rstrip("."))
    judge.save(output)
    rows = (
        {"row": row, "source": ranking.source, "id": ranking.id} for row, ranking in usable.items()
    )
    write_json_lines(output / TRAINED_ON, rows)
    metrics: Metrics = {
        "rankings": len(usable),
        "comparisons": sum(len(ranking.pairs()) for ranking in usable.values()),
        "shared": len(available) - len(independent),
        "without_pairs": len(independent) - len(usable),
        "words": len(judge.words),
        **_accuracy(judge, [ranking for ranking in held_out if ranking.pairs()]),
    }
    if metrics["shared"]:
        progress.log(
            f"{int(metrics['shared'])} of {len(available)} rankings are left out: a response of "
            "theirs is in training or held_out too."
        )
    dump_json(output / JUDGE_FILE, metrics, indent=2, sort_keys=True)
    return metrics


def not_run(folder: Path) -> str | None:
    """Why an artifact has no judge, if it has none."""
    reason: str | None = json.loads((folder / JUDGE_FILE).read_text(encoding="utf-8")).get(
        "not_run"
    )
    return reason


def _not_run(output: Path, progress: Progress, reason: str) -> Metrics:
    progress.log(f"No judge: {reason}.")
    dump_json(output / JUDGE_FILE, {"not_run": reason}, ensure_ascii=False)
    return {"not_run": 1.0}


def texts_of(rankings: Iterable[Ranking]) -> set[str]:
    return {response.text.strip() for ranking in rankings for response in ranking.responses}


def _accuracy(judge: BagOfWords, held_out: Sequence[Ranking]) -> Metrics:
    if not held_out:
        return {}
    pairs = [ranking.pairs() for ranking in held_out]
    (accuracy,), _ = ranking_agreement.accuracies([judge.scores(held_out)], pairs)
    return accuracy.as_metrics("accuracy")


def trained_on(judge: Path, comparisons: Path) -> list[Ranking]:
    """The rankings that the judge was trained on, by its own list."""
    rankings = read_comparisons(comparisons, "judge")
    return [rankings[row["row"]] for row in read_json_lines(judge / TRAINED_ON)]


def independent(built: Built) -> Verdict:
    if reason := not_run(built.output):
        return Verdict(True, f"There is no judge here: {reason}.")
    comparisons = built.inputs["comparisons"].path
    texts = texts_of(trained_on(built.output, comparisons))
    shared = {
        split: len(texts & texts_of(read_comparisons(comparisons, split)))
        for split in ("training", "held_out")
    }
    summary = (
        f"Of the judge's {len(texts)} responses {shared['training']} are in training and "
        f"{shared['held_out']} in held_out."
    )
    return Verdict(not any(shared.values()), summary, shared)


def accuracy_above_half(built: Built) -> Verdict:
    if reason := not_run(built.output):
        return Verdict(True, f"There is no judge here: {reason}.")
    m = built.metrics
    if "accuracy" not in m:
        return Verdict(False, "There is no held-out comparison to measure the judge on.")
    summary = (
        f"{m['accuracy']:.3f} [{m['accuracy_low']:.3f}, {m['accuracy_high']:.3f}] of held-out "
        "comparisons are right."
    )
    values = {name: m[name] for name in ("accuracy", "accuracy_low")}
    return Verdict(m["accuracy_low"] > 0.5, summary, values)
