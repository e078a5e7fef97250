"""Recipes that were built from a path: where their files are, so that Dagster's pages show them
beside those under recipes/.

    recipes/<recipe>.json   {"path": …, "sha256": …, "built": …}
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from assets.store.manifest import explain_full_disk, read_json
from gpt_model.errors import CorruptFile
from gpt_model.io import sha256_of, write_json

FOLDER = "recipes"


class BuiltRecipe(NamedTuple):
    """A recipe file that was built, as it was then."""

    path: Path
    sha256: str
    built: str  # when its last build began

    @property
    def changed(self) -> bool:
        return sha256_of(self.path) != self.sha256


def record(home: Path, recipe: str, path: Path) -> None:
    """Notes that a build of `recipe` begins, from the file `path`."""
    entry = home / FOLDER / f"{recipe}.json"
    built = datetime.now(UTC).isoformat(timespec="seconds")
    with explain_full_disk(entry):
        entry.parent.mkdir(parents=True, exist_ok=True)
        write_json(entry, {"path": str(path), "sha256": sha256_of(path), "built": built})


def recorded(home: Path) -> Iterator[BuiltRecipe]:
    """Those whose file is still there. An entry that cannot be read is left out: the next build of
    the recipe writes it again.
    """
    for entry in sorted((home / FOLDER).glob("*.json")):
        try:
            facts = read_json(entry, "")
            built = BuiltRecipe(Path(facts["path"]), facts["sha256"], facts["built"])
        except (CorruptFile, LookupError, TypeError):
            continue
        if built.path.is_file():
            yield built
