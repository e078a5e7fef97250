"""The zero_shot stage: the pre-trained model on the recipe's suites, by lm_eval, as it stands and
without a word of instruction.

What a suite is lives in `gpt_model.evaluation.suites`, its data in `examples`, our model behind
lm_eval in `harness`. One process with every core: a suite's examples are few, and lm_eval's own
batching does not need ranks.
"""

from __future__ import annotations

import difflib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assets.contract import Built, Check, Config, Inputs, Metrics, Progress, Stage, Verdict
from assets.recipe.recipe import Recipe
from assets.recipe.yaml_file import find_file, load_strict, read_yaml
from assets.report import training_text
from assets.report.known_answers import reproduces_what_is_known
from assets.stages import base_model
from assets.store.home import downloads_folder
from gpt_model.errors import Unreachable, UserError, about_all_of
from gpt_model.evaluation import public, toxicity
from gpt_model.evaluation.results import RESULTS, Results, ScoreRow, UnavailableRow
from gpt_model.evaluation.suites import OF_TEXT, SUITES, Dataset, Labelled, SuiteTask, suite_tasks
from gpt_model.finetuning.entry import CATALOGUE, TaskEntry, TaskSource


def zero_shot_config(recipe: Recipe) -> Config:
    """What identifies a zero-shot evaluation: each suite's contents, catalogue tasks written out,
    the limits and the split seed.

    Raises UserError: an unknown suite (with the nearest name), a broken suite file, a limit for a
    suite that is not asked for.
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
            if recipe.corpus is None and any(
                isinstance(task.metadata.data, OF_TEXT) for task in suite_tasks(name, suites[name])
            ):
                raise UserError(
                    f"{name} is made of held-out text, and this recipe has no corpus: add one, or leave the suite out."
                )
    _files_are_for_known_tasks(section.files, suites)
    files: dict[str, Any] = {"files": dict(section.files)} if section.files else {}
    if section.known:
        files["known"] = section.known
    return {
        "suites": suites,
        "examples": dict(section.examples),
        "split_seed": recipe.split_seed,
        **files,
    }


def _files_are_for_known_tasks(files: Mapping[str, str], suites: Mapping[str, Any]) -> None:
    public_tasks = []
    for suite, task in (
        (name, task) for name, contents in suites.items() for task in suite_tasks(name, contents)
    ):
        if isinstance(data := task.metadata.data, Dataset):
            public_tasks += [
                f"{suite}/{task.name}",
                *([f"{suite}/{task.name}/demonstrations"] if data.demonstrations else []),
            ]
            public_tasks += [f"{suite}/{task.name}/classifier"] if task.metadata.classifier else []
            public_tasks += [suite] if data.source.member and suite not in public_tasks else []
    for stray in sorted(files.keys() - set(public_tasks)):
        near = difflib.get_close_matches(stray, public_tasks, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        told = f"{stray!r} is no task that reads a public data set.{hint} There are: {', '.join(public_tasks) or 'none'}."
        raise UserError(told, field=f"evaluation.files.{stray}")


def _suite(name: str) -> dict[str, Any]:
    """A suite file's contents, every task of the catalogue that it names written out in it."""
    contents = read_yaml(find_file(name, SUITES, "suite"))
    for task, keys in zip(suite_tasks(name, contents), members(contents), strict=True):
        if isinstance(data := task.metadata.data, Labelled) and data.entry is None:
            entry = load_strict(
                TaskEntry, str(data.task), CATALOGUE, "task of the catalogue"
            ).model_dump(mode="json", exclude_defaults=True)
            keys["metadata"] = {
                **keys["metadata"],
                "data": {**keys["metadata"]["data"], "entry": entry},
            }
    return contents


def members(contents: dict[str, Any]) -> list[dict[str, Any]]:
    return contents["task"] if "group" in contents else [contents]


