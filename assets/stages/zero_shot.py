"""The zero_shot stage: the pre-trained model on the recipe's suites, by lm_eval, without any
training on them.

What a suite may say is `gpt_model.evaluation.suites`'.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from assets.contract import Check, Config, Stage, deferred
from assets.recipe.recipe import Recipe
from assets.recipe.yaml_file import find_file, load_strict, read_yaml
from assets.store.home import downloads_folder
from gpt_model.errors import Unreachable, UserError, about_all_of
from gpt_model.evaluation import public, toxicity
from gpt_model.evaluation.suites import OF_TEXT, SUITES, Dataset, Labelled, suite_tasks
from gpt_model.finetuning.entry import CATALOGUE, TaskEntry, TaskSource

EXECUTION = "assets.execution.zero_shot"
REPRODUCES = "reproduces_what_is_known"  # the check that compares with known scores


def zero_shot_config(recipe: Recipe) -> Config:
    """What identifies a zero-shot evaluation: each suite's contents, catalogue tasks written out,
    the limits and the split seed.

    Raises UserError: an unknown suite (with the nearest name), a broken suite file, a limit for a
    suite that is not asked for.
    """
    section = recipe.evaluation
    assert section is not None  # the graph has no zero_shot without it
    for stray in sorted(section.examples.keys() - set(section.suites)):
        raise UserError(
            f"{stray!r} is not among evaluation.suites: {', '.join(section.suites)}. "
            "Correct the name, or take the line out.",
            field=f"evaluation.examples.{stray}",
        )
    suites = {}
    for number, name in enumerate(section.suites):
        with about_all_of(f"evaluation.suites[{number}]"):
            suites[name] = _suite(name)
            if recipe.corpus is None and any(
                isinstance(task.metadata.data, OF_TEXT) for task in suite_tasks(name, suites[name])
            ):
                raise UserError(
                    f"{name} is made of held-out text, and this recipe has no corpus: add one, or "
                    "leave the suite out."
                )
    _check_files(section.files, suites)
    return {
        "suites": suites,
        "examples": dict(section.examples),
        "split_seed": recipe.split_seed,
        **({"files": dict(section.files)} if section.files else {}),
        **({"known": section.known} if section.known else {}),
    }


def _check_files(files: Mapping[str, str], suites: Mapping[str, Any]) -> None:
    """Raises UserError where the recipe gives a file for a task that reads none."""
    names = list(dict.fromkeys(_file_names(suites)))
    for stray in sorted(files.keys() - set(names)):
        near = difflib.get_close_matches(stray, names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(
            f"{stray!r} is no task that reads a public data set.{hint} "
            f"There are: {', '.join(names) or 'none'}.",
            field=f"evaluation.files.{stray}",
        )


def _file_names(suites: Mapping[str, Any]) -> Iterator[str]:
    """The keys that a recipe's `evaluation.files` may have."""
    for suite, contents in suites.items():
        for task in suite_tasks(suite, contents):
            if isinstance(data := task.metadata.data, Dataset):
                yield f"{suite}/{task.name}"
                if data.demonstrations:
                    yield f"{suite}/{task.name}/demonstrations"
                if task.metadata.classifier:
                    yield f"{suite}/{task.name}/classifier"
                if data.source.member:  # a folder with every task's file
                    yield suite


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
    """The keys of each task of a suite file."""
    return contents["task"] if "group" in contents else [contents]


