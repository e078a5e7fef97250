"""Tables: rows of numbers and text, with a format for each column, as Markdown.

The page renders the Markdown as HTML (`page.py`), so a stage formats a table once. Not
`DataFrame.to_markdown`: that escapes no "|" and pads every cell to its column's widest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pandas import DataFrame, isna

MISSING = "–"
NOT_RESAMPLED = "†"  # after an interval that is no bootstrap's
NOT_RESAMPLED_NOTE = (
    f"{NOT_RESAMPLED}: every resample gave the same value, as when a model gives one answer to "
    "everything. The interval is then not the bootstrap's, but that of a share on unseen examples."
)


@dataclass(frozen=True, eq=False)
class Table:
    """Rows under a title. `rows`: a mapping a row, or a DataFrame where columns repeat or there may
    be no row. A number is written by its column's format (None: a dash), text as it stands.
    """

    rows: Sequence[Mapping[str, Any]] | DataFrame
    title: str = ""
    note: str = ""
    formats: Mapping[str, str] = field(default_factory=dict)  # column -> ".1%"
    short: tuple[str, ...] = ()  # the columns to show where there is little room

    @cached_property
    def frame(self) -> DataFrame:
        return DataFrame(self.rows, dtype=object)  # object: an int beside a None stays one

    @property
    def columns(self) -> list[str]:
        return list(self.frame.columns)

    def cells(self) -> list[list[str]]:
        """Every cell as text, row by row."""
        formats = [self.formats.get(column, "") for column in self.columns]
        return [
            [_text(value, spec) for value, spec in zip(row, formats, strict=True)]
            for row in self.frame.itertuples(index=False, name=None)
        ]

    def without_empty_columns(self) -> Table:
        """The same table less the columns in which every cell is "" or None."""
        filled = (self.frame.notna() & (self.frame != "")).any()
        return Table(self.frame.loc[:, filled], self.title, self.note, self.formats, self.short)

    def markdown(self) -> str:
        """A pipe table, columns of numbers to the right, and the note below it."""
        has_text = self.frame.map(lambda value: isinstance(value, str)).any()
        alignment = ["---" if text else "--:" for text in has_text]
        lines = [_line(row) for row in (self.columns, alignment, *self.cells())]
        return "\n".join(lines) + (f"\n\n{self.note}" if self.note else "")


def key_values(values: Mapping[str, str | None], note: str = "") -> Table:
    """A table of two columns; names whose value is None are left out."""
    rows = [(name, value) for name, value in values.items() if value is not None]
    return Table(DataFrame(rows, columns=["figure", "value"]), note=note)


def markdown(*parts: str | Table) -> str:
    """Paragraphs and tables below each other, empty ones left out."""
    texts = [part.markdown() if isinstance(part, Table) else part for part in parts]
    return "\n\n".join(filter(None, texts))


def write_markdown(path: Path, *parts: str | Table) -> None:
    path.write_text(f"{markdown(*parts)}\n", encoding="utf-8")


def interval(value: float, low: float, high: float, spec: str = "z.3f") -> str:
    """ "0.612 (0.560 – 0.660)"; the "z" of the format writes no negative zero."""
    return f"{value:{spec}} ({low:{spec}} – {high:{spec}})"


def estimate(value: Mapping[str, float] | None, spec: str = "z.3f") -> str:
    """The same of {"value", "low", "high"}; "" of None."""
    return "" if value is None else interval(value["value"], value["low"], value["high"], spec)


def metric(metrics: Mapping[str, float], name: str, spec: str = "z.3f") -> str:
    """A metric, with its interval where `name`_low and `name`_high are reported, too; a dash where
    it is not. NOT_RESAMPLED where `name`_alike is.
    """
    if name not in metrics:
        return MISSING
    if f"{name}_low" not in metrics:
        return f"{metrics[name]:{spec}}"
    text = interval(metrics[name], metrics[f"{name}_low"], metrics[f"{name}_high"], spec)
    return f"{text} {NOT_RESAMPLED}" if f"{name}_alike" in metrics else text


def not_resampled_note(cells: Iterable[Any]) -> str:
    """NOT_RESAMPLED_NOTE, where one of the cells is marked."""
    marked = any(NOT_RESAMPLED in str(cell) for cell in cells)
    return f" {NOT_RESAMPLED_NOTE}" if marked else ""


def share_of(used: int, available: int) -> str:
    """How many examples were used: "400", or "400 of 1,280 (seeded subset)"."""
    return f"{used:,} of {available:,} (seeded subset)" if used < available else f"{used:,}"


def code_block(text: str) -> str:
    """Text of a model or a corpus, shown as it is: the fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def last_texts(texts: Sequence[tuple[int, str, str]]) -> str:
    """The samples of the last step, each below its name, as Markdown. `texts`: (step, name,
    text).
    """
    last = max((step for step, _, _ in texts), default=0)
    return markdown(
        *(f"**{name}**\n\n{code_block(text)}" for step, name, text in texts if step == last)
    )


def _text(value: Any, spec: str) -> str:
    if isinstance(value, str):
        return value
    if isna(value):
        return MISSING
    return format(value, spec or ("," if isinstance(value, int) else ".4g"))


def _line(cells: Iterable[str]) -> str:
    escaped = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(escaped)} |"
