"""What the store takes on the disk, what of it may go, what its builds printed: du, pin, prune, rm,
logs.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from conftest import BuiltStore, build_stages
from typer.testing import CliRunner, Result

from assets.build import gather_inputs
from assets.graph import node_named, nodes
from assets.lineage import dagster_history, prepare_home
from assets.recipe.recipe import load_recipe
from assets.store.removal import Needed, remove, size
from assets.store.store import Store
from assets.tracking import session
from assets.tracking.event_log import EventWriter
from assets.tracking.outbox import this_process
from assets.tracking.state import run_ids
from gpt_model.errors import UserError
from pipelines.cli.main import app
from pipelines.executor import PID, STARTED, process_tags
from pipelines.upkeep import unknown

pytestmark = pytest.mark.slow  # the small store takes seconds to build

Run = Callable[..., Result]


@pytest.fixture
def call(copy: Path) -> Run:
    """`call("du")` on a copy of the small store, which has the recipes local and other."""
    return lambda *arguments: CliRunner().invoke(
        app, list(arguments), env={"LINEAGE_HOME": str(copy)}, catch_exceptions=False
    )


def without_name(home: Path, ref: str) -> str:
    """Takes a name away; returns the fingerprint, which nothing leads to any more."""
    fingerprint = Store(home).resolve(ref).fingerprint
    Store(home).unset_refs([ref])
    return fingerprint


def document(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_where_names_the_folders(call: Run, copy: Path) -> None:
    paths = document(call("where", "--json"))
    assert paths["store"] == str(copy) and paths["mlflow"] == f"sqlite:///{copy / 'mlflow.db'}"
    assert str(copy / "artifacts") in call("where").stdout


def test_du_counts_shared_artifacts_once(call: Run, copy: Path) -> None:
    facts = document(call("du", "--json"))
    corpus = Store(copy).resolve("local/corpus")
    folder = corpus.path.parent
    local, other = facts["recipes"]["local"], facts["recipes"]["other"]
    assert (
        local["artifacts"] == 3 and local["shared"] == size(folder) and local["with"] == ["other"]
    )
    assert facts["artifact_bytes"] == local["bytes"] + other["bytes"] - size(folder)
    assert facts["artifact_bytes"] == sum(
        path.stat().st_size for path in (copy / "artifacts").rglob("*") if path.is_file()
    )
    assert facts["beside"]["MLflow"] > 0
    of_local = document(call("du", "local", "--json"))
    assert {row["fingerprint"] for row in of_local["artifacts"]} > {corpus.fingerprint}
    assert "other/corpus" in call("du", "local").stdout


def test_du_knows_everything_a_store_has(call: Run, copy: Path, built: BuiltStore) -> None:
    assert unknown(built.home) == unknown(copy) == []
    assert {"sessions", "recipes", "dagster"} < {path.name for path in built.home.iterdir()}
    (copy / "notes").mkdir()
    (copy / "notes" / "a.txt").write_text("mine")
    facts = document(call("du", "--json"))
    assert facts["beside"]["anything else"] == 4
    everything = sum(map(size, (path for path in copy.iterdir() if path.name != "downloads")))
    assert facts["bytes"] - facts["beside"]["downloads"] == everything


def test_prune_removes_a_session_of_which_nothing_is_here(call: Run, copy: Path) -> None:
    folder = copy / "sessions" / session.record(copy, "gone", "a1", "corpus", "f" * 64, built=True)
    assert document(call("prune", "--json"))["sessions"] == []  # this process may go on with it
    session.end(folder, succeeded=True)
    assert "nothing of it is here" in call("prune").stdout and folder.is_dir()
    assert call("prune", "--delete").exit_code == 0 and not folder.exists()
    assert list((copy / "sessions").iterdir())  # those of what is here


def test_trace_calls_a_shared_artifact_as_the_recipe_does(call: Run) -> None:
    for recipe in ("local", "other"):
        lineage = document(call("trace", f"{recipe}/tokens", "--json"))
        below = {node["ref"] for node in lineage["inputs"]}
        assert below == {f"{recipe}/corpus", f"{recipe}/tokenizer"}
    shared = Store(Path(document(call("where", "--json"))["store"])).resolve("other/corpus")
    built_by = document(call("trace", shared.fingerprint, "--json"))["ref"]
    assert built_by == shared.manifest["provenance"]["asset"]


def test_list_says_which_names_cannot_be_read(call: Run, copy: Path) -> None:
    assert call("list").exit_code == 0
    (copy / "refs" / "local" / "tokens").write_text("{")
    result = call("list")
    assert result.exit_code == 1 and "refs/local/tokens" in result.stderr
    assert "local/corpus" in result.stdout


def test_list_and_show_of_a_recipe_are_its_artifacts(call: Run) -> None:
    rows = document(call("list", "other", "--json"))
    names = ["other/corpus", "other/tokenizer", "other/tokens"]
    assert [row["ref"] for row in rows] == names
    assert document(call("show", "other", "--json")) == rows
    for arguments, sentence in (
        (("list", "othr"), "Did you mean other?"),
        (("show", "gpt2-xl"), "Nothing of gpt2_xl is built"),
    ):
        result = call(*arguments)
        assert result.exit_code == 1 and sentence in result.stderr and result.stdout == ""


def test_prune_removes_what_nothing_leads_to_and_only_with_delete(call: Run, copy: Path) -> None:
    assert "Nothing to remove" in call("prune").stdout
    tokens = without_name(copy, "other/tokens")
    listed = document(call("prune", "--json"))
    assert [row["fingerprint"] for row in listed["artifacts"]] == [tokens]
    assert listed["deleted"] is False and Store(copy).find(tokens)
    done = document(call("prune", "--delete", "--json"))
    assert done["freed"] == listed["bytes"] > 0
    assert Store(copy).find(tokens) is None and not list((copy / "removed").iterdir())
    assert call("verify").exit_code == 0
    assert Store(copy).resolve("other/tokenizer")  # a name leads to it


def test_prune_keeps_what_a_name_is_built_from(call: Run, copy: Path) -> None:
    for ref in ("local/corpus", "other/corpus", "local/tokenizer"):
        without_name(copy, ref)
    assert document(call("prune", "--delete", "--json"))["artifacts"] == []
    assert "3 artifacts verify" in call("verify", "local/tokens").stdout


def test_a_pin_keeps_an_artifact_and_names_it(call: Run, copy: Path) -> None:
    assert "pinned/first" in call("pin", "other/tokens", "first").stdout
    fingerprint = without_name(copy, "other/tokens")
    assert document(call("prune", "--delete", "--json"))["artifacts"] == []
    assert document(call("show", "pinned/first", "--json"))["fingerprint"] == fingerprint
    taken = call("pin", "local/tokens", "first")
    assert taken.exit_code == 1 and "gpt-lineage unpin first" in taken.stderr
    assert call("pin", "local/tokens", "a/b").exit_code == 1
    assert call("verify").exit_code == 0
    assert call("unpin", "first").exit_code == 0
    assert "There is no pin pinned/first" in call("unpin", "first").stderr
    pruned = document(call("prune", "--json"))["artifacts"]
    assert [row["fingerprint"] for row in pruned] == [fingerprint]


def test_prune_keeps_the_inputs_of_an_unfinished_build(call: Run, copy: Path) -> None:
    tokens = without_name(copy, "other/tokens")
    building = Store(copy).building("ab" * 32)
    job = {"asset": "other/pretrained", "inputs": {"tokens": tokens}}
    building.job.write_text(json.dumps(job))
    assert document(call("prune", "--json"))["artifacts"] == []
    refused = call("rm", tokens[:12])
    assert refused.exit_code == 1 and "unfinished build: other/pretrained" in refused.stderr
    with Store(copy).lock(building.fingerprint):  # somebody is at work on it
        assert document(call("prune", "--unfinished", "--json"))["unfinished"] == []
    (row,) = document(call("prune", "--unfinished", "--delete", "--json"))["unfinished"]
    assert row["asset"] == "other/pretrained" and not building.folder.exists()
    assert [row["fingerprint"] for row in document(call("prune", "--json"))["artifacts"]] == [
        tokens
    ]


def test_prune_removes_nothing_where_a_name_is_damaged(call: Run, copy: Path) -> None:
    (copy / "refs" / "other" / "tokens").write_text("{}")
    result = call("prune", "--delete")
    assert result.exit_code == 1 and "is damaged: it names no fingerprint" in result.stderr
    (copy / "refs" / "other" / "tokens").unlink()  # its copy beside the artifact still says so
    assert document(call("prune", "--json"))["artifacts"] == []


def test_rm_says_what_stands_on_an_artifact(call: Run, copy: Path) -> None:
    before = Store(copy).refs()
    refused = call("rm", "local/corpus")
    assert refused.exit_code == 1
    for part in ("local/tokens", "local/tokenizer", "also named other/corpus", "--force"):
        assert part in refused.stderr
    assert Store(copy).refs() == before
    removed = document(call("rm", "local/tokens", "local/tokenizer", "--json"))
    assert [row["artifact"] for row in removed] == ["local/tokens", "local/tokenizer"]
    assert sorted(Store(copy).refs()) == sorted(before.keys() - {"local/tokens", "local/tokenizer"})
    assert call("verify").exit_code == 0


def test_rm_with_force_leaves_a_gap_that_trace_names(call: Run, copy: Path) -> None:
    assert call("rm", "--force", "local/corpus").exit_code == 0
    assert not {"local/corpus", "other/corpus"} & Store(copy).refs().keys()
    gap = call("trace", "local/tokens")
    assert gap.exit_code == 1 and "not in the store any more" in gap.stderr


def test_rm_of_an_artifact_and_a_new_run_builds_it_again(
    call: Run, copy: Path, small: Path
) -> None:
    digest = Store(copy).resolve("local/tokens").digest
    assert call("rm", "local/tokens").exit_code == 0
    build_stages(small.parent / "local.yaml", copy, ("corpus", "tokenizer", "tokens"))
    assert Store(copy).resolve("local/tokens").digest == digest
    assert call("verify").exit_code == 0


def test_what_is_named_while_it_is_removed_stays(copy: Path) -> None:
    """As a run names it that has found it, just before and just after it is moved away."""
    store = Store(copy)
    tokens = without_name(copy, "other/tokens")
    needed = Needed(store)
    checks = 0

    def wanted() -> bool:
        nonlocal checks
        checks += 1
        if checks == 2:
            assert store.find(tokens) is None
            store.set_ref("late", "tokens", tokens)
        return tokens in needed()

    assert not remove(store, tokens, wanted) and checks == 2
    assert store.find(tokens) and not list((copy / "removed").iterdir())


def test_remove_waits_for_whoever_holds_the_artifact(copy: Path) -> None:
    store = Store(copy)
    tokens = without_name(copy, "other/tokens")
    needed, waiting = Needed(store), threading.Event()
    results = []

    def pruning() -> None:
        results.append(remove(store, tokens, lambda: tokens in needed(), lambda _: waiting.set()))

    with store.lock(tokens):
        thread = threading.Thread(target=pruning)
        thread.start()
        assert waiting.wait(20) and store.find(tokens)
        store.set_ref("other", "tokens", tokens)  # a run has found it
    thread.join(20)
    assert results == [False] and store.find(tokens)


def test_a_build_whose_input_has_just_gone_says_so(copy: Path, small: Path) -> None:
    from assets.build import Request, build
    from assets.launch.launcher import LocalLauncher
    from assets.recipe.profile import load_profile
    from assets.tracking.tracking import Tracking

    store = Store(copy)
    recipe = small.parent / "local.yaml"
    node = node_named(nodes(load_recipe(str(recipe))), "tokens")
    inputs = gather_inputs(store, node)
    request = Request(node, inputs, node.config(recipe.parent), load_profile("single"))
    for fingerprint in (request.fingerprint, inputs["tokenizer"].fingerprint):
        shutil.rmtree(store.folder_of(fingerprint))
    with pytest.raises(UserError, match=r"local/tokenizer .* has just been removed"):
        build(request, store, LocalLauncher(), Tracking(copy))


def test_logs_are_found_by_artifact_dagster_run_and_mlflow_run(call: Run, copy: Path) -> None:
    store = Store(copy)
    tokens = store.resolve("local/tokens")
    journal = tokens.path.parent / "journal"
    record = json.loads((journal / "build.json").read_text())
    dagster_run = "965a90bd-df53-49e8-8143-9df96a9c4a96"
    record["attempts"][0]["dagster_run"] = dagster_run
    (journal / "build.json").write_text(json.dumps(record))
    (journal / "worker.log").write_text(" 0%|  |\r100%|##|\na warning\n")
    (journal / "worker.1.log").write_text("rank 1 too\n")
    (mlflow_run,) = run_ids(tokens.path.parent)
    for text in ("local/tokens", tokens.fingerprint[:8], dagster_run[:8], dagster_run, mlflow_run):
        (log,) = document(call("logs", text, "--json"))
        assert (log["asset"], log["fingerprint"]) == ("local/tokens", tokens.fingerprint)
        assert list(log["printed"].values()) == [["100%|##|", "a warning"], ["rank 1 too"]]
    text = call("logs", "local/tokens").stdout
    assert "a worker begins" in text and "rank 1 too" in text and f"run {dagster_run[:8]}" in text
    unknown = call("logs", "0123abcd")
    assert unknown.exit_code == 1 and "There is no artifact '0123abcd'" in unknown.stderr


def test_logs_of_a_killed_build_are_shown_without_secrets(
    call: Run, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_thisisasecretvalue")
    building = Store(copy).building("ab" * 32)
    record = {"recipe": "local", "stage": "pretrained", "attempts": [], "failure": "out of memory"}
    (building.journal / "build.json").write_text(json.dumps(record))
    building.log.write_text("Authorization: hf_thisisasecretvalue\n")
    text = call("logs", "local/pretrained").stdout
    assert "unfinished" in text and "It failed: out of memory" in text
    assert "Authorization" in text and "thisisasecret" not in text
    record["failure"] = "DagsterExecutionInterruptedError"
    (building.journal / "build.json").write_text(json.dumps(record))
    assert "It was interrupted; the next run resumes it." in call("logs", "local/pretrained").stdout


def test_logs_follow_a_build_to_its_publication(call: Run, copy: Path) -> None:
    building = Store(copy).building("ab" * 32)
    attempt = {"dagster_run": None, "began": 0.0, **this_process(copy)}
    record = {"recipe": "mine", "stage": "pretrained", "attempts": [attempt], "failure": None}
    (building.journal / "build.json").write_text(json.dumps(record))
    writer = EventWriter(building.events)
    building.log.write_text("warming up\nhalf of ")

    def finish() -> None:
        time.sleep(1)
        writer.log("step 1")
        with building.log.open("a") as log:
            log.write("a line\n")
        time.sleep(1)
        shutil.move(building.folder, copy / "artifacts")  # as publishing does, by one rename

    finishing = threading.Thread(target=finish)
    finishing.start()
    printed = call("logs", "mine/pretrained", "--follow").stdout.splitlines()
    finishing.join()
    lines = [line for line in printed if not line.startswith(("==", "--"))]
    assert [line.partition(" ")[2][9:] if "step" in line else line for line in lines[1:]] == [
        "warming up",
        "step 1",
        "half of a line",
    ]
    both = call("logs", "mine/pretrained", "--follow", "--json")
    assert both.exit_code == 2 and "leave --json out" in both.stderr


def test_logs_follow_waits_for_a_stage_that_a_session_begins_later(call: Run, copy: Path) -> None:
    tokens, corpus = (Store(copy).resolve(f"local/{name}") for name in ("tokens", "corpus"))
    session.record(copy, "later", None, "corpus", corpus.fingerprint, built=False)

    def begin() -> None:
        time.sleep(1)
        Store(copy).set_ref("later", "tokens", tokens.fingerprint)
        session.record(copy, "later", None, "tokens", tokens.fingerprint, built=True)

    beginning, began = threading.Thread(target=begin), time.monotonic()
    beginning.start()
    assert "a worker begins" in call("logs", "later/tokens", "-f").stdout
    assert time.monotonic() - began > 1
    beginning.join()


def test_logs_of_a_run_that_failed_before_a_worker_are_its_sentence(
    call: Run, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dg.op
    def local__corpus() -> None:
        raise dg.Failure("local.yaml: no such folder of text.")

    @dg.job
    def local() -> None:
        local__corpus()

    monkeypatch.setenv("DAGSTER_HOME", str(copy / "dagster"))
    prepare_home(copy)
    with dagster_history() as instance:
        failed = local.execute_in_process(instance=instance, raise_on_error=False).run_id
        ok = dg.GraphDefinition(name="nothing").to_job().execute_in_process(instance=instance)
        killed = instance.create_run_for_job(local, status=dg.DagsterRunStatus.STARTED)
        tags = process_tags(instance, killed.run_id) | {PID: "1", STARTED: "0"}
        instance.add_run_tags(killed.run_id, tags)
        instance.report_engine_event("a process begins", killed)
    text = call("logs", failed[:12]).stdout
    assert f"== local, Dagster run {failed[:8]}, failure" in text
    assert "local/corpus: local.yaml: no such folder of text." in text
    (log,) = document(call("logs", failed, "--json"))
    assert log["state"] == "failure" and "no such folder" in log["failure"]
    assert "everything was there" in call("logs", ok.run_id, "--follow").stdout
    assert "was killed" in call("logs", killed.run_id, "--follow").stdout
