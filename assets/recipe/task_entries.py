"""Supervised tasks as a recipe names them: an entry of the catalogue, or the user's YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assets.recipe.yaml_file import find_file, is_path, read_yaml, validate
from gpt_model.data.formats import format_from_ending
from gpt_model.errors import Unreachable, UserError, about_all_of
from gpt_model.finetuning.entry import CATALOGUE, Splits, TaskEntry, TaskSource
from gpt_model.finetuning.examples import checked


def entry_named(given: str, base: Path, field: str) -> TaskEntry:
    """The entry that `given` names: one of the catalogue, or a file relative to `base`, the
    recipe's folder. Its local files are then relative to `base` too, so that moving a whole project
    changes nothing. `field`: of the recipe, for the errors.
    """
    with about_all_of(field):
        path = find_file(given, [CATALOGUE], "task", base)
        entry = validate(TaskEntry, read_yaml(path), [path])
    folder = (base / Path(given).expanduser()).parent if is_path(given) else CATALOGUE
    return entry.model_copy(update={"source": entry.source.seen_from(base, folder)})


def with_files(entry: TaskEntry, task: str, files: Mapping[str, str | Splits]) -> TaskEntry:
    """The entry of one of the recipe's tasks, with the recipe's files (`finetuning.files`) for it,
    if any, in place of the entry's source.
    """
    if (file := files.get(task)) is None:
        return entry
    source = TaskSource(file=file)
    update: dict[str, Any] = {"source": source}
    if all(format_from_ending(name) not in (None, "text") for name in source.names()):
        # the name says how the file is written, where the entry says it of another one
        update |= {"format": None, "header": None}
    entry = entry.model_copy(update=update)
    with about_all_of(f"finetuning.files.{task}"):
        try:
            entry.refuse_unknown_formats()
        except ValueError as error:
            raise UserError(f"{error}, or give the file a name that says it.") from None
    return entry


def resolved_entry(
    task: str, written: Mapping[str, Any], base: Path, downloads: Path
) -> tuple[dict[str, Any], str | None]:
    """An entry written out, its local files tied to their bytes and read once for mistakes, a
    branch on the hub tied to its commit; or why its data cannot be had here.

    What is built without it is identified by the reason, so that it is built again where the data
    can be had.
    """
    entry = TaskEntry.model_validate(written)
    if where := entry.source.on_request:
        reason = (
            f"its authors give the data on request ({where}); "
            "name your files under finetuning.files"
        )
        return dict(written), reason
    try:
        source = entry.source.resolved(base, downloads)
    except Unreachable:
        return dict(written), f"{entry.source.hub} is read from the hub, which does not answer here"
    entry = checked(task, entry.model_copy(update={"source": source}), downloads)
    return entry.model_dump(mode="json", exclude_none=True), None
