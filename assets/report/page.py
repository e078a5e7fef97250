"""Drawing the scorecard: tables, pictures and text into one self-contained HTML page and a Markdown
twin. Knows nothing of scores.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, select_autoescape
from markdown_it import MarkdownIt
from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"
WIDE_CHARACTERS = (
    100  # a table with a row longer than this is given the page's whole width, others half of it
)
HALF_PAGE_PIXELS = 800  # a picture broader than this, too
WORDS = {
    **{word: word for word in ("better", "worse", "undecided")},
    "not run here": "missing",
    "no interval": "missing",
}  # cells by look


@dataclass(frozen=True)
class Table:
    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""
    short: tuple[str, ...] = ()  # the columns to show where there is little room

    def markdown(self) -> str:
        def line(cells: list[str]) -> str:
            return (
                "| "
                + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
                + " |"
            )

        body = "\n".join(
            [
                line(self.columns),
                line(["---"] * len(self.columns)),
                *(line(row) for row in self.rows),
            ]
        )
        return body + (f"\n\n{self.note}" if self.note else "")

    def groups(self) -> list[tuple[str, list[list[str]]]]:
        """(first cell, the rest of each row) of the rows that begin alike."""
        return [
            (first, [row[1:] for row in rows])
            for first, rows in groupby(self.rows, key=lambda row: row[0])
        ]


@dataclass(frozen=True)
class Text:
    """Markdown under a title."""

    title: str
    text: str

    def markdown(self) -> str:
        return self.text


@dataclass(frozen=True)
class Section:
    """A heading with tables of its own and whatever a stage left in its `show/` folder."""

    title: str
    tables: Sequence[Table | Text] = field(default_factory=list)
    folder: Path | None = None
    intro: str = ""
    in_order: bool = False  # wide tables among the others instead of below them

    def texts(self) -> list[tuple[str, str]]:
        """(title, Markdown) of each table and text."""
        own = [(table.title, table.markdown()) for table in self.tables]
        return own + [
            (path.stem.replace("_", " "), path.read_text(encoding="utf-8"))
            for path in self._files("*.md")
        ]

    def pictures(self) -> list[tuple[str, Path]]:
        return [(path.stem.replace("_", " "), path) for path in self._files("*.png")]

    def _files(self, pattern: str) -> list[Path]:
        return sorted(self.folder.glob(pattern)) if self.folder and self.folder.is_dir() else []


def is_wide(markdown: str) -> bool:
    tree = "├──" in markdown
    return tree or any(
        line.startswith("|") and len(line) > WIDE_CHARACTERS for line in markdown.splitlines()
    )


def is_broad(picture: Path) -> bool:
    return (
        int.from_bytes(picture.read_bytes()[16:20], "big") > HALF_PAGE_PIXELS
    )  # where a PNG's header has its width


def look(cell: str) -> str:
    """The class of a cell that is, or ends with, one of WORDS."""
    return WORDS.get(cell) or WORDS.get(cell.rpartition(" ")[2], "")


def write_page(
    folder: Path,
    title: str,
    description: str,
    facts: Mapping[str, str],
    first: Mapping[str, Table],
    sections: Sequence[Section],
) -> None:
    """scorecard.html, scorecard.md with pictures/ beside it, and each of the `first` tables as JSON
    of its name, into `folder`.

    `facts`: what it is, name -> value. The first tables begin with an artifact and end with its
    commands, which head its rows on the page.
    """
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=select_autoescape())
    environment.filters["markdown"] = lambda text: Markup(markdown.render(text))  # noqa: S704 - html is off, so text stays text
    environment.filters["phrase"] = lambda text: Markup(markdown.renderInline(text))  # noqa: S704
    environment.filters["inline"] = lambda path: (
        f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    )
    environment.filters["kind"] = lambda column: next(
        iter(column.replace("95 % ", "").replace(",", "").split())
    )  # a column's class
    environment.filters["look"] = look
    environment.tests["wide"], environment.tests["broad"] = is_wide, is_broad
    page = environment.get_template("scorecard.html.jinja").render(
        title=title, description=description, facts=facts, first=first.values(), sections=sections
    )
    (folder / "scorecard.html").write_text(page, encoding="utf-8")
    (folder / "scorecard.md").write_text(
        _markdown(folder, title, description, facts, first, sections), encoding="utf-8"
    )
    for name, table in first.items():
        told = {
            "title": table.title,
            "facts": dict(facts),
            "columns": table.columns,
            "rows": table.rows,
            "short": table.short,
        }
        (folder / f"{name}.json").write_text(json.dumps(told))


def _markdown(
    folder: Path,
    title: str,
    description: str,
    facts: Mapping[str, str],
    first: Mapping[str, Table],
    sections: Sequence[Section],
) -> str:
    lines = [
        f"# {title}",
        "",
        description,
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
        "",
    ]
    for table in first.values():
        lines += [f"## {table.title}", "", table.markdown(), ""]
    for section in sections:
        lines += [f"## {section.title}", "", *([section.intro, ""] if section.intro else [])]
        for name, text in section.texts():
            lines += [f"### {name}", "", text, ""]
        for name, path in section.pictures():
            copy = folder / "pictures" / f"{section.title.replace('/', '_')}_{path.name}"
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)
            lines += [f"![{name}](pictures/{copy.name})", ""]
    return "\n".join(lines) + "\n"
