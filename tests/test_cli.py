"""The command line on a small real store: what it prints, for people and for scripts, and the
status it ends with.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import dagster as dg
import local_hub
import pytest
import yaml
from conftest import (
    ROOT,
    STAGES,
    BuiltStore,
    environment_of,
    run_cli,
    write_local_recipe,
    write_notes,
)
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.execution.api import execute_run
from dagster._core.utils import make_new_run_id
from rich.console import Console
from typer.testing import CliRunner, Result

from assets.lineage import dagster_history, prepare_home
from assets.report.lineage_tree import sources_of
from assets.report.model_card import scores_of
from assets.store.manifest import Facts, record_sums
from assets.store.store import Store
from assets.tracking.event_log import EventWriter
from assets.tracking.tracking import Tracking
from gpt_model.io import sha256_of
from pipelines.cli.main import app
from pipelines.executor import (
    HIDDEN,
    HOST,
    PID,
    RUN,
    STARTED,
    close_lost_runs,
    one_process_executor,
    process_tags,
)
from pipelines.progress import BuildDisplay, duration

pytestmark = pytest.mark.slow

Run = Callable[..., Result]


def on(home: Path) -> Run:
    return lambda *arguments: CliRunner().invoke(
        app, list(arguments), env={"LINEAGE_HOME": str(home)}, catch_exceptions=False
    )


@pytest.fixture
def call(small: Path) -> Run:
    """`call("list", "--json")` on the small store."""
    return on(small)


def publish_again(home: Path, ref: str, change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The manifest of `ref` as if it had been published with `change`. Returns it."""
    folder = Store(home).resolve(ref).path.parent
    facts: dict[str, Any] = json.loads((folder / "artifact.json").read_text())
    change(facts)
    (folder / "artifact.json").write_text(json.dumps(facts))
    record_sums(folder)
    return facts


def test_list_names_every_artifact(call: Run, small: Path) -> None:
    rows = {row["ref"]: row for row in json.loads(call("list", "--json").stdout)}
    assert list(rows) == sorted(
        f"{recipe}/{stage}" for recipe in ("local", "other") for stage in STAGES
    )
    assert (
        rows["local/corpus"]["fingerprint"] == rows["other/corpus"]["fingerprint"]
    )  # the same text is the same artifact
    assert (
        len({row["fingerprint"] for row in rows.values()})
        == len(list((small / "artifacts").iterdir()))
        == 5
    )
    table = call("list").stdout
    assert all(name in table and row["fingerprint"][:12] in table for name, row in rows.items())


def test_list_of_an_empty_store_says_what_to_do(tmp_path: Path) -> None:
    result = on(tmp_path / "none")("list")
    assert result.exit_code == 0 and "gpt-lineage run" in result.stdout
    assert not (tmp_path / "none").exists()
    assert json.loads(on(tmp_path / "none")("list", "--json").stdout) == []


def test_show_tells_the_manifest(call: Run, small: Path) -> None:
    facts = json.loads(call("show", "local/tokens", "--json").stdout)
    artifact = Store(small).resolve("local/tokens")
    assert facts["fingerprint"] == artifact.fingerprint and facts["refs"] == ["local/tokens"]
    assert all(check["passed"] for check in facts["checks"].values()) and facts["checks"]
    text = call("show", artifact.fingerprint[:10]).stdout
    for part in (
        artifact.fingerprint,
        artifact.digest,
        "local/tokens",
        "bytes_per_token",
        "index.json",
        *facts["checks"],
    ):
        assert part in text


def test_trace_ends_at_the_bytes_of_the_sources(call: Run) -> None:
    lineage = json.loads(call("trace", "local/tokens", "--json").stdout)
    assert [below["stage"] for below in lineage["inputs"]] == ["corpus", "tokenizer"]
    assert lineage["inputs"][1]["inputs"][0]["fingerprint"] == lineage["inputs"][0]["fingerprint"]
    (source,) = lineage["inputs"][0]["sources"]
    assert source["licence"] == "CC0-1.0" and source["pinned"][0]["path"] == "notes/notes0.txt"
    tree = call("trace", "local/tokens").stdout
    assert (
        source["pinned"][0]["sha256"] in tree and "CC0-1.0" in tree and "notes/notes0.txt" in tree
    )
    assert (
        tree.count(source["pinned"][0]["sha256"]) == 1 and "as above" in tree
    )  # what stands in it twice is drawn once


