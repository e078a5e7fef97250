"""The pages of the generations: ours stand beside the paper's only in rows of the same protocol,
and never as a bare number.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from conftest import BuiltStore
from rich.console import Console
from test_experiment_page import DOCUMENT
from test_scorecard import Card, Page

from assets.contract import NOT_RUN, Built
from assets.execution.scorecard import run
from assets.report import provenance, scorecard
from assets.report.columns import VERDICT_FILE
from assets.report.finetuned import cut_of_test
from assets.report.headline import by_shots, headline
from assets.report.page import Page as PageContent
from assets.report.page import Section, write_page
from assets.report.published import OURS, beside_the_paper, reproductions
from assets.report.score import NotRun, Score
from assets.report.scores import collect, test_split
from assets.report.tables import Table
from assets.report.verdict import statements, write
from assets.stages.pretraining import PRETRAINED
from assets.store.manifest import record_sums
from assets.store.store import Store
from gpt_model.evaluation.results import (
    Demonstrations,
    Results,
    ScoreRow,
    TrainingOverlap,
    UnavailableRow,
)
from gpt_model.experiments.document import write_document
from gpt_model.finetuning.entry import TaskEntry
from gpt_model.published import Role, references
from gpt_model.tokenizer import Tokenizer
from pipelines.cli.scorecard_view import announce

NUMBER = r"-?[\d.,]+(e[+-]\d+)?"
INTERVAL = re.compile(rf"{NUMBER} – {NUMBER}")
OURS_CELL = re.compile(rf"{NUMBER} \({INTERVAL.pattern}\)( · {NUMBER} \({INTERVAL.pattern}\))*")
ON_CELL = re.compile(
    r"[\d,]+( of [\d,]+)? (examples|tokens), "
    r"(held out|test|validation|training and validation|all splits)"
    r"(; [\d,]+ of [\d,]+ cut, by [\d,]+ tokens? at most)?"
)
LAMBADA = Score(
    "tiny/zero_shot",
    "f" * 64,
    "last_word acc",
    0.1234,
    0.101,
    0.149,
    examples=500,
    split="test",
    published={"task": "LAMBADA", "metric": "acc"},
    paper="gpt2",
)
CAVEAT = Tokenizer.of("gpt1").caveat
# A function of the scorecard, whatever its name begins with.
test_split.__test__ = False  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def card(built: BuiltStore) -> Card:
    store = Store(built.home)
    artifact = store.resolve("ci/scorecard")
    return Card(store, artifact, store.show(artifact))


def tables(section: Section) -> dict[str, Table]:
    return {text.title: text for text in section.texts if isinstance(text, Table)}


def row(section: Section, source: str, *cells: str) -> dict[str, str]:
    """The row of a published table that begins with `cells`."""
    [table] = [table for title, table in tables(section).items() if title.endswith(source)]
    [match] = [row for row in table.cells() if tuple(row[: len(cells)]) == cells]
    return dict(zip(table.columns, match, strict=True))


def test_ours_stand_in_the_paper_s_unit_with_interval_size_and_split_beside_every_size() -> None:
    section = beside_the_paper("gpt2", "a small one", [LAMBADA])
    cells = row(section, "table 3", "LAMBADA", "acc, %")
    assert (cells[OURS[0]], cells[OURS[1]]) == ("12.34 (10.10 – 14.90)", "500 examples, test")
    assert (cells["gpt2-small"], cells["gpt2-xl"], cells["best before"]) == (
        "45.99",
        "63.24",
        "59.23",
    )
    percent = replace(LAMBADA, scale="%", value=12.34, low=10.1, high=14.9)
    assert (
        row(beside_the_paper("gpt2", "", [percent]), "table 3", "LAMBADA", "acc, %")[OURS[0]]
        == "12.340 (10.100 – 14.900)"
    )
    assert "a small one" in section.intro


def test_what_differs_from_the_paper_stands_beside_ours() -> None:
    score = replace(
        LAMBADA, published={**(LAMBADA.published or {}), "differs": "our list of stop words"}
    )
    section = beside_the_paper("gpt2", "", [score])
    assert (
        row(section, "table 3", "LAMBADA", "acc, %")[OURS[1]]
        == "500 examples, test; differs: our list of stop words"
    )
    assert "*Differs* names what is known to differ in data or protocol" in section.intro


def test_a_published_row_stands_there_only_with_a_score_of_ours() -> None:
    section = beside_the_paper("gpt2", "", [LAMBADA])
    assert list(tables(section)) == ["GPT-2 (Radford et al. 2019), table 3"]
    (table,) = tables(section).values()
    assert [cells[:2] for cells in table.cells()] == [["LAMBADA", "acc, %"]]
    for generation in ("gpt1", "gpt2", "gpt3"):
        assert tables(beside_the_paper(generation, "", [])) == {}
        assert tables(reproductions(generation, "", [])) == {}


def test_shots_stand_in_their_own_rows() -> None:
    few_shot = [
        replace(LAMBADA, paper="gpt3", value=v, low=v - 0.01, high=v + 0.01, shots=s)
        for v, s in ((0.5, "zero"), (0.3, "one"))
    ]
    section = beside_the_paper("gpt3", "", [*few_shot, replace(LAMBADA, paper="gpt3", shots="few")])
    rows = {
        shots: row(section, "table H.1", "LAMBADA", "acc, %", shots)
        for shots in ("zero", "one", "few")
    }
    assert {shots: cells[OURS[0]].split()[0] for shots, cells in rows.items()} == {
        "zero": "50.00",
        "one": "30.00",
        "few": "12.34",
    }
    assert (rows["zero"]["gpt3-175b"], rows["one"]["gpt3-large"]) == ("76.2", "52.6 (unverified)")
    few = replace(LAMBADA, shots="few")
    # A table that says nothing of shots has none of ours with demonstrations.
    assert tables(beside_the_paper("gpt2", "", [few])) == {}


def test_another_paper_s_protocol_of_the_same_name_does_not_stand_on_the_page() -> None:
    assert tables(beside_the_paper("gpt3", "", [LAMBADA])) == {}


@pytest.mark.parametrize(
    "lacking", [{"low": None, "high": None}, {"split": ""}, {"examples": None}]
)
def test_a_number_without_interval_split_or_size_is_not_shown(lacking: dict[str, Any]) -> None:
    score = replace(LAMBADA, value=0.98765, **lacking)
    section = beside_the_paper("gpt2", "", [score])
    first = headline([score], [])
    shown = "".join(table.markdown() for table in (*section.texts, first))
    assert "0.988" not in shown and "98.7" not in shown
    assert first.frame["value"].tolist() == ["no interval"]


@pytest.mark.parametrize("generation", ["gpt1", "gpt2", "gpt3"])
def test_every_published_score_stands_beside_ours_of_its_row_with_its_source(
    generation: str,
) -> None:
    published = [
        reference
        for role in get_args(Role)
        for reference in references(generation=generation, role=role)
        if reference.kind == "scores"
    ]
    scores = [
        replace(LAMBADA, published={"task": task, "metric": metric}, shots=shots, paper=generation)
        for task, metric, shots in {
            (reference.task, reference.metric, reference.shots) for reference in published
        }
    ]
    shown = {
        role: {
            title: {cell for cells in table.cells() for cell in cells}
            for title, table in tables(section(generation, "", scores)).items()
        }
        for role, section in (("paper", beside_the_paper), ("reproduction", reproductions))
    }
    for reference in published:
        assert reference.printed in shown[reference.role][reference.source], reference
        assert reference.certainty != "memory" or "(unverified)" in reference.printed
    assert len(published) > 30


def test_a_reproduction_measured_as_ours_has_ours_beside_it() -> None:
    ours = replace(
        LAMBADA,
        name="lambada_openai acc",
        published={"task": "lambada_openai", "metric": "acc"},
        paper=None,
    )
    cells = row(reproductions("gpt2", "", [ours]), "issue 2159", "lambada_openai", "acc, share")
    assert cells[OURS[0]] == "0.123 (0.101 – 0.149)" and cells["gpt2-small"] == "0.3256 ± .0065"


def test_settings_of_a_task_stand_side_by_side_in_one_line_each_with_its_interval_and_verdict() -> (
    None
):
    zero, single, few = (
        replace(
            LAMBADA,
            name=f"piqa_{shots} acc",
            shots=shots,
            k=k,
            value=value,
            low=value - 0.1,
            high=value + 0.1,
            against=0.5,
            baseline="chance 0.500",
            available=600,
            overlap=2.357,
        )
        for shots, k, value in (
            ("zero", "", 0.35),
            ("one", "1.0 of 1", 0.45),
            ("few", "6.6 of 50", 0.65),
        )
    )
    assert (
        by_shots([LAMBADA]) is None and len(headline([LAMBADA, zero, single, few], []).frame) == 1
    )
    table = by_shots(
        [LAMBADA, zero, single, few, replace(few, name="anli_few acc", k="", low=None)]
    )
    assert table is not None
    piqa, anli = (dict(zip(table.columns, row, strict=True)) for row in table.cells())
    assert (piqa["score"], piqa["beside"], piqa["K"], piqa["on examples"]) == (
        "piqa acc",
        "chance 0.500",
        "6.6 of 50",
        "500 of 600, test",
    )
    assert (
        piqa["zero-shot"] == "0.350 (0.250 – 0.450) worse"
        and piqa["one-shot"] == "0.450 (0.350 – 0.550)"
    )
    assert piqa["few-shot"] == "0.650 (0.550 – 0.750) better" and piqa["8-grams seen"] == "2.4 %"
    assert (anli["zero-shot"], anli["few-shot"], anli["beside"], anli["on examples"]) == (
        "",
        "no interval",
        "",
        "",
    )
    fewer = by_shots([zero, replace(single, k="0.4 of 1"), few])
    assert fewer is not None and "one-shot 0.4 of 1, 6.6 of 50" in fewer.cells()[0]


def test_settings_are_printed_a_line_each_in_a_terminal_and_keep_their_colours(
    tmp_path: Path,
) -> None:
    settings = [
        replace(
            LAMBADA,
            name=f"random_insertion_in_word_{shots} exact_match",
            shots=shots,
            against=0.5,
            baseline="chance 0.500",
            available=10_000,
            split="all splits",
        )
        for shots in ("zero", "one", "few")
    ]
    shown = {"headline": headline([LAMBADA], [])}
    write_page(tmp_path, PageContent("Scorecard", "", {"model": "a small one"}, shown))
    scores = [asdict(score) for score in (LAMBADA, *settings)]
    document = {"scores": scores, "not_run": [], "built_from": {}}
    (tmp_path / "scorecard.json").write_text(json.dumps(document))
    artifact = SimpleNamespace(path=tmp_path, fingerprint="f" * 64)
    write(tmp_path / VERDICT_FILE, statements([LAMBADA], [], {}, "today"))
    console = Console(width=80, force_terminal=True, record=True, file=io.StringIO())
    store: Any = SimpleNamespace(
        resolve=lambda ref: artifact,
        check=lambda artifact: artifact,
        show=lambda artifact: tmp_path,
        artifacts=lambda: [],
    )
    announce(store, "tiny", console.print)
    styled = console.export_text(styles=True, clear=False)
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert lines[0] == "Built today." and max(map(len, lines)) <= 80
    settings_lines = [line for line in lines if line.startswith("random_insertion_in_word")]
    assert len(settings_lines) == 3
    for line in settings_lines:
        assert "0.123 (0.101–0.149)" in line and line.endswith("worse") and "chance 0.500" in line
    assert styled.count("\x1b[31mworse") == 3


def test_bits_per_byte_of_normalised_text_say_so_and_stand_beside_nothing_of_the_text_itself(
    card: Card, tmp_path: Path
) -> None:
    Tokenizer.train(
        ["The king has come. " * 20, "Go, tell the king; he waits."] * 20,
        vocab_size=50,
        style="gpt1",
    ).save(tmp_path)
    tokenizer = replace(card.inputs()["tokenizer"], path=tmp_path)
    inputs = {**card.inputs(), "tokenizer": tokenizer}
    scores, _ = collect("ci", inputs)
    of_text = [
        score
        for score in scores
        if score.name.startswith("bits per byte") or score.name.endswith("bits_per_byte")
    ]
    assert {score.asset for score in of_text} == {"ci/pretrained", "ci/zero_shot"}
    for score in of_text:
        assert CAVEAT in score.note and "xz" not in score.baseline + score.note, score
        assert score.against in (None, inputs["pretrained"].metrics["uniform_bpb"])
    assert not [score for score in scores if score not in of_text and CAVEAT in score.note]
    assert provenance.facts(inputs)["note"] == CAVEAT and "note" not in provenance.facts(
        card.inputs()
    )
    pretrained = inputs["pretrained"]
    built = Built(
        pretrained.config,
        {"tokens": inputs["tokens"], "tokenizer": tokenizer},
        pretrained.path,
        pretrained.metrics,
        {},
        [],
    )
    PRETRAINED.show(built, tmp_path)
    assert CAVEAT in (tmp_path / "figures.md").read_text(encoding="utf-8")


def test_headline_has_a_column_of_overlap_only_where_a_suite_has_it() -> None:
    assert "8-grams seen" not in headline([LAMBADA], []).columns
    table = headline([replace(LAMBADA, overlap=2.357), LAMBADA], [])
    assert table.frame["8-grams seen"].tolist() == ["2.4 %", ""]


def test_rows_of_the_headline_stay_with_their_artifact() -> None:
    missing = NotRun("a", "f" * 64, "cbt", "why")
    rows = headline([replace(LAMBADA, asset="a"), replace(LAMBADA, asset="b")], [missing]).cells()
    assert [row[:3] for row in rows] == [
        ["a", "last_word acc", "0.123"],
        ["a", "cbt", "not run here"],
        ["b", "last_word acc", "0.123"],
    ]
    assert rows[1][-2] == "why"


def test_every_number_of_ours_on_the_built_page_has_interval_split_and_size(card: Card) -> None:
    page = Page(card.html)
    columns, *rows = page.tables[0]
    on = columns.index("measured on")
    bare = [
        cells
        for cells in rows
        if len(cells) > 1
        and cells[1] not in ("no interval", "not run here")
        and not (INTERVAL.fullmatch(cells[2]) and ON_CELL.fullmatch(cells[on]))
    ]
    assert len(rows) > 15 and not bare
    for head, *body in (table for table in page.tables if OURS[0] in table[0]):
        column = head.index(OURS[0])
        for cells in body:
            assert OURS_CELL.fullmatch(cells[column]) and ON_CELL.match(cells[column + 1]), cells


def test_public_data_that_cannot_be_had_and_published_rows_are_read_from_an_evaluation(
    card: Card, tmp_path: Path
) -> None:
    zero_shot = card.inputs()["zero_shot"]
    published_row = {"task": "BoolQ", "metric": "acc", "differs": "a part of its sets"}
    metadata = {
        "version": 1.0,
        "data": {"builder": "labelled", "task": "boolq", "splits": ["validation"]},
        "published": {"acc": published_row},
    }
    keys = {
        "task": "yes_no",
        "output_type": "multiple_choice",
        "doc_to_text": "x",
        "doc_to_choice": "options",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}],
        "metadata": metadata,
    }
    known = ScoreRow(
        "gpt3_made",
        "yes_no",
        "acc",
        0.5,
        low=0.4,
        high=0.6,
        examples=90,
        available=100,
        too_long=3,
        description="made up",
        demonstrations=Demonstrations(15, 2, 4.52),
        overlap=TrainingOverlap(1.5, 200, 8, None, None, 100.0, 0),
    )
    rows = Results([known], [UnavailableRow("gpt3_made", "yes_no", "no hub")])
    (tmp_path / "results.json").write_text(json.dumps({"rows": rows.to_json(["gpt3_made"])}))
    fake = replace(zero_shot, path=tmp_path, config={"suites": {"gpt3_made": keys}})
    (score,), (missing,) = collect("ci", {"zero_shot": fake, "corpus": card.inputs()["corpus"]})
    assert (score.split, score.published, score.paper) == ("validation", published_row, "gpt3")
    assert (score.shots, score.k, score.overlap, score.note) == (
        "few",
        "4.5 of 15",
        1.5,
        "made up; 3 more have an answer longer than the context",
    )
    assert score.sample() == "90 of 100 examples, validation"
    assert (missing.reason, missing.published, missing.paper) == (
        "no hub",
        (published_row,),
        "gpt3",
    )


def test_a_fine_tuned_task_stands_in_the_paper_s_row_or_says_why_it_was_not_run(
    card: Card, tmp_path: Path
) -> None:
    task = card.inputs()["finetuned/sentiment"]
    source = {
        **task.config["source"],
        "published": {"task": "SST-2", "metric": "accuracy", "differs": "the development set"},
    }
    known = replace(task, config={**task.config, "source": source})
    scores, _ = collect("ci", {"finetuned/sentiment": known})
    cells = row(beside_the_paper("gpt1", "", scores), "tables 2, 3 and 4", "SST-2", "accuracy, %")
    assert (
        cells[OURS[0]].startswith(f"{100 * task.metrics['accuracy']:.2f} (")
        and cells["gpt1"] == "91.3"
    )
    examples, available = (
        int(task.metrics["test_examples"]),
        int(task.metrics["test_examples_available"]),
    )
    cut = f"; {text}" if (text := cut_of_test(task.metrics)) else ""
    assert (
        cells[OURS[1]]
        == f"{examples:,} of {available:,} examples, test{cut}; differs: the development set"
    )
    (tmp_path / NOT_RUN).write_text(json.dumps({"not_run": "its authors give it on request"}))
    scores, missing = collect(
        "ci", {"finetuned/sentiment": replace(known, path=tmp_path, metrics={"not_run": 1.0})}
    )
    (entry,) = missing
    assert (scores, entry.reason) == ([], "its authors give it on request")
    (cells,) = headline(scores, missing).cells()
    assert "not run here" in cells and "its authors give it on request" in cells
    assert tables(beside_the_paper("gpt1", "", scores)) == {}


def test_the_split_that_a_task_is_tested_on_has_its_owners_name() -> None:
    base = {
        "licence": "CC0",
        "form": "classification",
        "columns": {"text": "t", "label": "l"},
        "labels": ["a", "b"],
    }
    hub = {
        "hub": "a/b",
        "revision": "main",
        "splits": {"training": "train", "test": {"matched": "validation_matched", "other": "x"}},
    }
    entry = TaskEntry.model_validate({**base, "source": hub})
    assert (test_split(entry), test_split(entry, "matched")) == (
        "validation_matched and x",
        "validation_matched",
    )
    entry = TaskEntry.model_validate(
        {**base, "source": {"file": {"training": "a.csv", "test": "rows/b.csv"}}}
    )
    assert test_split(entry) == "test of b.csv"


def test_an_experiment_is_drawn_on_the_page_from_its_data(card: Card, tmp_path: Path) -> None:
    fingerprint, like = "e" * 64, card.inputs()["finetuned/sentiment"]
    files = tmp_path / "lineage" / "artifacts" / fingerprint / "files"
    files.mkdir(parents=True)
    write_document(files, DOCUMENT)
    manifest = {**like.manifest, "fingerprint": fingerprint, "inputs": []}
    (files.parent / "artifact.json").write_text(json.dumps(manifest))
    shutil.copy(like.path.parent / "gate.json", files.parent)
    record_sums(files.parent)
    experiment = replace(
        like, path=files, stage="layers_transferred", fingerprint=fingerprint, manifest=manifest
    )
    inputs = {**card.inputs(), "experiments/layers_transferred": experiment}
    (output := tmp_path / "files").mkdir()
    (folder := tmp_path / "show").mkdir()
    nobody: Any = None  # the stage reports no progress
    metrics = run(card.artifact.config, inputs, output, nobody)
    scorecard.show(Built(card.artifact.config, inputs, output, metrics, {}, []), folder)
    page = (
        (folder / "scorecard.md")
        .read_text(encoding="utf-8")
        .split("## ci/experiments/layers_transferred\n")[1]
        .split("\n## ")[0]
    )
    assert (
        DOCUMENT["summary"][0] in page
        and "| 1,234 | 0.7346 |" in page
        and "GPT-1, figure 2 left" in page
    )
    (picture,) = re.findall(r"\]\((pictures/[^)]+)\)", page)
    assert (folder / picture).read_bytes().startswith(b"\x89PNG") and picture.endswith(
        "1_sentiment.png"
    )
    assert (
        sum("experiments/layers_transferred" in name for name in metrics) == 0
    )  # its numbers are the experiment's own
