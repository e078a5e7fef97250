"""What the command line writes is whole and fit for other programs: wide tables, strict JSON, any
locale.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, environment_of, write_local_recipe
from rich.table import Table
from typer.testing import CliRunner

from assets.store.manifest import Facts
from assets.store.store import Store
from pipelines.cli.common import print_rich
from pipelines.cli.main import app


def test_table_wider_than_the_terminal_is_not_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich's sign for a terminal
    table = Table(box=None, show_header=False)
    for _ in range(4):
        table.add_column(min_width=30)
    table.add_row("score", "0.5" * 10, "chance " * 4, "worse")
    print_rich(table)
    [line] = capsys.readouterr().out.splitlines()
    assert line.split() == ["score", "0.5" * 10, *["chance"] * 4, "worse"]


def test_json_is_strict_where_a_metric_is_no_number(tmp_path: Path) -> None:
    store = Store(tmp_path / "lineage")
    building = store.building(store.fingerprint("corpus", "1", {}, {}))
    (building.files / "index.json").write_text("{}")
    metrics = {"loss": math.nan, "reward": -math.inf, "documents": 3.0}
    git = {"commit": None, "dirty": False}
    provenance = {"ended": "2026-01-01T00:00:00.000+00:00", "git": git}
    store.publish(building, Facts("corpus", "1", {}, {}, metrics, provenance), {})
    store.set_ref("local", "corpus", building.fingerprint)
    result = CliRunner().invoke(
        app,
        ["show", "local/corpus", "--json"],
        env={"LINEAGE_HOME": str(store.home)},
        catch_exceptions=False,
    )

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    shown = json.loads(result.stdout, parse_constant=refuse)
    assert shown["metrics"] == {"loss": None, "reward": None, "documents": 3.0}


BUILD_CORPUS = """
import os, sys; from pathlib import Path; from conftest import build_stages
os.environ["LINEAGE_HOME"] = sys.argv[2]  # conftest takes a shell's out
build_stages(Path(sys.argv[1]), Path(sys.argv[2]), ("corpus",))
"""


@pytest.mark.slow
def test_a_locale_without_utf_8_builds_and_shows_the_same(home: Path, downloads: Path) -> None:
    path = write_local_recipe(home.parent)
    (home.parent / "notes" / "größe.txt").write_text("Größe ✓ 中文\n" * 99, encoding="utf-8")
    text = path.read_text().replace("CC0-1.0", "Größe ✓ 中文", 1)
    path.write_text(text, encoding="utf-8")
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}

    def call(*arguments: str, **locale: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT / "tests",
            env={**environment_of(home, downloads), "PYTHONPATH": str(ROOT), **locale},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.decode("ascii" if locale else "utf-8")

    call("-c", BUILD_CORPUS, str(path), str(home), **ascii_only)
    show = ("-m", "pipelines.cli", "show", "local/corpus")
    assert r"Gr\xf6\xdfe \u2713 \u4e2d\u6587" in call(*show, **ascii_only)
    assert "Größe ✓ 中文" in call(*show)
    assert json.loads(call(*show, "--json", **ascii_only)) == json.loads(call(*show, "--json"))