def test_trace_goes_from_an_mlflow_run_to_the_text(call: Run, small: Path) -> None:
    store = Store(small)
    run = Tracking(small).run_of(store.resolve("local/tokens"))
    assert run is not None
    assert (
        json.loads(call("trace", run, "--json").stdout)["fingerprint"]
        == store.resolve("local/tokens").fingerprint
    )


def test_trace_fails_where_a_part_is_gone(copy: Path) -> None:
    corpus = Store(copy).resolve("local/corpus")
    shutil.rmtree(corpus.path.parent)
    result = on(copy)("trace", "local/tokens", "--json")
    assert result.exit_code == 1 and "not in the store any more" in result.stderr
    assert json.loads(result.stdout)["inputs"][0]["missing"] is True


def test_verify_passes_on_what_was_published(call: Run) -> None:
    assert "5 artifacts verify" in call("verify").stdout
    assert "3 artifacts verify" in call("verify", "local/tokens").stdout


def test_verify_and_reproduce_answer_scripts_in_json(call: Run, copy: Path, small: Path) -> None:
    assert json.loads(call("verify", "--json").stdout) == {
        "artifacts": 5,
        "unsummed": 0,
        "problems": [],
    }
    tokenizer = Store(small).resolve("local/tokenizer")
    same = {
        "stage": "tokenizer",
        "fingerprint": tokenizer.fingerprint,
        "digest": tokenizer.digest,
        "same": True,
        "differences": [],
    }
    assert json.loads(call("reproduce", "local/tokenizer", "--json").stdout) == same
    index = Store(copy).resolve("local/tokens").path / "index.json"
    index.write_text("{}")
    result = on(copy)("verify", "local/tokens", "--json")
    assert result.exit_code == 1 and str(index) in result.stderr
    document = json.loads(result.stdout)
    assert document["artifacts"] == 3 and [
        str(index) in problem for problem in document["problems"]
    ] == [True]


def test_verify_names_a_flipped_byte_below_the_artifact(copy: Path) -> None:
    victim = next((Store(copy).resolve("local/corpus").path / "documents").rglob("training*"))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    for arguments in (("verify",), ("verify", "local/tokens")):
        result = on(copy)(*arguments)
        assert result.exit_code == 1
        assert victim.name in result.stderr and "sha256" in result.stderr
    assert on(copy)("verify", "other/tokenizer").exit_code == 1  # its corpus is the same artifact


def test_verify_names_a_manifest_that_cannot_be_read(copy: Path) -> None:
    manifest = Store(copy).resolve("local/tokens").path.parent / "artifact.json"
    manifest.write_text(manifest.read_text()[:100])
    result = on(copy)("verify")
    assert result.exit_code == 1 and str(manifest) in result.stderr


def test_diff_finds_where_two_lineages_part(call: Run) -> None:
    differences = json.loads(call("diff", "local/tokens", "other/tokens", "--json").stdout)
    assert differences["same"] is False
    assert [first["stage"] for first in differences["first"]] == ["tokenizer"]
    assert differences["first"][0]["config"] == {"vocab_size": [300, 320]}
    assert list(differences["inputs"]) == ["tokenizer"] and differences["config"] == {}
    assert "tokens" in differences["metrics"] and "index.json" in differences["files"]
    text = call("diff", "local/tokens", "other/tokens").stdout
    assert "tokenizer (vocab_size)" in text and "a is local/tokens" in text
    assert "held-out text differs" not in text
    mixed = call("diff", "local/tokens", "other/tokenizer").stdout
    assert "They are of two stages, tokens and tokenizer" in mixed and "part first" not in mixed
    assert "the same artifact" in call("diff", "local/corpus", "other/corpus").stdout


