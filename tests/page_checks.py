"""What Lighthouse and axe ask of a page, asked in Chromium: contrast, labels, heading order, no
sideways scrolling, no request to the outside.

    for view in VIEWS:
        with opened(chrome, url, view) as page:
            assert faults(page) == []
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, Request

LOCAL = ("127.0.0.1", "localhost", "")  # "": a file
CONTRAST = 4.5  # WCAG 2.2, 1.4.3 (AA), of text of any size
# Roles of the accessibility tree that a screen reader announces by name.
NAMED = {
    *("button", "checkbox", "combobox", "DisclosureTriangle", "image", "link", "listbox"),
    *("menuitem", "meter", "progressbar", "radio", "searchbox", "slider", "spinbutton"),
    *("SvgRoot", "switch", "tab", "textbox"),
}


@dataclass(frozen=True)
class View:
    width: int
    scheme: Literal["light", "dark"]
    height: int = 900

    def __str__(self) -> str:
        return f"{self.width}px-{self.scheme}"


VIEWS = [View(width, scheme) for width in (400, 1400) for scheme in ("light", "dark")]


@dataclass
class Opened:
    """A page and the addresses outside this machine that it asked for."""

    page: Page
    view: View
    outside: list[str] = field(default_factory=list)


@contextmanager
def opened(chrome: Browser, url: str, view: View) -> Iterator[Opened]:
    """The page at `url` in a window of its own, as wide and as light as `view`."""
    size = {"width": view.width, "height": view.height}
    context = chrome.new_context(viewport=size, color_scheme=view.scheme)
    page = context.new_page()
    result = Opened(page, view)

    def note(request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and (parts.hostname or "") not in LOCAL:
            result.outside.append(request.url)

    page.on("request", note)
    try:
        page.goto(url)
        yield result
    finally:
        context.close()


def height(page: Page) -> int:
    """Of the whole document, in CSS pixels."""
    return int(page.evaluate("document.documentElement.scrollHeight"))


def unfold(page: Page) -> None:
    """Open every `<details>`."""
    page.evaluate("document.querySelectorAll('details').forEach(item => { item.open = true })")


def faults(opened: Opened, ignore: str = "", headings: bool = True) -> list[str]:
    """A sentence for everything that is wrong with the page as it stands now.

    `ignore`: a CSS selector of elements whose text is not looked at. `headings`: whether the page
    must have one h1 and skip no level.
    """
    page = opened.page
    nodes = _accessibility_tree(page)
    return [
        *(f"asks for {address}, which is outside this machine" for address in opened.outside),
        *_document(page),
        *sideways(page),
        *contrast(page, ignore),
        *labels(nodes),
        *(heading_order(nodes) if headings else ()),
    ]


def sideways(page: Page) -> list[str]:
    """Whether the window scrolls sideways, and what sticks out farthest."""
    return [
        f"{element} reaches {right:.0f} px, the window {width}"
        for element, right, width in page.evaluate(SIDEWAYS)
    ]


def contrast(page: Page, ignore: str = "", least: float = CONTRAST) -> list[str]:
    """Texts whose colour is too close to what lies behind it, by the computed styles."""
    return [
        f"contrast {ratio:.2f} of {element}: {text!r} ({ink} on {paper})"
        for element, text, ratio, ink, paper in page.evaluate(CONTRASTS, [ignore, least])
    ]


def labels(nodes: Sequence[dict[str, Any]]) -> list[str]:
    """Controls and images that a screen reader has no name for."""
    return [
        f"a {role(node)} has no name: {_outline(node)}"
        for node in nodes
        if role(node) in NAMED and not (node.get("name") or {}).get("value", "").strip()
    ]


def heading_order(nodes: Sequence[dict[str, Any]]) -> list[str]:
    """Whether there is one h1, the first, and no heading lies more than one level below the one
    before it.
    """
    levels = [
        (_property(node, "level"), (node.get("name") or {}).get("value", ""))
        for node in nodes
        if role(node) == "heading"
    ]
    skipped = [
        f"h{level} {name!r} follows h{before}"
        for (before, _), (level, name) in pairwise([(0, ""), *levels])
        if level > before + 1
    ]
    return skipped if [level for level, _ in levels].count(1) == 1 else ["not one h1", *skipped]


def role(node: dict[str, Any]) -> str:
    return str((node.get("role") or {}).get("value", ""))


def _property(node: dict[str, Any], name: str) -> Any:
    values = {entry["name"]: entry["value"].get("value") for entry in node.get("properties", ())}
    return values.get(name)


def _outline(node: dict[str, Any]) -> str:
    return f"{node.get('description', {}).get('value', '')} node {node.get('backendDOMNodeId')}"


def _document(page: Page) -> list[str]:
    has = page.evaluate(
        "[document.title.trim(), document.documentElement.lang, "
        "document.querySelector('meta[name=viewport]')?.content].map(Boolean)"
    )
    parts = zip(("title", "language", "viewport"), has, strict=True)
    return [f"the document has no {part}" for part, present in parts if not present]


def _accessibility_tree(page: Page) -> list[dict[str, Any]]:
    """What a screen reader sees, in order."""
    session = page.context.new_cdp_session(page)
    try:
        nodes: list[dict[str, Any]] = session.send("Accessibility.getFullAXTree")["nodes"]
    finally:
        session.detach()
    by_id = {node["nodeId"]: node for node in nodes}
    inner = {child for node in nodes for child in node.get("childIds", ())}
    stack = [node["nodeId"] for node in reversed(nodes) if node["nodeId"] not in inner]
    ordered = []
    while stack:
        if (node := by_id.get(stack.pop())) is None:
            continue
        if not node.get("ignored"):
            ordered.append(node)
        stack.extend(reversed(node.get("childIds", ())))
    return ordered


NAME = """
const name = element => element.tagName.toLowerCase()
  + (element.id ? '#' + element.id : '')
  + [...element.classList].map(part => '.' + part).join('');
