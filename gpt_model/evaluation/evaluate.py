"""Running suites: rows written as files beside resolved task YAML, handed to lm_eval, and its
results turned into score rows.

    <folder>/<suite>.<task>.yaml    lm_eval's task file, complete
    <folder>/<suite>.<task>.jsonl   its rows
    <folder>/scoring.py             where a task names a function of it

The folder is all that lm_eval needs: from inside it, `lm_eval --model hf --model_args
pretrained=MODEL --include_path . --tasks NAME` gives the same scores without a line of ours.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import yaml
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate as lm_eval_evaluate

from gpt_model.errors import UserError
from gpt_model.evaluation import scoring, toxicity
from gpt_model.evaluation.answer_normalisation import answer_normalised, per_token
from gpt_model.evaluation.contamination import TaskOverlap
from gpt_model.evaluation.metrics import ACCURACIES, baseline, confidence_interval
from gpt_model.evaluation.results import ScoreRow
from gpt_model.evaluation.suites import Labelled
from gpt_model.evaluation.tasks import TaskRows
from gpt_model.io import rounded, write_json_lines

PREDICTIONS = 10_000  # of each task
SHOWN_CHARACTERS = 400  # of a text


@dataclass(frozen=True)
class _Function:
    """A function of scoring.py, in a task file."""

    name: str


class _TaskYaml(yaml.SafeDumper):
    """lm_eval's task files, in which a function is `!function module.name`."""


_TaskYaml.add_representer(
    _Function,
    lambda dumper, function: dumper.represent_scalar("!function", f"scoring.{function.name}"),
)


class _TaskReader(yaml.SafeLoader):
    """Reads the same back: functions are those of our scoring.py, of which the folder has a copy
    for others.
    """


_TaskReader.add_constructor(
    "!function", lambda loader, node: getattr(scoring, str(node.value).removeprefix("scoring."))
)


def write_tasks(folder: Path, tasks: Sequence[TaskRows]) -> None:
    """Each task's rows and its complete lm_eval YAML, in `folder`. The same bytes for the same
    tasks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        write_json_lines(folder / f"{task.full_name}.jsonl", task.rows, sort_keys=True)
        confident = task.task.metadata.confident
        config = {
            **task.task.keys,
            "task": task.full_name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": f"{task.full_name}.jsonl"}},
            "test_split": "test",
            "metadata": {
                "version": task.task.metadata.version,
                **({"confident": confident} if confident else {}),
            },
        }
        if function := task.task.keys.get("process_results"):
            config["process_results"] = _Function(function)
            config["metric_list"] = [_with_functions(entry) for entry in config["metric_list"]]
            shutil.copyfile(str(scoring.__file__), folder / "scoring.py")
        text = yaml.dump(config, Dumper=_TaskYaml, allow_unicode=True, sort_keys=True)
        (folder / f"{task.full_name}.yaml").write_text(text, encoding="utf-8")


def _with_functions(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A metric of a task file; its aggregation may be a function of scoring.py."""
    name = str(entry.get("aggregation"))
    return {**entry, "aggregation": _Function(name)} if hasattr(scoring, name) else dict(entry)


