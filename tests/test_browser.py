"""The two pages, in a real browser on the built store: the recipe's graph in Dagster, its runs in
MLflow, and their links to each other.
"""

from __future__ import annotations

import shutil

import pytest
from conftest import ROOT, BuiltStore, free_port
from playwright.sync_api import Browser, expect

from assets.store.store import Store
from assets.tracking.tracking import Tracking
from docs.pictures import HOST, open_asset_graph, open_runs, serving


@pytest.mark.slow
@pytest.mark.browser
def test_dagster_page_shows_the_graph_and_its_materializations(
    built: BuiltStore,
    chrome: Browser,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    recipes = tmp_path_factory.mktemp("recipes")
    shutil.copy(
        ROOT / "tests" / "recipes" / "ci.yaml", recipes
    )  # any YAML dropped there appears as a graph
    monkeypatch.setenv("LINEAGE_RECIPES", str(recipes))
    monkeypatch.setenv("DAGSTER_HOME", str(built.home / "dagster"))
    port = free_port()
    with serving("ui", port, built.home):
        page = chrome.new_page(viewport={"width": 1500, "height": 900})
        open_asset_graph(page, f"http://{HOST}:{port}", "ci")
        for name in ("corpus", "tokenizer", "tokens", "pretrained", "zero_shot", "scorecard"):
            expect(page.get_by_text(name, exact=True).first).to_be_visible()
        page.goto(f"http://{HOST}:{port}/assets/ci/pretrained")
        expect(page.get_by_text("MLflow run").first).to_be_visible(timeout=60_000)
        artifact = Store(built.home).resolve("ci/pretrained")
        expect(page.get_by_text(artifact.fingerprint[:12]).first).to_be_visible()


@pytest.mark.slow
@pytest.mark.browser
def test_mlflow_page_shows_the_runs_and_links_back_to_dagster(
    built: BuiltStore, chrome: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(built.home / "dagster"))
    port = free_port()
    with serving("mlflow", port, built.home):
        page = chrome.new_page(viewport={"width": 1500, "height": 900})
        open_runs(page, f"http://{HOST}:{port}", "ci", built.home)
        artifact = Store(built.home).resolve("ci/pretrained")
        tracking = Tracking(built.home)
        run = tracking.run_of(artifact)
        assert run is not None
        page.goto(f"http://{HOST}:{port}/#/runs/{run}")
        (dagster_run, *_) = artifact.manifest["provenance"]["dagster_runs"]
        link = page.locator(f'a[href*="{dagster_run}"]').first
        expect(link).to_be_visible(timeout=60_000)
