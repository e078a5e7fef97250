"""Row makers: from a public data set's rows to the rows that lm_eval reads, one small function a
protocol, found by its name.

A maker is decorated with the columns it needs, under names of its own, which a suite's `columns`
maps to the data set's. Its keyword-only parameters are the suite's `options`. It sees rows in the
data set's order and may join, divide or drop them. Every module in this package is read, so adding
a protocol is adding a file.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt_model.evaluation.examples import Material

Row = dict[str, Any]
Rows = Iterable[Mapping[str, Any]]
Make = Callable[..., Iterator[Row]]


@dataclass(frozen=True)
class Maker:
    """`make(rows, material, **options)`; `rows` have `columns`."""

    name: str
    columns: tuple[str, ...]
    options: Mapping[
        str, Any
    ]  # name -> default; inspect.Parameter.empty where the suite must give it
    make: Make

    def __call__(self, rows: Rows, material: Material, **options: Any) -> Iterator[Row]:
        return self.make(rows, material, **options)

    def complaint(self, columns: Iterable[str], options: Iterable[str]) -> str | None:
        """What is wrong with a suite's `columns` and `options` for this maker, as a clause."""
        given, known = set(columns), set(self.columns)
        if given != known:
            return f"`columns` of {self.name!r} are {', '.join(self.columns)}; found {', '.join(given) or 'none'}"
        if strange := sorted(set(options) - set(self.options)):
            return f"`options` has {strange[0]!r}, which {self.name!r} does not know; it knows {', '.join(self.options) or 'none'}"
        needed = {
            name for name, default in self.options.items() if default is inspect.Parameter.empty
        }
        if missing := sorted(needed - set(options)):
            return f"`options` lacks {missing[0]!r}, which {self.name!r} needs"
        return None


MAKERS: dict[str, Maker] = {}


def maker(*columns: str) -> Callable[[Make], Make]:
    """Registers a function of (rows, material, *, options) under its own name."""

    def register(make: Make) -> Make:
        parameters = inspect.signature(make).parameters.values()
        options = {
            one.name: one.default
            for one in parameters
            if one.kind is inspect.Parameter.KEYWORD_ONLY
        }
        if make.__name__ in MAKERS:
            raise ValueError(f"two row makers are named {make.__name__!r}")
        MAKERS[make.__name__] = Maker(make.__name__, columns, options, make)
        return make

    return register


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
