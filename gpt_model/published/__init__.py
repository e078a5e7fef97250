"""The published numbers that ours stand beside: each paper's tables and the public reproductions,
with the source and the certainty of each.

The numbers are the YAML files here, a paper or a kind of source each, written as the papers' own
tables. A file has

    paper: GPT-2 (Radford et al. 2019)   # before each table's source; "" where that says it all
    role: paper                          # or reproduction
    generations: [gpt2]                  # whose page it belongs to; a table may have its own
    tables:
      - source: table 3                  # as a person cites it
        sure: verified                   # or derived (arithmetic), plot (read off one), memory
                                         # (checked against nothing)
        protocol: …                      # how the numbers are measured
        kind: scores                     # or facts, which no score of ours stands beside: sizes, K,
                                         # costs, ablations
        note: …
        columns: [LAMBADA / acc / %, …]  # task / metric / unit / shots, the last two as needed
        rows: [[gpt2-small, 45.99, …]]   # a model, then a cell a column; the other way round with
                                         # `columns_are: models`

A cell is `~` where there is none, or `45.99`, `~2.85`, `≤1.0`, `85 ± 3`, and may go on with its
own certainty and a note: `52.6 memory (transcription 53.6)`. What was printed is kept digit by
digit. No torch here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import Field, ValidationError

from gpt_model.errors import UserError
from gpt_model.strict import Strict, dotted_location, sentence

FOLDER = Path(__file__).resolve().parent
Certainty = Literal["verified", "derived", "plot", "memory"]
Role = Literal["paper", "reproduction"]
Generation = Literal["gpt1", "gpt2", "gpt3", "instructgpt"]
Shots = Literal["zero", "one", "few"]
# What is printed beside a number of each certainty.
CAVEATS = {"verified": "", "derived": "derived", "plot": "read off a plot", "memory": "unverified"}
CELL = re.compile(
    r"(?P<text>([~≤<]?)(-?[\d.]+)(?: ± ([\d.]+))?)"
    rf"(?: (?P<certainty>{'|'.join(get_args(Certainty))}))?(?: \((?P<note>.+)\))?"
)


@dataclass(frozen=True)
class Reference:
    """One published number."""

    model: str  # a published size by its name, or the other system's name
    task: str
    metric: str
    value: float
    text: str  # as it is printed: "93.30", "~2.85", "85 ± 3"
    unit: str
    shots: Shots | None
    protocol: str
    source: str
    certainty: Certainty
    role: Role
    kind: Literal["scores", "facts"]
    generations: tuple[Generation, ...]
    note: str = ""  # of this number
    table_note: str = ""

    @property
    def printed(self) -> str:
        """The number, never without a word where it is not verified: "18.6 (unverified)"."""
        text = (
            re.sub(r"\d{5,}", lambda digits: f"{int(digits[0]):,}", self.text)
            if "." not in self.text
            else self.text
        )
        caveat = CAVEATS[self.certainty]
        return f"{text} ({caveat})" if caveat else text


class _Table(Strict):
    source: str = Field(min_length=1)
    certainty: Certainty = Field(alias="sure")
    columns: list[str] = Field(min_length=1)
    rows: list[list[str]] = Field(min_length=1)
    columns_are: Literal["tasks", "models"] = "tasks"
    protocol: str = ""
    kind: Literal["scores", "facts"] = "scores"
    note: str = ""
    generations: list[Generation] = Field(default_factory=list)


class _Sheet(Strict):
    paper: str
    role: Role
    generations: list[Generation] = Field(default_factory=list)
    tables: list[_Table] = Field(min_length=1)


def references(
    *,
    task: str | None = None,
    metric: str | None = None,
    generation: str | None = None,
    role: Role | None = None,
) -> list[Reference]:
    """The published numbers that fit what is given, in the order of the files."""
    wanted = {"task": task, "metric": metric, "role": role}
    return [
        reference
        for reference in every_reference()
        if all(value is None or getattr(reference, name) == value for name, value in wanted.items())
        and (generation is None or generation in reference.generations)
    ]


_TEXT = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # libyaml's, where PyYAML has it


@cache
def every_reference() -> tuple[Reference, ...]:
    return tuple(reference for path in sorted(FOLDER.glob("*.yaml")) for reference in read(path))


def read(path: Path) -> Iterator[Reference]:
    """One file's numbers. Raises UserError naming file, table and cell of what is wrong."""
    # The loader makes text only, so digits stay as printed.
    data = yaml.load(path.read_text(encoding="utf-8"), Loader=_TEXT)  # noqa: S506
    try:
        sheet = _Sheet.model_validate(data)
    except ValidationError as error:
        problem = error.errors()[0]
        where = dotted_location(problem["loc"])
        raise UserError(f"{path}: {sentence(problem, where)}", field=where) from None
    for number, table in enumerate(sheet.tables):
        if not (generations := tuple(table.generations or sheet.generations)):
            raise UserError(
                f"{path}, table {number} ({table.source}): give it, or the file, `generations`.",
                field=f"tables[{number}]",
            )
        source = ", ".join(filter(None, (sheet.paper, table.source)))
        for head, cell, name in _cells(path, table):
            yield Reference(
                **_subject(
                    where := f"{path}, {table.source}, {name}, {head}",
                    head,
                    name,
                    table.columns_are,
                ),
                **_value(where, cell, table.certainty),
                protocol=table.protocol,
                source=source,
                role=sheet.role,
                kind=table.kind,
                generations=generations,
                table_note=table.note,
            )


def _cells(path: Path, table: _Table) -> Iterator[tuple[str, str, str]]:
    """(column, cell, row) of every cell that is there."""
    for name, *cells in table.rows:
        if len(cells) != len(table.columns):
            raise UserError(
                f"{path}, {table.source}: row {name!r} has {len(cells)} cells and there are "
                f"{len(table.columns)} columns."
            )
        yield from (
            (head, cell, name)
            for head, cell in zip(table.columns, cells, strict=True)
            if cell != "~"
        )


def _subject(where: str, head: str, name: str, columns_are: str) -> dict[str, Any]:
    task, model = (head, name) if columns_are == "tasks" else (name, head)
    about, (system, *shots_of_row) = _parts(task), _parts(model)
    about += [""] * (4 - len(about))
    shots = next(iter(shots_of_row), about[3]) or None
    if shots not in (None, *get_args(Shots)):
        raise UserError(f"{where}: shots are zero, one or few, not {shots!r}.")
    return {"task": about[0], "metric": about[1], "unit": about[2], "model": system, "shots": shots}


def _parts(head: str) -> list[str]:
    return [part.strip() for part in head.split(" /")]


def _value(where: str, cell: str, certainty: Certainty) -> dict[str, Any]:
    match = CELL.fullmatch(cell)
    if not match:
        raise UserError(
            f"{where}: {cell!r} is no cell. Write a number, then how sure it is, then a note in "
            "brackets, as needed."
        )
    return {
        "value": float(match[3]),
        "text": match["text"],
        "certainty": match["certainty"] or certainty,
        "note": match["note"] or "",
    }
