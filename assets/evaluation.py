"""The zero_shot stage: the pre-trained model on the recipe's suites, by lm_eval, as it stands and without a word of instruction.

What a suite is lives in `gpt_model.evaluation.suites`, its data in `examples`, our model behind lm_eval in `harness`. One process
with every core: a suite's examples are few, and lm_eval's own batching does not need ranks.
"""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assets.contract import Built, Check, Config, Inputs, Metrics, Progress, Stage, Verdict
from assets.recipe import Recipe
from assets.yaml_file import find_file, load_strict, read_yaml
from gpt_model.data.sources import downloads_folder
from gpt_model.errors import UserError, about_all_of
from gpt_model.evaluation.suites import SUITES, Labelled, suite_tasks
from gpt_model.tasks.entry import CATALOGUE, TaskEntry, TaskSource, pinned, seen_from


def zero_shot_config(recipe: Recipe) -> Config:
    """What identifies a zero-shot evaluation: each suite's contents, catalogue tasks written out, the limits and the split seed.

    Raises UserError: an unknown suite (with the nearest name), a broken suite file, a limit for a suite that is not asked for.
    """
    section = recipe.evaluation
    assert section is not None  # the graph has no zero_shot without it
    for stray in sorted(section.examples.keys() - set(section.suites)):
        told = f"{stray!r} is not among evaluation.suites: {', '.join(section.suites)}. Correct the name, or take the line out."
        raise UserError(told, field=f"evaluation.examples.{stray}")
    suites = {}
    for number, name in enumerate(section.suites):
        with about_all_of(f"evaluation.suites[{number}]"):
            suites[name] = _suite(name)
    return {"suites": suites, "examples": dict(section.examples), "split_seed": recipe.corpus.seed}


def _suite(name: str) -> dict[str, Any]:
    """A suite file's contents, every task of the catalogue that it names written out in it."""
    contents = read_yaml(find_file(name, SUITES, "suite"))
    for task, keys in zip(suite_tasks(name, contents), members(contents), strict=True):
        if isinstance(data := task.metadata.data, Labelled) and data.entry is None:
            entry = load_strict(TaskEntry, str(data.task), CATALOGUE, "task of the catalogue").model_dump(
                mode="json", exclude_defaults=True
            )
            keys["metadata"] = {**keys["metadata"], "data": {**keys["metadata"]["data"], "entry": entry}}
    return contents


def members(contents: dict[str, Any]) -> list[dict[str, Any]]:
    return contents["task"] if "group" in contents else [contents]


def _pin(config: Config, base: Path) -> Config:
    """Local files that a suite's own entry names, relative to the suites' folder, tied to their bytes."""
    suites = copy.deepcopy(dict(config["suites"]))
    for keys in (keys for contents in suites.values() for keys in members(contents)):
        if entry := keys["metadata"]["data"].get("entry"):
            source = seen_from(TaskSource.model_validate(entry["source"]), SUITES, SUITES)
            entry["source"] = pinned(source, SUITES, downloads_folder()).model_dump(mode="json", exclude_none=True)
    return {**config, "suites": suites}


