"""The checks of pages find what they are for, on a page that has every fault and on one that has
none.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from page_checks import View, faults, height, opened, unfold
from playwright.sync_api import Browser

pytestmark = [pytest.mark.browser]
BAD = """<!doctype html><html><body>
<h2>No h1</h2><h4>Two levels down</h4>
<p style="color: #999">pale</p><p style="opacity: 0.3">thin</p>
<p style="color: white; visibility: hidden">not seen</p>
<button disabled style="color: #eee">off</button>
<img src="https://example.com/a.png"><button></button><a href="#"></a>
<input placeholder="no label, but this" style="width: 2000px">
<svg width="60" height="20"><text y="12" fill="#ccc">drawn</text></svg>
<details><summary>more</summary><p style="color: #eee">folded</p></details>
</body></html>"""
GOOD = """<!doctype html><html lang="en"><head><title>Good</title>
<meta name="viewport" content="width=device-width"><style>
:root { color-scheme: light dark } details p { color: light-dark(#555, #bbb) }</style></head><body>
<h1>One</h1><h2>Two</h2><h3>Three</h3><h2>Two again</h2>
<img src="data:," alt="a curve"><svg role="img" aria-label="a plot" width="60" height="20">
<text y="12" fill="currentColor">drawn</text></svg><label>Name <input></label>
<div style="overflow-x: auto"><div style="width: 2000px">wide, in a box that scrolls</div></div>
<details><summary>more</summary><p>folded</p></details></body></html>"""


def test_every_fault_of_a_page_is_found(chrome: Browser, tmp_path: Path) -> None:
    (file := tmp_path / "bad.html").write_text(BAD, encoding="utf-8")
    with opened(chrome, file.as_uri(), View(400, "light")) as bad:
        folded = faults(bad)
        unfold(bad.page)
        unfolded = set(faults(bad)) - set(folded)
    beginnings = (
        "asks for https://example.com/a.png",
        "the document has no title",
        "the document has no language",
        "the document has no viewport",
        "input reaches 2",
        "contrast 2.85 of p: 'pale'",
        "contrast 1.",
        "a image has no name",
        "a button has no name",
        "a link has no name",
        "not one h1",
        "h2 'No h1' follows h0",
        "h4 'Two levels down' follows h2",
    )
    missing = [
        begins for begins in beginnings if not any(fault.startswith(begins) for fault in folded)
    ]
    assert missing == []
    texts = {fault.split("'")[1] for fault in folded if fault.startswith("contrast ")}
    assert texts == {"pale", "thin", "drawn"}
    assert [fault.split("'")[1] for fault in unfolded] == ["folded"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_in_order_has_no_fault(chrome: Browser, tmp_path: Path, scheme: str) -> None:
    (file := tmp_path / "good.html").write_text(GOOD, encoding="utf-8")
    view = View(400, scheme)
    with opened(chrome, file.as_uri(), view) as good:
        unfold(good.page)
        assert faults(good) == []
        assert height(good.page) == view.height  # no longer than its window
