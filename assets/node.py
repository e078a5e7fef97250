"""Node: one asset of one recipe, as plain data: its stage, its section of the recipe, what it
needs. No Dagster; `stage.py` wraps it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from assets.contract import Config, Stage
from assets.recipe.yaml_file import naming


@dataclass(frozen=True)
class Node:
    """One asset of one recipe. `section(base)` is its part of the recipe as plain JSON; `base` is
    the recipe's folder.
    """

    recipe: str
    name: str  # "finetuned/sentiment"
    stage: Stage
    section: Callable[[Path], Config]
    # The names that its stage has for its inputs: each the asset of that name, or that of its role.
    needs: tuple[str, ...] = ()
    roles: tuple[tuple[str, str], ...] = ()
    after: tuple[str, ...] = ()  # assets built before it, though nothing of them is its input
    description: str = ""
    # (upstream asset, blocking check of its stage): it must have passed all of them
    requires: tuple[tuple[str, str], ...] = ()
    files: tuple[Path, ...] = ()  # the recipe's, and those it extends
    # where in the recipe the section's own fields stand, for the errors of a stage, which knows no
    # more than its section
    field: str = ""

    @property
    def key(self) -> list[str]:
        """The Dagster asset key: recipe, then the name's parts."""
        return [self.recipe, *self.name.split("/")]

    @property
    def ref(self) -> str:
        return f"{self.recipe}/{self.name}"

    def asset(self, need: str) -> str:
        """The name of the asset that is the input `need`."""
        return dict(self.roles).get(need, need)

    @property
    def upstream(self) -> list[str]:
        """The names of the assets it needs, each once."""
        return list(dict.fromkeys(map(self.asset, self.needs)))

    def config(self, base: Path) -> Config:
        """The section with everything outside the store tied to its bytes. Raises UserError naming
        the recipe's file, line and field.
        """
        section = self.settings(base)
        with self.naming():
            return self.stage.pin(section, base)

    def settings(self, base: Path) -> Config:
        """The section as it stands, no local text file opened for it. Raises UserError as `config`
        does.
        """
        with naming(self.files):
            return self.section(base)

    def naming(self) -> AbstractContextManager[None]:
        """A UserError of the stage in here says where in the recipe the field it is about is
        written.
        """
        return naming(self.files, self.field)
