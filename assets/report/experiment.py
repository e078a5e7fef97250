"""The page of an experiment: the tables and plots of its `experiment.json` (see
`gpt_model.experiments.document`). Knows no experiment.

An experiment's stage has `show` of this module; the scorecard draws the same document again.
"""

from __future__ import annotations

import re
from pathlib import Path

from matplotlib.axes import Axes
from pandas import DataFrame

from assets.contract import Built, Verdict
from assets.report import plots
from assets.report.page import Picture, Section, Text
from assets.report.tables import Table, markdown, write_markdown
from assets.stages import base_model
from gpt_model.experiments.document import Document, Plot, read_document


def show(built: Built, folder: Path) -> None:
    """page.md, and 1.png, 2.png, … of the plots: a Stage's `show`."""
    document = read_document(built.output)
    caveat = base_model.caveat(built, built.inputs)
    write_markdown(folder / "page.md", text(document), caveat)
    for number, plot in enumerate(document.plots, 1):
        with plots.picture(folder / f"{number}.png") as axes:
            draw(axes, plot)


def section(title: str, folder: Path, intro: str, group: str) -> Section:
    """The same document as a section of the scorecard."""
    document = read_document(folder)
    pictures = []
    for number, plot in enumerate(document.plots, 1):
        with plots.drawing() as axes:
            draw(axes, plot)
        png, svg = plots.rendered(axes.get_figure(root=True))
        name = re.sub(r"[^0-9A-Za-z]+", "_", plot.title).strip("_")
        pictures.append(Picture(plot.title, png, f"{number}_{name}.png", svg))
    parts = [Text("what was found", text(document))]
    return Section(title, parts, pictures, intro, hint=document.title, group=group)


def text(document: Document) -> str:
    """What was found, the figure of the paper it repeats, and every table under its caption."""
    parts: list[str | Table] = [
        f"**{document.title}** ({document.source})",
        "\n".join(f"- {sentence}" for sentence in document.summary),
    ]
    for table in document.tables:
        parts += [
            f"**{table.caption}**",
            Table(DataFrame(table.rows, columns=table.columns, dtype=object)),
        ]
    return markdown(*parts)


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
    if plot.places:
        plots.name_columns(axes, plot.places)
    else:
        plots.number_columns(axes, {x for series in plot.series for x in series.x}, plot.log_x)
    axes.set_title(plot.title, fontsize=11)
    axes.set(xlabel=plot.x, ylabel=plot.y)
    plots.levels(axes, [(level.label, level.y) for level in plot.levels])


def page_is_whole(built: Built) -> Verdict:
    """The document reads, and a summary is in it."""
    document = read_document(built.output)
    points = sum(len(series.x) for plot in document.plots for series in plot.series)
    rows = sum(len(table.rows) for table in document.tables)
    summary = (
        f"{len(document.plots)} plots of {points} points, {len(document.tables)} tables of {rows} "
        f"rows, {len(document.summary)} sentences."
    )
    return Verdict(bool(document.summary), summary, {"points": points, "rows": rows})
