"""The scorecard in Chromium, as wide as a phone and as a desk's window, light and dark: short,
readable, its contents always in view; on paper unfolded.
"""

from __future__ import annotations

import pytest
from conftest import BuiltStore
from page_checks import VIEWS, View, faults, height, opened, unfold
from playwright.sync_api import Browser

from assets.store.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.browser]
MOST_PIXELS = 6_000  # before unfolding, at 1,400 pixels


@pytest.fixture(scope="module")
def address(built: BuiltStore) -> str:
    store = Store(built.home)
    return (store.show(store.resolve("ci/scorecard")) / "scorecard.html").as_uri()


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_page_has_no_fault_folded_or_unfolded(chrome: Browser, address: str, view: View) -> None:
    with opened(chrome, address, view) as scorecard:
        page = scorecard.page
        assert faults(scorecard) == []
        assert view.width < 1400 or height(page) <= MOST_PIXELS
        page.mouse.wheel(0, 3_000)
        page.wait_for_function("scrollY > 1000")
        box = page.get_by_role("navigation", name="Contents").bounding_box()
        assert box is not None and box["y"] == 0 and box["height"] >= 30  # in view
        unfold(page)
        assert faults(scorecard) == []


def test_contents_unfold_what_they_lead_to(chrome: Browser, address: str) -> None:
    with opened(chrome, address, VIEWS[-1]) as scorecard:
        page = scorecard.page
        tree = page.get_by_text("├──").first
        assert not tree.is_visible()
        page.get_by_role("link", name="Lineage tree").click()
        tree.wait_for(state="visible")


def test_paper_has_everything_unfolded_on_pages_as_wide_as_they_are(
    chrome: Browser, address: str
) -> None:
    paper = View(700, "dark")  # A4 between its margins
    with opened(chrome, address, paper) as scorecard:
        page = scorecard.page
        page.emulate_media(media="print")
        folded = "[...document.querySelectorAll('details > .inside')]"
        heights = page.evaluate(f"{folded}.map(part => part.getBoundingClientRect().height)")
        assert len(heights) > 10 and min(heights) > 10
        assert not page.get_by_role("navigation").is_visible()
        # Dark ink on white, also where the window is dark.
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
            "rgb(255, 255, 255)"
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= paper.width
        assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")