def _pin(config: Config, base: Path) -> Config:
    """What tasks read, tied to its bytes or its commit, or why it cannot be had here.

    A suite's own files are relative to the suites' folder, the recipe's (`evaluation.files`) to the
    recipe's.
    """
    suites = json.loads(
        json.dumps(config["suites"])
    )  # a copy in which no two tasks share a mapping, as YAML's anchors let them
    files = config.get("files", {})
    for suite, contents in suites.items():
        for keys in members(contents):
            data = keys["metadata"]["data"]
            if entry := data.get("entry"):
                source = TaskSource.model_validate(entry["source"]).seen_from(SUITES, SUITES)
                try:
                    entry["source"] = source.resolved(SUITES, downloads_folder()).model_dump(
                        mode="json", exclude_none=True
                    )
                except Unreachable:
                    data["not_run"] = (
                        f"the Hugging Face hub did not answer when asked for {source.hub}; evaluate where it can be reached"
                    )
                if source.on_request:
                    data["not_run"] = (
                        f"its authors give it on request ({source.on_request}), and the catalogue's entry names no file of it"
                    )
            elif data["builder"] == "dataset":
                given = files
                if suite in files and (
                    member := data["source"].get("member")
                ):  # a folder with every task's file
                    given = {
                        f"{suite}/{keys['task']}": f"{files[suite].rstrip('/')}/{member}",
                        **files,
                    }
                data["source"] = _pinned_data(
                    data["source"], f"{suite}/{keys['task']}", given, base
                )
                if "demonstrations" in data:
                    data["demonstrations"] = _pinned_data(
                        data["demonstrations"],
                        f"{suite}/{keys['task']}/demonstrations",
                        files,
                        base,
                    )
            if judge := keys["metadata"].get("classifier"):
                keys["metadata"]["classifier"] = _pinned_classifier(
                    judge, f"{suite}/{keys['task']}/classifier", files, base
                )
    return {**{name: value for name, value in config.items() if name != "files"}, "suites": suites}


def _pinned_data(
    source: dict[str, Any], task: str, files: Mapping[str, str], base: Path
) -> dict[str, Any]:
    """A public data set's source, or the recipe's file in its place, under its bare name: where it
    lies is no part of what it is.
    """
    with about_all_of(f"files.{task}" if task in files else "suites"):
        if task in files:
            tied = public.resolved(public.DataSource(path=files[task]), base, downloads_folder())
            tied = tied.model_copy(update={"path": Path(files[task]).name})
        else:
            tied = public.resolved(
                public.DataSource.model_validate(source), SUITES, downloads_folder()
            )
    return tied.model_dump(mode="json", exclude_none=True, exclude_defaults=True)


def _pinned_classifier(
    told: dict[str, Any], name: str, files: Mapping[str, str], base: Path
) -> dict[str, Any]:
    """A suite's classifier, or the recipe's folder in its place, whose licence the suite does not
    know.
    """
    classifier = toxicity.Classifier.model_validate(told)
    with about_all_of(f"files.{name}" if name in files else "suites"):
        if name in files:
            classifier = toxicity.Classifier(
                folder=files[name], licence="not stated", label=classifier.label
            )
        tied = toxicity.pinned(classifier, base, downloads_folder())
    return tied.model_dump(mode="json", exclude_none=True)


