"""What Dagster and MLflow show of a zero-shot evaluation: its scores, what of the examples stands
in the training text, and samples.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from assets.contract import MLFLOW_TABLE, Built
from assets.report import plots
from assets.report.tables import MISSING, Table, code_block, write_markdown
from assets.stages import base_model
from gpt_model.evaluation.results import (
    PREDICTIONS_FILE,
    Results,
    ScoreRow,
    SubsetScore,
    interval_text,
)
from gpt_model.evaluation.suites import ROLLING
from gpt_model.io import dump_json

TABLE_ROWS, TABLE_ROWS_A_TASK = 2_000, 200  # MLflow's page has them all in memory
RIGHT = ("acc", "exact_match", "em")  # metrics of a row that say whether it is right
NOT_SHOWN = "(its licence does not cover showing it)"

OVERLAP_NOTE = (
    "*K*: the demonstrations before a question, on average and at least. Demonstrations that do "
    "not fit the context are left out. *8-grams*: the overlap of GPT-2's paper (Radford et al. "
    "2019, section 4), without its Bloom filter's false positives. *Dirty*: the example shares N "
    "words in a row with a training document. N is the 5th percentile of the examples' lengths, "
    "between 8 and 13 (Brown et al. 2020, appendix C). In brackets: 95 % interval."
)


def show(built: Built, folder: Path) -> None:
    """zero_shot.md (the table), training_text.md (overlap), zero_shot.png (accuracies against what
    guessing gives), samples.md, and a table of rows for MLflow.
    """
    results = Results.read(built.output)
    note = f"↓: lower is better. {base_model.caveat(built, built.inputs)}".rstrip()
    not_run = [
        f"**{row.suite}/{row.task}** not run here: {row.reason}." for row in results.unavailable
    ]
    write_markdown(folder / "zero_shot.md", scores_table(results.scores, note), *not_run)
    if any(row.overlap for row in results.scores):
        write_markdown(folder / "training_text.md", overlap_table(results.scores))
    first = _first_rows(built.output / PREDICTIONS_FILE)
    fewer = _with_fewer_demonstrations(results.scores)
    samples = [rows[0] for task, rows in first.items() if task not in fewer]
    write_markdown(folder / "samples.md", *_samples(samples))
    if first:
        (folder / MLFLOW_TABLE).parent.mkdir()
        dump_json(folder / MLFLOW_TABLE, _table(first), ensure_ascii=False)
    if accuracies := [row for row in results.scores if row.baseline_value is not None]:
        _draw_accuracies(accuracies, folder / "zero_shot.png")


def scores_table(scores: Sequence[ScoreRow], note: str = "") -> Table:
    return Table(
        [
            {
                "suite": row.suite,
                "task": row.task,
                "metric": row.metric + (" ↓" if row.lower_is_better else ""),
                "value": row.value,
                "95 % interval": interval_text(row),
                "beside": row.baseline or MISSING,
                "examples": _examples(row),
                "what it is": _description(row),
            }
            for row in scores
        ],
        note=note,
    )


def _description(row: ScoreRow) -> str:
    reading = base_model.READ_ALONE if row.metric in ROLLING else ""
    return "; ".join(filter(None, (row.description, reading, row.lowered_limit)))


def _examples(row: ScoreRow) -> str:
    text = f"{row.examples:,}"
    text += f" of {row.available:,}" if row.available > row.examples else ""
    return "; ".join(
        filter(None, (text, row.cut_text and f"contexts: {row.cut_text}", row.left_out))
    )


def overlap_table(scores: Sequence[ScoreRow]) -> Table:
    """A row for each score whose examples were looked up in the training text."""
    rows = []
    for row in scores:
        if (overlap := row.overlap) is None:
            continue
        clean = f"{overlap.clean_percent:.3g} %"
        clean += f", {overlap.too_short:,} too short to say" if overlap.too_short else ""
        percent = MISSING if overlap.percent is None else f"{overlap.percent:.3g} %"
        rows.append(
            {
                "suite": row.suite,
                "task": row.task,
                "metric": row.metric,
                "K": _demonstrations(row),
                "8-grams": overlap.ngrams,
                "of them in training": percent,
                "N": overlap.run,
                "clean examples": clean,
                "score on them": _subset_score(overlap.clean),
                "score on the dirty": _subset_score(overlap.dirty),
            }
        )
    return Table(rows, note=OVERLAP_NOTE)


def _demonstrations(row: ScoreRow) -> str:
    if (shown := row.demonstrations) is None:
        return MISSING
    if not shown.requested:
        return "0"
    return f"{shown.mean:.1f} of {shown.requested} (≥ {shown.fewest})"


def _subset_score(score: SubsetScore | None) -> str:
    if score is None:
        return MISSING
    ends = "" if score.low is None else f" ({interval_text(score)})"
    return f"{score.value:.4g}{ends}, {score.examples:,} examples"


def _with_fewer_demonstrations(scores: Sequence[ScoreRow]) -> set[tuple[str, str]]:
    """(suite, task) of settings that ask the same as one with more demonstrations, whose prompt
    shows it all.
    """
    most: dict[tuple[str, str], tuple[int, str]] = {}
    settings = []
    for row in scores:
        if row.demonstrations:
            settings.append((row.suite, row.task))
            key = (row.suite, row.task.removesuffix(f"_{row.demonstrations.shots}"))
            most[key] = max(most.get(key, (-1, "")), (row.demonstrations.requested, row.task))
    return set(settings) - {(suite, task) for (suite, _), (_, task) in most.items()}


def _first_rows(path: Path) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The first predictions of each task, by (suite, task)."""
    first: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with path.open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            rows = first.setdefault((row["suite"], row["task"]), [])
            if len(rows) < TABLE_ROWS_A_TASK:
                rows.append(row)
    return first


