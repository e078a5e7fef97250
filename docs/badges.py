"""The README's badges, drawn from pyproject.toml and the workflow of CI: `python -m docs.badges`.

They are files of the repository, so a reader's browser asks nobody. A test compares them with what
is drawn now.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from xml.sax.saxutils import escape

import yaml

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
CHARACTER = 6.6  # width of a character at 11 px, about
SVG = """<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="20"
role="img" aria-label="{label}: {value}">
<rect width="{width}" height="20" rx="3" fill="#444"/>
<path d="M{left} 0h{right}a3 3 0 0 1 3 3v14a3 3 0 0 1-3 3h-{right}z" fill="#2f5fb3"/>
<g fill="#fff" text-anchor="middle" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">
<text x="{label_at}" y="14">{label}</text><text x="{value_at}" y="14">{value}</text></g></svg>
"""


def badge(label: str, value: str) -> str:
    left, right = (round(len(text) * CHARACTER) + 12 for text in (label, value))
    return SVG.format(
        label=escape(label),
        value=escape(value),
        width=left + right,
        left=left,
        right=right - 3,
        label_at=left / 2,
        value_at=left + right / 2,
    )


def badges() -> dict[str, str]:
    """File name -> its SVG."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    tested = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    return {
        "badge-ci.svg": badge("CI", " and ".join(f"make {name}" for name in workflow["jobs"])),
        "badge-licence.svg": badge("licence", project["license"]),
        "badge-python.svg": badge("Python", ", ".join(tested)),
    }


def main() -> int:
    for name, svg in badges().items():
        (IMAGES / name).write_text(svg, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