def test_diff_names_the_file_that_changed_and_that_the_held_out_text_did(tmp_path: Path) -> None:
    store, models = Store(tmp_path), []
    made = {"profile": {"name": "cpu"}, "ranks": 1, "threads": 1}
    for text, more in (("old", []), ("new", [{"path": "t/c.txt", "sha256": "c"}])):
        pinned = [{"path": "t/a.txt", "sha256": "a"}, {"path": "t/b.txt", "sha256": text}, *more]
        config = {"sources": [{"name": "notes", "pinned": pinned}]}
        building = store.building(store.fingerprint("corpus", "1", config, {}))
        (held_out := building.files / "documents" / "notes" / "held_out.jsonl").parent.mkdir(
            parents=True
        )
        held_out.write_text(text)
        corpus = store.publish(building, Facts("corpus", "1", config, {}, {}, made), {})
        config = {"learning_rate": 0.1}
        digests = {"corpus": corpus.digest}
        building = store.building(store.fingerprint("pretrained", "1", config, digests))
        (building.files / "weights").write_text(text)
        facts = Facts("pretrained", "1", config, {"corpus": corpus}, {}, made)
        models.append(store.publish(building, facts, {}).fingerprint)
    text = on(tmp_path)("diff", *models).stdout
    assert "first at: corpus (the file t/b.txt, the file t/c.txt, which is new)\n" in text
    assert "The held-out text differs (notes): their scores are of two texts." in text


def test_diff_names_the_profile_as_the_reason_where_one_section_has_two_digests(
    tmp_path: Path,
) -> None:
    store, tokens = Store(tmp_path), []
    for profile, ranks in (("cpu", 2), ("single", 1)):
        made = {"profile": {"name": profile}, "ranks": ranks, "threads": 1}
        building = store.building(store.fingerprint("pretrained", "1", {}, {}))
        (building.files / "weights").write_text(profile)
        model = store.publish(building, Facts("pretrained", "1", {}, {}, {}, made), {})
        digests = {"pretrained": model.digest}
        building = store.building(store.fingerprint("scorecard", "1", {}, digests))
        (building.files / "scores").write_text(profile)
        facts = Facts("scorecard", "1", {}, {"pretrained": model}, {}, made)
        tokens.append(store.publish(building, facts, {}).fingerprint)
        store.quarantine(model.fingerprint)
    building = store.building(model.fingerprint)
    (building.files / "weights").write_text(profile)
    store.publish(building, Facts("pretrained", "1", {}, {}, {}, made), {})
    differences = json.loads(on(tmp_path)("diff", *tokens, "--json").stdout)
    assert differences["built"] == {"profile": ["cpu", "single"], "ranks": [2, 1]}
    (first,) = differences["first"]
    assert (first["stage"], first["built"]) == (
        "pretrained",
        "profile single, ranks 1, threads of each 1",
    )
    text = " ".join(on(tmp_path)("diff", *tokens).stdout.split())
    assert "was built twice, with two digests" in text and "added in another order" in text


def test_diff_begins_with_the_scores_and_folds_what_is_long(tmp_path: Path) -> None:
    store, models = Store(tmp_path), []
    made = {"profile": {"name": "cpu"}, "ranks": 1, "threads": 1}
    for accuracy in (0.5, 0.75):
        config = {"learning_rate": accuracy}
        metrics = {"accuracy": accuracy, "random_accuracy": accuracy / 2, "test/rows": accuracy}
        metrics |= {"accuracy_low": accuracy - 0.1, "accuracy_high": accuracy + 0.1}
        building = store.building(store.fingerprint("finetuned", "1", config, {}))
        (building.files / "weights").write_text(str(accuracy))
        facts = Facts("finetuned", "1", config, {}, metrics, made)
        models.append(store.publish(building, facts, {}).fingerprint)
    folded = on(tmp_path)("diff", *models).stdout
    (score,) = [line for line in folded.splitlines() if line.startswith("accuracy")]
    assert score.split("  ")[1:] and "0.75 (0.65 – 0.85)" in score and "+0.25" in score
    assert "1 of configuration, 2 of other metrics, 1 of files (learning_rate)" in folded
    assert "random_accuracy" not in folded
    whole = on(tmp_path)("diff", *models, "--all").stdout
    assert whole.index("accuracy ") < whole.index("learning_rate  ") < whole.index("weights")
    assert "random_accuracy" in whole and "Folded" not in whole


