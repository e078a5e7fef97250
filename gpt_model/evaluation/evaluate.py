"""Running suites: rows written as files beside resolved task YAML, handed to lm_eval, and its results made into score rows.

    <folder>/<suite>.<task>.yaml    lm_eval's task file, complete
    <folder>/<suite>.<task>.jsonl   its rows

The folder is all that lm_eval needs: from inside it, `lm_eval --model hf --model_args pretrained=MODEL --include_path . --tasks NAME` gives
the same scores without a line of ours.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from gpt_model.errors import UserError
from gpt_model.evaluation.examples import TaskRows
from gpt_model.evaluation.scores import ACCURACIES, baseline, rounded, spread

if TYPE_CHECKING:
    from lm_eval.api.model import LM

SAMPLES = 3  # shown of each task
SHOWN = 400  # characters of a text shown


def write_tasks(folder: Path, tasks: Sequence[TaskRows]) -> None:
    """Each task's rows and its complete lm_eval YAML, in `folder`. The same bytes for the same tasks."""
    folder.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        lines = [json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in task.rows]
        (folder / f"{task.full_name}.jsonl").write_text("".join(lines), encoding="utf-8")
        config = {
            **task.task.keys,
            "task": task.full_name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": f"{task.full_name}.jsonl"}},
            "test_split": "test",
            "metadata": {"version": task.task.metadata.version},
        }
        (folder / f"{task.full_name}.yaml").write_text(yaml.safe_dump(config, allow_unicode=True, sort_keys=True), encoding="utf-8")


def evaluate(lm: LM, folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """lm_eval's own results for the tasks `names` of a folder that `write_tasks` wrote, with every example's under "samples".

    Any lm_eval model will do. Raises UserError naming the task whose keys lm_eval cannot work with.
    """
    import datasets
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.evaluator import evaluate as run

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:  # of `datasets`, which converts each file to Arrow
        tasks = {}
        for name in names:
            config = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
            config["dataset_kwargs"] = {"data_files": {"test": str((folder / f"{name}.jsonl").resolve())}, "cache_dir": cache}
            try:
                tasks[name] = ConfigurableTask(config=config)
            except Exception as error:  # jinja's, lm_eval's registry's, a key of the wrong type: all of the file's making
                why = f"{type(error).__name__}: {error}"
                raise UserError(f"suites/{name.split('.')[0]}.yaml, task {name}: lm_eval cannot use it ({why}).") from error
        return dict(run(lm, {"tasks": tasks}, bootstrap_iters=0, log_samples=True))


def score_rows(tasks: Sequence[TaskRows], results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One row a metric of each task, in the tasks' order. Raises UserError where lm_eval gave a task no metric."""
    for task in tasks:
        samples, metadata = results["samples"][task.full_name], task.task.metadata
        against = baseline(metadata.baseline, samples)
        for entry in task.task.keys["metric_list"]:
            metric = entry["metric"]
            if f"{metric},none" not in results["results"][task.full_name]:
                raise UserError(f"suites/{task.task.suite}.yaml, task {task.name!r}: lm_eval has no metric {metric!r} of its output_type.")
            value = float(results["results"][task.full_name][f"{metric},none"])
            sure = spread(metric, str(entry.get("aggregation")), [sample[metric] for sample in samples])
            own = against if metric in ACCURACIES else None
            notes = [f"{len(task.rows):,} of {task.available:,} examples"] if len(task.rows) < task.available else []
            notes += [f"{task.too_long:,} more have an answer longer than the context"] if task.too_long else []
            yield {
                "suite": task.task.suite,
                "task": task.name,
                "metric": metric,
                "value": rounded(value),
                "stderr": rounded(sure.stderr),
                "low": rounded(sure.low),
                "high": rounded(sure.high),
                "baseline": "" if own is None else f"{metadata.baseline} {own:.3f}",
                "baseline_value": rounded(own),
                "lower_is_better": not entry.get("higher_is_better", True),
                "examples": len(task.rows),
                "available": task.available,
                "too_long": task.too_long,
                "description": metadata.description,
                "note": "; ".join([*notes, *([metadata.description] if metadata.description else [])]),
                "version": metadata.version,
            }


def shown_samples(tasks: Sequence[TaskRows], results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The first few examples of each task, with what the model makes of them."""
    return [
        {"suite": task.task.suite, "task": task.name, **_sample(sample)}
        for task in tasks
        for sample in results["samples"][task.full_name][:SAMPLES]
    ]


def _sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    arguments = sample["arguments"]
    if len(arguments[0]) == 1:  # a rolling log-likelihood: the text itself
        logprob = round(float(sample["filtered_resps"][0]), 3)
        return {"context": arguments[0][0][:SHOWN], "answers": [], "target": None, "logprobs": [logprob]}
    answers = [str(argument[1]) for argument in arguments]
    first = sample["filtered_resps"][0]
    logprobs = [round(float(response[0]), 3) for response in sample["filtered_resps"]] if isinstance(first, (tuple, list)) else []
    return {
        "context": arguments[0][0][-SHOWN:],
        "answers": answers if logprobs else [str(first)],
        "target": sample["target"] if isinstance(sample["target"], int) else str(sample["target"]),
        "logprobs": logprobs,
    }


def not_finite(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the scores that are no number."""
    return [f"{row['suite']}/{row['task']}/{row['metric']}" for row in rows if row["value"] is None or not math.isfinite(row["value"])]
