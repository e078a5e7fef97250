"""What an experiment leaves to be shown: `experiment.json`, read strictly, drawn as plots and
written as tables. Knows no experiment.

An experiment's stage calls `write(output, document)` in its `run` and has
`show=experiment_page.show`; the scorecard draws the same document again. The document:

    {"title": …, "source": "GPT-1, figure 2 left", "summary": [sentences with figures],
     "tables": [{"caption": …, "columns": […], "rows": [[text or number]]}],
     "plots": [{"title": …, "x": …, "y": …, "log_x": false, "series": [{"label": …, "x": […], "y": […], "low": […], "high": […]}],
                "levels": [{"label": …, "y": …}], "places": ["CoLA", …]}]}

`low` and `high` are the ends of an interval, or null; a level is a line across the plot, as a
chance or a published value is. `places` are names of x = 0, 1, …, between which there is nothing:
points are then not joined.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from assets.contract import Built, Check, Verdict
from assets.recipe.yaml_file import validate
from assets.stages import base_model
from gpt_model.errors import UserError
from gpt_model.rounding import rounded
from gpt_model.strict import Strict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILE = "experiment.json"
MOST_TICKS, LONGEST_TICK = (
    10,
    100_000,
)  # values of a logarithmic axis that are its ticks, if they are so few and short
MOST_BARS = 16  # points of a series drawn with error bars; more of them become a band


class Series(Strict):
    label: str = Field(min_length=1)
    x: list[float] = Field(min_length=1)
    y: list[float]
    low: list[float] | None = None
    high: list[float] | None = None

    @model_validator(mode="after")
    def _as_long_as_x(self) -> Self:
        if (self.low is None) != (self.high is None):
            raise ValueError("an interval has two ends: give both `low` and `high`, or neither")
        for name, values in (("y", self.y), ("low", self.low), ("high", self.high)):
            if values is not None and len(values) != len(self.x):
                raise ValueError(
                    f"`{name}` has {len(values)} values and `x` {len(self.x)}: give one for each point"
                )
        for x, y, low, high in zip(
            self.x, self.y, self.low or self.y, self.high or self.y, strict=True
        ):
            if not low <= y <= high:
                raise ValueError(
                    f"at x = {x:g}, y = {y:g} lies outside its interval, {low:g} to {high:g}"
                )
        return self


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
                raise ValueError(
                    f"log_x, and series {series.label!r} has an x of {min(series.x):g}: leave it out, or set log_x to false"
                )
        return self


class PageTable(Strict):
    caption: str = Field(min_length=1)
    columns: list[str] = Field(min_length=1)
    rows: list[list[str | int | float]]

    @model_validator(mode="after")
    def _a_cell_a_column(self) -> Self:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"row {number} has {len(row)} cells and there are {len(self.columns)} columns"
                )
        return self


class Document(Strict):
    title: str = Field(min_length=1)
    source: str = Field(min_length=1, description="the paper's table or figure that this repeats")
    summary: list[str] = Field(min_length=1)
    tables: list[PageTable] = Field(default_factory=list)
    plots: list[Plot] = Field(default_factory=list)


def write(output: Path, document: Mapping[str, Any]) -> Document:
    """`experiment.json` into a stage's output, its numbers rounded. Raises UserError as `read`
    does.
    """
    path = output / FILE
    checked = validate(Document, _rounded(dict(document)), [path])
    text = json.dumps(checked.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
    return checked


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(inner) for inner in value]
    return rounded(value) if isinstance(value, float) else value


def read(folder: Path) -> Document:
    """The document in an artifact's folder. Raises UserError naming file, line and field of every
    mistake.
    """
    path = folder / FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"There is no {path}: an experiment's stage writes it with `experiment_page.write`."
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno}: this is not valid JSON ({error.msg})."
        ) from None
    return validate(Document, data, [path])


def show(built: Built, folder: Path) -> None:
    """page.md, and 1.png, 2.png, … of the plots: a Stage's `show`."""
    show_document(read(built.output), folder, base_model.caveat(built, built.inputs))


def show_document(document: Document, folder: Path, caveat: str = "") -> None:
    (folder / "page.md").write_text(
        tables_markdown(document) + (f"\n{caveat}\n" if caveat else ""), encoding="utf-8"
    )
    for number, plot in enumerate(document.plots, 1):
        draw(plot).savefig(folder / f"{number}.png", dpi=110)


