"""Suites: lm_eval task YAML whose data a builder makes. What a suite file may say; not how its data is made (`examples.py`).

A suite is one file in suites/, its name the file's. It is an lm_eval task, or a group with its tasks inline, and every key is
lm_eval's own, with lm_eval's meaning (`doc_to_text`, `doc_to_choice`, `metric_list`, …; a group's other keys are its tasks'
defaults). Only where the data comes from is said differently: instead of `dataset_path` and `test_split`, a task has

    metadata:
      version: 1.0            # bumped by hand when a score would change
      description: …          # what the score means; stands beside it
      baseline: chance        # what accuracy stands against: chance (1/options), majority (commonest answer), or none
      data: {builder: …}      # one of the four below; its rows become <task>.jsonl, and lm_eval reads that

So adding a suite is adding a file here, and naming it in a recipe. No torch and no lm_eval in this module.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gpt_model.errors import UserError
from gpt_model.tasks.entry import SplitName, TaskEntry

SUITES = Path(__file__).resolve().parent / "suites"

# lm_eval's task keys that say nothing of where data comes from; its TaskConfig has the same names.
TASK_KEYS = (
    "task", "task_alias", "doc_to_text", "doc_to_target", "doc_to_choice", "description", "target_delimiter", "gen_prefix",
    "metric_list", "output_type", "generation_kwargs", "repeats", "filter_list", "metadata",
)  # fmt: skip
NEEDED_KEYS = ("task", "output_type", "doc_to_text", "doc_to_target", "metric_list", "metadata")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Passages(_Strict):
    """Held-out documents in passages of whole words; one task a source, named by it. Column: text."""

    builder: Literal["passages"]
    characters: int = Field(default=4096, ge=64, description="longest passage; a shorter document is one passage")


class LastWord(_Strict):
    """Runs of held-out sentences, the last word apart. Columns: context, target, source."""

    builder: Literal["last_word"]
    sentences: int = Field(default=5, ge=2, description="in a passage, the one that ends in the target included")


class Cloze(_Strict):
    """A held-out sentence with a word taken out, after the sentences before it. Columns: context, choices, label, kind, source."""

    builder: Literal["cloze"]
    sentences: int = Field(default=20, ge=1, description="of context, from which the choices are drawn")
    choices: int = Field(default=10, ge=2)


class Labelled(_Strict):
    """A supervised task's examples. Columns: its form's segments (question, or premise and hypothesis, …), options, label."""

    builder: Literal["labelled"]
    task: str | None = Field(default=None, description="an entry of gpt_model/tasks/catalogue, by name")
    entry: TaskEntry | None = Field(default=None, description="or the entry itself")
    splits: list[SplitName] = Field(default=["test"], min_length=1)

    @model_validator(mode="after")
    def _one_of_two(self) -> Labelled:
        if self.task is None and self.entry is None:
            raise ValueError("name a `task` of the catalogue, or write the `entry` itself")
        return self


Data = Annotated[Passages | LastWord | Cloze | Labelled, Field(discriminator="builder")]


class TaskMetadata(_Strict):
    """The part of a task that is ours: lm_eval leaves `metadata` to its users."""

    version: float
    description: str = ""
    baseline: Literal["chance", "majority", "none"] = "none"
    data: Data


class SuiteTask(_Strict):
    """One task of a suite: lm_eval's keys as they stand in the file, and what we need to know of it."""

    suite: str
    name: str
    keys: dict[str, Any]
    metadata: TaskMetadata


def suite_tasks(suite: str, contents: Mapping[str, Any]) -> list[SuiteTask]:
    """The tasks of a parsed suite file. Raises UserError naming suite, task and key of what is wrong."""
    seen: set[str] = set()
    tasks = []
    for keys in _expanded(suite, contents):
        task = _checked(suite, keys)
        if task.name in seen:
            raise UserError(f"suites/{suite}.yaml: two of its tasks are named {task.name!r}. Give each its own name.")
        seen.add(task.name)
        tasks.append(task)
    return tasks


def _expanded(suite: str, contents: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each task's keys, a group's defaults filled in as lm_eval does."""
    if "group" not in contents:
        yield dict(contents)
        return
    members = contents.get("task")
    if not isinstance(members, list) or not members or not all(isinstance(member, dict) for member in members):
        raise UserError(f"suites/{suite}.yaml: a group's `task` is a list with a mapping for each of its tasks; found {members!r}.")
    defaults = {key: value for key, value in contents.items() if key not in ("group", "task", "metadata")}
    for member in members:
        yield {**defaults, **member}


def _checked(suite: str, keys: dict[str, Any]) -> SuiteTask:
    where = f"suites/{suite}.yaml, task {keys['task']!r}" if "task" in keys else f"suites/{suite}.yaml"
    for key in keys:
        if key not in TASK_KEYS:
            near = difflib.get_close_matches(key, TASK_KEYS, n=1)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            raise UserError(f"{where}: `{key}` is not a key of a suite's task.{hint} Keys: {', '.join(TASK_KEYS)}.")
    if missing := [key for key in NEEDED_KEYS if key not in keys]:
        raise UserError(f"{where}: `{missing[0]}` is missing.")
    if keys["output_type"] == "multiple_choice" and keys.get("doc_to_choice") is None:
        raise UserError(f"{where}: `doc_to_choice` is missing, and `output_type: multiple_choice` needs it.")
    if not isinstance(keys["task"], str) or not isinstance(keys["metadata"], dict):
        raise UserError(f"{where}: expected a name as `task` and a mapping as `metadata`.")
    try:
        metadata = TaskMetadata.model_validate(keys["metadata"])
    except ValidationError as error:
        raise UserError("\n".join(f"{where}: {_sentence(problem)}" for problem in error.errors())) from None
    return SuiteTask(suite=suite, name=keys["task"], keys={k: v for k, v in keys.items() if k != "metadata"}, metadata=metadata)


def _sentence(problem: Any) -> str:
    field = ".".join(("metadata", *map(str, problem["loc"])))
    if problem["type"] == "extra_forbidden":
        return f"`{field}` is not a key here."
    if problem["type"] == "missing":
        return f"`{field}` is missing."
    message = problem["msg"].removeprefix("Value error, ")
    return f"`{field}`: {message[0].lower()}{message[1:]} (found {problem.get('input')!r})."