def pin(config: Config, base: Path) -> Config:
    """What tasks read, resolved to its bytes or its commit, or why it is unavailable here.

    A suite's files are relative to the suites' folder, the recipe's (`evaluation.files`) to `base`.
    """
    # A copy in which no two tasks share a mapping, as YAML's anchors let them.
    suites = json.loads(json.dumps(config["suites"]))
    files = config.get("files", {})
    for suite, contents in suites.items():
        for keys in members(contents):
            name, metadata = f"{suite}/{keys['task']}", keys["metadata"]
            data = metadata["data"]
            if entry := data.get("entry"):
                _resolve_entry(entry, data)
            elif data["builder"] == "dataset":
                task_files = dict(files)
                if suite in files and (member := data["source"].get("member")):
                    task_files.setdefault(name, f"{files[suite].rstrip('/')}/{member}")
                data["source"] = _resolved_data(data["source"], name, task_files, base)
                if "demonstrations" in data:
                    data["demonstrations"] = _resolved_data(
                        data["demonstrations"], f"{name}/demonstrations", files, base
                    )
            if "classifier" in metadata:
                metadata["classifier"] = _resolved_classifier(
                    metadata["classifier"], f"{name}/classifier", files, base
                )
    return {**{key: value for key, value in config.items() if key != "files"}, "suites": suites}


def _resolve_entry(entry: dict[str, Any], data: dict[str, Any]) -> None:
    """Resolve a catalogue task's source in place, or note in `data` why it is unavailable."""
    source = TaskSource.model_validate(entry["source"]).seen_from(SUITES, SUITES)
    try:
        resolved = source.resolved(SUITES, downloads_folder())
        entry["source"] = resolved.model_dump(mode="json", exclude_none=True)
    except Unreachable:
        data["not_run"] = (
            f"the Hugging Face hub did not answer when asked for {source.hub}; "
            "evaluate where it can be reached"
        )
    if source.on_request:
        data["not_run"] = (
            f"its authors give it on request ({source.on_request}), "
            "and the catalogue's entry names no file of it"
        )


def _resolved_data(
    source: dict[str, Any], name: str, files: Mapping[str, str], base: Path
) -> dict[str, Any]:
    """A public data set's source, or the recipe's file in its place. A file is known by its bare
    name: its folder is no part of what it is.
    """
    with about_all_of(f"files.{name}" if name in files else "suites"):
        if name in files:
            given = public.DataSource(path=files[name])
            resolved = public.resolved(given, base, downloads_folder())
            resolved = resolved.model_copy(update={"path": Path(files[name]).name})
        else:
            resolved = public.resolved(
                public.DataSource.model_validate(source), SUITES, downloads_folder()
            )
    return resolved.model_dump(mode="json", exclude_none=True, exclude_defaults=True)


def _resolved_classifier(
    keys: dict[str, Any], name: str, files: Mapping[str, str], base: Path
) -> dict[str, Any]:
    """A suite's classifier, or the recipe's folder in its place, whose licence the suite does not
    know.
    """
    classifier = toxicity.Classifier.model_validate(keys)
    with about_all_of(f"files.{name}" if name in files else "suites"):
        if name in files:
            classifier = toxicity.Classifier(
                folder=files[name], licence="not stated", label=classifier.label
            )
        resolved = toxicity.resolved(classifier, base, downloads_folder())
    return resolved.model_dump(mode="json", exclude_none=True)


ZERO_SHOT = Stage(
    name="zero_shot",
    version="5",
    run=deferred(EXECUTION, "run"),
    description="The model on the recipe's suites, by lm_eval: held-out text, cloze, the papers' "
    "tasks with and without demonstrations.",
    kinds=("python", "pytorch"),
    checks=(
        Check(
            "every_suite_has_scores",
            True,
            "Every suite asked for has scores, and all are finite.",
            deferred(EXECUTION, "every_suite_has_scores"),
        ),
        Check(
            "contexts_are_whole",
            False,
            "No question's context was cut to fit the model.",
            deferred(EXECUTION, "contexts_are_whole"),
        ),
        Check(
            REPRODUCES,
            False,
            "An imported model has the scores it is known to have.",
            deferred(EXECUTION, REPRODUCES),
        ),
        Check(
            "cloze_above_chance",
            False,
            "The cloze accuracy's 95 % interval lies above guessing.",
            deferred(EXECUTION, "cloze_above_chance"),
        ),
    ),
    show=deferred("assets.report.zero_shot", "show"),
    pin=pin,
    pool="training",
)
