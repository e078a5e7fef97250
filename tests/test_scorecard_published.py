"""The pages of the generations: ours stand beside the paper's only in rows of the same protocol, and never as a bare number."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import BuiltStore
from test_experiment_page import DOCUMENT
from test_scorecard import Card, Page

from assets import experiment_page, scorecard
from assets.contract import NOT_RUN, Built
from assets.resources.store import Store
from assets.scorecard_page import Section, Table
from assets.scorecard_published import OURS, beside_the_paper, reproductions
from assets.scorecard_scores import NotRun, Score, collect, test_split
from gpt_model.published import references
from gpt_model.tasks.entry import TaskEntry

NUMBER = r"-?[\d.,]+(e[+-]\d+)?"
INTERVAL = re.compile(rf"{NUMBER} – {NUMBER}")
OURS_CELL = re.compile(rf"{NUMBER} \({INTERVAL.pattern}\)( · {NUMBER} \({INTERVAL.pattern}\))*")
ON_CELL = re.compile(r"[\d,]+ (examples|tokens), (held out|test|validation|training and validation|all splits)")
LAMBADA = Score(
    "tiny/zero_shot", "f" * 64, "last_word acc", 0.1234, 0.101, 0.149, examples=500, split="test",
    published={"task": "LAMBADA", "metric": "acc"}, paper="gpt2",
)  # fmt: skip
test_split.__test__ = False  # type: ignore[attr-defined]  # a function of the scorecard, whatever its name begins with


@pytest.fixture(scope="module")
def card(built: BuiltStore) -> Card:
    store = Store(built.home)
    artifact = store.resolve("ci/scorecard")
    return Card(store, artifact, store.show(artifact))


def row(section: Section, source: str, *cells: str) -> dict[str, str]:
    """The row of a published table that begins with `cells`."""
    (table,) = [one for one in section.tables if isinstance(one, Table) and one.title.endswith(source)]
    (found,) = [one for one in table.rows if tuple(one[: len(cells)]) == cells]
    return dict(zip(table.columns, found, strict=True))


def test_ours_stand_in_the_paper_s_unit_with_interval_size_and_split_beside_every_size() -> None:
    section = beside_the_paper("gpt2", "a small one", [LAMBADA], [])
    found = row(section, "table 3", "LAMBADA", "acc, %")
    assert (found[OURS[0]], found[OURS[1]]) == ("12.34 (10.10 – 14.90)", "500 examples, test")
    assert (found["gpt2-small"], found["gpt2-xl"], found["best before"]) == ("45.99", "63.24", "59.23")
    percent = replace(LAMBADA, scale="%", value=12.34, low=10.1, high=14.9)
    assert row(beside_the_paper("gpt2", "", [percent], []), "table 3", "LAMBADA", "acc, %")[OURS[0]] == "12.340 (10.100 – 14.900)"
    assert "a small one" in section.intro


def test_what_was_not_run_says_so_with_its_reason_and_what_was_not_asked_for_says_that() -> None:
    missing = NotRun("tiny/zero_shot", "f" * 64, "cbt", "the hub did not answer", ({"task": "CBT-CN", "metric": "acc"},), "gpt2")
    section = beside_the_paper("gpt2", "", [LAMBADA], [missing])
    assert row(section, "table 3", "CBT-CN", "acc, %")[OURS[1]] == "the hub did not answer"
    assert row(section, "table 3", "CBT-NE", "acc, %")[OURS[1]] == "not in the recipe"
    assert {row(section, "table 3", name)[OURS[0]] for name in ("CBT-CN", "CBT-NE", "PTB")} == {"not run here"}


def test_shots_stand_in_their_own_rows() -> None:
    few_shot = [replace(LAMBADA, paper="gpt3", value=v, low=v - 0.01, high=v + 0.01, shots=s) for v, s in ((0.5, "zero"), (0.3, "one"))]
    section = beside_the_paper("gpt3", "", [*few_shot, replace(LAMBADA, paper="gpt3", shots="few")], [])
    found = {shots: row(section, "table H.1", "LAMBADA", "acc, %", shots) for shots in ("zero", "one", "few")}
    assert {shots: one[OURS[0]].split()[0] for shots, one in found.items()} == {"zero": "50.00", "one": "30.00", "few": "12.34"}
    assert (found["zero"]["gpt3-175b"], found["one"]["gpt3-large"]) == ("76.2", "52.6 (unverified)")
    few = replace(LAMBADA, shots="few")  # a table that says nothing of shots has none of ours with demonstrations
    assert row(beside_the_paper("gpt2", "", [few], []), "table 3", "LAMBADA", "acc, %")[OURS[0]] == "not run here"


def test_another_paper_s_protocol_of_the_same_name_does_not_stand_on_the_page() -> None:
    section = beside_the_paper("gpt3", "", [LAMBADA], [])
    assert row(section, "table H.1", "LAMBADA", "acc, %", "zero")[OURS[0]] == "not run here"


def test_a_score_of_no_published_protocol_is_named_with_what_it_is_and_no_number_of_a_paper() -> None:
    own = replace(LAMBADA, published=None, paper=None, note="LAMBADA's protocol on this corpus's held-out text; not the LAMBADA data")
    section = beside_the_paper("gpt2", "", [own], [])
    assert isinstance(last := section.tables[-1], Table) and last.title.startswith("measured otherwise")
    assert last.rows == [["tiny/zero_shot", "last_word acc", own.note]]
    assert row(section, "table 3", "LAMBADA", "acc, %")[OURS[0]] == "not run here"


@pytest.mark.parametrize("lacking", [{"low": None, "high": None}, {"split": ""}, {"examples": None}])
def test_a_number_without_interval_split_or_size_is_not_shown(lacking: dict[str, Any]) -> None:
    score = replace(LAMBADA, value=0.98765, **lacking)
    section = beside_the_paper("gpt2", "", [score], [])
    headline = scorecard.headline([score], [])
    shown = "".join(table.markdown() for table in (*section.tables, headline))
    assert "0.988" not in shown and "98.7" not in shown and headline.rows[0][2] == "no interval"


@pytest.mark.parametrize("generation", ["gpt1", "gpt2", "gpt3"])
def test_every_published_number_of_a_generation_is_on_its_page_under_its_source_and_says_how_sure_it_is(generation: str) -> None:
    pages = {"paper": beside_the_paper(generation, "", [], []), "reproduction": reproductions(generation, [])}
    for role, section in pages.items():
        cells = {table.title: [cell for one in table.rows for cell in one] for table in section.tables if isinstance(table, Table)}
        for reference in references(generation=generation, role=role):  # type: ignore[arg-type]
            assert reference.printed in cells[reference.source], reference
            assert reference.sure != "memory" or "(unverified)" in reference.printed
    assert len(references(generation=generation, role="paper")) > 50


def test_a_reproduction_measured_as_ours_has_ours_beside_it() -> None:
    ours = replace(LAMBADA, name="lambada_openai acc", published={"task": "lambada_openai", "metric": "acc"}, paper=None)
    found = row(reproductions("gpt2", [ours]), "issue 2159", "lambada_openai", "acc, share")
    assert found[OURS[0]] == "0.123 (0.101 – 0.149)" and found["gpt2-small"] == "0.3256 ± .0065"


def test_headline_has_columns_of_shots_and_overlap_only_where_a_suite_has_them() -> None:
    assert {"shots", "K", "8-grams seen"}.isdisjoint(scorecard.headline([LAMBADA], []).columns)
    table = scorecard.headline([replace(LAMBADA, shots="few", k="4.5 of 15", overlap=2.357), LAMBADA], [])
    place = table.columns.index("shots")
    assert table.columns[place : place + 3] == ["shots", "K", "8-grams seen"]
    assert [one[place : place + 3] for one in table.rows] == [["few", "4.5 of 15", "2.36 %"], ["", "", ""]]


def test_rows_of_the_headline_stay_with_their_artifact() -> None:
    missing = NotRun("a", "f" * 64, "cbt", "why")
    rows = scorecard.headline([replace(LAMBADA, asset="a"), replace(LAMBADA, asset="b")], [missing]).rows
    assert [one[:3] for one in rows] == [["a", "last_word acc", "0.123"], ["a", "cbt", "not run here"], ["b", "last_word acc", "0.123"]]
    assert rows[1][-2] == "why"


def test_every_number_of_ours_on_the_built_page_has_interval_split_and_size(card: Card) -> None:
    page = Page(card.html)
    columns, *rows = page.tables[0]
    bare = [cells for cells in rows if len(cells) > 1 and cells[1] not in ("no interval", "not run here")
            and not (INTERVAL.fullmatch(cells[2]) and ON_CELL.fullmatch(cells[columns.index("on")]))]  # fmt: skip
    assert len(rows) > 15 and not bare
    beside = [table for table in page.tables if OURS[0] in table[0]]
    assert beside  # the paper's tables
    for head, *body in beside:
        place = head.index(OURS[0])
        for cells in body:
            assert cells[place] == "not run here" or (OURS_CELL.fullmatch(cells[place]) and ON_CELL.match(cells[place + 1])), cells
    assert card.html.count("GPT-2 (Radford et al. 2019), table 3") == 1 and "GPT-2: ours beside the paper" in card.html


def test_public_data_that_cannot_be_had_and_published_rows_are_read_from_an_evaluation(card: Card, tmp_path: Path) -> None:
    zero_shot = card.inputs()["zero_shot"]
    metadata = {"version": 1.0, "data": {"builder": "labelled", "task": "boolq", "splits": ["validation"]},
                "published": {"acc": {"task": "BoolQ", "metric": "acc"}}}  # fmt: skip
    keys = {"task": "yes_no", "output_type": "multiple_choice", "doc_to_text": "x", "doc_to_choice": "options", "doc_to_target": "label",
            "metric_list": [{"metric": "acc"}], "metadata": metadata}  # fmt: skip
    known = {"suite": "gpt3_made", "task": "yes_no", "metric": "acc", "value": 0.5, "low": 0.4, "high": 0.6, "baseline": "",
             "baseline_value": None, "examples": 90, "note": "90 of 100 examples", "lower_is_better": False,
             "shots": "few", "demonstrations": {"asked": 15, "fewest": 2, "mean": 4.52}, "overlap_percent": 1.5}  # fmt: skip
    (tmp_path / "results.json").write_text(json.dumps({"rows": [known, {"suite": "gpt3_made", "task": "yes_no", "not_run": "no hub"}]}))
    fake = replace(zero_shot, path=tmp_path, config={"suites": {"gpt3_made": keys}})
    (score,), (missing,) = collect("ci", {"zero_shot": fake, "corpus": card.inputs()["corpus"]})
    assert (score.split, score.published, score.paper) == ("validation", {"task": "BoolQ", "metric": "acc"}, "gpt3")
    assert (score.shots, score.k, score.overlap, score.note) == ("few", "4.5 of 15", 1.5, "90 of 100 examples")
    assert (missing.reason, missing.published, missing.paper) == ("no hub", ({"task": "BoolQ", "metric": "acc"},), "gpt3")


def test_a_fine_tuned_task_stands_in_the_paper_s_row_or_says_why_it_was_not_run(card: Card, tmp_path: Path) -> None:
    task = card.inputs()["finetuned/sentiment"]
    source = {**task.config["source"], "published": {"task": "SST-2", "metric": "accuracy"}}
    known = replace(task, config={**task.config, "source": source})
    scores, _ = collect("ci", {"finetuned/sentiment": known})
    found = row(beside_the_paper("gpt1", "", scores, []), "tables 2, 3 and 4", "SST-2", "accuracy, %")
    assert found[OURS[0]].startswith(f"{100 * task.metrics['accuracy']:.2f} (") and found["gpt1"] == "91.3"
    assert found[OURS[1]].startswith(f"{int(task.metrics['test_examples']):,} examples, test")
    (tmp_path / NOT_RUN).write_text(json.dumps({"not_run": "its authors give it on request"}))
    scores, missing = collect("ci", {"finetuned/sentiment": replace(known, path=tmp_path, metrics={"not_run": 1.0})})
    found = row(beside_the_paper("gpt1", "", scores, missing), "tables 2, 3 and 4", "SST-2", "accuracy, %")
    assert (scores, found[OURS[0]], found[OURS[1]]) == ([], "not run here", "its authors give it on request")


def test_the_split_that_a_task_is_tested_on_has_its_owners_name() -> None:
    base = {"licence": "CC0", "form": "classification", "columns": {"text": "t", "label": "l"}, "labels": ["a", "b"]}
    hub = {"hub": "a/b", "revision": "main", "splits": {"training": "train", "test": {"matched": "validation_matched", "other": "x"}}}
    entry = TaskEntry.model_validate({**base, "source": hub})
    assert (test_split(entry), test_split(entry, "matched")) == ("validation_matched and x", "validation_matched")
    entry = TaskEntry.model_validate({**base, "source": {"file": {"training": "a.csv", "test": "rows/b.csv"}}})
    assert test_split(entry) == "test of b.csv"


def test_an_experiment_is_drawn_on_the_page_from_its_data(card: Card, tmp_path: Path) -> None:
    fingerprint, like = "e" * 64, card.inputs()["finetuned/sentiment"]
    files = tmp_path / "lineage" / "artifacts" / fingerprint / "files"
    files.mkdir(parents=True)
    experiment_page.write(files, DOCUMENT)
    manifest = {**like.manifest, "fingerprint": fingerprint, "inputs": []}
    (files.parent / "artifact.json").write_text(json.dumps(manifest))
    shutil.copy(like.path.parent / "gate.json", files.parent)
    experiment = replace(like, path=files, stage="layers_transferred", fingerprint=fingerprint, manifest=manifest)
    inputs = {**card.inputs(), "experiments/layers_transferred": experiment}
    (output := tmp_path / "files").mkdir()
    (folder := tmp_path / "show").mkdir()
    metrics = scorecard.run(card.artifact.config, inputs, output, progress=None)  # type: ignore[arg-type]
    scorecard.show(Built(card.artifact.config, inputs, output, metrics, {}, []), folder)
    page = (folder / "scorecard.md").read_text(encoding="utf-8").split("## ci/experiments/layers_transferred\n")[1].split("\n## ")[0]
    assert DOCUMENT["summary"][0] in page and "| 1,234 | 0.7346 |" in page and "GPT-1, figure 2 left" in page
    (picture,) = re.findall(r"\]\((pictures/[^)]+)\)", page)
    assert (folder / picture).read_bytes().startswith(b"\x89PNG") and picture.endswith("1_sentiment.png")
    assert sum("experiments/layers_transferred" in name for name in metrics) == 0  # its numbers are the experiment's own
