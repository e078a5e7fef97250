"""Runs the zero_shot stage: the model on the recipe's suites, by lm_eval, and the checks of its
scores.

A task's rows are `gpt_model.evaluation.tasks`', our model behind lm_eval `lm_eval_adapter`'s, the
scores `evaluate`'s. Rank 0 prepares the tasks and runs lm_eval. Shared out among the ranks are the
questions to make tokens of, the batches of the model's forward passes, and the training text in
which the examples are looked for.

The check `reproduces_what_is_known` sets an imported model's scores beside the known scores of the
same weights by the same protocol: an evaluator that gives known answers can be trusted with new
models. The recipe names the model (`evaluation.known`), the suite the protocol; the numbers are
`gpt_model.published`'s.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assets.contract import EVALUATED, Built, Config, Inputs, Metrics, Progress, Verdict
from assets.execution.stored_models import join_to_evaluate
from assets.stages import base_model
from assets.store.home import downloads_folder
from gpt_model.errors import CorruptFile, Unavailable, Unreachable, UserError, about_all_of
from gpt_model.evaluation import toxicity
from gpt_model.evaluation.adapters.registry import TaskContext
from gpt_model.evaluation.aggregates import aggregate_rows
from gpt_model.evaluation.contamination import overlap_with_training
from gpt_model.evaluation.evaluate import (
    add_metrics,
    add_toxicity,
    evaluate,
    predictions,
    score_rows,
    write_tasks,
)
from gpt_model.evaluation.lm_eval_adapter import GPTLM
from gpt_model.evaluation.results import (
    PREDICTIONS_FILE,
    RESULTS,
    Results,
    ScoreRow,
    UnavailableRow,
    interval_text,
)
from gpt_model.evaluation.suites import SuiteTask, suite_tasks
from gpt_model.evaluation.tasks import TaskRows, examples_of, in_each_setting, rows_of
from gpt_model.io import dump_json, write_json_lines
from gpt_model.published import Reference, references
from gpt_model.tokenizer import Tokenizer
from gpt_model.training.engine import evaluation_precision

# Same weights, same examples: only rounding remains, of the printed number and of 16-bit arithmetic
# in the old runs.
TOLERANCE = 0.005  # of the value


def run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Write tasks/ (every task's rows and lm_eval YAML), results.json and predictions.jsonl. Every
    rank runs it, rank 0 writes.
    """
    if reason := inputs["pretrained"].not_run:
        return {} if progress.rank else _write_unavailable(config, output, reason)
    started = time.monotonic()
    folder = inputs["pretrained"].path / "model"
    models = join_to_evaluate("zero_shot", [folder], progress)
    execution, model = models.execution, models.gpt(folder)
    precision = evaluation_precision(execution, base_model.precision(inputs["pretrained"]))
    lm = GPTLM(model, Tokenizer.load(folder), progress=progress, execution=execution)
    with precision:
        if progress.rank:
            lm.shared.follow()
            return {}
        with lm.shared.leading():
            return _evaluate(lm, config, inputs, output, progress, started)


def _evaluate(
    lm: GPTLM, config: Config, inputs: Inputs, output: Path, progress: Progress, started: float
) -> Metrics:
    """`run` on rank 0. `started`: by the monotonic clock."""
    task_context = TaskContext(
        inputs["corpus"].path if "corpus" in inputs else None,
        config["split_seed"],
        downloads_folder(),
        lm.tokenizer.encode,
        lm.model.config.context,
        progress,
    )
    prepared = _prepare(config, task_context, progress)
    tasks = prepared.tasks
    prepared_at = time.monotonic()
    shutil.rmtree(output / EVALUATED, ignore_errors=True)
    write_tasks(output / EVALUATED, tasks)
    results = evaluate(lm, output / EVALUATED, [task.full_name for task in tasks])
    unavailable = prepared.unavailable
    tasks = list(_without_refused(tasks, results["refused"], unavailable))
    for name in results["refused"]:  # others cannot use it either
        for ending in ("yaml", "jsonl"):
            (output / EVALUATED / f"{name}.{ending}").unlink()
    overlaps = None
    if "corpus" in inputs:  # an imported model's training text is not known
        progress.log("looking for the examples in the training text")
        overlaps = overlap_with_training(
            examples_of(tasks), inputs["corpus"].path, lm.call_all, progress.world_size
        )
    add_metrics(tasks, results)
    add_toxicity(tasks, results, prepared.classifiers)
    scores: list[ScoreRow] = []
    for task in tasks:
        try:
            scores += score_rows([task], results, overlaps, lm.cuts)
        except UserError as error:  # lm_eval has no such metric of its output_type
            reason = str(error).rstrip(".")
            unavailable.append(UnavailableRow(task.task.suite, task.name, reason))
    for name, contents in config["suites"].items():
        for row in list(aggregate_rows(suite_tasks(name, contents), scores)):
            if isinstance(row, ScoreRow):
                scores.append(row)
            else:
                unavailable.append(row)
    _write(output, config, Results(scores, unavailable), predictions(tasks, results))
    return {
        **{row.name: row.value for row in scores},
        "prepare_seconds": prepared_at - started,
        "score_seconds": time.monotonic() - prepared_at,
    }


