"""The README holds what it shows. The documentation site: it builds strictly, its reference has every key and every command, and a
reader's browser asks nobody but the site.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from page_checks import VIEWS, View, faults, opened
from playwright.sync_api import Browser
from typer.main import get_command

from assets.graph import check, nodes
from assets.recipe.depth import DepthSection
from assets.recipe.profile import Profile, load_profile
from assets.recipe.recipe import Recipe, load_recipe
from docs.badges import badges
from docs.generate_reference import keys_of, pages, tree
from gpt_model.evaluation.suites import TaskMetadata
from gpt_model.finetuning.entry import TaskEntry
from gpt_model.sizing import Rules
from pipelines.cli.main import MODULES, app

ROOT = Path(__file__).resolve().parent.parent
FILES = (Recipe, Profile, DepthSection, Rules, TaskEntry, TaskMetadata)


README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_what_fits_stands_beside_the_shipped_profiles() -> None:
    text = pages()["reference/shipped.md"].partition("## What fits")[2]
    rows = re.findall(r"^\| `((?:gpt|instructgpt-)[\w.-]+)`(, PPO)? \|(.*)\|$", text, re.M)
    assert len(rows) == 13 + 2 * 3, rows
    for _, _, cells in rows:
        assert all(re.fullmatch(r" [\d,]+\.\d GB(, no)? ", cell) for cell in cells.split("|"))


def test_readme_is_short_and_in_a_newcomers_order() -> None:
    assert len(README.split()) <= 1_400
    assert re.findall(r"^## (.*)", README, re.M) == [
        "What you get that others do not give",
        "Two commands",
        "One recipe",
        "Your own text, your own CSV",
        "One GPU, eight GPUs, several machines",
        "What it promises",
        "Where to read on",
    ]
    assert "use instead" in README.lower()


def test_readmes_links_and_pictures_are_files_of_the_repository() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / target).is_file(), target
    for name, svg in badges().items():
        assert (ROOT / "docs" / "images" / name).read_text(encoding="utf-8") == svg


@pytest.mark.parametrize("page", [Path("README.md"), *sorted(Path("docs").rglob("*.md"))], ids=str)
def test_commands_that_a_page_shows_exist(page: Path) -> None:
    """Every `make …` is a target, and every command has the options that stand behind it."""
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert set(re.findall(r"(?:^    |`)make ([\w-]+)", text, re.M)) <= set(targets)
    commands = get_command(app).commands
    for name, rest in re.findall(r"(?:^    |`)gpt-lineage (\w+)([^`#\n]*)", text, re.M):
        options = {flag for parameter in commands[name].params for flag in parameter.opts}
        assert set(re.findall(r"(?<= )--[\w-]+", rest)) <= options, f"{name}{rest}"


def test_what_the_readme_shows_of_yaml_is_what_the_program_reads(tmp_path: Path) -> None:
    plays, mine, task, profile = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    (tmp_path / "texts").mkdir()
    (tmp_path / "data").mkdir()
    for number in range(20):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"Text {number}. " * 50)
    rows = [f"note {number},{'happy' if number % 2 else 'unhappy'}" for number in range(60)]
    (tmp_path / "data" / "visits.csv").write_text("\n".join(["note,outcome", *rows]))
    (tmp_path / "visits.yaml").write_text(task)
    visits = "extends: tiny\nname: visits\nfinetuning: {tasks: [visits.yaml]}\n"
    for name, text in {"plays": plays, "mine": mine, "visits": visits}.items():
        (path := tmp_path / f"{name}-recipe.yaml").write_text(text)
        recipe = load_recipe(str(path))
        assert recipe.name == name
        check(nodes(recipe), tmp_path)
    for name in ("mine", "visits"):  # "six lines each"
        assert len({"mine": mine, "visits": task}[name].splitlines()) <= 6
    (tmp_path / "gpu8.yaml").write_text(profile)
    assert load_profile(str(tmp_path / "gpu8.yaml")).processes == 8


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr  # a dead link is among the warnings
    return folder


def test_every_key_has_a_description_and_a_type() -> None:
    sections = {section for file in FILES for _, section in tree(file)} | set(FILES)
    unexplained = [
        f"{section.__name__}.{key.name}"
        for section in sections
        for key in keys_of(section, {each: "" for each in sections})
        if key.meaning.startswith(". ") or not key.meaning or key.kind == "any value"
    ]
    assert unexplained == []


def test_reference_has_every_command_and_every_section() -> None:
    reference = pages()
    commands = re.findall(r"^## `gpt-lineage (\S+)`$", reference["reference/command-line.md"], re.M)
    assert commands == list(MODULES)
    for section in Recipe.model_fields:
        assert f"| `{section}` |" in reference["reference/recipe.md"]


@pytest.mark.slow
def test_site_builds_strictly_and_names_no_address_that_a_page_would_load(site: Path) -> None:
    loaded = re.compile(
        r"<(?:script|img|iframe|source)[^>]*\ssrc=[\"']?((?:https?:)?//[^\"' >]+)"
        r"|<link[^>]*\shref=[\"']?((?:https?:)?//[^\"' >]+)|url\([\"']?((?:https?:)?//[^)]+)"
    )
    outside = {
        f"{path.relative_to(site)}: {match.group(0)[:120]}"
        for path in site.rglob("*.*")
        if path.suffix in (".html", ".css")
        for match in loaded.finditer(path.read_text(encoding="utf-8"))
    }
    assert outside == set()
    assert not list(site.rglob("*.py"))


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_pages_are_readable_and_ask_nobody_outside(chrome: Browser, site: Path, view: View) -> None:
    paths = ["reference/recipe.html", "tutorials/own-task.html"]
    found = {}
    for path in paths:
        with opened(chrome, (site / path).as_uri(), view) as page:
            found[path] = faults(page)
    assert found == {path: [] for path in paths}
