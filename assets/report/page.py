"""One page: sections of text, tables and pictures as a self-contained HTML file, with a Markdown
twin. Knows nothing of scores.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, select_autoescape
from markdown_it import MarkdownIt
from markupsafe import Markup

from assets.report.tables import Table

TEMPLATES = Path(__file__).parent / "templates"
WIDE_CHARACTERS = 100  # a table with a longer row takes the page's whole width, others half of it
BROAD_PIXELS = 800  # a picture broader than this, too
LOOKS = {  # last word of a cell -> its class
    **{verdict: verdict for verdict in ("better", "worse", "undecided")},
    "not run here": "missing",
    "no interval": "missing",
}


@dataclass(frozen=True)
class Text:
    """Markdown under a title."""

    title: str
    text: str

    def markdown(self) -> str:
        return self.text


@dataclass(frozen=True)
class Picture:
    title: str
    png: bytes
    file_name: str

    @property
    def broad(self) -> bool:
        return int.from_bytes(self.png[16:20], "big") > BROAD_PIXELS  # the width in a PNG's header

    @property
    def source(self) -> str:
        """The picture itself as an image's address."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class Section:
    """A heading, and below it texts and tables, then pictures."""

    title: str
    texts: Sequence[Text | Table] = ()
    pictures: Sequence[Picture] = ()
    intro: str = ""
    in_order: bool = False  # wide tables among the others instead of below them

    @staticmethod
    def of_folder(title: str, folder: Path, intro: str = "") -> Section:
        """What a stage left in its `show/` folder: every Markdown file and every picture."""
        return Section(
            title,
            [
                Text(_title(path), path.read_text(encoding="utf-8"))
                for path in sorted(folder.glob("*.md"))
            ],
            [
                Picture(_title(path), path.read_bytes(), path.name)
                for path in sorted(folder.glob("*.png"))
            ],
            intro,
        )


def _title(path: Path) -> str:
    return path.stem.replace("_", " ")


@dataclass(frozen=True)
class Page:
    """`facts`: what it is, name -> value. `first`: the tables at the top, by name; their first
    column is an artifact, which heads its rows, and their last that artifact's commands.
    """

    title: str
    description: str
    facts: Mapping[str, str]
    first: Mapping[str, Table] = field(default_factory=dict)
    sections: Sequence[Section] = ()


def write_page(folder: Path, page: Page) -> None:
    """scorecard.html, scorecard.md with pictures/ beside it, and each first table as JSON of its
    name.
    """
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=select_autoescape())
    # The renderer has html off, so text stays text.
    environment.filters |= {
        "markdown": lambda text: Markup(markdown.render(text)),  # noqa: S704
        "phrase": lambda text: Markup(markdown.renderInline(text)),  # noqa: S704
        "column_class": column_class,
        "cell_class": cell_class,
        "by_first_cell": by_first_cell,
    }
    environment.tests["wide"] = is_wide
    template = environment.get_template("scorecard.html.jinja")
    (folder / "scorecard.html").write_text(template.render(page=page), encoding="utf-8")
    (folder / "scorecard.md").write_text("\n".join(_markdown(page)) + "\n", encoding="utf-8")
    for section in page.sections:
        for picture in section.pictures:
            path = folder / _picture_path(section, picture)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(picture.png)
    for name, table in page.first.items():
        document = {
            "title": table.title,
            "facts": dict(page.facts),
            "columns": table.columns,
            "rows": table.cells(),
            "short": table.short,
        }
        (folder / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")


def is_wide(markdown: str) -> bool:
    """Whether a text takes the page's whole width: a tree, or a table with a long row."""
    return "├──" in markdown or any(
        line.startswith("|") and len(line) > WIDE_CHARACTERS for line in markdown.splitlines()
    )


def column_class(column: str) -> str:
    return column.replace("95 % ", "").replace(",", "").split()[0]


def cell_class(cell: str) -> str:
    """The class of a cell that is, or ends with, one of LOOKS."""
    return LOOKS.get(cell) or LOOKS.get(cell.rpartition(" ")[2], "")


def by_first_cell(table: Table) -> list[tuple[str, list[list[str]]]]:
    """(first cell, the rest of each row) of the rows that begin alike."""
    return [
        (first, [row[1:] for row in rows])
        for first, rows in groupby(table.cells(), key=lambda row: row[0])
    ]


def _picture_path(section: Section, picture: Picture) -> str:
    return f"pictures/{section.title.replace('/', '_')}_{picture.file_name}"


def _markdown(page: Page) -> Iterator[str]:
    """The lines of the twin."""
    yield from (f"# {page.title}", "", page.description, "")
    yield from (f"- {name}: {value}" for name, value in page.facts.items())
    yield ""
    for table in page.first.values():
        yield from (f"## {table.title}", "", table.markdown(), "")
    for section in page.sections:
        yield from (f"## {section.title}", "")
        if section.intro:
            yield from (section.intro, "")
        for text in section.texts:
            yield from (f"### {text.title}", "", text.markdown(), "")
        for picture in section.pictures:
            yield from (f"![{picture.title}]({_picture_path(section, picture)})", "")
