"""One page: sections of text, tables and pictures as a self-contained HTML file, with a Markdown
twin. Knows nothing of scores.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, select_autoescape
from markdown_it import MarkdownIt
from markupsafe import Markup

from assets.report.columns import NOT_HERE, PAGE_LABELS, UNDER_A_TABLE
from assets.report.tables import Table

TEMPLATES = Path(__file__).parent / "templates"
WIDE_CHARACTERS = 75  # a table with a longer row takes the page's whole width, others half of it
BROAD_PIXELS = 800  # a picture broader than this, too
LOOKS = {  # last word of a cell -> its class
    **{verdict: verdict for verdict in ("better", "worse", "undecided")},
    NOT_HERE: "missing",
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
    """`svg`: the same picture for the page itself, where there is one (a build of before there
    was has only the PNG).
    """

    title: str
    png: bytes
    file_name: str
    svg: str = ""

    @property
    def broad(self) -> bool:
        return int.from_bytes(self.png[16:20], "big") > BROAD_PIXELS  # the width in a PNG's header

    def html(self, section: str) -> Markup:
        """The picture itself, named for screen readers after its section and title."""
        name = Markup("{}: {}").format(section, self.title)
        if self.svg:
            labelled = Markup('<svg role="img" aria-label="{}" ').format(name)
            return Markup(self.svg.replace("<svg ", labelled, 1))  # noqa: S704 - our own drawing
        source = f"data:image/png;base64,{base64.b64encode(self.png).decode()}"
        return Markup('<img src="{}" alt="{}">').format(source, name)


@dataclass(frozen=True)
class Section:
    """A heading, and below it texts and tables, then pictures.

    `hint`: a phrase beside the heading of a folded section. `group`: a heading that neighbouring
    sections share.
    """

    title: str
    texts: Sequence[Text | Table] = ()
    pictures: Sequence[Picture] = ()
    intro: str = ""
    in_order: bool = False  # wide tables among the others instead of below them
    hint: str = ""
    group: str = ""

    @staticmethod
    def of_folder(title: str, folder: Path, intro: str = "", group: str = "") -> Section:
        """What a stage left in its `show/` folder: every Markdown file and every picture."""
        return Section(
            title,
            [
                Text(_title(path), path.read_text(encoding="utf-8"))
                for path in sorted(folder.glob("*.md"))
            ],
            [_picture(path) for path in sorted(folder.glob("*.png"))],
            intro,
            group=group,
        )

    @property
    def contents(self) -> str:
        """The hint, or the titles of what is in it."""
        titles = dict.fromkeys(part.title for part in (*self.texts, *self.pictures))
        return self.hint or " · ".join(title for title in titles if title != self.title)


def _title(path: Path) -> str:
    return path.stem.replace("_", " ")


def _picture(path: Path) -> Picture:
    drawing = path.with_suffix(".svg")
    svg = drawing.read_text(encoding="utf-8") if drawing.is_file() else ""
    return Picture(_title(path), path.read_bytes(), path.name, svg)


@dataclass(frozen=True)
class Page:
    """`verdict`: sentences, first of all. `facts`: what it is, name -> value. `opening`: sections
    that are open; `sections`: those that are folded. `first`: the tables between them, by name;
    their first column is an artifact, which heads its rows, and their last that artifact's
    commands.
    """

    title: str
    description: str
    facts: Mapping[str, str]
    first: Mapping[str, Table] = field(default_factory=dict)
    sections: Sequence[Section] = ()
    verdict: Sequence[str] = ()
    opening: Sequence[Section] = ()

    @property
    def groups(self) -> list[tuple[str, list[Section]]]:
        """The folded sections by their group; "" of those that have none."""
        by_group = groupby(self.sections, key=lambda section: section.group)
        return [(group, list(members)) for group, members in by_group]


def write_page(folder: Path, page: Page) -> None:
    """scorecard.html, scorecard.md with pictures/ beside it, and each first table as JSON of its
    name.
    """
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(default=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # The renderer has html off, so text stays text.
    environment.filters |= {
        "markdown": lambda text: Markup(markdown.render(text)),  # noqa: S704
        "phrase": lambda text: Markup(markdown.renderInline(text)),  # noqa: S704
        "column_class": column_class,
        "column_label": lambda column: PAGE_LABELS.get(column, column),
        "cell_class": cell_class,
        "by_first_cell": by_first_cell,
        "in_the_table": in_the_table,
        "under_the_table": under_the_table,
        "slug": slug,
    }
    environment.tests["wide"] = is_wide
    template = environment.get_template("scorecard.html.jinja")
    (folder / "scorecard.html").write_text(template.render(page=page), encoding="utf-8")
    (folder / "scorecard.md").write_text("\n".join(_markdown(page)) + "\n", encoding="utf-8")
    for section in (*page.opening, *page.sections):
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


def slug(title: str) -> str:
    """The identifier of a heading, for the links of the contents."""
    return re.sub(r"[^0-9a-z]+", "-", title.lower()).strip("-")


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


def in_the_table(table: Table) -> Table:
    """A first table as the page has it at once: what was run, without UNDER_A_TABLE."""
    columns = [column for column in table.columns if column not in UNDER_A_TABLE]
    was_run = ~table.frame.isin([NOT_HERE]).any(axis=1)
    return Table(table.frame.loc[was_run, columns], table.title, table.note, table.formats)


def under_the_table(table: Table) -> Table:
    """The rest of it, folded below: how each score was measured, or why it was not."""
    names = [table.columns[0], "score", "value", *UNDER_A_TABLE]
    columns = [column for column in table.columns if column in names]
    return Table(table.frame[columns], formats=table.formats)


def _picture_path(section: Section, picture: Picture) -> str:
    return f"pictures/{section.title.replace('/', '_').replace(' ', '_')}_{picture.file_name}"


def _markdown(page: Page) -> Iterator[str]:
    """The lines of the twin."""
    yield from (f"# {page.title}", "", page.description, "")
    if page.verdict:
        yield from ("## Verdict", "", *(f"- {sentence}" for sentence in page.verdict), "")
    yield from (f"- {name}: {value}" for name, value in page.facts.items())
    yield ""
    for section in page.opening:
        yield from _markdown_section(section)
    for table in page.first.values():
        yield from (f"## {table.title}", "", table.markdown(), "")
    for section in page.sections:
        yield from _markdown_section(section)


def _markdown_section(section: Section) -> Iterator[str]:
    yield from (f"## {section.title}", "")
    if section.intro:
        yield from (section.intro, "")
    for text in section.texts:
        if text.title != section.title:
            yield from (f"### {text.title}", "")
        yield from (text.markdown(), "")
    for picture in section.pictures:
        yield from (f"![{picture.title}]({_picture_path(section, picture)})", "")
