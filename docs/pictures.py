"""The README's screenshots, taken from a built store: `python -m docs.pictures [RECIPE]`. The
browser tests use the same steps.

Of a recipe with `alignment` it is the chat's page; of any other the last screen of the command
line, Dagster's graph, MLflow's comparison and the scorecard.

Needs Chromium: $CHROMIUM, or chromium / google-chrome on the PATH, or one that Playwright has
installed.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from assets.graph import nodes
from assets.recipe.recipe import Recipe, load_recipe
from assets.store.store import Store
from assets.tracking.parent_run import runs_query
from assets.tracking.server import Server
from assets.tracking.tracking import Tracking
from pipelines.local_only import HOST

IMAGES = Path(__file__).parent / "images"
ANSWERING = {"ui": "server_info", "mlflow": "health", "chat": ""}  # server -> what it answers first
COLUMNS = 100  # of the terminal that is drawn
# Without these Chromium talks to the outside at every start; a machine without a way out refuses
# each try.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def chromium() -> str | None:
    """A Chromium or Chrome on this machine."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


@contextmanager
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        try:
            yield started
        finally:
            started.close()


@contextmanager
def serving(
    name: str, port: int, home: Path, seconds: float = 120, arguments: Sequence[str] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """`gpt-lineage ui`, `mlflow` or `chat`, by `name`, while it answers at `port`."""
    command = [sys.executable, "-m", "pipelines.cli", name, *arguments, "--port", str(port)]
    url = f"http://{HOST}:{port}/{ANSWERING[name]}"
    with tempfile.TemporaryFile() as out:
        server = subprocess.Popen(
            command,
            env={**os.environ, "LINEAGE_HOME": str(home), "DAGSTER_HOME": str(home / "dagster")},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + seconds
            while not _answers(url):
                if server.poll() is not None or time.monotonic() > deadline:
                    out.seek(0)
                    printed = out.read().decode(errors="replace")[-3000:]
                    raise RuntimeError(f"{' '.join(command)} does not answer at {url}:\n{printed}")
                time.sleep(0.3)
            yield server
        finally:
            server.terminate()
            try:
                server.wait(timeout=30)
            except subprocess.TimeoutExpired:
                server.kill()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:  # noqa: S310 - a loopback address
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def open_asset_graph(page: Page, base: str, recipe: str) -> None:
    """Dagster's graph of one recipe, once it no longer moves."""
    page.goto(f"{base}/locations/gpt-lineage/asset-groups/{recipe}/lineage")
    expect(page.get_by_text("pretrained", exact=True).first).to_be_visible(timeout=60_000)
    expect(page.get_by_text("scorecard", exact=True).first).to_be_visible(timeout=60_000)
    page.wait_for_timeout(2500)
    assert page.viewport_size
    width, height = page.viewport_size["width"], page.viewport_size["height"]
    page.mouse.move(width * 0.57, height * 0.55)  # the middle of the graph
    page.keyboard.down("Control")
    # The assets at the ends of the graph.
    outer = [page.get_by_text(name, exact=True).first for name in ("corpus", "zero_shot")]
    for _ in range(10):  # zoom out until they are in view, and once more
        in_view = all(asset.is_visible() for asset in outer)
        page.mouse.wheel(0, 60)
        page.wait_for_timeout(300)
        if in_view:
            break
    page.keyboard.up("Control")
    page.wait_for_timeout(1000)


def open_runs(page: Page, base: str, recipe: str, home: Path) -> None:
    """MLflow's runs of one recipe, newest first: the first build's with its stages below it."""
    page.goto(f"{base}/#/experiments/{Server(home).experiment(recipe)}/runs")
    page.locator('[data-component-id*="runnamecellrenderer"]').first.click(timeout=60_000)
    expect(page.get_by_text("pretrained").first).to_be_visible(timeout=60_000)
    page.wait_for_timeout(2500)


def open_comparison(page: Page, base: str, recipe: str, home: Path, names: Sequence[str]) -> None:
    """What a build's description in MLflow calls "fine-tunings compared", of these artifacts."""
    store, tracking = Store(home), Tracking(home)
    runs = [f"'{tracking.run_of(store.resolve(f'{recipe}/{name}'))}'" for name in names]
    query = runs_query(f"run_id IN ({', '.join(runs)})", "CHART", "metrics.`eval/accuracy`")
    page.goto(f"{base}/#/experiments/{Server(home).experiment(recipe)}/runs?{query}")
    expect(page.get_by_text("eval/accuracy_low", exact=True).first).to_be_visible(timeout=60_000)
    page.wait_for_timeout(1500)
    if (
        assistant := page.locator('[data-component-id="mlflow.assistant.chat_panel.close"]')
    ).count():
        assistant.click()
    page.wait_for_timeout(1500)


def draw_terminal(command: Sequence[str], home: Path, target: Path) -> None:
    """What `gpt-lineage COMMAND` prints in a terminal, as an SVG that loads nothing."""
    printed = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *command],
        env={**os.environ, "LINEAGE_HOME": str(home), "FORCE_COLOR": "1", "COLUMNS": str(COLUMNS)},
        capture_output=True,
        check=True,
    ).stdout.decode()
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(f"[bold]$ gpt-lineage {' '.join(command)}[/bold]", highlight=False)
    console.print(Text.from_ansi(printed.replace(str(home), "lineage")))
    # rich's own format loads its font from elsewhere
    drawing = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    title = f"gpt-lineage {' '.join(command)}"
    console.save_svg(str(target), title=title, code_format=drawing, unique_id="terminal")


