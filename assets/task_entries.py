"""Supervised tasks as a recipe names them: an entry of the catalogue, or a YAML file of one's own. Reading and tying down, no more."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from assets.yaml_file import SUFFIXES, load_strict
from gpt_model.data.sources import downloads_folder
from gpt_model.errors import Unreachable, about_all_of
from gpt_model.tasks.entry import CATALOGUE, TaskEntry, pinned, seen_from


def entry_named(given: str, base: Path, field: str) -> TaskEntry:
    """The entry that `given` means: a name of the catalogue, or a file as seen from `base`, the recipe's folder. Its local files are named
    as seen from there too, so that moving a whole project changes nothing. `field`: where in the recipe it is said, for the errors.
    """
    path = base / Path(given).expanduser() if given.endswith(SUFFIXES) or "/" in given else CATALOGUE / f"{given}.yaml"
    with about_all_of(field):
        entry = load_strict(TaskEntry, str(path), CATALOGUE, "task")
    return entry.model_copy(update={"source": seen_from(entry.source, path.parent, base)})


def pinned_entry(entry: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """An entry written out, its files tied to their bytes and its branch on the hub to a commit.

    Where the hub does not answer, the branch stays: what is built of it then says that it was not run.
    """
    read = TaskEntry.model_validate(entry)
    with suppress(Unreachable):
        read = read.model_copy(update={"source": pinned(read.source, base, downloads_folder())})
    return read.model_dump(mode="json", exclude_none=True)
