"""The helpers that every page is made with: what a table, a plot and a page do with their data."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from pandas import DataFrame

from assets.report import plots, tables
from assets.report.page import Page, Section, write_page
from assets.report.tables import Table


def test_a_table_formats_numbers_by_column_and_keeps_text_and_its_line() -> None:
    rows = [
        {"source": "plays | prose", "documents": 1234, "share": 0.25, "words": None},
        {"source": "two\nlines", "documents": None, "share": 0.75, "words": "many"},
    ]
    table = Table(rows, note="A note.", formats={"share": ".0%"})
    assert table.cells() == [
        ["plays | prose", "1,234", "25%", "–"],
        ["two\nlines", "–", "75%", "many"],
    ]
    assert table.markdown().splitlines() == [
        "| source | documents | share | words |",
        "| --- | --: | --: | --- |",
        "| plays \\| prose | 1,234 | 25% | – |",
        "| two lines | – | 75% | many |",
        "",
        "A note.",
    ]


def test_a_table_without_rows_has_its_columns_and_empty_columns_go() -> None:
    assert Table(DataFrame(columns=["a", "b"])).markdown() == "| a | b |\n| --: | --: |"
    table = Table([{"a": "1", "b": "", "c": None}, {"a": "", "b": "", "c": None}])
    assert table.without_empty_columns().columns == ["a"]


def test_a_metric_stands_with_its_interval() -> None:
    metrics = {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6, "loss": 2.0}
    assert tables.estimate({"value": -0.0001, "low": -0.5, "high": 0.5}) == "0.000 (-0.500 – 0.500)"
    assert tables.metric(metrics, "accuracy", ".1f") == "0.5 (0.4 – 0.6)"
    assert tables.metric(metrics, "loss") == "2.000"
    assert tables.metric(metrics, "f1") == "–"


def test_markdown_files_leave_out_empty_parts(tmp_path: Path) -> None:
    tables.write_markdown(tmp_path / "a.md", "First.", "", Table([{"n": 1}]))
    assert (tmp_path / "a.md").read_text() == "First.\n\n| n |\n| --: |\n| 1 |\n"


@pytest.mark.parametrize(("points", "drawn_as"), [(3, "containers"), (20, "collections")])
def test_an_interval_is_error_bars_or_of_many_points_a_band(points: int, drawn_as: str) -> None:
    axes = Figure().subplots()
    x = list(range(points))
    plots.interval(axes, x, [1.0] * points, [0.5] * points, [2.0] * points, "ours")
    assert len(getattr(axes, drawn_as)) == 1
    assert (axes.dataLim.y0, axes.dataLim.y1) == (0.5, 2.0)


def test_the_names_of_levels_do_not_lie_on_each_other() -> None:
    axes = Figure().subplots()
    axes.plot([0, 1], [0.0, 1.0])
    plots.levels(axes, [("majority", 0.505), ("chance", 0.5)])
    heights = {text.get_text(): text.get_position()[1] for text in axes.texts}
    assert heights["majority"] - heights["chance"] > 0.03
    assert [np.asarray(line.get_ydata())[0] for line in axes.lines[1:]] == [0.5, 0.505]


def test_bars_stand_one_after_the_other_from_the_top(tmp_path: Path) -> None:
    with plots.picture(tmp_path / "bars.png", height=plots.rows_height(2)) as axes:
        plots.bars(axes, ["plays", "news"], {"training": [3.0, 2.0], "held out": [1.0, 0.5]})
    ends = [bar.get_x() + bar.get_width() for bar in axes.patches]
    assert ends == [3.0, 2.0, 4.0, 2.5]
    assert axes.get_ylim() == (1.5, -0.5)
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")


def test_curves_draw_a_panel_each_and_name_lines_where_there_are_several(tmp_path: Path) -> None:
    panels = [
        plots.Panel("loss", "steps", {"loss": [(1, 3.0), (2, 2.0)]}),
        plots.Panel("accuracy", "steps", {"training": [(1, 0.5)], "held out": []}),
        plots.Panel("empty", "steps", {}),
    ]
    plots.curves(tmp_path / "training.png", panels)
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")


def test_a_drawing_takes_the_page_s_colours_and_shares_no_identifier(tmp_path: Path) -> None:
    drawn = []
    for name in ("a", "b"):
        with plots.picture(tmp_path / f"{name}.png") as axes:
            plots.line(axes, [(step, step**0.5) for step in range(40)], "ours")
            plots.levels(axes, [("chance <0.5>", 2.0)])
        drawn.append((tmp_path / f"{name}.svg").read_text(encoding="utf-8"))
    assert drawn[0] == drawn[1]  # equal plots are equal bytes
    (svg, _) = drawn
    root = ElementTree.fromstring(svg)  # noqa: S314 - our own
    assert root.attrib["fill"] == "currentColor" and "var(--plot-0, #1f77b4)" in svg
    # Neither ink nor paper of its own, and no style sheet, which would be the whole page's.
    assert not re.findall("#000000|(?<!, )#ffffff|<style|<metadata|<!DOCTYPE", svg)
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "chance <0.5>" in texts and "ours" in texts  # text as text
    used = re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', svg)
    assert {name for pair in used for name in pair if name} == set(
        re.findall(r' id="([^"]*)"', svg)
    )


def test_a_matrix_has_a_cell_for_each_pair_of_names() -> None:
    axes = Figure().subplots()
    plots.matrix(axes, [[3, 1], [1, 1234]], ["no", "yes"])
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {(0.5, 0.5): "3", (1.5, 0.5): "1", (0.5, 1.5): "1", (1.5, 1.5): "1,234"}
    assert axes.get_ylim() == (2, 0)  # the first row at the top


def test_a_page_folds_its_sections_by_group_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    page = Page(
        "Scorecard",
        "What it is.",
        {"model": "small & <b>plain</b>"},
        {"headline": Table([{"artifact": "a", "score": "acc", "protocol": "p", "walk": "`w`"}])},
        [Section("One", group="Group"), Section("Two", group="Group"), Section("Alone")],
        ["It is **better**."],
        [Section("Samples")],
    )
    write_page(tmp_path, page)
    html = (tmp_path / "scorecard.html").read_text(encoding="utf-8")
    assert html.count("<details>") == 1 + 3 and html.startswith("<!doctype html>")
    links = re.findall(r'href="#([^"]*)"', html)
    assert set(links) <= set(re.findall(r' id="([^"]*)"', html)) and "two" in links
    assert "<b>plain" not in html and "<strong>better</strong>" in html
    twin = (tmp_path / "scorecard.md").read_text(encoding="utf-8")
    headings = [line for line in twin.splitlines() if line.startswith("#")]
    assert headings[:3] == ["# Scorecard", "## Verdict", "## Samples"]
