"""Drawing the scorecard: tables, pictures and text into one self-contained HTML page and a Markdown twin. Knows nothing of scores."""

from __future__ import annotations

import base64
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, select_autoescape
from markdown_it import MarkdownIt
from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Table:
    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""

    def markdown(self) -> str:
        def line(cells: list[str]) -> str:
            return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

        body = "\n".join([line(self.columns), line(["---"] * len(self.columns)), *(line(row) for row in self.rows)])
        return body + (f"\n\n{self.note}" if self.note else "")


@dataclass(frozen=True)
class Section:
    """A heading with tables of its own and whatever a stage left in its `show/` folder."""

    title: str
    tables: list[Table] = field(default_factory=list)
    folder: Path | None = None

    def texts(self) -> list[tuple[str, str]]:
        """(title, Markdown) of each table and text."""
        own = [(table.title, table.markdown()) for table in self.tables]
        return own + [(path.stem.replace("_", " "), path.read_text()) for path in self._files("*.md")]

    def pictures(self) -> list[tuple[str, Path]]:
        return [(path.stem.replace("_", " "), path) for path in self._files("*.png")]

    def _files(self, pattern: str) -> list[Path]:
        return sorted(self.folder.glob(pattern)) if self.folder and self.folder.is_dir() else []


def write_page(folder: Path, title: str, description: str, headline: Table, sections: list[Section]) -> None:
    """scorecard.html, scorecard.md with pictures/ beside it, and headline.json, into `folder`."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=select_autoescape())
    environment.filters["markdown"] = lambda text: Markup(markdown.render(text))  # noqa: S704 - html is off, so text stays text
    environment.filters["inline"] = lambda path: f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    page = environment.get_template("scorecard.html.jinja").render(
        title=title, description=description, headline=headline, sections=sections
    )
    (folder / "scorecard.html").write_text(page)
    (folder / "scorecard.md").write_text(_markdown(folder, title, description, headline, sections))
    (folder / "headline.json").write_text(json.dumps({"columns": headline.columns, "rows": headline.rows}))


def _markdown(folder: Path, title: str, description: str, headline: Table, sections: list[Section]) -> str:
    lines = [f"# {title}", "", description, "", f"## {headline.title}", "", headline.markdown(), ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        for name, text in section.texts():
            lines += [f"### {name}", "", text, ""]
        for name, path in section.pictures():
            copy = folder / "pictures" / f"{section.title.replace('/', '_')}_{path.name}"
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)
            lines += [f"![{name}](pictures/{copy.name})", ""]
    return "\n".join(lines) + "\n"
