"""An experiment's document: what is refused, and that its plots and tables show every number,
interval and level that it holds.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from assets.contract import Built
from assets.report import experiment
from gpt_model.errors import CorruptFile, UserError
from gpt_model.experiments.document import Document, Plot, read_document, write_document

DOCUMENT: dict[str, Any] = {
    "title": "Accuracy by layers transferred",
    "source": "GPT-1, figure 2 left",
    "summary": ["From 0 to 4 layers accuracy rises by 0.12 (0.08 to 0.16), 3 seeds."],
    "tables": [
        {
            "caption": "Test accuracy",
            "columns": ["layers", "accuracy | 95 %"],
            "rows": [[0, "0.61"], [1234, 0.734567]],
        }
    ],
    "plots": [
        {
            "title": "sentiment",
            "x": "layers transferred",
            "y": "accuracy",
            "log_x": False,
            "series": [
                {
                    "label": "ours",
                    "x": [4, 0, 2],
                    "y": [0.73, 0.61, 0.7],
                    "low": [0.7, 0.6, 0.69],
                    "high": [0.75, 0.63, 0.72],
                }
            ],
            "levels": [{"label": "chance", "y": 0.5}, {"label": "majority", "y": 0.505}],
        }
    ],
}


def changed(*path: str | int, to: Any) -> dict[str, Any]:
    document = copy.deepcopy(DOCUMENT)
    *parents, last = path
    part: Any = document
    for key in parents:
        part = part[key]
    part[last] = to
    return document


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (changed("source", to=""), "source"),
        (changed("plots", 0, "series", 0, "y", to=[0.7, 0.7]), "plots[0].series[0]"),
        (
            changed("plots", 0, "series", 0, "high", 1, to=0.605),
            "at x = 0, y = 0.61 lies outside its interval, 0.6 to 0.605",
        ),
        (changed("plots", 0, "series", 0, "y", 0, to=float("nan")), "plots[0].series[0].y[0]"),
        (changed("plots", 0, "log_x", to=True), "'ours' has an x of 0"),
        (changed("plots", 0, "colour", to="red"), "`plots[0].colour` is not a key here"),
        (changed("tables", 0, "rows", 1, to=[1]), "tables[0]"),
        (changed("summary", to=[]), "summary"),
        (changed("plots", 0, "series", 0, "low", to=None), "an interval has two ends"),
    ],
)
def test_a_document_that_is_wrong_is_refused_where_it_is_wrong(
    tmp_path: Path, document: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as error:
        write_document(tmp_path, document)
    assert message in str(error.value)
    assert not (tmp_path / "experiment.json").exists()
    (tmp_path / "experiment.json").write_text(json.dumps(document))
    with pytest.raises(CorruptFile) as damage:
        read_document(tmp_path)
    assert message in str(damage.value) and str(tmp_path / "experiment.json") in str(damage.value)
    (tmp_path / "experiment.json").write_text('{"title": ')
    with pytest.raises(CorruptFile, match="is damaged"):
        read_document(tmp_path)


def test_what_is_written_is_rounded_and_reads_back_the_same(tmp_path: Path) -> None:
    written = write_document(tmp_path, changed("plots", 0, "levels", 0, "y", to=0.123456789))
    assert written.plots[0].levels[0].y == 0.123457 and read_document(tmp_path) == written
    before = (tmp_path / "experiment.json").read_bytes()
    write_document(tmp_path, written.model_dump())
    assert (tmp_path / "experiment.json").read_bytes() == before


def test_tables_have_every_cell_and_the_summary_says_where_it_comes_from() -> None:
    text = experiment.text(Document.model_validate(DOCUMENT))
    for part in (DOCUMENT["source"], *DOCUMENT["summary"], "Test accuracy"):
        assert part in text
    assert text.splitlines()[-2:] == ["| 0 | 0.61 |", "| 1,234 | 0.7346 |"]


def axes_of(plot: dict[str, Any]) -> Axes:
    axes = Figure().subplots()
    experiment.draw(axes, Plot.model_validate(plot))
    return axes


def test_a_plot_shows_points_in_order_intervals_and_levels_with_their_names() -> None:
    axes = axes_of(DOCUMENT["plots"][0])
    (bars,) = axes.containers
    line, _, (reach,) = bars.lines  # type: ignore[attr-defined]
    assert np.asarray(line.get_xydata()).tolist() == [[0, 0.61], [2, 0.7], [4, 0.73]]
    ends = [sorted(y for _, y in segment) for segment in reach.get_segments()]
    assert np.allclose(ends, [[0.6, 0.63], [0.69, 0.72], [0.7, 0.75]])
    dashed = [
        float(np.asarray(line.get_ydata())[0])
        for line in axes.lines
        if line.get_linestyle() == "--"
    ]
    assert dashed == [0.5, 0.505] and {text.get_text() for text in axes.texts} == {
        "chance",
        "majority",
    }
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == (
        "sentiment",
        "layers transferred",
        "accuracy",
    )


def test_many_points_have_a_band_and_a_logarithmic_axis_is_one() -> None:
    x = [2**n for n in range(20)]
    series = {"label": "ours", "x": x, "y": [1.0] * 20, "low": [0.5] * 20, "high": [2.0] * 20}
    axes = axes_of({"title": "t", "x": "steps", "y": "score", "log_x": True, "series": [series]})
    (band,) = axes.collections
    heights = np.asarray(band.get_paths()[0].vertices)[:, 1]
    assert (
        axes.get_xscale() == "log"
        and (heights.min(), heights.max()) == (0.5, 2.0)
        and not axes.containers
    )


def test_places_are_named_and_not_joined_and_a_short_logarithmic_axis_has_its_own_values(
    tmp_path: Path,
) -> None:
    plot = {"title": "t", "x": "task", "y": "score", "places": ["CoLA", "RTE"]}
    series = {"label": "ours", "x": [0, 1], "y": [0.5, 0.6], "low": [0.4, 0.5], "high": [0.6, 0.7]}
    axes = axes_of({**plot, "series": [series]})
    assert [text.get_text() for text in axes.get_xticklabels()] == ["CoLA", "RTE"]
    assert axes.containers[0].lines[0].get_linestyle() == "None"  # type: ignore[attr-defined]
    layers = {
        "title": "t",
        "x": "layers",
        "y": "bits",
        "log_x": True,
        "series": [{**series, "x": [1, 4]}],
    }
    axes = axes_of(layers)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "4"]
    assert "places" not in write_document(tmp_path, DOCUMENT).model_dump()["plots"][0]


def test_show_leaves_a_page_and_a_picture_a_plot(tmp_path: Path) -> None:
    (output := tmp_path / "files").mkdir()
    (folder := tmp_path / "show").mkdir()
    document = write_document(output, {**DOCUMENT, "plots": DOCUMENT["plots"] * 2})
    experiment.show(Built({}, {}, output, {}, {}, []), folder)
    pictures = {"1.png", "1.svg", "2.png", "2.svg"}
    assert {path.name for path in folder.iterdir()} == {"page.md", *pictures}
    assert (folder / "page.md").read_text(encoding="utf-8") == f"{experiment.text(document)}\n"
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in ("1.png", "2.png"))
