"""What an experiment leaves: its findings, tables and plots as data, in `experiment.json`. Not how
they are drawn, nor what any experiment measures.

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

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from gpt_model.errors import CorruptFile, UserError
from gpt_model.io import dump_json, rounded
from gpt_model.statistics import ConfidenceInterval
from gpt_model.strict import Strict, dotted_location, sentence

FILE = "experiment.json"
# Stands in every document that compares an LSTM with the Transformer.
ONE_RUN = (
    "One pre-training run of each network: what another seed of pre-training would give is not in "
    "the intervals."
)


class Series(Strict):
    label: str = Field(min_length=1)
    x: list[float] = Field(min_length=1)
    y: list[float]
    low: list[float] | None = None
    high: list[float] | None = None

    @model_validator(mode="after")
    def _every_point_has_its_interval(self) -> Self:
        if (self.low is None) != (self.high is None):
            raise ValueError("an interval has two ends: give both `low` and `high`, or neither")
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


class Table(Strict):
    caption: str = Field(min_length=1)
    columns: list[str] = Field(min_length=1)
    rows: list[list[str | int | float]]

    @model_validator(mode="after")
    def _every_row_has_every_cell(self) -> Self:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"row {number} has {len(row)} of {len(self.columns)} cells")
        return self


class Document(Strict):
    title: str = Field(min_length=1)
    source: str = Field(min_length=1, description="the paper's table or figure that this repeats")
    summary: list[str] = Field(min_length=1)
    tables: list[Table] = Field(default_factory=list)
    plots: list[Plot] = Field(default_factory=list)


def write_document(output: Path, document: Mapping[str, Any]) -> Document:
    """Write `experiment.json` into a stage's output, its numbers rounded. Raises UserError naming
    every field that is wrong.
    """
    try:
        checked = Document.model_validate(_rounded(document))
    except ValidationError as error:
        raise UserError(f"{output / FILE} is not written: {_sentences(error)}") from error
    contents = checked.model_dump(mode="json")
    dump_json(output / FILE, contents, indent=1, sort_keys=True, ensure_ascii=False)
    return checked


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return rounded(value) if isinstance(value, float) else value


def read_document(folder: Path) -> Document:
    """The document in an artifact's folder. Raises CorruptFile naming what is wrong with it."""
    try:
        return Document.model_validate_json((folder / FILE).read_bytes())
    except ValidationError as error:
        raise CorruptFile(
            f"{folder / FILE} is damaged: {_sentences(error)} Remove {folder.parent} to build the "
            "experiment again."
        ) from None


def _sentences(error: ValidationError) -> str:
    problems = ((problem, dotted_location(problem["loc"])) for problem in error.errors())
    return " ".join(sentence(problem, field) for problem, field in problems)


def series(label: str, x: Sequence[float], points: Sequence[ConfidenceInterval]) -> dict[str, Any]:
    """A curve of a plot, with its intervals."""
    return {
        "label": label,
        "x": list(x),
        "y": [point.value for point in points],
        "low": [point.low for point in points],
        "high": [point.high for point in points],
    }