def run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Write tasks/ (every task's rows and lm_eval YAML), results.json and samples.json."""
    if progress.rank:
        return {}
    from gpt_model import convert
    from gpt_model.evaluation.evaluate import evaluate, score_rows, shown_samples, write_tasks
    from gpt_model.evaluation.examples import Material, rows_of
    from gpt_model.evaluation.harness import GPTLM
    from gpt_model.tokenizer import Tokenizer

    started = time.monotonic()
    folder = inputs["pretrained"].path / "model"
    model = convert.load(folder).to(progress.profile.device)
    tokenizer = Tokenizer.load(folder)
    material = Material(
        inputs["corpus"].path, config["split_seed"], downloads_folder(), tokenizer.encode, model.config.context, progress
    )  # fmt: skip
    limits: Mapping[str, int] = config["examples"]
    tasks = []
    for name, contents in config["suites"].items():
        for task in suite_tasks(name, contents):
            with about_all_of("suites"):
                tasks += rows_of(task, material, limits.get(name))
        progress.log(f"{name}: " + ", ".join(f"{task.name} {len(task.rows):,} examples" for task in tasks if task.task.suite == name))
    prepared = time.monotonic()
    shutil.rmtree(output / "tasks", ignore_errors=True)
    write_tasks(output / "tasks", tasks)
    results = evaluate(GPTLM(model, tokenizer, progress=progress), output / "tasks", [task.full_name for task in tasks])
    rows = list(score_rows(tasks, results))
    _write(output / "results.json", {"rows": rows, "split_seed": config["split_seed"], "limits": dict(limits)})
    _write(output / "samples.json", {"samples": shown_samples(tasks, results)})
    finished = time.monotonic()
    scores = {f"{row['suite']}/{row['task']}/{row['metric']}": row["value"] for row in rows}
    return {**scores, "prepare_seconds": prepared - started, "score_seconds": finished - prepared}


def _write(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _rows(built: Built) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((built.output / "results.json").read_text(encoding="utf-8"))["rows"]
    return rows


def _every_suite_has_scores(built: Built) -> Verdict:
    from gpt_model.evaluation.evaluate import not_finite

    rows = _rows(built)
    missing = sorted(set(built.config["suites"]) - {row["suite"] for row in rows})
    broken = not_finite(rows)
    problems = [f"suite {name} has no score" for name in missing] + [f"{name} is not a finite number" for name in broken]
    summary = "; ".join(problems) or f"{len(rows)} scores of {len(built.config['suites'])} suites, all finite"
    return Verdict(not problems, summary, {"scores": len(rows)})


def _above_chance(built: Built) -> Verdict:
    """The cloze suite where it is asked for: guessing ten choices is the clearest sign that a model has learnt nothing of its text."""
    rows = [row for row in _rows(built) if row["suite"] == "cloze" and row["metric"] == "acc"]
    below = [row for row in rows if row["low"] is None or row["low"] <= row["baseline_value"]]
    said = [f"{row['value']:.3f} ({_interval(row)}), chance {row['baseline_value']:.3f}" for row in rows]
    return Verdict(not below, "; ".join(said) or "the recipe asks for no cloze", {row["task"]: row["value"] for row in rows})


def _interval(row: Mapping[str, Any]) -> str:
    return "–" if row["low"] is None else f"{row['low']:.4g} to {row['high']:.4g}"


def show(built: Built, folder: Path) -> None:
    """zero_shot.md (the table), zero_shot.png (accuracies against what guessing gives), samples.md."""
    rows = _rows(built)
    (folder / "zero_shot.md").write_text(_table(rows), encoding="utf-8")
    samples = json.loads((built.output / "samples.json").read_text(encoding="utf-8"))["samples"]
    (folder / "samples.md").write_text(_samples(samples), encoding="utf-8")
    if accuracies := [row for row in rows if row["baseline_value"] is not None]:
        _bars(accuracies, folder / "zero_shot.png")


def _table(rows: list[dict[str, Any]]) -> str:
    lines = ["| suite | task | metric | value | 95 % interval | beside | examples | what it is |", "|---|---|---|--:|---|---|--:|---|"]
    for row in rows:
        of = f"{row['examples']:,}" + (f" of {row['available']:,}" if row["available"] > row["examples"] else "")
        metric = row["metric"] + (" ↓" if row["lower_is_better"] else "")
        cells = [row["suite"], row["task"], metric, f"{row['value']:.4g}", _interval(row), row["baseline"] or "–", of, row["description"]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "↓: lower is better."]) + "\n"


def _samples(samples: list[dict[str, Any]]) -> str:
    """One example a task: the end of its context and each answer with its log-probability."""
    parts, seen = [], set()
    for sample in samples:
        if (key := (sample["suite"], sample["task"])) in seen or not sample["answers"]:
            continue
        seen.add(key)
        quoted = "> " + sample["context"].replace("\n", "\n> ")
        answers = []
        for place, answer in enumerate(sample["answers"]):
            right = "**right** " if sample["target"] in (place, answer) else ""
            nats = f" {sample['logprobs'][place]:.2f} nats" if sample["logprobs"] else ""
            answers.append(f"- {right}`{answer.strip()}`{nats}")
        parts.append(f"**{sample['suite']}/{sample['task']}**\n\n{quoted}\n\n" + "\n".join(answers) + "\n")
    return "\n".join(parts) + "\n"


def _bars(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    names = [f"{row['task']} {row['metric']}" for row in rows]
    figure = Figure(figsize=(7, 0.8 + 0.4 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        low, high = (row["low"], row["high"]) if row["low"] is not None else (row["value"], row["value"])
        axes.barh(place, row["value"], xerr=[[row["value"] - low], [high - row["value"]]], color="tab:blue", capsize=3)
        axes.plot([row["baseline_value"]] * 2, [place - 0.4, place + 0.4], color="black", linewidth=2)
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.set_xlabel("accuracy, with 95 % interval; black: chance or the commonest answer")
    figure.savefig(path, dpi=110)


ZERO_SHOT = Stage(
    name="zero_shot",
    version="2",
    run=run,
    description="The pre-trained model on lm_eval suites of local data: held-out text, cloze, multiple choice, BoolQ.",
    kinds=("python", "pytorch"),
    checks=(
        Check("every_suite_has_scores", True, "Every suite asked for has scores, and all are finite.", _every_suite_has_scores),
        Check("cloze_above_chance", False, "The cloze accuracy's 95 % interval lies above guessing.", _above_chance),
    ),
    show=show,
    pin=_pin,
    pool="training",
)