def _table(first: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """As `mlflow.log_table` writes one, the same number of rows a task; questions first, then texts
    that were only read. MLflow compares the second column by the first.
    """
    each = max(1, min(TABLE_ROWS_A_TASK, TABLE_ROWS // len(first)))
    table = [_table_row(row) for rows in first.values() for row in rows[:each]]
    table.sort(key=lambda row: not row["right"])
    return {"columns": list(table[0]), "data": [list(row.values()) for row in table]}


def _table_row(row: Mapping[str, Any]) -> dict[str, Any]:
    answers, logprobs, target = row["answers"], row["logprobs"], row["target"]
    answer: Any = answers[0] if answers else None
    if logprobs:
        answer = logprobs.index(max(logprobs)) if len(logprobs) > 1 else None
    right = next((row["scores"][name] for name in RIGHT if name in row["scores"]), None)
    return {
        "question": f"{'/'.join(dict.fromkeys((row['suite'], row['task'])))} {row['row']}",
        "right": "" if right is None else "right" if right == 1 else "wrong",
        "answer": _answer_text(answers, answer),
        "target": _answer_text(answers, target),
        "input": NOT_SHOWN if row["context"] is None else row["context"],
        "choices": " | ".join(answer.strip() for answer in answers) if logprobs else "",
        "log-likelihoods": " | ".join(f"{logprob:.2f}" for logprob in logprobs),
    }


def _answer_text(answers: Sequence[str], answer: Any) -> Any:
    """The answer of an index, where the text may be shown; nothing where there is none."""
    if answer is None:
        return ""
    return answers[answer].strip() if isinstance(answer, int) and answers else answer


def _samples(samples: Iterable[Mapping[str, Any]]) -> list[str]:
    """The end of each example's context and each answer with its log-probability."""
    paragraphs = []
    for sample in samples:
        if not sample["answers"]:
            continue
        answers = []
        for index, answer in enumerate(sample["answers"]):
            right = "**right** " if sample["target"] in (index, answer) else ""
            nats = f" {sample['logprobs'][index]:.2f} nats" if sample["logprobs"] else ""
            text = f"`{answer.strip()}`" if answer.strip() else "nothing"
            answers.append(f"- {right}{text}{nats}")
        title, context = f"**{sample['suite']}/{sample['task']}**", code_block(sample["context"])
        paragraphs.append(f"{title}\n\n{context}\n\n" + "\n".join(answers))
    return paragraphs


def _draw_accuracies(scores: Sequence[ScoreRow], path: Path) -> None:
    values = [row.value for row in scores]
    with plots.picture(path, height=plots.rows_height(len(scores))) as axes:
        plots.row_intervals(
            axes,
            range(len(scores)),
            values,
            [row.value if row.low is None else row.low for row in scores],
            [row.value if row.high is None else row.high for row in scores],
            "ours, with 95 % interval",
        )
        baselines = [row.baseline_value or 0.0 for row in scores]
        label = "chance, or the commonest answer"
        axes.plot(baselines, range(len(scores)), "k|", markersize=14, label=label)
        plots.name_rows(axes, [f"{row.task} {row.metric}" for row in scores])
        axes.set_xlabel("accuracy")