def say(page: Page, text: str) -> None:
    """On the chat's page, to every model."""
    box = page.get_by_label("Message", exact=True)
    box.fill(text)
    box.press("Enter")


def main() -> int:
    recipe = load_recipe(sys.argv[1] if len(sys.argv) > 1 else "tiny")
    IMAGES.mkdir(exist_ok=True)
    with browser() as chrome:
        screenshot = _screenshot_chat if recipe.alignment else _screenshot_pages
        screenshot(chrome, recipe, Store.default_home())
    pictures = sorted([*IMAGES.glob("*.png"), *IMAGES.glob("terminal.svg")])
    print("written:", ", ".join(str(path.relative_to(IMAGES.parent.parent)) for path in pictures))
    return 0


def _screenshot_pages(chrome: Browser, recipe: Recipe, home: Path) -> None:
    store = Store(home)
    draw_terminal(["run", recipe.name], home, IMAGES / "terminal.svg")
    with serving("ui", 3100, home):
        page = chrome.new_page(viewport={"width": 1600, "height": 1250})
        open_asset_graph(page, f"http://{HOST}:3100", recipe.name)
        page.screenshot(path=IMAGES / "asset-graph.png")
    with serving("mlflow", 5100, home):
        page = chrome.new_page(viewport={"width": 1500, "height": 1050})
        tasks = [node.name for node in nodes(recipe) if node.name.startswith("finetuned/")]
        open_comparison(page, f"http://{HOST}:5100", recipe.name, home, tasks)
        page.screenshot(path=IMAGES / "mlflow-comparison.png")
    page = chrome.new_page(viewport={"width": 1400, "height": 900})
    page.goto((store.show(store.resolve(f"{recipe.name}/scorecard")) / "scorecard.html").as_uri())
    page.screenshot(path=IMAGES / "scorecard.png")


def _screenshot_chat(chrome: Browser, recipe: Recipe, home: Path) -> None:
    models = [f"{recipe.name}/{name}" for name in ("aligned", "policy_init")]
    arguments = [*models, "--browser", "--endpoint-port", "8100"]
    with serving("chat", 7900, home, arguments=arguments):
        page = chrome.new_page(viewport={"width": 1300, "height": 600})
        page.goto(f"http://{HOST}:7900")
        expect(page.get_by_text("Ask something")).to_be_visible(timeout=60_000)
        say(page, "Write one sentence of a film review.")
        expect(page.get_by_role("button", name="A is better")).to_be_visible(timeout=120_000)
        page.wait_for_timeout(1000)  # it scrolls
        page.screenshot(path=IMAGES / "chat.png")


if __name__ == "__main__":
    sys.exit(main())
