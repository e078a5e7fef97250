"""Tasks and suites of one's own: docs/tutorials/ as they stand, names, and the mistakes that
a plan finds in local files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.events import JobFailureData, RunFailureReason
from dagster._utils.error import SerializableErrorInfo
from rich.console import Console
from world import World, make_world

from assets.estimate import _task_tokens
from assets.graph import check, nodes
from assets.node import Node
from assets.recipe.profile import load_profile
from assets.recipe.recipe import load_recipe
from assets.store.store import Store
from gpt_model.config import ModelConfig
from gpt_model.errors import UserError
from gpt_model.evaluation.results import Results
from gpt_model.finetuning.entry import SPLITS, TaskEntry
from gpt_model.finetuning.examples import read_examples
from gpt_model.progress import Silent
from pipelines.cli.plan import draw_plan, plan_of
from pipelines.definitions import RecipeFile, build_defs
from pipelines.progress import BuildDisplay
from pipelines.runs import _EventFeed, step_keys

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = ("tutorials/own-task.md", "tutorials/own-suite.md", "how-to/task-formats.md")
BLOCKS = [
    block
    for page in PAGES
    for block in re.findall(
        r"```(\w+)\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL
    )
]


def block(holding: str) -> str:
    [text] = [text for _, text in BLOCKS if holding in text]
    return text


def write_page(folder: Path) -> None:
    """The pages' files, with sixty rows like those shown."""
    (data := folder / "data").mkdir()
    header, happy, unhappy = block("note,outcome").splitlines()
    rows = [
        (happy, unhappy)[n % 2].replace("left", f"left at {n}").replace("hour", f"hour at {n}")
        for n in range(60)
    ]
    (data / "visits.csv").write_text("\n".join([header, *rows]) + "\n")
    lines = [row.replace('"', "").rpartition(",") for row in rows]
    (data / "visits.tsv").write_text("".join(f"{note}\t{label}\n" for note, _, label in lines))
    question = json.loads(block("What opens a door?"))
    questions = [{**question, "question": f"{question['question']} {n}"} for n in range(60)]
    (data / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    for name, holding in {
        "visits.yaml": "source: {path: data/visits.csv}",
        "visits_tsv.yaml": "source: {path: data/visits.tsv}",
        "questions.yaml": "source: {path: data/questions.jsonl}",
        "visits-suite.yaml": "task: outcome",
        "task-recipe.yaml": "finetuning: {tasks: [visits.yaml]}",
        "suite-recipe.yaml": "suites: [held_out, visits-suite.yaml]",
    }.items():
        (folder / name).write_text(block(holding))


@pytest.fixture
def page(tmp_path: Path, downloads: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LINEAGE_DOWNLOADS", str(tmp_path / "downloads"))
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "packages").symlink_to(downloads / "packages")
    (folder := tmp_path / "work").mkdir()
    write_page(folder)
    return folder


def finetuned(folder: Path, task: str, **files: Any) -> dict[str, Any]:
    """What identifies the fine-tuning of `task` in a recipe in `folder`."""
    path = folder / "mine.yaml"
    finetuning = {"tasks": [task], "files": files}
    path.write_text(f"extends: tiny\nname: mine\nfinetuning: {json.dumps(finetuning)}\n")
    [node] = [node for node in nodes(load_recipe(str(path))) if node.name.startswith("finetuned/")]
    return dict(node.config(folder))


@pytest.mark.parametrize(
    ("task", "labels"),
    [("visits", ["happy", "unhappy"]), ("visits_tsv", ["happy", "unhappy"]), ("questions", [])],
)
def test_each_task_of_the_page_is_read_in_three_splits(
    page: Path, task: str, labels: list[str]
) -> None:
    config = finetuned(page, f"{task}.yaml")
    assert config["task"] == task
    entry = TaskEntry.model_validate(config["source"])
    assert entry.labels == labels and entry.source.pinned
    examples = read_examples(task, entry, 0, page.parent / "downloads", Silent())
    assert {len(examples.splits[split]) > 2 for split in SPLITS} == {True}
    assert sum(examples.available.values()) == 60


@pytest.mark.parametrize("recipe", ["task-recipe", "suite-recipe"])
def test_the_recipes_of_the_page_are_planned(page: Path, recipe: str) -> None:
    graph = nodes(load_recipe(str(page / f"{recipe}.yaml")))
    check(graph, page, Node.config)
    assert {"finetuned/visits", "zero_shot"} & {node.name for node in graph}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LINEAGE_DOWNLOADS", str(folder / "downloads"))
        write_page(folder)
        yield make_world(folder)


@pytest.mark.slow
@pytest.mark.parametrize("absolute", [False, True])
def test_a_suite_is_named_by_its_file_and_its_files_are_the_artifacts(
    world: World, tmp_path: Path, absolute: bool
) -> None:
    before = sorted(world.folder.rglob("*"))
    name = f"{world.folder}/visits-suite.yaml" if absolute else "./visits-suite.yaml"
    built = world.run(tmp_path / "out", [name], {"visits-suite": 4})
    known = {path for path in world.folder.rglob("*") if "downloads" not in path.parts}
    assert known == {path for path in before if "downloads" not in path.parts}
    assert {path.name for path in (built.output / "tasks").iterdir()} == {
        "visits-suite.outcome.jsonl",
        "visits-suite.outcome.yaml",
    }
    [row] = Results.read(built.output).scores
    assert (row.suite, row.task, row.examples, row.name) == (
        "visits-suite",
        "outcome",
        4,
        "visits-suite/outcome/acc",
    )
    assert str(world.folder) not in json.dumps(built.config)


def test_names_that_are_no_names_of_files_or_metrics_are_refused(page: Path) -> None:
    suite = (page / "visits-suite.yaml").read_text()
    recipe = (page / "suite-recipe.yaml").read_text()
    for name, text, message in (
        ("visits 2", suite, "visits 2.yaml: 'visits 2' names files and metrics"),
        ("deep", suite.replace("task: outcome", "task: ../x"), "task '../x': `task` names files"),
    ):
        (page / f"{name}.yaml").write_text(text)
        (page / "mine.yaml").write_text(
            recipe.replace("visits-suite.yaml", f"{name}.yaml").replace("visits-suite", name)
        )
        with pytest.raises(UserError, match=re.escape(message)):
            check(nodes(load_recipe(str(page / "mine.yaml"))), page, Node.settings)
    (page / "my visits.yaml").write_text((page / "visits.yaml").read_text())
    with pytest.raises(UserError, match="'my visits' names an asset, so it has letters"):
        finetuned(page, "my visits.yaml")
    (page / "mine.yaml").write_text(recipe.replace("held_out,", "other/visits-suite.yaml,"))
    (page / "other").mkdir()
    (page / "other" / "visits-suite.yaml").write_text(suite.replace("visits.yaml", "boolq"))
    with pytest.raises(UserError, match="Two suites are named 'visits-suite'"):
        check(nodes(load_recipe(str(page / "mine.yaml"))), page, Node.settings)


@pytest.mark.parametrize(
    ("broken", "mended", "message"),
    [
        ("note,outcome", "remark,outcome", "has no column 'note', which task visits reads"),
        (",unhappy\n", ",\n", "row 2: column 'outcome' has no label"),
        ('"Waited', '"",x\n"Waited', "row 2: column 'note' is empty"),
    ],
)
def test_a_mistake_in_a_local_file_is_found_before_anything_is_built(
    page: Path, broken: str, mended: str, message: str
) -> None:
    path = page / "data" / "visits.csv"
    path.write_text(path.read_text().replace(broken, mended, 1))
    with pytest.raises(UserError, match=f"mine.yaml.*{message}"):
        finetuned(page, "visits.yaml")


def test_a_separator_of_another_format_and_a_misspelt_label_column_are_named(page: Path) -> None:
    task, path = page / "visits.yaml", page / "data" / "visits.csv"
    rows = path.read_text()
    path.write_text(rows.replace('"', "").replace(", ", " ").replace(",", ";"))
    with pytest.raises(
        UserError, match=r"are note;outcome\. Its fields do not stand between commas"
    ):
        finetuned(page, "visits.yaml")
    path.write_text(rows)
    task.write_text(task.read_text().replace("label: outcome", "label: result"))
    with pytest.raises(UserError, match=r"has no column 'result'.* Its columns are note, outcome"):
        finetuned(page, "visits.yaml")
    task.write_text(task.read_text().replace("{path: data/visits.csv}", "data/visits.csv"))
    with pytest.raises(UserError, match=r"Did you mean {path: 'data/visits\.csv'}\?"):
        finetuned(page, "visits.yaml")


def test_the_task_of_a_file_with_a_hyphen_has_the_step_that_dagster_makes(page: Path) -> None:
    (page / "visits.yaml").rename(page / "my-visits.yaml")
    finetuned(page, "my-visits.yaml")
    recipe = load_recipe(str(page / "mine.yaml"))
    file = RecipeFile(recipe, page / "mine.yaml")
    job = build_defs([file]).resolve_job_def(recipe.name)
    steps = step_keys(file.nodes)
    assert {node.name for node in job.nodes} == set(steps)
    assert steps["mine__finetuned__my_visits"] == "mine/finetuned/my-visits"


def test_the_estimate_of_a_task_follows_the_size_of_its_files(page: Path) -> None:
    config = finetuned(page, "visits.yaml")
    [file] = config["source"]["source"]["pinned"]
    model = ModelConfig.published("gpt2-small")
    few = _task_tokens(config, model)
    file["bytes"] *= 10
    many = _task_tokens(config, model)
    assert 0.5 < few.number / (60 * 20 * config["finetuning"]["epochs"]) < 2  # 20 tokens a row
    assert many.number == pytest.approx(10 * few.number) and "local file" in many.assumption


def test_a_plan_lists_the_labels_of_local_rows(page: Path) -> None:
    rows = page / "data" / "visits.csv"
    rows.write_text(rows.read_text() + "A note.,hapy\n")
    recipe = load_recipe(str(page / "task-recipe.yaml"))
    facts = plan_of(recipe, page, load_profile("cpu"), Store(page / "store"))
    [labels] = [row["labels"] for row in facts["stages"] if "labels" in row]
    assert labels == ["happy", "hapy", "unhappy"]
    console = Console(width=200)
    with console.capture() as capture:
        console.print(draw_plan(facts))
    assert "Labels of visits: happy, hapy, unhappy." in capture.get()


def test_a_run_that_fails_outside_its_steps_says_why(tmp_path: Path) -> None:
    error = SerializableErrorInfo("KeyError: 'my_visits'\n", [], "KeyError")
    failure = JobFailureData(error, RunFailureReason.RUN_EXCEPTION)
    feed = _EventFeed(BuildDisplay(tmp_path, Console()), {}, tmp_path)
    feed._event(dg.DagsterEvent("PIPELINE_FAILURE", "mine", event_specific_data=failure))
    assert feed.report.failures == ["KeyError: 'my_visits'"]


def test_a_label_that_no_rule_names_and_a_column_of_no_labels_are_found(page: Path) -> None:
    task = (page / "visits.yaml").read_text()
    (page / "visits.yaml").write_text(f"{task}labels: [happy, sad]\n")
    with pytest.raises(UserError, match="label 'unhappy' in column 'outcome' is unknown"):
        finetuned(page, "visits.yaml")
    (page / "visits.yaml").write_text(task.replace("label: outcome", "label: note"))
    with pytest.raises(UserError, match=r"'note' of .* has more than 20 different values"):
        finetuned(page, "visits.yaml")


def test_a_column_that_a_suites_local_file_lacks_is_found_too(page: Path) -> None:
    (page / "rows.jsonl").write_text('{"passage": "Emil asked"}\n')
    (page / "mine.yaml").write_text(
        "extends: tiny\nname: mine\nfinetuning: null\nevaluation:\n  suites: [gpt2_lambada]\n"
        "  files: {gpt2_lambada/last_word: rows.jsonl}\n"
    )
    [node] = [node for node in nodes(load_recipe(str(page / "mine.yaml"))) if "zero" in node.name]
    with pytest.raises(UserError, match=r"mine\.yaml, line 6: .* there is no column 'text'"):
        node.config(page)


def test_a_headerless_file_for_a_task_of_the_catalogue_is_told_its_cure(page: Path) -> None:
    (page / "mine.csv").write_text("a fine film,1\na dull film,0\n")
    with pytest.raises(
        UserError, match=r"no header: write one as its first line \(sentence, label"
    ):
        finetuned(page, "sst2", sst2="mine.csv")


def test_a_file_in_a_catalogue_tasks_place_is_read_as_its_name_says(page: Path) -> None:
    """The catalogue's sentiment is a headerless file of tabs with a name that says nothing."""
    rows = [{"text": f"film {n} was fine", "rating": (-2.0, 2.0)[n % 2]} for n in range(60)]
    (page / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = finetuned(page, "sentiment", sentiment="mine.jsonl")["source"]
    assert "format" not in source and "header" not in source


def test_a_checked_file_is_not_read_again_and_a_changed_one_is(page: Path) -> None:
    config = finetuned(page, "visits.yaml")
    [note] = (page.parent / "downloads" / "local" / "tasks").iterdir()
    assert finetuned(page, "visits.yaml") == config
    (page / "data" / "visits.csv").write_text("note,outcome\nfine,happy\ngrey,unhappy\n")
    finetuned(page, "visits.yaml")
    assert len(list(note.parent.iterdir())) == 2