def evaluate(lm: LM, folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """lm_eval's results for the tasks `names` of a folder that `write_tasks` wrote, with every
    example's under "samples".

    Any lm_eval model will do. A task whose keys lm_eval cannot work with is left out: "refused" has
    its name and the reason, a clause.
    """
    datasets.disable_progress_bars()
    # Otherwise `datasets` reports every local file to its authors' server, and waits for it.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    with tempfile.TemporaryDirectory() as cache:  # of `datasets`, which converts each file to Arrow
        tasks, refused = {}, {}
        for name in names:
            text = (folder / f"{name}.yaml").read_text(encoding="utf-8")
            config = yaml.load(text, Loader=_TaskReader)  # noqa: S506 - a SafeLoader
            config["dataset_kwargs"] = {
                "data_files": {"test": str((folder / f"{name}.jsonl").resolve())},
                "cache_dir": cache,
            }
            try:
                tasks[name] = ConfigurableTask(config=config)
            # jinja's, lm_eval's registry's, a key of the wrong type: the suite file is at fault
            except Exception as error:
                refused[name] = f"lm_eval cannot use it ({type(error).__name__}: {error})"
        if not tasks:
            return {"results": {}, "samples": {}, "refused": refused}
        results = dict(lm_eval_evaluate(lm, {"tasks": tasks}, bootstrap_iters=0, log_samples=True))
        results["refused"] = refused
        for name, task in tasks.items():
            if share := (task.config.metadata or {}).get("confident"):
                _score_confident(
                    lm, results, name, [entry["metric"] for entry in task.config.metric_list], share
                )
        return results


def confident_name(metric: str, share: float) -> str:
    """The name of a metric over the share of answers that the model is most confident of."""
    return f"{metric}_top_{100 * share:g}_percent"


def _score_confident(
    lm: LM, results: dict[str, Any], name: str, metrics: Sequence[str], share: float
) -> None:
    """Put each metric's mean over the most confident answers beside lm_eval's results: the share of
    generated answers that the model gives the highest probability (GPT-2, section 3.8).

    Only the samples of that share have the metric.
    """
    samples = results["samples"][name]
    # (sample, context, generated text) of every sample whose text is not empty
    answers = [
        (sample, sample["arguments"][0][0], sample["resps"][0][0])
        for sample in samples
        if sample["resps"][0][0]
    ]
    requests = [
        Instance("loglikelihood", {}, (context, text), number)
        for number, (_, context, text) in enumerate(answers)
    ]
    log_probabilities = [logprob for logprob, _ in lm.loglikelihood(requests)]
    by_confidence = sorted(
        range(len(answers)), key=lambda number: (-log_probabilities[number], number)
    )
    chosen = [answers[number][0] for number in by_confidence[: max(1, round(share * len(samples)))]]
    for metric in metrics:
        for sample in chosen:
            sample[confident_name(metric, share)] = sample[metric]
        if chosen:
            _set_mean(results, name, confident_name(metric, share), chosen)


def _set_mean(
    results: Mapping[str, Any], name: str, metric: str, samples: Sequence[Mapping[str, Any]]
) -> None:
    """A metric of `samples` among the results of the task `name`, where lm_eval has its own."""
    mean = sum(sample[metric] for sample in samples) / len(samples)
    results["results"][name][f"{metric},none"] = mean


def add_metrics(tasks: Sequence[TaskRows], results: Mapping[str, Any]) -> None:
    """Put each task's added metrics among lm_eval's results: of every sample, and their mean."""
    for task in tasks:
        samples = results["samples"][task.full_name]
        for metric in task.task.metadata.metrics if task.scored else ():
            unconditional = results["samples"][task.unconditional] if task.unconditional else []
            values = (
                per_token(samples)
                if metric == "acc_per_token"
                else answer_normalised(samples, unconditional)
            )
            for sample, value in zip(samples, values, strict=True):
                sample[metric] = value
            _set_mean(results, task.full_name, metric, samples)


def add_toxicity(
    tasks: Sequence[TaskRows],
    results: Mapping[str, Any],
    classifiers: Mapping[str, toxicity.Scorer],
) -> None:
    """Put the scores of each task's classifier among lm_eval's results: of every sample, and their
    mean. Only the continuation is scored, without its prompt.

    `classifiers`: by the suite's task, "suite/task".
    """
    for task in tasks:
        score = classifiers.get(f"{task.task.suite}/{task.task.name}")
        if score is None:
            continue
        samples = results["samples"][task.full_name]
        values = score([sample["filtered_resps"][0] for sample in samples])
        for sample, value in zip(samples, values, strict=True):
            sample[toxicity.TOXICITY] = value
            sample[toxicity.SHARE] = float(value > toxicity.HALF)
        for metric in (toxicity.TOXICITY, toxicity.SHARE):
            _set_mean(results, task.full_name, metric, samples)


def score_rows(
    tasks: Sequence[TaskRows],
    results: Mapping[str, Any],
    overlaps: Mapping[str, TaskOverlap] | None = None,
    cuts: Mapping[str, Mapping[int, int]] | None = None,
) -> Iterator[ScoreRow]:
    """One row a metric of each task, in the tasks' order. `overlaps`: what of each task's examples
    stands in the training text, by the task's full name; `cuts`: `GPTLM.cuts`.

    Raises UserError where lm_eval gave a task no metric.
    """
    for task in (task for task in tasks if task.scored):
        samples, metadata = results["samples"][task.full_name], task.task.metadata
        baseline_value = baseline(metadata.baseline, samples)
        cut = (cuts or {}).get(task.full_name, {})
        for entry in _metrics_of(task):
            metric, aggregation = entry["metric"], str(entry.get("aggregation"))
            if f"{metric},none" not in results["results"][task.full_name]:
                raise UserError(
                    f"suites/{task.task.suite}.yaml, task {task.name!r}: lm_eval has no metric "
                    f"{metric!r} of its output_type."
                )
            value = float(results["results"][task.full_name][f"{metric},none"])
            scored = [sample for sample in samples if metric in sample]
            values = [sample[metric] for sample in scored]
            lost = [tokens for sample in scored if (tokens := cut.get(sample["doc_id"]))]
            interval = confidence_interval(metric, aggregation, values)
            overlap = (
                overlaps[task.full_name].split_score(metric, aggregation, values)
                if overlaps and len(values) == len(samples)
                else None
            )
            against = baseline_value if metric in ACCURACIES else None
            published = metadata.published.get(metric)
            row = ScoreRow(
                task.task.suite,
                task.name,
                metric,
                rounded(value),
                stderr=rounded(interval.stderr if interval else None),
                low=rounded(interval.low if interval else None),
                high=rounded(interval.high if interval else None),
                baseline="" if against is None else f"{metadata.baseline} {against:.3f}",
                baseline_value=rounded(against),
                lower_is_better=not entry.get("higher_is_better", True),
                examples=len(values),
                available=task.available,
                too_long=task.too_long,
                empty=task.empty,
                unreadable=task.unreadable.total(),
                cut=None if cuts is None else len(lost),
                cut_tokens=max(lost, default=0),
                description=metadata.description,
                version=metadata.version,
                published=published.model_dump(exclude_defaults=True) if published else None,
                demonstrations=task.demonstrations,
                overlap=overlap,
                lowered_limit=task.lowered_limit,
                fewer_demonstrations=task.fewer_demonstrations,
            )
            yield replace(row, note=_note(row, len(task.rows)))


def _note(row: ScoreRow, samples: int) -> str:
    """What should stand beside a score, which is of all of the task's `samples` or a part."""
    notes = []
    if row.examples < samples:
        notes.append(f"{row.examples:,} of the {samples:,}, the surest")
    if samples < row.available:
        notes.append(f"{samples:,} of {row.available:,} examples")
    notes += [row.cut_text and f"contexts: {row.cut_text}", row.left_out, row.lowered_limit]
    notes += [row.fewer_demonstrations]
    notes += [str(row.demonstrations or ""), str(row.overlap or ""), row.description]
    return "; ".join(note for note in notes if note)


def _metrics_of(task: TaskRows) -> list[dict[str, Any]]:
    """{metric, aggregation, higher_is_better} of lm_eval's metrics, then of those added to them."""
    metadata, listed = task.task.metadata, task.task.keys["metric_list"]
    entries = [*listed]
    entries += [{"metric": metric, "aggregation": "mean"} for metric in metadata.metrics]
    entries += toxicity.METRICS if metadata.classifier else ()
    if share := metadata.confident:
        entries += [{**entry, "metric": confident_name(entry["metric"], share)} for entry in listed]
    return entries


def predictions(tasks: Sequence[TaskRows], results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What the model made of each task's first examples, in their order, and their text, shortened;
    no text where the licence does not cover showing it.
    """
    for task in (task for task in tasks if task.scored):
        data = task.task.metadata.data
        entry = data.entry if isinstance(data, Labelled) else None
        metrics = [metric["metric"] for metric in _metrics_of(task)]
        for sample in results["samples"][task.full_name][:PREDICTIONS]:
            yield {
                "suite": task.task.suite,
                "task": task.name,
                "row": sample["doc_id"],
                **_prediction(sample, show_text=entry is None or entry.show_text),
                "scores": {
                    name: rounded(float(sample[name]))
                    for name in metrics
                    if isinstance(sample.get(name), (bool, int, float))
                },
            }


def _prediction(sample: Mapping[str, Any], show_text: bool) -> dict[str, Any]:
    arguments = sample["arguments"]
    if len(arguments[0]) == 1:  # a rolling log-likelihood: the text itself
        context, answers, target = arguments[0][0][:SHOWN_CHARACTERS], [], None
        logprobs = [float(sample["filtered_resps"][0])]
    else:
        context = arguments[0][0][-SHOWN_CHARACTERS:]
        first, target = sample["filtered_resps"][0], sample["target"]
        weighed = isinstance(first, (tuple, list))
        answers = [str(argument[1]) for argument in arguments] if weighed else [str(first)]
        logprobs = [float(each[0]) for each in sample["filtered_resps"]] if weighed else []
        if not isinstance(target, int):
            target = str(target)[:SHOWN_CHARACTERS] if show_text else None
    return {
        "context": context if show_text else None,
        "answers": [answer[:SHOWN_CHARACTERS] for answer in answers] if show_text else [],
        "target": target,
        "logprobs": [round(logprob, 3) for logprob in logprobs],
    }