def tables_markdown(document: Document) -> str:
    """What was found, where it comes from, and every table under its caption."""
    found = "\n".join(f"- {sentence}" for sentence in document.summary)
    parts = [f"**{document.title}** ({document.source})", found]
    for table in document.tables:
        body = [
            _line(table.columns),
            _line(["---"] * len(table.columns)),
            *(_line(row) for row in table.rows),
        ]
        parts += [f"**{table.caption}**", "\n".join(body)]
    return "\n\n".join(parts) + "\n"


def _line(row: Sequence[str | int | float]) -> str:
    return (
        "| "
        + " | ".join(_cell(value).replace("|", "\\|").replace("\n", " ") for value in row)
        + " |"
    )


def _cell(value: str | int | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def draw(plot: Plot) -> Figure:
    """The plot, with intervals as error bars or, of many points, a band; levels dashed, their names
    at the right edge.
    """
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, series in enumerate(plot.series):
        _draw_series(axes, series, f"C{number % 10}", "none" if plot.places else "-")
    _set_ticks(axes, plot)
    axes.set_title(plot.title, fontsize=11)
    axes.set_xlabel(plot.x)
    axes.set_ylabel(plot.y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    _draw_levels(axes, plot.levels)
    axes.legend(fontsize=8, frameon=False)
    return figure


def _set_ticks(axes: Axes, plot: Plot) -> None:
    """Of a logarithmic axis the values themselves, where they are few."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    values = sorted({x for series in plot.series for x in series.x})
    whole = all(x == math.floor(x) for x in values)
    if plot.log_x:
        axes.set_xscale("log")
        if whole and len(values) <= MOST_TICKS and values[-1] < LONGEST_TICK:
            axes.set_xticks(values, [f"{x:.0f}" for x in values])
            axes.xaxis.set_minor_locator(NullLocator())
    elif plot.places:
        axes.set_xticks(range(len(plot.places)), plot.places)
        axes.set_xlim(-0.5, len(plot.places) - 0.5)
    elif whole:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_series(axes: Axes, series: Series, color: str, line: str) -> None:
    points = sorted(
        zip(series.x, series.y, series.low or series.y, series.high or series.y, strict=True)
    )
    x, y, low, high = (list(column) for column in zip(*points, strict=True))
    if series.low is None:
        axes.plot(x, y, line, marker="o", markersize=3, color=color, label=series.label)
    elif len(x) > MOST_BARS:
        axes.plot(x, y, color=color, label=series.label)
        axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
    else:
        below, above = (
            [abs(end - middle) for end, middle in zip(ends, y, strict=True)] for ends in (low, high)
        )
        style: dict[str, Any] = {
            "marker": "o",
            "markersize": 4,
            "capsize": 3,
            "elinewidth": 1,
            "linestyle": line,
        }
        axes.errorbar(x, y, yerr=[below, above], color=color, label=series.label, **style)


def _draw_levels(axes: Axes, levels: Sequence[Level]) -> None:
    for level in levels:
        axes.axhline(level.y, color="0.35", linestyle="--", linewidth=1)
    bottom, top = axes.get_ylim()  # after every line is in
    ascending = sorted(levels, key=lambda level: level.y)
    for level, place in zip(
        ascending, _apart([level.y for level in ascending], 0.05 * (top - bottom)), strict=True
    ):
        axes.annotate(
            level.label,
            (1.01, place),
            xycoords=axes.get_yaxis_transform(),
            va="center",
            fontsize=8,
            annotation_clip=False,
        )


def _apart(places: Sequence[float], distance: float) -> Iterator[float]:
    """Ascending places, each pushed up until it is `distance` above the one before, so that names
    do not lie on each other.
    """
    last = -math.inf
    for place in places:
        last = max(place, last + distance)
        yield last


def _whole(built: Built) -> Verdict:
    """The document reads, and holds something that a person can look at."""
    document = read(built.output)
    points = sum(len(series.x) for plot in document.plots for series in plot.series)
    rows = sum(len(table.rows) for table in document.tables)
    said = f"{len(document.plots)} plots of {points} points, {len(document.tables)} tables of {rows} rows, {len(document.summary)} sentences."
    return Verdict(bool(document.summary), said, {"points": points, "rows": rows})


WHOLE = Check(
    "page_is_whole",
    True,
    "experiment.json reads, every number in it is finite, and it says what was found.",
    _whole,
)
