"""Plots: a picture as a PNG and, beside it, an SVG; drawn without pyplot, so with no window.

`curves` draws panels of lines, as every training has them; everything else draws on the axes of
`picture` with the functions below it. Dagster and MLflow show the PNG. The SVG stands inline in a
page and takes its colours: text and axes are `currentColor`, lines the page's `--plot-0` to
`--plot-9`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO, StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from matplotlib.typing import ColorType
from numpy.typing import ArrayLike

Points = Sequence[tuple[float, float]]

DPI = 110
FEWEST_UNMARKED = 30  # points of a line that are not marked one by one
MOST_BARS = 16  # intervals drawn as error bars; more of them become a band
MOST_TICKS, LONGEST_TICK = 10, 100_000  # values of a logarithmic axis that are its ticks
ROW_INCHES = 0.5  # height of one row of a horizontal plot
CELL_INCHES = 0.6  # of one cell of a matrix
CELL_OPACITY = 0.5  # of the largest number's cell, so that its text can be read in light and dark
LINE_COLOURS = [to_hex(f"C{number}") for number in range(10)]
# Text as text; no random or dated part, so that equal plots are equal bytes.
SVG_OPTIONS = {"svg.fonttype": "none", "svg.hashsalt": "gpt-lineage"}


class Panel(NamedTuple):
    """Lines in one of several plots. The labels are shown where there are several lines."""

    title: str
    x: str  # what the horizontal axis is, with its unit
    lines: Mapping[str, Points]  # label -> points
    marks: Mapping[str, Points] = {}  # label of a line -> points beside it, in its colour

    @classmethod
    def of_series(
        cls,
        title: str,
        series: Mapping[str, Points],
        names: Iterable[str],
        x: str = "optimizer steps",
    ) -> Panel:
        """The series that were reported, of those named."""
        return cls(title, x, {name: series[name] for name in names if name in series})


def curves(path: Path, panels: Sequence[Panel], columns: int = 2) -> None:
    """A picture of panels, row by row."""
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(5.5 * columns, 3.4 * rows), layout="constrained")
    for number, panel in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, number)
        for label, points in panel.lines.items():
            line(axes, points, label if len(panel.lines) > 1 else "")
            if marks := panel.marks.get(label):
                line(axes, marks, style="x", color=axes.lines[-1].get_color())
        axes.set(title=panel.title, xlabel=panel.x)
        _finish(axes)
    _save(figure, path, dpi=90)


@contextmanager
def picture(path: Path, width: float = 7, height: float = 4.2, grid: bool = True) -> Iterator[Axes]:
    """Axes of so many inches, saved as `path` and as an SVG beside it when the block ends, with a
    legend of what has a label.
    """
    with drawing(width, height, grid) as axes:
        yield axes
    _save(axes.get_figure(root=True), path)


@contextmanager
def drawing(width: float = 7, height: float = 4.2, grid: bool = True) -> Iterator[Axes]:
    """The same axes, saved nowhere: see `rendered`."""
    axes = Figure(figsize=(width, height), layout="constrained").subplots()
    yield axes
    if grid:
        _finish(axes)


def rendered(figure: Figure | None, dpi: int = DPI) -> tuple[bytes, str]:
    """A figure as a PNG and as an `<svg>` for a page."""
    assert figure is not None
    png, svg = BytesIO(), StringIO()
    figure.savefig(png, dpi=dpi)
    with rc_context(SVG_OPTIONS):  # type: ignore[arg-type] # the stubs want every key literal
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    return png.getvalue(), _for_a_page(svg.getvalue())


def _save(figure: Figure | None, path: Path, dpi: int = DPI) -> None:
    png, svg = rendered(figure, dpi)
    path.write_bytes(png)
    path.with_suffix(".svg").write_text(svg, encoding="utf-8")


def _for_a_page(svg: str) -> str:
    """matplotlib's SVG without header and style sheet, which would be the whole page's, in the
    page's colours. Identifiers that nothing refers to go, as several plots share a page.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = svg.replace("#000000", "currentColor").replace("#ffffff", "var(--paper, #ffffff)")
    for number, colour in enumerate(LINE_COLOURS):
        svg = svg.replace(colour, f"var(--plot-{number}, {colour})")
    root = '<svg fill="currentColor" stroke-linejoin="round" stroke-linecap="butt" '
    return svg.replace("<svg ", root, 1)


def _finish(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1] and not axes.get_legend():
        axes.legend(fontsize=8, framealpha=0.7, edgecolor="none")


def line(
    axes: Axes, points: Points, label: str = "", style: str = "-", color: ColorType | None = None
) -> None:
    """`style` is matplotlib's: "-" joins the points, ":" dots, "." and "x" leave them apart."""
    if len(points) < FEWEST_UNMARKED and style == "-":
        style = ".-"
    x, y = zip(*points, strict=True) if points else ((), ())
    axes.plot(x, y, style, label=label, color=color)


