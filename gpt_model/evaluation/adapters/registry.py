"""The registry of adapters, each found by its function's name, and what an adapter is given.

A function is decorated with the columns that it needs, under names of its own, which a suite's
`columns` maps to the data set's. Its keyword-only parameters are the suite's `options`. It sees
rows in the data set's order and may join, divide or drop them. A row that it cannot read is left
out, and the others are read.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_model.data.formats import Reject, UnreadableRow, refuse
from gpt_model.errors import Unavailable, UserError
from gpt_model.progress import Progress

Row = dict[str, Any]
Rows = Iterable[Mapping[str, Any]]
AdapterFunction = Callable[..., Iterator[Row]]
# What a function raises of a row that is not as it should be.
ROW_ERRORS = (AttributeError, LookupError, TypeError, ValueError, UserError)


@dataclass(frozen=True)
class TaskContext:
    """What a task's rows depend on besides its suite: the recipe's text and seed, and the model
    that is evaluated.
    """

    corpus: Path | None  # a corpus artifact's files; None for an imported model without one
    seed: int  # of every split and subset
    downloads: Path
    encode: Callable[[str], list[int]]
    context_length: int  # the model's, tokens
    progress: Progress
    new_tokens: int = 0  # of the context, that the task at hand may generate

    @property
    def room(self) -> int:
        """Tokens that a question may have, its demonstrations and its answer included."""
        return self.context_length - self.new_tokens

    def held_out_corpus(self) -> Path:
        """The corpus. Raises UserError where there is none."""
        if self.corpus is None:
            raise UserError(
                "It is made of held-out text, and this recipe has no corpus: add one, or leave the "
                "suite out."
            )
        return self.corpus


@dataclass(frozen=True)
class Adapter:
    """`function(rows, task_context, **options)`; `rows` have `columns`."""

    name: str
    columns: tuple[str, ...]
    # name -> default; inspect.Parameter.empty where the suite must give the option
    options: Mapping[str, Any]
    function: AdapterFunction
    # Of a function that reads several rows together: the options by which it reads one alone.
    alone: Mapping[str, Any] | None = None

    def __call__(
        self, rows: Rows, task_context: TaskContext, reject: Reject = refuse, **options: Any
    ) -> Iterator[Row]:
        """What the function makes of `rows`, of which `reject` is given those it cannot read."""
        if self.alone is None:
            for number, row in enumerate(rows, 1):
                yield from self._of_row(number, row, task_context, reject, options) or ()
            return
        alone = {**options, **self.alone}
        readable = (
            row
            for number, row in enumerate(rows, 1)
            if self._of_row(number, row, task_context, reject, alone) is not None
        )
        yield from self.function(readable, task_context, **options)

    def _of_row(
        self,
        number: int,
        row: Mapping[str, Any],
        task_context: TaskContext,
        reject: Reject,
        options: Mapping[str, Any],
    ) -> list[Row] | None:
        """What the function makes of one row; None where it cannot read it."""
        try:
            return list(self.function([row], task_context, **options))
        except Unavailable:
            if self.alone is None:
                raise
            return []  # that is to be said of all rows together
        except ROW_ERRORS as error:
            problem = str(error) if isinstance(error, UserError) else f"{error!r}."
            reject(UnreadableRow(f"row {number}", problem, f"{self.name} cannot read it"))
            return None

    def problem(self, columns: Iterable[str], options: Iterable[str]) -> str | None:
        """What is wrong with a suite's `columns` and `options` for this adapter, as a clause."""
        given, known = set(columns), set(self.columns)
        if given != known:
            return (
                f"`columns` of {self.name!r} are {', '.join(self.columns)}; "
                f"found {', '.join(given) or 'none'}"
            )
        if unknown := sorted(set(options) - set(self.options)):
            return (
                f"`options` has {unknown[0]!r}, which {self.name!r} does not know; "
                f"it knows {', '.join(self.options) or 'none'}"
            )
        required = {
            name for name, default in self.options.items() if default is inspect.Parameter.empty
        }
        if missing := sorted(required - set(options)):
            return f"`options` lacks {missing[0]!r}, which {self.name!r} needs"
        return None


ADAPTERS: dict[str, Adapter] = {}


def adapter(
    *columns: str, alone: Mapping[str, Any] | None = None
) -> Callable[[AdapterFunction], AdapterFunction]:
    """Registers a function of (rows, task_context, *, options) under its own name. `alone`: of one
    that reads several rows together, the options by which it reads one alone.
    """

    def register(function: AdapterFunction) -> AdapterFunction:
        options = {
            parameter.name: parameter.default
            for parameter in inspect.signature(function).parameters.values()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }
        if function.__name__ in ADAPTERS:
            raise ValueError(f"two adapters are named {function.__name__!r}")
        ADAPTERS[function.__name__] = Adapter(function.__name__, columns, options, function, alone)
        return function

    return register