@pytest.mark.parametrize("stage", STAGES)
def test_reproduce_gives_the_same_bytes(stage: str, call: Run, small: Path) -> None:
    before = sorted(path.name for path in small.iterdir())
    result = call("reproduce", f"local/{stage}")
    assert result.exit_code == 0, result.output
    assert Store(small).resolve(f"local/{stage}").digest in result.stdout
    assert sorted(path.name for path in small.iterdir()) == before


def test_reproduce_names_the_files_that_differ(copy: Path) -> None:
    """A manifest that claims other bytes for one file is found out."""
    changed: dict[str, str] = {}

    def change(facts: dict[str, Any]) -> None:
        changed.update(facts["files"][0] | {"sha256": "0" * 64})
        facts["files"][0] = changed

    publish_again(copy, "local/tokenizer", change)
    result = on(copy)("reproduce", "local/tokenizer")
    assert result.exit_code == 1
    assert f"{changed['path']}: 000000000000 as published" in result.stderr
    assert result.stderr.count("as published") == 1


def test_reproduce_in_json_names_them_too(copy: Path) -> None:
    def change(facts: dict[str, Any]) -> None:
        facts["files"][0]["sha256"] = "0" * 64
        facts["provenance"]["profile"]["launcher"] = "local"  # a setting that profiles had once
        facts["provenance"] |= {"ranks": 3, "threads": 7}
        facts["provenance"]["packages"]["torch"] = "1.0"

    facts = publish_again(copy, "local/tokenizer", change)
    result = on(copy)("reproduce", "local/tokenizer", "--json")
    document = json.loads(result.stdout)
    assert (
        result.exit_code == 1
        and document["same"] is False
        and document["fingerprint"] == facts["fingerprint"]
    )
    assert document["differences"][0].startswith(
        f"{facts['files'][0]['path']}: 000000000000 as published"
    )
    reasons = "\n".join(document["differences"][1:])
    assert "profile single, ranks 3, threads of each 7; here by profile single, ranks 1" in reasons
    assert "It was built with torch 1.0; here with torch 2" in reasons


def test_reproduce_refuses_a_changed_input(copy: Path) -> None:
    (Store(copy).resolve("local/corpus").path / "index.json").write_text("{}")
    result = on(copy)("reproduce", "local/tokenizer")
    assert result.exit_code == 1 and "index.json" in result.stderr and "corpus" in result.stderr


def test_reproduce_refuses_another_version_of_the_code(copy: Path) -> None:
    publish_again(copy, "local/corpus", lambda facts: facts.update(version="0"))
    result = on(copy)("reproduce", "local/corpus")
    assert (
        result.exit_code == 1
        and "version 0" in result.stderr
        and "Check out commit" in result.stderr
    )