def interval(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    label: str = "",
    joined: bool = True,
    color: str | None = None,
) -> None:
    """Points with the ends of their intervals: error bars, or of many joined points a band."""
    if joined and len(x) > MOST_BARS:
        (drawn,) = axes.plot(x, y, label=label, color=color)
        axes.fill_between(x, low, high, color=drawn.get_color(), alpha=0.2, linewidth=0)
        return
    axes.errorbar(
        x,
        y,
        yerr=_errors(y, low, high),
        label=label,
        color=color,
        linestyle="-" if joined else "none",
        marker="o",
        markersize=4,
        capsize=3,
        elinewidth=1,
    )


def _errors(
    values: Sequence[float], low: Sequence[float], high: Sequence[float]
) -> tuple[list[float], list[float]]:
    """matplotlib's error bars: how far each end of an interval is from its value."""
    return (
        [abs(value - end) for value, end in zip(values, low, strict=True)],
        [abs(end - value) for value, end in zip(values, high, strict=True)],
    )


def levels(axes: Axes, values: Iterable[tuple[str, float]]) -> None:
    """Dashed lines across, as a chance or a published value is, their names at the right edge.

    Call it after everything else is drawn: names that would lie on each other are moved apart.
    """
    ascending = sorted(values, key=lambda level: level[1])
    for _, y in ascending:
        axes.axhline(y, color="black", alpha=0.65, linestyle="--", linewidth=1)
    bottom, top = axes.get_ylim()
    position = -math.inf
    for label, y in ascending:
        position = max(y, position + 0.05 * (top - bottom))
        axes.annotate(
            label,
            (1.01, position),
            xycoords=axes.get_yaxis_transform(),
            va="center",
            fontsize=8,
            annotation_clip=False,
        )


def name_columns(axes: Axes, names: Sequence[str]) -> None:
    """Names for x = 0, 1, …"""
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5)


def number_columns(axes: Axes, values: Iterable[float], log: bool) -> None:
    """Ticks of a horizontal axis with these values: of a logarithmic one the values themselves,
    where they are few and short.
    """
    ticks = sorted(set(values))
    integers = all(value == math.floor(value) for value in ticks)
    if log:
        axes.set_xscale("log")
        if integers and len(ticks) <= MOST_TICKS and ticks[-1] < LONGEST_TICK:
            axes.set_xticks(ticks, [f"{value:.0f}" for value in ticks])
            axes.xaxis.set_minor_locator(NullLocator())
    elif integers:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def rows_height(rows: int) -> float:
    """Inches that a picture of so many named rows takes."""
    return 0.9 + ROW_INCHES * rows


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Names for the rows 0, 1, … of a horizontal plot, the first at the top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)


def bars(axes: Axes, names: Sequence[str], parts: Mapping[str, Sequence[float]]) -> None:
    """A horizontal bar a name, the `parts` (label -> a value each name) one after the other."""
    start = np.zeros(len(names))
    for label, values in parts.items():
        axes.barh(range(len(names)), values, left=start, label=label)
        start += np.asarray(values, dtype=float)
    name_rows(axes, names)


def row_intervals(
    axes: Axes,
    rows: Sequence[float],
    values: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    label: str = "",
    color: str | None = None,
) -> None:
    """A point with its interval in each of some rows (see `name_rows`)."""
    errors = _errors(values, low, high)
    axes.errorbar(values, rows, xerr=errors, fmt="o", capsize=3, label=label, color=color)


def histogram(axes: Axes, samples: Mapping[str, ArrayLike], edges: ArrayLike) -> None:
    """Outlines of how often the values of each sample lie between the edges; both axes
    logarithmic.
    """
    for label, values in samples.items():
        axes.hist(
            np.asarray(values),
            bins=np.asarray(edges).tolist(),
            histtype="step",
            linewidth=1.5,
            label=label,
        )
    axes.set(xscale="log", yscale="log")


def matrix_inches(names: int) -> tuple[float, float]:
    """Width and height of a picture of a matrix of so many names."""
    return 1.6 + CELL_INCHES * names, 1.4 + CELL_INCHES * names


def matrix(axes: Axes, counts: ArrayLike, names: Sequence[str]) -> None:
    """How often each predicted value (columns) meets each true one (rows)."""
    cells = np.asarray(counts)
    shades = LinearSegmentedColormap.from_list("", [("C0", 0.0), ("C0", CELL_OPACITY)])
    axes.pcolormesh(cells, cmap=shades, edgecolors=("black", 0.2), linewidth=0.5)
    for (row, column), count in np.ndenumerate(cells):
        axes.text(column + 0.5, row + 0.5, f"{count:,}", ha="center", va="center")
    ticks = np.arange(len(names)) + 0.5
    axes.set_xticks(ticks, names)
    axes.set_yticks(ticks, names, rotation=90, va="center")
    axes.tick_params(length=0)
    axes.set(xlabel="predicted", ylabel="true", ylim=(len(names), 0), aspect="equal")
    axes.spines[:].set_visible(False)
