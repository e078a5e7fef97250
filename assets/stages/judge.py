"""judge: a bag of words trained on comparisons that nothing else sees, to say which of two answers
is better.

Policies are trained against the reward model, and may find what it overrates; this judge is another
model of other people's judgements.

    bag_of_words.json   the judge (gpt_model/rlhf/bag_of_words.py)
    learnt.jsonl        which rankings of judge.jsonl it was trained on: {"row", "source", "id"}, rows from 0
    judge.json          figures; or {"not_run": why} alone, where comparisons keep no part for a judge
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from assets.contract import Built, Check, Config, Inputs, Metrics, Progress, Stage, Verdict
from gpt_model.errors import UserError

if TYPE_CHECKING:
    from gpt_model.rlhf.records import Ranking

FACTS, LEARNT = "judge.json", "learnt.jsonl"


# --- run ---


def train_judge(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Fit it, and measure it on the held-out rankings, which neither it nor the reward model has
    learnt from.
    """
    from gpt_model.rlhf.bag_of_words import BagOfWords
    from gpt_model.rlhf.records import read_comparisons

    comparisons = inputs["comparisons"].path
    given = (
        read_comparisons(comparisons, "judge") if (comparisons / "judge.jsonl").is_file() else []
    )
    elsewhere = _texts(
        ranking
        for split in ("training", "held_out")
        for ranking in read_comparisons(comparisons, split)
    )
    own = {row: ranking for row, ranking in enumerate(given) if not _texts([ranking]) & elsewhere}
    rows = [row for row, ranking in own.items() if ranking.pairs()]
    learnt = [own[row] for row in rows]
    if not learnt:
        return _not_run(
            output,
            progress,
            "comparisons keep no part for a judge"
            if not given
            else "none of the judge's comparisons is left",
        )
    try:
        judge = BagOfWords.fit(learnt)
    except UserError as error:
        return _not_run(output, progress, str(error).rstrip("."))
    judge.save(output)
    listed = [
        json.dumps({"row": row, "source": own[row].source, "id": own[row].id}, ensure_ascii=False)
        for row in rows
    ]
    (output / LEARNT).write_text("\n".join(listed) + "\n", encoding="utf-8")
    metrics: Metrics = {
        "rankings": len(learnt),
        "comparisons": sum(len(one.pairs()) for one in learnt),
        "shared": len(given) - len(own),
        "without_pairs": len(own) - len(learnt),
        "words": len(judge.words),
        **_accuracy(
            judge.scores, [one for one in read_comparisons(comparisons, "held_out") if one.pairs()]
        ),
    }
    if metrics["shared"]:
        progress.log(
            f"{int(metrics['shared'])} of {len(given)} rankings are left out: a response of theirs is in training or held_out too."
        )
    (output / FACTS).write_text(
        json.dumps(metrics, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    return metrics


def not_run(folder: Path) -> str | None:
    """Why there is no judge in an artifact, if there is none."""
    reason: str | None = json.loads((folder / FACTS).read_text(encoding="utf-8")).get("not_run")
    return reason


def _not_run(output: Path, progress: Progress, reason: str) -> Metrics:
    progress.log(f"No judge: {reason}.")
    (output / FACTS).write_text(
        json.dumps({"not_run": reason}, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return {"not_run": 1.0}


def _texts(rankings: Iterable[Ranking]) -> set[str]:
    return {response.text.strip() for ranking in rankings for response in ranking.responses}


def _accuracy(
    scores: Callable[[Sequence[Ranking]], list[list[float]]], held_out: Sequence[Ranking]
) -> Metrics:
    from gpt_model.rlhf import pairwise

    if not held_out:
        return {}
    (accuracy,), _ = pairwise.accuracies([scores(held_out)], [one.pairs() for one in held_out])
    return accuracy.as_metrics("accuracy")


# --- checks ---


def _independent(built: Built) -> Verdict:
    """Of what it was trained on, by its own list, no response is in what the reward model is
    trained or measured on.
    """
    from gpt_model.rlhf.records import read_comparisons

    if reason := not_run(built.output):
        return Verdict(True, f"There is no judge here: {reason}.")
    comparisons = built.inputs["comparisons"].path
    given = read_comparisons(comparisons, "judge")
    learnt = _texts(
        given[json.loads(line)["row"]]
        for line in (built.output / LEARNT).read_text(encoding="utf-8").split("\n")[:-1]
    )
    found = {
        split: len(learnt & _texts(read_comparisons(comparisons, split)))
        for split in ("training", "held_out")
    }
    said = f"Of the judge's {len(learnt)} responses {found['training']} are in training and {found['held_out']} in held_out."
    return Verdict(not any(found.values()), said, found)


def _better_than_chance(built: Built) -> Verdict:
    if reason := not_run(built.output):
        return Verdict(True, f"There is no judge here: {reason}.")
    m = built.metrics
    if "accuracy" not in m:
        return Verdict(False, "There is no held-out comparison to measure the judge on.")
    said = f"{m['accuracy']:.3f} [{m['accuracy_low']:.3f}, {m['accuracy_high']:.3f}] of held-out comparisons are right."
    return Verdict(
        m["accuracy_low"] > 0.5,
        said,
        {"accuracy": m["accuracy"], "accuracy_low": m["accuracy_low"]},
    )


def show(built: Built, folder: Path) -> None:
    """figures.md, and the words that speak most for an answer and against it."""
    from gpt_model.rlhf.bag_of_words import BagOfWords

    if reason := not_run(built.output):
        (folder / "figures.md").write_text(f"There is no judge here: {reason}.\n", encoding="utf-8")
        return
    judge, m = BagOfWords.load(built.output), built.metrics
    order = judge.coefficients.argsort(kind="stable")
    against, speaks_for = (
        ", ".join(f"“{judge.words[place]}”" for place in chosen)
        for chosen in (order[:12], order[::-1][:12])
    )
    accuracy = (
        f"{m['accuracy']:.3f} ({m['accuracy_low']:.3f} to {m['accuracy_high']:.3f})"
        if "accuracy" in m
        else "–"
    )
    (folder / "figures.md").write_text(
        f"Logistic regression on {int(m['words']):,} words and pairs of words, from {int(m['comparisons']):,} comparisons in "
        f"{int(m['rankings']):,} rankings that nothing else is trained or measured on.\n\n"
        f"Accuracy on held-out comparisons: {accuracy}, bootstrap over rankings.\n\nFor an answer: {speaks_for}.\n\nAgainst: {against}.\n",
        encoding="utf-8",
    )


JUDGE = Stage(
    name="judge",
    version="1",
    run=train_judge,
    description="An independent judge of answers: a bag of words, trained on comparisons that nothing else sees.",
    kinds=("scikitlearn",),
    checks=(
        Check(
            "independent",
            True,
            "No response it was trained on is in the reward model's training or held-out part.",
            _independent,
        ),
        Check(
            "accuracy_above_half",
            False,
            "The interval of its accuracy on held-out comparisons lies above a half.",
            _better_than_chance,
        ),
    ),
    show=show,
)