@dataclass
class _Prepared:
    """What is evaluated, and which tasks are not."""

    tasks: list[TaskRows] = field(default_factory=list)
    classifiers: dict[str, toxicity.Scorer] = field(default_factory=dict)  # by "suite/task"
    unavailable: list[UnavailableRow] = field(default_factory=list)

    def leave_out(self, suite: str, task: str, reason: str, progress: Progress) -> None:
        self.unavailable.append(UnavailableRow(suite, task, reason))
        progress.log(f"{suite}/{task} is not run here: {reason}")


def _prepare(config: Config, task_context: TaskContext, progress: Progress) -> _Prepared:
    """Every task's rows and classifier. A task without them here is an `UnavailableRow`."""
    prepared = _Prepared()
    limits: Mapping[str, int] = config["examples"]
    for suite, contents in config["suites"].items():
        for task in suite_tasks(suite, contents):
            try:
                with about_all_of("suites"):
                    if scorer := _toxicity_scorer(task, progress.profile.device):
                        prepared.classifiers[f"{suite}/{task.name}"] = scorer
                    for rows in rows_of(task, task_context, limits.get(suite)):
                        if rows.why_empty:
                            prepared.leave_out(
                                suite, rows.name, f"it has no examples: {rows.why_empty}", progress
                            )
                            continue
                        # One by one: the settings before an unavailable one stay.
                        for setting in in_each_setting(rows, task_context):
                            prepared.tasks.append(setting)
                    if rows.lowered_limit:
                        progress.log(f"{suite}/{task.name}: {rows.lowered_limit}")
            except (CorruptFile, Unreachable):
                raise  # the next attempt may have it
            except UserError as error:  # of what this task reads: the others are run all the same
                prepared.leave_out(suite, task.name, str(error).rstrip("."), progress)
        counts = [
            f"{task.name} {len(task.rows):,} examples"
            for task in prepared.tasks
            if task.task.suite == suite and task.scored
        ]
        progress.log(f"{suite}: {', '.join(counts)}")
    return prepared


def _without_refused(
    tasks: Sequence[TaskRows], refused: Mapping[str, str], unavailable: list[UnavailableRow]
) -> Iterator[TaskRows]:
    """The tasks that lm_eval ran. Those that it refused are put among the unavailable ones."""
    for task in tasks:
        if reason := refused.get(task.full_name) or refused.get(task.unconditional or ""):
            if task.scored:
                unavailable.append(UnavailableRow(task.task.suite, task.name, reason))
        else:
            yield task


def _toxicity_scorer(task: SuiteTask, device: str) -> toxicity.Scorer | None:
    """The task's classifier, where it has one. Raises Unavailable where that is not here."""
    if task.metadata.classifier is None:
        return None
    try:
        return toxicity.load(task.metadata.classifier, downloads_folder(), device)
    except Unavailable as reason:
        raise Unavailable(toxicity.what_to_do(str(reason), task.suite, task.name)) from None


def _write_unavailable(config: Config, output: Path, reason: str) -> Metrics:
    """Every task as unavailable, where there is no model to evaluate."""
    rows = [
        UnavailableRow(suite, task.name, reason)
        for suite, contents in config["suites"].items()
        for task in suite_tasks(suite, contents)
    ]
    _write(output, config, Results([], rows), [])
    return {"not_run": float(len(rows))}


def _write(
    output: Path, config: Config, results: Results, predicted: Iterable[Mapping[str, Any]]
) -> None:
    rows = results.to_json(list(config["suites"]))
    limits = dict(config["examples"])
    document = {"rows": rows, "split_seed": config["split_seed"], "limits": limits}
    dump_json(output / RESULTS, document, indent=1, sort_keys=True, ensure_ascii=False)
    write_json_lines(output / PREDICTIONS_FILE, predicted, sort_keys=True)