def run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Write tasks/ (every task's rows and lm_eval YAML), results.json and samples.json."""
    if progress.rank:
        return {}
    from gpt_model import convert
    from gpt_model.evaluation.adapters.registry import TaskContext
    from gpt_model.evaluation.aggregates import aggregate_rows
    from gpt_model.evaluation.contamination import overlap_with_training
    from gpt_model.evaluation.evaluate import (
        add_metrics,
        add_toxicity,
        evaluate,
        score_rows,
        shown_samples,
        write_tasks,
    )
    from gpt_model.evaluation.lm import GPTLM
    from gpt_model.evaluation.tasks import TaskRows, examples_of, in_each_setting, rows_of
    from gpt_model.tokenizer import Tokenizer

    if reason := base_model.not_run(inputs["pretrained"]):
        return _nothing(config, output, reason)
    started = time.monotonic()
    folder = inputs["pretrained"].path / "model"
    model = convert.load(folder).to(progress.profile.device)
    tokenizer = Tokenizer.load(folder)
    corpus = inputs["corpus"].path if "corpus" in inputs else None
    task_context = TaskContext(
        corpus,
        config["split_seed"],
        downloads_folder(),
        tokenizer.encode,
        model.config.context,
        progress,
    )
    limits: Mapping[str, int] = config["examples"]
    tasks: list[TaskRows] = []
    unavailable: list[UnavailableRow] = []
    judges: dict[str, toxicity.Scorer] = {}
    for name, contents in config["suites"].items():
        for task in suite_tasks(name, contents):
            try:
                with about_all_of("suites"):
                    judges |= _judge(task, progress.profile.device)
                    for rows_of_task in rows_of(task, task_context, limits.get(name)):
                        # one by one: the settings before an unavailable one stay
                        for setting in in_each_setting(rows_of_task, task_context):
                            tasks.append(setting)
            except public.NotRun as reason:
                unavailable.append(UnavailableRow(name, task.name, str(reason)))
                progress.log(f"{name}/{task.name} is not run here: {reason}")
        progress.log(
            f"{name}: "
            + ", ".join(
                f"{task.name} {len(task.rows):,} examples"
                for task in tasks
                if task.task.suite == name and task.scored
            )
        )
    prepared = time.monotonic()
    shutil.rmtree(output / "tasks", ignore_errors=True)
    write_tasks(output / "tasks", tasks)
    results = evaluate(
        GPTLM(model, tokenizer, progress=progress),
        output / "tasks",
        [task.full_name for task in tasks],
    )
    overlaps = None
    if "corpus" in inputs:  # an imported model's training text is not known
        progress.log("what of the examples stands in the training text")
        overlaps = overlap_with_training(examples_of(tasks), inputs["corpus"].path)
    add_metrics(tasks, results)
    add_toxicity(tasks, results, judges)
    scores = list(score_rows(tasks, results, overlaps))
    for name, contents in config["suites"].items():
        for row in list(aggregate_rows(suite_tasks(name, contents), scores)):
            if isinstance(row, ScoreRow):
                scores.append(row)
            else:
                unavailable.append(row)
    _write_results(output, config, Results(scores, unavailable))
    _write(output / "samples.json", {"samples": shown_samples(tasks, results)})
    finished = time.monotonic()
    return {
        **{row.name: row.value for row in scores},
        "prepare_seconds": prepared - started,
        "score_seconds": finished - prepared,
    }


def _judge(task: SuiteTask, device: str) -> dict[str, toxicity.Scorer]:
    """The task's classifier under its name, where it has one. Raises NotRun where that cannot be
    had here.
    """
    if task.metadata.classifier is None:
        return {}
    try:
        return {
            f"{task.suite}/{task.name}": toxicity.load(
                task.metadata.classifier, downloads_folder(), device
            )
        }
    except public.NotRun as reason:
        raise public.NotRun(toxicity.what_to_do(str(reason), task.suite, task.name)) from None


def _nothing(config: Config, output: Path, reason: str) -> Metrics:
    """What is written where there is no model to evaluate: every task, not run."""
    rows = [
        UnavailableRow(name, task.name, reason)
        for name, contents in config["suites"].items()
        for task in suite_tasks(name, contents)
    ]
    _write_results(output, config, Results([], rows))
    _write(output / "samples.json", {"samples": []})
    return {"not_run": float(len(rows))}


def _write_results(output: Path, config: Config, results: Results) -> None:
    document = {
        "rows": results.to_json(list(config["suites"])),
        "split_seed": config["split_seed"],
        "limits": dict(config["examples"]),
    }
    _write(output / RESULTS, document)


def _write(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(
        json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _every_suite_has_scores(built: Built) -> Verdict:
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


def _above_chance(built: Built) -> Verdict:
    """The cloze suite where it is asked for: guessing ten choices is the clearest sign that a model
    has learnt nothing of its text.
    """
    scores = Results.read(built.output).scores
    rows = [row for row in scores if row.suite == "cloze" and row.metric == "acc"]
    below = [row for row in rows if row.low is None or row.low <= (row.baseline_value or 0.0)]
    summary = "; ".join(
        f"{row.value:.3f} ({_interval(row)}), chance {row.baseline_value:.3f}" for row in rows
    )
    return Verdict(
        not below, summary or "the recipe asks for no cloze", {row.task: row.value for row in rows}
    )


def _interval(row: ScoreRow) -> str:
    return "–" if row.low is None else f"{row.low:.4g} to {row.high:.4g}"


def show(built: Built, folder: Path) -> None:
    """zero_shot.md (the table), training_text.md (overlap), zero_shot.png (accuracies against what
    guessing gives), samples.md.
    """
    results = Results.read(built.output)
    (folder / "zero_shot.md").write_text(
        _table(results.scores, base_model.caveat(built, built.inputs))
        + _missing(results.unavailable),
        encoding="utf-8",
    )
    if any(row.overlap for row in results.scores):
        text = training_text.table(results.scores)
        (folder / "training_text.md").write_text(text, encoding="utf-8")
    samples = json.loads((built.output / "samples.json").read_text(encoding="utf-8"))["samples"]
    fewer = _with_fewer_demonstrations(results.scores)
    shown = [sample for sample in samples if (sample["suite"], sample["task"]) not in fewer]
    (folder / "samples.md").write_text(_samples(shown), encoding="utf-8")
    if accuracies := [row for row in results.scores if row.baseline_value is not None]:
        _bars(accuracies, folder / "zero_shot.png")


def _table(rows: Sequence[ScoreRow], caveat: str) -> str:
    lines = [
        "| suite | task | metric | value | 95 % interval | beside | examples | what it is |",
        "|---|---|---|--:|---|---|--:|---|",
    ]
    for row in rows:
        examples = f"{row.examples:,}" + (
            f" of {row.available:,}" if row.available > row.examples else ""
        )
        examples += f", {row.too_long:,} more too long" if row.too_long else ""
        cells = [
            row.suite,
            row.task,
            row.metric + (" ↓" if row.lower_is_better else ""),
            f"{row.value:.4g}",
            _interval(row),
            row.baseline or "–",
            examples,
            row.description,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"↓: lower is better. {caveat}".rstrip()]) + "\n"


def _missing(rows: Sequence[UnavailableRow]) -> str:
    return "".join(f"\n**{row.suite}/{row.task}** not run here: {row.reason}.\n" for row in rows)


def _with_fewer_demonstrations(rows: Sequence[ScoreRow]) -> set[tuple[str, str]]:
    """(suite, task) of settings that ask the same as one with more demonstrations, whose prompt
    shows it all.
    """
    most: dict[tuple[str, str], tuple[int, str]] = {}
    settings = []
    for row in rows:
        if row.demonstrations:
            settings.append((row.suite, row.task))
            key = (row.suite, row.task.removesuffix(f"_{row.demonstrations.shots}"))
            most[key] = max(most.get(key, (-1, "")), (row.demonstrations.requested, row.task))
    return set(settings) - {(suite, task) for (suite, _), (_, task) in most.items()}


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
            answers.append(
                f"- {right}" + (f"`{answer.strip()}`{nats}" if answer.strip() else f"nothing{nats}")
            )
        parts.append(
            f"**{sample['suite']}/{sample['task']}**\n\n{quoted}\n\n" + "\n".join(answers) + "\n"
        )
    return "\n".join(parts) + "\n"


def _bars(rows: Sequence[ScoreRow], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.8 + 0.4 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for index, row in enumerate(rows):
        low, high = (row.value if end is None else end for end in (row.low, row.high))
        axes.barh(
            index,
            row.value,
            xerr=[[row.value - low], [high - row.value]],
            color="tab:blue",
            capsize=3,
        )
        axes.plot(
            [row.baseline_value or 0.0] * 2, [index - 0.4, index + 0.4], color="black", linewidth=2
        )
    axes.set_yticks(range(len(rows)), [f"{row.task} {row.metric}" for row in rows])
    axes.invert_yaxis()
    figure.supxlabel(
        "accuracy, with 95 % interval; black: chance or the commonest answer", fontsize="medium"
    )
    figure.savefig(path, dpi=110)


ZERO_SHOT = Stage(
    name="zero_shot",
    version="4",
    run=run,
    description="The model on the recipe's suites, by lm_eval: held-out text, cloze, the papers' tasks with and without demonstrations.",
    kinds=("python", "pytorch"),
    checks=(
        Check(
            "every_suite_has_scores",
            True,
            "Every suite asked for has scores, and all are finite.",
            _every_suite_has_scores,
        ),
        Check(
            "reproduces_what_is_known",
            False,
            "An imported model has the scores it is known to have.",
            reproduces_what_is_known,
        ),
        Check(
            "cloze_above_chance",
            False,
            "The cloze accuracy's 95 % interval lies above guessing.",
            _above_chance,
        ),
    ),
    show=show,
    pin=_pin,
    pool="training",
)