"""
SIDEWAYS = f"""() => {{ {NAME}
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= width) return [];
  return [...document.querySelectorAll('body *')]
    .map(element => [name(element), element.getBoundingClientRect().right, width])
    .sort((one, other) => other[1] - one[1]).slice(0, 3);
}}"""
# Walks over every text that shows. A background is what the ancestors' colours add up to; an
# ancestor with a picture or a gradient behind it is left out, as its colour cannot be computed.
CONTRASTS = f"""([ignore, least]) => {{ {NAME}
  const canvas = document.createElement('canvas').getContext('2d', {{willReadFrequently: true}});
  canvas.canvas.width = canvas.canvas.height = 1;
  const colours = new Map();
  const rgba = text => {{  // any CSS colour as [0..255, 0..255, 0..255, 0..1]
    if (!colours.has(text)) {{
      canvas.clearRect(0, 0, 1, 1);
      canvas.fillStyle = text;
      canvas.fillRect(0, 0, 1, 1);
      const [red, green, blue, alpha] = canvas.getImageData(0, 0, 1, 1).data;
      colours.set(text, [red, green, blue, alpha / 255]);
    }}
    return colours.get(text);
  }};
  const over = (top, below) =>
    [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const luminance = colour => {{
    const [red, green, blue] = colour.slice(0, 3).map(value => value / 255)
      .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  }};
  const dark = matchMedia('(prefers-color-scheme: dark)').matches
    && getComputedStyle(document.documentElement).colorScheme.includes('dark');
  const canvasColour = dark ? [18, 18, 18, 1] : [255, 255, 255, 1];  // below every background
  const behind = element => {{
    const layers = [];
    for (let node = element; node; node = node.parentElement) {{
      const style = getComputedStyle(node);
      if (style.backgroundImage !== 'none') return null;
      layers.unshift(rgba(style.backgroundColor));
    }}
    return layers.reduce((below, top) => over(top, below), canvasColour);
  }};
  const opacity = element => {{
    let product = 1;
    for (let node = element; node; node = node.parentElement)
      product *= Number(getComputedStyle(node).opacity);
    return product;
  }};
  const visible = element =>
    element.checkVisibility({{visibilityProperty: true, opacityProperty: true}});
  const skipped = element => !visible(element) || (ignore && element.closest(ignore))
    || element.closest(':disabled, [aria-disabled=true], script, style, noscript, title');
  const faults = [];
  const judge = (element, text, colour) => {{
    const paper = behind(element);
    if (!paper) return;
    const ink = rgba(colour).slice();
    ink[3] *= opacity(element);
    const [bright, dim] = [luminance(over(ink, paper)), luminance(paper)].sort((a, b) => b - a);
    const ratio = (bright + 0.05) / (dim + 0.05);
    const shown = `rgb(${{paper.slice(0, 3).map(Math.round)}})`;
    if (ratio < least) faults.push([name(element), text.trim().slice(0, 40), ratio, colour, shown]);
  }};
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {{
    const element = texts.currentNode.parentElement, text = texts.currentNode.data;
    if (!text.trim() || skipped(element)) continue;
    const range = document.createRange();
    range.selectNodeContents(texts.currentNode);
    const box = range.getBoundingClientRect();
    if (box.width < 2 || box.height < 2) continue;  // for screen readers alone
    const style = getComputedStyle(element);
    judge(element, text, element instanceof SVGElement ? style.fill : style.color);
  }}
  for (const field of document.querySelectorAll('input[placeholder], textarea[placeholder]'))
    if (!field.value && !skipped(field))
      judge(field, field.placeholder, getComputedStyle(field, '::placeholder').color);
  return faults;
}}"""
