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
from assets.recipe.task_entries import entry_named
from assets.recipe.yaml_file import find_file, read_yaml, stem
from assets.store.home import downloads_folder
from gpt_model.data.formats import MissingColumn
from gpt_model.data.local_files import seen_from
from gpt_model.data.location import is_folder
from gpt_model.errors import Unreachable, UserError, about_all_of
from gpt_model.evaluation import public_data_sets, toxicity
from gpt_model.evaluation.suites import OF_TEXT, SUITES, Dataset, Labelled, suite_tasks
from gpt_model.finetuning.entry import TaskEntry, TaskSource
from gpt_model.finetuning.examples import checked
from gpt_model.progress import Silent

EXECUTION = "assets.execution.zero_shot"
REPRODUCES = "reproduces_what_is_known"  # the check that compares with known scores


def zero_shot_config(recipe: Recipe, base: Path) -> Config:
    """What identifies a zero-shot evaluation: each suite's contents, catalogue tasks written out,
    the limits and the split seed. `base`: the recipe's folder.

    Raises UserError: an unknown suite (with the nearest name), a broken suite file, a limit for a
    suite that is not asked for.
    """
    section = recipe.evaluation
    assert section is not None  # the graph has no zero_shot without it
    names = [stem(suite) for suite in section.suites]
    for stray in sorted(section.examples.keys() - set(names)):
        raise UserError(
            f"{stray!r} is not among evaluation.suites: {', '.join(names)}. "
            "Correct the name, or take the line out.",
            field=f"evaluation.examples.{stray}",
        )
    suites: dict[str, Any] = {}
    for number, (name, suite) in enumerate(zip(names, section.suites, strict=True)):
        with about_all_of(f"evaluation.suites[{number}]"):
            if name in suites:
                raise UserError(
                    f"Two suites are named {name!r}. Leave one out, or rename its file."
                )
            suites[name] = _suite(name, suite, base)
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


def _suite(name: str, suite: str, base: Path) -> dict[str, Any]:
    """A suite file's contents, every task that it names written out in it. The local files it names
    are relative to its own folder; those of the result, to `base`, the recipe's.
    """
    path = find_file(suite, [SUITES], "suite", base)
    # A copy in which no two tasks share a mapping, as YAML's anchors let them.
    contents: dict[str, Any] = json.loads(json.dumps(read_yaml(path), default=str))
    for task, keys in zip(suite_tasks(name, contents, path), members(contents), strict=True):
        metadata, data = keys["metadata"], keys["metadata"]["data"]
        if isinstance(task.metadata.data, Labelled) and "entry" not in data:
            entry = entry_named(data["task"], path.parent, "")
            data["entry"] = entry.model_dump(mode="json", exclude_defaults=True)
        entry_source = data.get("entry", {}).get("source")
        for located in (data.get("source"), data.get("demonstrations"), entry_source):
            _see_from(base, path.parent, located)
        _see_from(base, path.parent, metadata.get("classifier"))
    return contents


def _see_from(base: Path, folder: Path, located: Any) -> None:
    """Name the local files that a mapping of a suite locates, relative to `folder`, as seen from
    `base`.
    """

    def renamed(value: Any) -> Any:
        if isinstance(value, dict):  # a file a split
            return {key: renamed(part) for key, part in value.items()}
        return seen_from(value, base, folder) if isinstance(value, str) else value

    if not isinstance(located, dict) or "package" in located:
        return
    for key in located.keys() & {"path", "file", "folder"}:
        located[key] = renamed(located[key])
    if is_folder(located.get("hub") or ""):
        located["hub"] = f"./{renamed(located['hub'])}"


def members(contents: dict[str, Any]) -> list[dict[str, Any]]:
    """The keys of each task of a suite file."""
    return contents["task"] if "group" in contents else [contents]


def pin(config: Config, base: Path) -> Config:
    """What tasks read, resolved to its bytes or its commit, or why it is unavailable here.

    The files of suites and of the recipe (`evaluation.files`) are relative to `base`.
    """
    suites = json.loads(json.dumps(config["suites"]))
    files = config.get("files", {})
    for suite, contents in suites.items():
        for keys in members(contents):
            name, metadata = f"{suite}/{keys['task']}", keys["metadata"]
            data = metadata["data"]
            if "entry" in data:
                _resolve_entry(name, data, base)
            elif data["builder"] == "dataset":
                task_files = dict(files)
                if suite in files and (member := data["source"].get("member")):
                    task_files.setdefault(name, f"{files[suite].rstrip('/')}/{member}")
                data["source"] = _resolved_data(data, "source", name, task_files, base)
                if "demonstrations" in data:
                    data["demonstrations"] = _resolved_data(
                        data, "demonstrations", f"{name}/demonstrations", files, base
                    )
            if "classifier" in metadata:
                metadata["classifier"] = _resolved_classifier(
                    metadata["classifier"], f"{name}/classifier", files, base
                )
    return {**{key: value for key, value in config.items() if key != "files"}, "suites": suites}


def _resolve_entry(name: str, data: dict[str, Any], base: Path) -> None:
    """Resolve a labelled task's source in place, or note in `data` why it is unavailable."""
    entry = data["entry"]
    source = TaskSource.model_validate(entry["source"])
    try:
        resolved = source.resolved(base, downloads_folder())
        entry["source"] = resolved.model_dump(mode="json", exclude_none=True)
        whole = checked(name, TaskEntry.model_validate(entry), downloads_folder())
        if whole.labels and "labels" not in entry:
            entry["labels"] = whole.labels
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
    data: Mapping[str, Any], part: str, name: str, files: Mapping[str, str], base: Path
) -> dict[str, Any]:
    """A public data set's `part`, source or demonstrations, or the recipe's file in its place. A
    file is known by its bare name: its folder is no part of what it is. Local files have the
    columns that the task reads.
    """
    with about_all_of(f"files.{name}" if name in files else "suites"):
        if name in files:
            given = public_data_sets.DataSource(path=files[name])
            resolved = public_data_sets.resolved(given, base, downloads_folder())
            resolved = resolved.model_copy(update={"path": Path(files[name]).name})
        else:
            resolved = public_data_sets.resolved(
                public_data_sets.DataSource.model_validate(data[part]), base, downloads_folder()
            )
        if resolved.path is not None:
            _check_columns(resolved, data)
    return resolved.model_dump(mode="json", exclude_none=True, exclude_defaults=True)


def _check_columns(source: public_data_sets.DataSource, data: Mapping[str, Any]) -> None:
    """Raises UserError where the first row lacks a column, and the suite does not say why the task
    is then not run.
    """
    columns = list(dict.fromkeys(data["columns"].values()))
    try:
        next(iter(public_data_sets.rows(source, columns, downloads_folder(), Silent())), None)
    except MissingColumn as error:
        if error.column not in data.get("without", {}):
            raise


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
    version="9",
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
    shared_out="tokens of the questions; forward passes; the search of the training text",
    pool="training",
)