@pytest.fixture(scope="module")
def with_model(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the small store with an untrained model in it, under the name local/pretrained."""
    from gpt_model import GPT, ModelConfig, convert
    from gpt_model.tokenizer import Tokenizer

    home = shutil.copytree(small, tmp_path_factory.mktemp("with_model") / "lineage", symlinks=True)
    store = Store(home)
    building = store.building(store.fingerprint("pretrained", "1", {}, {}))
    tokenizer = Tokenizer.load(store.resolve("local/tokenizer").path)
    config = ModelConfig(layers=2, width=32, heads=2, context=32, vocab_size=tokenizer.vocab_size)
    convert.save(GPT(config, seed=1), building.files / "model", tokenizer.end_of_text)
    tokenizer.save(building.files / "model")
    provenance = store.resolve("local/tokens").manifest["provenance"]
    store.publish(building, Facts("pretrained", "1", {}, {}, {}, provenance), {})
    store.set_ref("local", "pretrained", building.fingerprint)
    return home


def test_generate_writes_the_same_for_the_same_seed(with_model: Path) -> None:
    write = (
        "generate",
        "local/pretrained",
        "In the year",
        "--max-new-tokens",
        "12",
        "--samples",
        "2",
        "--top-k",
        "50",
        "--seed",
    )
    first, again, other = (on(with_model)(*write, seed).stdout for seed in ("1", "1", "2"))
    assert first == again != other
    result = on(with_model)(*write, "1", "--json")
    answer = json.loads(result.stdout)
    assert answer["prompt"] == "In the year" and len(answer["texts"]) == 2
    assert first == "---\n".join(f"{text}\n" for text in answer["texts"])  # the prompt is apart
    assert on(with_model)(*write, "1").stderr.endswith("In the year\n")


def test_export_loads_in_transformers_and_says_the_same(with_model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target = tmp_path / "exported"
    assert on(with_model)("export", "local/pretrained", str(target)).exit_code == 0
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(target),
        AutoTokenizer.from_pretrained(target),
    )
    ids = tokenizer("the king sees", return_tensors="pt").input_ids
    theirs: str = tokenizer.decode(
        model.generate(ids, max_new_tokens=8, do_sample=False)[0], skip_special_tokens=True
    )
    ours = on(with_model)(
        "generate",
        "local/pretrained",
        "the king sees",
        "--max-new-tokens",
        "8",
        "--temperature",
        "0",
    ).stdout
    assert f"the king sees{ours}".rstrip("\n") == theirs.rstrip("\n")
    refused = on(with_model)("export", "local/pretrained", str(target))
    assert (
        refused.exit_code == 1 and "is not empty" in refused.stderr and "--force" in refused.stderr
    )
    assert on(with_model)("export", "local/pretrained", str(target), "--force").exit_code == 0
    written = json.loads((target / "lineage.json").read_text())
    assert written["fingerprint"] == Store(with_model).resolve("local/pretrained").fingerprint
    traced = json.loads(on(with_model)("trace", "local/pretrained", "--json").stdout)
    assert written["lineage"] == traced
    # llama.cpp's converter reads the context by this name
    config = json.loads((target / "config.json").read_text())
    assert config["n_ctx"] == config["n_positions"] == 32
    assert written["files"].keys() | {"lineage.json"} == {path.name for path in target.iterdir()}


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("mine", "is no export"),
        ("mixed", "notes.txt is not what an export wrote"),
        ("edited", "config.json is not what an export wrote"),
        ("clone", "is in, or holds, a checkout"),
        ("clone/docs", "is in, or holds, a checkout"),
        ("work", "is in, or holds, a checkout"),
        ("file", "is a file"),
        ("lineage", "is in the store"),
        ("lineage/artifacts", "is in the store"),
        ("lineage/new", "is in the store"),
        (".", "is in the store"),
    ],
)
def test_export_replaces_nothing_but_an_earlier_export(
    with_model: Path, tmp_path: Path, place: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = shutil.copytree(with_model, tmp_path / "lineage", symlinks=True)
    for name in ("mine/notes.txt", "clone/.git", "clone/docs/a.md", "work/clone/.git", "file"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    for name in ("mixed", "edited"):
        assert on(home)("export", "local/pretrained", str(tmp_path / name)).exit_code == 0
    (tmp_path / "mixed" / "notes.txt").write_text("mine")
    (tmp_path / "edited" / "config.json").write_text("{}")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.chdir(tmp_path)
    refused = on(home)("export", "local/pretrained", place, "--force")
    assert refused.exit_code == 1 and reason in refused.stderr
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_export_of_a_fine_tuned_model_is_a_classifier_with_its_card(
    built: BuiltStore, tmp_path: Path
) -> None:
    from transformers import pipeline

    target = tmp_path / "exported"
    done = on(built.home)("export", "ci/finetuned/sentiment", str(target))
    assert done.exit_code == 0 and "transformers.pipeline('text-classification'" in done.stdout
    answers = pipeline("text-classification", model=str(target))(["A dull film.", "Wonderful!"])
    assert {answer["label"] for answer in answers} <= {"negative", "positive"}
    card = (target / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["pipeline_tag"] == "text-classification" and front["license"] == "other"
    for source in ("plays", "sentiment"):  # of the text it was trained on, and of the task's
        assert re.search(rf"^\| {source} \| .+ \| \S.* \|$", card, re.M), card
    assert {path.stat().st_mode & 0o444 for path in target.iterdir()} == {0o444}
    [model] = front["model-index"]
    store = Store(built.home)
    artifact = store.resolve("ci/finetuned/sentiment")
    metrics = {entry["name"]: entry for r in model["results"] for entry in r["metrics"]}
    accuracy = metrics["accuracy"]
    assert accuracy["value"] == artifact.metrics["accuracy"]
    ends = [artifact.metrics["accuracy_low"], artifact.metrics["accuracy_high"]]
    assert accuracy["args"]["confidence_interval_95"] == ends
    assert accuracy["args"]["artifact"] == artifact.fingerprint
    notes = (target / front["license_link"]).read_text()
    for source in (
        s
        for name in ("corpus", "finetuned/sentiment")
        for s in sources_of(store.resolve(f"ci/{name}"))
    ):
        assert f"- {source['name']}: {source['licence']}" in notes and source["sha256"] in notes
    assert "gpt-lineage run ci.yaml --profile" in card and artifact.fingerprint in card


def test_the_card_has_the_suites_that_were_run_on_the_model(built: BuiltStore) -> None:
    store = Store(built.home)
    artifact, suites = store.resolve("ci/pretrained"), store.resolve("ci/zero_shot")
    scores = scores_of(store, artifact, "ci/pretrained")
    assert {score.fingerprint for score in scores} == {artifact.fingerprint, suites.fingerprint}
    assert len({(score.name, score.sample()) for score in scores}) == len(scores)
    by_name = {score.name: score for score in scores}
    assert by_name["bits per byte, plays"].value == artifact.metrics["held_out/plays/bpb"]
    assert by_name["cloze acc"].examples == 24


def test_push_lists_what_it_would_upload(with_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
    command = ("push", "local/pretrained", "owner/model", "--language", "en", "--dry-run")
    plan = json.loads(on(with_model)(*command, "--json").stdout)
    assert {"README.md", "LICENSE", "lineage.json", "model.safetensors"} < plan["files"].keys()
    assert plan["pushed"] is None and 'model="owner/model"' in plan["card"]
    assert yaml.safe_load(plan["card"].split("---")[1])["language"] == ["en"]
    printed = on(with_model)(*command)
    assert "model.safetensors" in printed.stdout and plan["card"] in printed.stdout
    assert "Nothing was uploaded" in printed.stderr
    without_owner = on(with_model)("push", "local/pretrained", "model", "--dry-run")
    assert without_owner.exit_code == 1 and "give OWNER/NAME" in without_owner.stderr


def test_push_uploads_the_export_by_the_hubs_client(
    with_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", local_hub.TOKEN)
    exported = tmp_path / "exported"
    assert on(with_model)("export", "local/pretrained", str(exported)).exit_code == 0
    with local_hub.serve(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)  # read once, as the client starts
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
        done = on(with_model)("push", "local/pretrained", "owner/model")
        assert done.exit_code == 0, done.stderr
        assert f"{hub.address}/owner/model/commit/" in done.stdout
        monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
        refused = on(with_model)("push", "local/pretrained", "owner/model")
        assert refused.exit_code == 1 and "does not let this token write" in refused.stderr
    uploaded = tmp_path / "hub" / "models" / "owner" / "model"
    assert {path.name for path in uploaded.iterdir()} == {path.name for path in exported.iterdir()}
    for path in exported.iterdir():
        if path.name not in ("README.md", "lineage.json"):  # these name the folder
            assert (uploaded / path.name).read_bytes() == path.read_bytes(), path.name
    written = json.loads((uploaded / "lineage.json").read_text())["files"]
    assert written == {
        path.name: sha256_of(path) for path in uploaded.iterdir() if path.name != "lineage.json"
    }
    output = done.stdout + done.stderr + refused.stdout + refused.stderr
    assert local_hub.TOKEN not in output and "hf_of_nobody" not in output
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    silent = on(with_model)("push", "local/pretrained", "owner/model")
    assert silent.exit_code == 1 and "the hub does not answer" in silent.stderr
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    nobody = on(with_model)("push", "local/pretrained", "owner/model")
    assert nobody.exit_code == 1 and "set HF_TOKEN" in nobody.stderr


def test_export_of_another_form_says_that_the_head_is_apart(
    built: BuiltStore, tmp_path: Path
) -> None:
    from gpt_model.finetuning.heads import load

    done = on(built.home)("export", "ci/finetuned/piqa", str(tmp_path / "exported"))
    assert (
        done.exit_code == 0
        and "leaves out the task's head, which is in head.safetensors" in done.stdout
    )
    model, _ = load(tmp_path / "exported")  # as the sentence says
    assert model.head.weight.shape[0] == 1
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "no class for a task of the form multiple_choice" in card


def test_a_damaged_model_writes_nothing_and_is_not_talked_with(
    with_model: Path, tmp_path: Path
) -> None:
    home = shutil.copytree(with_model, tmp_path / "lineage", symlinks=True)
    weights = Store(home).resolve("local/pretrained").path / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    for command in (
        ("generate", "local/pretrained", "Once"),
        ("chat", "local/pretrained"),
        ("export", "local/pretrained", str(tmp_path / "out")),
    ):
        done = on(home)(*command)
        assert done.exit_code == 1 and "is not what was published" in done.stderr
        assert str(weights) in done.stderr and "Run its recipe again" in done.stderr
    assert not (tmp_path / "out").exists()


def test_generate_and_export_need_a_model(call: Run, tmp_path: Path) -> None:
    for arguments in (
        ("generate", "local/tokens", "Once"),
        ("export", "local/tokens", str(tmp_path / "out")),
    ):
        result = call(*arguments)
        assert result.exit_code == 1 and "has no model in it" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (("show", "local/tokns"), 1, "Did you mean local/tokens"),
        (("trace", "0" * 32), 1, "There is no artifact"),
        (("run", "no_such_recipe"), 1, "There is no recipe 'no_such_recipe'"),
        (("plan", "tiny", "--profile", "cpuu"), 1, "Did you mean 'cpu'"),
        (("nonsense",), 2, "No such command 'nonsense'"),
        (("generate", "local/tokens", "a", "--top-k", "0"), 2, "--top-k"),
        (("diff", "local/tokens"), 2, "Missing argument 'B'"),
    ],
)
def test_mistakes_end_in_one_sentence_and_no_traceback(
    arguments: tuple[str, ...], status: int, sentence: str, call: Run
) -> None:
    result = call(*arguments)
    assert result.exit_code == status
    assert sentence in result.stderr and "Traceback" not in result.output and result.stdout == ""


def test_reading_the_store_imports_nothing_heavy(small: Path, downloads: Path) -> None:
    for arguments in (
        ["list"],
        ["trace", "local/tokens"],
        ["show", "local/tokens"],
        ["verify"],
        ["diff", "local/tokens", "other/tokens"],
    ):
        script = (
            "import sys; from pipelines.cli.main import app\n"
            f"app({arguments!r}, standalone_mode=False)\n"
            "heavy = {'torch', 'dagster', 'mlflow', 'pandas', 'transformers'}\n"
            "print(sorted(heavy & set(sys.modules)))"
        )
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=environment_of(small, downloads),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.splitlines()[-1] == "[]", arguments


def test_interrupted_run_ends_with_130_and_leaves_no_process(
    home: Path, downloads: Path, tmp_path: Path
) -> None:
    import psutil

    recipe = write_local_recipe(tmp_path)
    write_notes(tmp_path / "notes", 150_000, start=1000)  # seconds of work for the corpus stage
    run = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "run", str(recipe)],
        env=environment_of(home, downloads),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while (
        run.poll() is None
        and time.monotonic() < deadline
        and not list(home.glob("building/*/journal/events.jsonl"))
    ):
        time.sleep(0.02)
    started = psutil.Process(run.pid).children(recursive=True)
    assert started
    run.send_signal(signal.SIGINT)
    _, stderr = run.communicate(timeout=60)
    assert run.returncode == 130, stderr
    assert "Interrupted" in stderr and "Traceback" not in stderr
    _, alive = psutil.wait_procs(started, timeout=10)
    assert alive == []
    assert not (home / "artifacts").exists()
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        (run_,) = instance.get_runs()
        assert run_.status == dg.DagsterRunStatus.CANCELED


def test_failed_blocking_check_stops_the_run_and_is_named(
    copy: Path, downloads: Path, small: Path
) -> None:
    gate = Store(copy).resolve("local/corpus").path.parent / "gate.json"
    verdicts = json.loads(gate.read_text())
    name = next(name for name, verdict in verdicts.items() if verdict["blocking"])
    verdicts[name] |= {"passed": False, "summary": "12 documents are in both."}
    gate.write_text(json.dumps(verdicts))
    record_sums(gate.parent)
    done = run_cli(copy, downloads, "run", str(small.parent / "local.yaml"))
    assert done.returncode == 1
    assert (
        f"local/corpus: the blocking check {name!r} failed: 12 documents are in both."
        in done.stderr
    )
    assert "local/tokenizer" not in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("terminal", [True, False])
def test_display_says_how_far_a_build_is(
    terminal: bool, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.progress.POLL_SECONDS", 0.02)
    monkeypatch.setattr("pipelines.progress.LINE_SECONDS", 0.05)
    building = Store(home).building("cd" * 32)
    output = io.StringIO()
    with BuildDisplay(
        home, Console(file=output, force_terminal=terminal, force_interactive=terminal, width=200)
    ) as display:
        display.began("tiny/pretrained")
        building.job.write_text(json.dumps({"asset": "tiny/pretrained"}))
        spool = EventWriter(building.events)
        spool.metrics(3, {"loss": 5.25, "learning_rate": 0.1})
        spool.advance(1_200_000, 1_500_000, "tokens")
        spool.log("halfway")
        deadline = time.monotonic() + 20
        while "1.2M/1.5M tokens" not in output.getvalue() and time.monotonic() < deadline:
            time.sleep(0.02)
        display.ended("tiny/pretrained", "+ tiny/pretrained built")
    for text in (
        "1.2M/1.5M tokens",
        "loss 5.25",
        "tiny/pretrained: halfway",
        "+ tiny/pretrained built",
    ):
        assert text in output.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.4 s"),
        (59.4, "59 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (273_600, "3 d 4 h"),
        (1.5974e12, "50,600 years"),
    ],
)
def test_durations_are_as_a_person_says_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_run_whose_process_is_gone_is_closed(home: Path) -> None:
    prepare_home(home)
    with dg.DagsterInstance.get() as instance:
        names = ("mine", "gone", "older", "again", "elsewhere", "other")
        ids = {name: make_new_run_id() for name in names}
        mine = process_tags(instance, ids["mine"])
        gone = {**mine, STARTED: "long ago", RUN: ids["gone"]}  # the same pid, another process
        older = {  # as earlier versions named them
            name.removeprefix(HIDDEN): tag for name, tag in {**gone, RUN: ids["older"]}.items()
        }
        runs = {
            name: instance.create_run_for_job(
                _job(), run_id=ids[name], status=dg.DagsterRunStatus.STARTED, tags=tags
            ).run_id
            for name, tags in {
                "mine": mine,
                "gone": gone,
                "older": older,
                "again": gone,  # launched from the page as "gone" once more, with its tags
                "elsewhere": {**gone, HOST: "another-host", RUN: ids["elsewhere"]},
                "other": {},
            }.items()
        }
        sentences = close_lost_runs(instance)
        closed = {run for run in runs if any(runs[run][:8] in text for text in sentences)}
        assert len(sentences) == 2 and closed == {"gone", "older"}
        records = {name: instance.get_run_by_id(run) for name, run in runs.items()}
        statuses = {name: record.status for name, record in records.items() if record}
        assert statuses.pop("gone") == statuses.pop("older") == dg.DagsterRunStatus.FAILURE
        assert set(statuses.values()) == {dg.DagsterRunStatus.STARTED}
        assert close_lost_runs(instance) == []
    assert int(mine[PID]) == os.getpid()


def test_interrupted_step_leaves_no_slot_of_a_pool_claimed(home: Path) -> None:
    claimed = []
    prepare_home(home)
    with dagster_history() as instance:

        @dg.op(pool="training")
        def interrupted() -> None:
            claimed.extend(_claims(instance))
            instance.report_run_canceling(run)  # as a stage does
            raise KeyboardInterrupt

        @dg.job(executor_def=one_process_executor)
        def job() -> None:
            interrupted()

        run = instance.create_run_for_job(job)
        with suppress(KeyboardInterrupt, DagsterExecutionInterruptedError):
            execute_run(InMemoryJob(job), run, instance)
        assert claimed == [run.run_id]
        assert _claims(instance) == []


def _claims(instance: dg.DagsterInstance) -> list[str]:
    info = instance.event_log_storage.get_concurrency_info("training")
    return [slot.run_id for slot in info.claimed_slots]


def _job() -> dg.JobDefinition:
    @dg.op
    def nothing() -> None: ...

    @dg.job
    def job() -> None:
        nothing()

    return job
