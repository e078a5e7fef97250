"""The page of an experiment: `experiment.json`, as tables and plots. Knows no experiment.

An experiment's stage calls `write(output, document)` in its `run` and has `show` of this module;
the scorecard draws the same document again:

    {"title": …, "source": "GPT-1, figure 2 left", "summary": [sentences with figures],
     "tables": [{"caption": …, "columns": […], "rows": [[text or number]]}],
     "plots": [{"title": …, "x": …, "y": …, "log_x": false,
                "series": [{"label": …, "x": […], "y": […], "low": […], "high": […]}],
                "levels": [{"label": …, "y": …}], "places": ["CoLA", …]}]}

`low` and `high` are the ends of an interval, or null; a level is a line across the plot, as a
chance or a published value is. `places` are names of x = 0, 1, …, between which there is nothing:
points are then not joined.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Self

from matplotlib.axes import Axes
from pandas import DataFrame
from pydantic import Field, model_validator

from assets.contract import Built, Verdict
from assets.report import plots
from assets.report.page import Picture, Section, Text
from assets.report.tables import Table, markdown, write_markdown
from assets.stages import base_model
from gpt_model.rounding import rounded
from gpt_model.strict import Strict

FILE = "experiment.json"


class Series(Strict):
    label: str = Field(min_length=1)
    x: list[float] = Field(min_length=1)
    y: list[float]
    low: list[float] | None = None
    high: list[float] | None = None

    @model_validator(mode="after")
    def _every_point_has_its_interval(self) -> Self:
        for x, y, low, high in self.points():
            if not low <= y <= high:
                raise ValueError(
                    f"at x = {x:g}, y = {y:g} lies outside its interval, {low:g} to {high:g}"
                )
        return self

    def points(self) -> list[tuple[float, float, float, float]]:
        """(x, y, low, high) in the order of x. Raises ValueError where a list is shorter."""
        ends = (self.y if end is None else end for end in (self.low, self.high))
        return sorted(zip(self.x, self.y, *ends, strict=True))


class Level(Strict):
    label: str = Field(min_length=1)
    y: float


class Plot(Strict):
    title: str = Field(min_length=1)
    x: str = Field(min_length=1, description="what the horizontal axis is, with its unit")
    y: str = Field(min_length=1)
    log_x: bool = False
    series: list[Series] = Field(min_length=1)
    levels: list[Level] = Field(default_factory=list)
    places: list[str] = Field(
        default_factory=list,
        exclude_if=lambda names: not names,
        description="what x = 0, 1, … are, where they are no numbers",
    )

    @model_validator(mode="after")
    def _logarithms_exist(self) -> Self:
        for series in self.series:
            if self.log_x and min(series.x) <= 0:
                raise ValueError(f"log_x, and {series.label!r} has an x of {min(series.x):g}")
        return self


class DocumentTable(Strict):
    caption: str = Field(min_length=1)
    columns: list[str] = Field(min_length=1)
    rows: list[list[str | int | float]]

    @model_validator(mode="after")
    def _rows_have_a_cell_for_each_column(self) -> Self:
        self.table()
        return self

    def table(self) -> Table:
        """Raises ValueError where a row has another number of cells."""
        rows = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        return Table(DataFrame(rows, columns=self.columns, dtype=object), self.caption)


class Document(Strict):
    title: str = Field(min_length=1)
    source: str = Field(min_length=1, description="the paper's table or figure that this repeats")
    summary: list[str] = Field(min_length=1)
    tables: list[DocumentTable] = Field(default_factory=list)
    plots: list[Plot] = Field(default_factory=list)

    def markdown(self) -> str:
        """What was found, the figure of the paper it repeats, and every table under its caption."""
        parts: list[str | Table] = [
            f"**{self.title}** ({self.source})",
            "\n".join(f"- {sentence}" for sentence in self.summary),
        ]
        for table in self.tables:
            parts += [f"**{table.caption}**", table.table()]
        return markdown(*parts)


def write(output: Path, document: Mapping[str, Any]) -> Document:
    """Write `experiment.json` into a stage's output, its numbers rounded. Raises ValidationError
    naming every field that is wrong.
    """
    checked = Document.model_validate(_rounded(document))
    text = json.dumps(checked.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False)
    (output / FILE).write_text(text + "\n", encoding="utf-8")
    return checked


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return rounded(value) if isinstance(value, float) else value


def read(folder: Path) -> Document:
    """The document in an artifact's folder."""
    return Document.model_validate_json((folder / FILE).read_text(encoding="utf-8"))


def show(built: Built, folder: Path) -> None:
    """page.md, and 1.png, 2.png, … of the plots: a Stage's `show`."""
    document = read(built.output)
    caveat = base_model.caveat(built, built.inputs)
    write_markdown(folder / "page.md", document.markdown(), caveat)
    for number, plot in enumerate(document.plots, 1):
        with plots.picture(folder / f"{number}.png") as axes:
            draw(axes, plot)


def section(title: str, folder: Path, intro: str) -> Section:
    """The same document as a section of the scorecard."""
    document = read(folder)
    pictures = []
    for number, plot in enumerate(document.plots, 1):
        with plots.picture(file := BytesIO()) as axes:
            draw(axes, plot)
        name = re.sub(r"[^0-9A-Za-z]+", "_", plot.title).strip("_")
        pictures.append(Picture(f"{number} {name}", file.getvalue(), f"{number}_{name}.png"))
    return Section(title, [Text("what was found", document.markdown())], pictures, intro)


def draw(axes: Axes, plot: Plot) -> None:
    """Intervals as error bars or, of many points, a band; levels dashed, their names at the right
    edge.
    """
    for number, series in enumerate(plot.series):
        points, color = series.points(), f"C{number % 10}"
        x, y, low, high = (list(column) for column in zip(*points, strict=True))
        if series.low is None and series.high is None:
            style = "." if plot.places else "-"
            plots.line(axes, list(zip(x, y, strict=True)), series.label, style, color)
        else:
            plots.interval(axes, x, y, low, high, series.label, not plot.places, color)
    values = {x for series in plot.series for x in series.x}
    if plot.places:
        plots.name_columns(axes, plot.places)
    else:
        plots.number_columns(axes, values, plot.log_x)
    axes.set_title(plot.title, fontsize=11)
    axes.set(xlabel=plot.x, ylabel=plot.y)
    plots.levels(axes, [(level.label, level.y) for level in plot.levels])


def page_is_whole(built: Built) -> Verdict:
    """The document reads, and a summary is in it."""
    document = read(built.output)
    points = sum(len(series.x) for plot in document.plots for series in plot.series)
    rows = sum(len(table.rows) for table in document.tables)
    summary = (
        f"{len(document.plots)} plots of {points} points, {len(document.tables)} tables of {rows} "
        f"rows, {len(document.summary)} sentences."
    )
    return Verdict(bool(document.summary), summary, {"points": points, "rows": rows})