def every_suite_has_scores(built: Built) -> Verdict:
    """A suite that was not run counts as judged; its tasks are named."""
    results = Results.read(built.output)
    present = {row.suite for row in results.scores} | {row.suite for row in results.unavailable}
    missing = sorted(set(built.config["suites"]) - present)
    problems = [f"suite {name} has no score" for name in missing] + [
        f"{row.name} is not a finite number" for row in results.scores if not row.is_finite
    ]
    summary = (
        "; ".join(problems)
        or f"{len(results.scores)} scores of {len(built.config['suites'])} suites, all finite"
    )
    if results.unavailable:
        names = ", ".join(f"{row.suite}/{row.task}" for row in results.unavailable)
        summary += f"; not run here: {names}"
    counts = {"scores": len(results.scores), "not_run": len(results.unavailable)}
    return Verdict(not problems, summary, counts)


def contexts_are_whole(built: Built) -> Verdict:
    """No question lost a part of its context to the model's."""
    of_task: dict[str, ScoreRow] = {}
    for row in Results.read(built.output).scores:
        if row.version is not None:  # not a mean over tasks
            name = f"{row.suite}/{row.task}"  # whose metrics are of the same contexts, or of some
            of_task[name] = max(of_task.get(name, row), row, key=lambda each: each.cut or 0)
    cut = {name: row for name, row in of_task.items() if row.cut}
    if not cut:
        return Verdict(True, "Every context fits the model.", {"cut": 0})
    most = max(cut, key=lambda name: (cut[name].cut or 0) / cut[name].examples)
    return Verdict(
        False,
        f"In {len(cut)} of {len(of_task)} tasks, most in {most}: {cut[most].cut_text}.",
        {"cut": sum(row.cut or 0 for row in cut.values())},
    )


def cloze_above_chance(built: Built) -> Verdict:
    """The cloze suite where the recipe has it. A model that does no better than guessing one of ten
    choices has learnt nothing of its text.
    """
    scores = Results.read(built.output).scores
    rows = [row for row in scores if row.suite == "cloze" and row.metric == "acc"]
    below = [row for row in rows if row.low is None or row.low <= (row.baseline_value or 0.0)]
    summary = "; ".join(
        f"{row.value:.3f} ({interval_text(row)}), chance {row.baseline_value:.3f}" for row in rows
    )
    return Verdict(
        not below,
        summary or "The recipe has no cloze suite.",
        {row.task: row.value for row in rows},
    )


def reproduces_what_is_known(built: Built) -> Verdict:
    """Compare every known number of the model with our score of the same task and metric. An
    unverified number decides nothing.

    Where nothing decides, nothing is known of the evaluator: the check fails.
    """
    model = built.config.get("known")
    if model is None:
        return Verdict(True, "The recipe names no model whose scores are known (evaluation.known).")
    results = Results.read(built.output)
    missing = [f"{row.suite}/{row.task}: {row.reason}" for row in results.unavailable]
    beside = [
        (row, reference)
        for row in results.scores
        if (reference := _reference(row.published, model))
    ]
    compared = [(row, reference) for row, reference in beside if reference.certainty == "verified"]
    wrong = [f"{row.task} {row.metric}" for row, reference in compared if not _same(row, reference)]
    summary = (
        f"{len(compared) - len(wrong)} of {len(compared)} verified answers of {model} come out"
        if compared
        else f"Nothing compared: no score stands beside a verified answer of {model}, "
        "so the evaluator is not known to be right"
    )
    pairs = "; ".join(
        f"{row.task} {row.metric} {row.value:.4g}, known {reference.printed}"
        for row, reference in beside
    )
    summary += f": {pairs}." if pairs else "."
    summary += f" Not these: {', '.join(wrong)}." if wrong else ""
    summary += f" Not run here: {'; '.join(missing)}." if missing else ""
    return Verdict(
        bool(compared) and not wrong, summary, {"compared": len(compared), "wrong": len(wrong)}
    )


def _reference(published: Mapping[str, str] | None, model: str) -> Reference | None:
    """The model's number in the row `published`, a verified one before others."""
    if not published:
        return None
    numbers = references(task=published["task"], metric=published["metric"], role="reproduction")
    return min(
        (reference for reference in numbers if reference.model == model),
        key=lambda reference: reference.certainty != "verified",
        default=None,
    )


def _same(row: ScoreRow, known: Reference) -> bool:
    """Within rounding; of a subset of the examples, within the score's own interval."""
    hundredths = 0.01 if known.unit == "%" else 1.0  # a share of ours stands in per cent there
    value, decimals = known.value * hundredths, len(known.text.partition(" ")[0].partition(".")[2])
    if row.examples < row.available:
        return row.low is not None and row.high is not None and row.low <= value <= row.high
    return abs(row.value - value) <= 0.5 * 10.0**-decimals * hundredths + TOLERANCE * value
