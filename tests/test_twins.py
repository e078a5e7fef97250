"""The tiny GPT-1 and GPT-3, with every experiment of GPT-1's paper, cut down and built as a person
would. GPT-2's: ci.yaml.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, run_cli
from filelock import FileLock

from assets.recipe.profile import load_profile
from assets.recipe.recipe import load_recipe
from assets.store.provenance import seconds_spent
from assets.store.store import Store
from gpt_model.experiments.document import ONE_RUN, read_document
from pipelines.cli.plan import plan_of

pytestmark = pytest.mark.slow

RECIPES = ROOT / "tests" / "recipes"
TWINS = ("gpt1-ci", "gpt3-ci")


class Twins:
    """A store with both in it."""

    def __init__(self, home: Path, downloads: Path) -> None:
        self.home, self.downloads, message = home, downloads, home.parent / "said.txt"
        with FileLock(home.parent / "lock"):
            if not message.exists():
                printed = ""
                for name in TWINS:
                    done = run_cli(home, downloads, "run", str(RECIPES / f"{name}.yaml"))
                    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
                    printed += done.stdout
                message.write_text(printed)

    def artifact(self, ref: str) -> Path:
        """The folder of an artifact's files."""
        fingerprint = json.loads((self.home / "refs" / ref).read_text())["fingerprint"]
        return self.home / "artifacts" / fingerprint / "files"

    def metrics(self, ref: str) -> dict[str, float]:
        result: dict[str, float] = json.loads(
            (self.artifact(ref).parent / "artifact.json").read_text()
        )["metrics"]
        return result


@pytest.fixture(scope="session")
def twins(tmp_path_factory: pytest.TempPathFactory, downloads: Path) -> Twins:
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "twins"
    folder.mkdir(exist_ok=True)
    return Twins(folder / "lineage", downloads)


EXPERIMENTS = ("layers_transferred", "ablations", "zero_shot_dynamics", "visible_context", "depth")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_has_its_plots_its_tables_and_its_section_in_the_scorecard(
    twins: Twins, name: str
) -> None:
    folder = twins.artifact(f"gpt1_ci/experiments/{name}")
    document = read_document(folder)
    assert (
        document.source.startswith("GPT-1")
        and document.tables
        and document.plots
        and document.summary
    )
    assert all(series.low and series.high for plot in document.plots for series in plot.series), (
        "a curve without intervals"
    )
    assert len(list((folder.parent / "show").glob("*.png"))) == len(document.plots)
    page = (twins.artifact("gpt1_ci/scorecard").parent / "show" / "scorecard.md").read_text()
    assert document.title in page and all(sentence in page for sentence in document.summary)
    assert (ONE_RUN in document.summary) == (name in ("ablations", "zero_shot_dynamics"))
    assert name != "depth" or "Means of 2 seeds a depth" in document.tables[0].caption


def test_an_experiments_many_models_have_one_score_each_on_the_scorecard_and_the_recipes_own_has_all(
    twins: Twins,
) -> None:
    page = (twins.artifact("gpt1_ci/scorecard").parent / "show" / "scorecard.md").read_text()
    scores = page.split("\n## Scores", 1)[1].split("\n## ", 1)[0]
    assert (
        scores.count("bits per byte, plays") == 1
        and scores.count("bits per byte, by mixture") == 1 + 4 + 1
    )  # depth's four, the LSTM


def test_both_are_planned_within_six_minutes_and_what_they_took_is_recorded(
    twins: Twins, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """The estimate by default rates is the same on every machine; what was measured goes into the
    report and is not held against anyone.
    """
    store, profile = Store(tmp_path), load_profile("cpu")
    recipes = [load_recipe(str(RECIPES / f"{name}.yaml")) for name in TWINS]
    plans = [plan_of(recipe, RECIPES, profile, store) for recipe in recipes]
    assert sum(plan["seconds"]["expected"] for plan in plans) < 360
    spent = {}
    for path in sorted((twins.home / "artifacts").glob("*/artifact.json")):
        made = json.loads(path.read_text())["provenance"]
        spent[made["asset"]] = seconds_spent(made)
    assert {stage["asset"] for plan in plans for stage in plan["stages"]} >= set(spent)
    assert min(spent.values()) > 0
    for asset, seconds in {**spent, "in all": sum(spent.values())}.items():
        record_property(f"seconds of {asset}", round(seconds, 1))


def test_figure_2_left_has_a_point_for_every_number_of_layers_and_its_slope_an_interval(
    twins: Twins,
) -> None:
    document = read_document(twins.artifact("gpt1_ci/experiments/layers_transferred"))
    assert document.plots[0].series[0].x == [0, 1, 2]
    metrics = twins.metrics("gpt1_ci/experiments/layers_transferred")
    assert metrics["slope_low"] <= metrics["slope"] <= metrics["slope_high"]


def test_figure_2_right_has_both_networks_at_every_snapshot(twins: Twins) -> None:
    document = read_document(twins.artifact("gpt1_ci/experiments/zero_shot_dynamics"))
    assert [plot.title for plot in document.plots] == [
        "zero-shot scores of the Transformer",
        "zero-shot scores of the LSTM",
    ]
    for plot in document.plots:
        assert [series.label for series in plot.series] == [
            "sentiment",
            "acceptability",
            "pronouns",
            "questions",
        ]
        assert all(len(series.x) == 3 and series.x == sorted(series.x) for series in plot.series)
    index = json.loads(
        (twins.artifact("gpt1_ci/pretrained") / "snapshots" / "index.json").read_text()
    )
    assert [snapshot["tokens"] for snapshot in index["snapshots"]] == document.plots[0].series[0].x


def test_table_5_has_its_four_rows_and_the_papers_beside_them(twins: Twins) -> None:
    document = read_document(twins.artifact("gpt1_ci/experiments/ablations"))
    text = json.dumps([table.rows for table in document.tables])
    for row in ("LSTM", "74.7", "59.9", "75.0", "69.1"):
        assert row in text, row


def test_gpt3_was_ramped_up_and_asked_with_demonstrations(twins: Twins) -> None:
    metrics = twins.metrics("gpt3_ci/pretrained")
    assert metrics["steps"] > 80_000 // 2048  # smaller batches at first, so more of them
    rows: list[dict[str, Any]] = json.loads(
        (twins.artifact("gpt3_ci/zero_shot") / "results.json").read_text()
    )["rows"]
    results = {(row["task"], row.get("shots")) for row in rows if row["suite"] == "gpt3_arithmetic"}
    assert {shots for _, shots in results} == {"zero", "one", "few"} and len(results) == 30
    (missing,) = [row for row in rows if "not_run" in row]
    assert missing["suite"] == "gpt3_lambada" and "hub" in missing["not_run"]


def test_both_are_loaded_by_transformers_once_exported(twins: Twins, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for recipe, name in (("gpt1_ci", "OpenAIGPTLMHeadModel"), ("gpt3_ci", "GPTNeoForCausalLM")):
        done = run_cli(
            twins.home, twins.downloads, "export", f"{recipe}/pretrained", str(tmp_path / recipe)
        )
        assert done.returncode == 0, done.stdout + done.stderr
        model = AutoModelForCausalLM.from_pretrained(tmp_path / recipe)
        tokens = AutoTokenizer.from_pretrained(tmp_path / recipe)(
            "The king has come.", return_tensors="pt"
        )
        assert type(model).__name__ == name
        assert (
            model.generate(tokens["input_ids"], max_new_tokens=5, do_sample=False).shape[1]
            == tokens["input_ids"].shape[1] + 5
        )
