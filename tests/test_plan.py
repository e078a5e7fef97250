"""The plan and the forecast: what they say beforehand, and that it is what then comes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from rich.console import Console

from assets.contract import Artifact, Metrics, Stage
from assets.estimate.forecast import forecast, planned
from assets.graph import node_named, nodes
from assets.node import Node
from assets.recipe.profile import Profile, load_profile
from assets.recipe.recipe import BatchRamp, Recipe, load_recipe
from assets.store.manifest import Facts
from assets.store.store import Store
from gpt_model.config import ModelConfig
from gpt_model.errors import UserError
from gpt_model.training.estimate import memory_per_rank
from gpt_model.training.schedules import Batches
from pipelines.cli.plan import draw_plan, parameters_by_part, plan

RECIPE = Recipe.model_validate(
    {
        "name": "small",
        "corpus": {
            "sources": [{"name": "notes", "path": "notes.txt", "documents": "lines"}],
            "held_out": 0.1,
        },
        "tokenizer": {"vocab_size": 300},
        "model": {"layers": 2, "width": 32, "heads": 2, "context": 32},
        "pretraining": {"tokens": 20_480, "batch_tokens": 512, "learning_rate": 1e-3},
    }
)
CPU = Profile(name="two", processes=2, threads=1)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "notes.txt").write_text(
        "".join(f"line number {n} of the notes\n" for n in range(500))
    )
    return tmp_path


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("LINEAGE_HOME", str(tmp_path / "lineage"))
    return Store(tmp_path / "lineage")


def pretrained_node() -> Node:
    return node_named(nodes(RECIPE), "pretrained")


def artifact(
    stage: str, config: dict[str, Any] | None = None, metrics: Metrics | None = None
) -> Artifact:
    return Artifact(
        Path(), stage, "", "", config or {}, metrics or {}, {"files": [{"path": "a", "size": 1000}]}
    )


INPUTS = {"tokens": artifact("tokens"), "tokenizer": artifact("tokenizer", {"vocab_size": 300})}


def config(tokens: int = 20_480) -> dict[str, Any]:
    return {
        "model": RECIPE.model.model_dump(mode="json"),
        "pretraining": {**RECIPE.pretraining.model_dump(mode="json"), "tokens": tokens},
    }


def built(
    store: Store,
    node: Node,
    config: dict[str, Any],
    seconds: float,
    bpb: float,
    profile: Profile = CPU,
    attempts: int = 1,
) -> None:
    """Publish an artifact as a build that took `seconds` and came to `bpb` would have."""
    told = forecast(node, config, INPUTS, profile, store)
    building = store.building(
        store.fingerprint(node.stage.name, node.stage.version, {**config, "seconds": seconds}, {})
    )
    (building.files / "weights").write_bytes(b"\0" * 150_000)
    provenance = {
        "profile": profile.model_dump(mode="json"),
        "forecast": told,
        "stage_seconds": seconds,
        "seconds": seconds,
        "attempts": attempts,
    }
    store.publish(
        building,
        Facts(node.stage.name, node.stage.version, config, {}, {"held_out/bpb": bpb}, provenance),
        {},
    )


def test_plan_counts_what_the_model_has(store: Store, base: Path) -> None:
    facts = plan(RECIPE, base, CPU, store)
    parts = facts["parameters"]
    assert (
        sum(count for name, count in parts.items() if name != "all")
        == parts["all"]
        == 300 * 32 + 32 * 32 + 2 * (12 * 32**2 + 13 * 32) + 64
    )
    assert (facts["tokens"], facts["steps"], facts["epochs"]) == (20_480, 40, None)
    assert facts["flops"] == 20_480 * RECIPE.model_config_for().flops_per_token()
    assert [stage["state"] for stage in facts["stages"]] == ["build"] * 5
    assert [stage["fingerprint"] is None for stage in facts["stages"]] == [
        False,
        True,
        True,
        True,
        True,
    ]
    assert facts["seconds"]["low"] < facts["seconds"]["expected"] < facts["seconds"]["high"]
    assert facts["cost"]["unit"] == "core hours"
    assert facts["cost"]["expected"] == pytest.approx(facts["seconds"]["expected"] * 2 / 3600)
    assert not (store.home / "artifacts").exists() and not (store.home / "building").exists()


@pytest.mark.parametrize(
    ("name", "millions"),
    [("gpt2-small", 124.4), ("gpt2-medium", 354.8), ("gpt2-large", 774.0), ("gpt2-xl", 1557.6)],
)
def test_parts_add_up_to_the_published_sizes(name: str, millions: float) -> None:
    parts = parameters_by_part(ModelConfig.published(name))
    assert sum(count for part, count in parts.items() if part != "all") == parts["all"]
    assert parts["all"] / 1e6 == pytest.approx(millions, abs=0.05)


def test_zero_shares_out_what_the_paper_says() -> None:
    """ZeRO, figure 1: stage 0 keeps 16 bytes a parameter whatever the ranks, stage 3 shares out all
    of them.
    """
    model = ModelConfig.published("gpt2-xl")
    totals = [memory_per_rank(model, stage, 64, 1).total for stage in range(4)]
    activations = memory_per_rank(model, 0, 64, 1).activations
    assert totals == sorted(totals, reverse=True)
    assert totals[0] - activations == 16 * model.parameters()
    assert totals[3] - activations == pytest.approx(20 * model.parameters() / 64)
    assert (
        memory_per_rank(model, 0, 1, 1, activation_checkpointing=True).activations
        < activations / 10
    )
    with pytest.raises(ValueError, match="zero_stage is 4"):
        memory_per_rank(model, 4, 1, 1)


def test_plan_refuses_a_batch_the_profile_cannot_share_out(store: Store, base: Path) -> None:
    with pytest.raises(UserError, match="cannot share out evenly among its processes, 3"):
        plan(RECIPE, base, Profile(name="three", processes=3), store)


def test_planning_imports_no_torch_and_no_dagster(base: Path) -> None:
    recipe = base / "small.yaml"
    recipe.write_text(json.dumps(RECIPE.model_dump(mode="json", exclude_none=True)))
    script = (
        "import sys; from pipelines.cli.main import app; app(['plan', sys.argv[1], '--json'], standalone_mode=False)\n"
        "print(sorted({'torch', 'dagster', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(recipe)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_first_forecast_has_wide_intervals_and_says_so(store: Store) -> None:
    told = forecast(pretrained_node(), config(), INPUTS, CPU, store)
    for quantity in ("seconds", "bytes", "loss"):
        assert told[quantity]["low"] < told[quantity]["expected"] < told[quantity]["high"]
    assert told["seconds"]["high"] / told["seconds"]["low"] >= 9
    assert "No earlier build" in told["basis"] and "rule of thumb" in told["loss_basis"]


def test_earlier_builds_make_the_forecast_theirs(store: Store) -> None:
    node = pretrained_node()
    for tokens, seconds, bpb in (
        (20_480_000, 100.0, 2.6),
        (40_960_000, 203.0, 2.5),
        (81_920_000, 390.0, 2.4),
    ):
        built(store, node, config(tokens), seconds, bpb)
    told = forecast(node, config(61_440_000), INPUTS, CPU, store)
    assert told["seconds"]["expected"] == pytest.approx(300, rel=0.05)
    assert told["seconds"]["low"] > 200 and told["seconds"]["high"] < 450
    assert told["bytes"]["expected"] == pytest.approx(150_000)
    assert told["loss"]["expected"] == pytest.approx(2.44, abs=0.02)
    assert told["loss"]["high"] / told["loss"]["low"] < 1.3
    assert "From 3 earlier builds" in told["basis"] and "3 earlier models" in told["loss_basis"]
    elsewhere = forecast(node, config(61_440_000), INPUTS, replace_profile(CPU, processes=4), store)
    assert "No earlier build on this profile" in elsewhere["basis"]
    assert elsewhere["loss"] == told["loss"]  # what a model learns is not the profile's


def replace_profile(profile: Profile, **changes: Any) -> Profile:
    return profile.model_copy(update=changes)


def test_forecast_widens_the_further_it_looks(store: Store) -> None:
    node = pretrained_node()
    built(store, node, config(20_480_000), 100.0, 2.5)
    near, far = (
        forecast(node, config(tokens), INPUTS, CPU, store)
        for tokens in (20_480_000, 20_480_000_000)
    )
    assert near["seconds"]["expected"] == pytest.approx(100)
    assert far["loss"]["expected"] < near["loss"]["expected"]
    for quantity in ("seconds", "loss"):
        assert (
            far[quantity]["high"] / far[quantity]["low"]
            > near[quantity]["high"] / near[quantity]["low"]
        )


def test_small_build_says_little_of_a_large_one(store: Store) -> None:
    """Small builds are all overhead: one that was 17 times as slow as default rates must not make a
    model 300 times as large so.
    """
    node = pretrained_node()
    first, large = (
        forecast(node, config(tokens), INPUTS, CPU, store)["seconds"]
        for tokens in (20_480, 300_000_000)
    )
    built(store, node, config(), first["expected"] * 17, 4.0)
    again = forecast(node, config(300_000_000), INPUTS, CPU, store)
    assert large["expected"] < again["seconds"]["expected"] < 4 * large["expected"]
    assert (
        again["seconds"]["low"]
        < large["expected"]
        < 17 * large["expected"]
        < again["seconds"]["high"] * 1.5
    )
    assert "times smaller" in again["basis"] and "default rates" in again["basis"]


def test_resumed_build_tells_nothing_of_seconds(store: Store) -> None:
    """Only its last attempt was timed."""
    node = pretrained_node()
    before = forecast(node, config(), INPUTS, CPU, store)
    built(store, node, config(), 0.01, 2.5, attempts=2)
    after = forecast(node, config(), INPUTS, CPU, store)
    assert (
        after["seconds"] == before["seconds"]
        and after["bytes"] != before["bytes"]
        and after["loss"] != before["loss"]
    )


def test_forecast_never_stops_a_build(store: Store) -> None:
    told = forecast(pretrained_node(), {}, {}, CPU, store)
    assert set(told) == {"basis"} and "No forecast could be made" in told["basis"]


def test_forecast_is_cheap_in_a_full_store(store: Store) -> None:
    """Its cost beside that of reading every manifest once, which it has to."""
    node = pretrained_node()
    for n in range(60):
        built(store, node, config(20_480 * (n + 1)), 100.0 + n, 2.5)

    def best(of: Callable[[], object]) -> float:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            of()
            times.append(time.perf_counter() - began)
        return min(times)

    assert (
        best(lambda: forecast(node, config(), INPUTS, CPU, store))
        < 3 * best(lambda: list(store.artifacts())) + 0.01
    )


@pytest.mark.parametrize("stage", [node.name for node in nodes(RECIPE)])
@pytest.mark.parametrize("profile", ["cpu", "gpu", "single"])
def test_every_stage_has_a_forecast_on_every_profile(
    stage: str, profile: str, store: Store, base: Path
) -> None:
    row = next(
        row
        for row in plan(RECIPE, base, load_profile(profile), store)["stages"]
        if row["asset"] == f"small/{stage}"
    )
    assert row["forecast"]["seconds"]["expected"] > 0 and row["forecast"]["bytes"]["expected"] > 0


def test_stage_version_is_why_it_is_built_again(
    store: Store, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = node_named(nodes(RECIPE), "corpus")
    fingerprint = store.fingerprint("corpus", node.stage.version, node.config(base), {})
    building = store.building(fingerprint)
    (building.files / "index.json").write_text("{}")
    store.publish(building, Facts("corpus", node.stage.version, node.config(base), {}, {}, {}), {})
    store.set_ref("small", "corpus", fingerprint)
    assert plan(RECIPE, base, CPU, store)["stages"][0]["state"] == "found"
    newer: Stage = replace(node.stage, version="next")
    monkeypatch.setattr("assets.graph.CORPUS", newer)
    row = plan(RECIPE, base, CPU, store)["stages"][0]
    assert (row["state"], row["why"]) == ("build", f"stage version {node.stage.version} → next")
    monkeypatch.undo()
    (base / "notes.txt").write_text("another text\n" * 500)
    assert "sources[0].pinned[0].sha256" in plan(RECIPE, base, CPU, store)["stages"][0]["why"]


def test_plan_counts_a_ramps_steps_and_what_snapshots_take(store: Store, base: Path) -> None:
    ramp = {"from_tokens": 64, "over_tokens": 8192}
    longer = RECIPE.model_copy(
        update={
            "pretraining": RECIPE.own[1].model_copy(
                update={"batch_ramp": BatchRamp(**ramp), "snapshots": 6}
            )
        }
    )
    plain, facts = plan(RECIPE, base, CPU, store), plan(longer, base, CPU, store)
    assert plain["steps"] == 40 and facts["steps"] == Batches(512, 64, 8192).within(20_480) > 50
    assert (plain["snapshot_bytes"], facts["snapshot_bytes"]) == (
        0,
        5 * 4 * facts["parameters"]["all"],
    )
    sizes = [
        next(row for row in one["stages"] if row["asset"] == "small/pretrained")["forecast"][
            "bytes"
        ]["expected"]
        for one in (plain, facts)
    ]
    assert sizes[1] == pytest.approx(6 * sizes[0])
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(draw_plan(facts))
    text = console.export_text()
    assert "steps of 512, from 64 over the first 8.19k tokens" in text and "5 snapshots" in text


@pytest.fixture
def gpt1() -> dict[str, Node]:
    return {node.name: node for node in nodes(load_recipe("gpt1"))}


def of_gpt1(node: Node, store: Store, config: dict[str, Any] | None = None) -> dict[str, Any]:
    """Its forecast where the hub would answer, and nothing is built yet."""
    shape = load_recipe("gpt1").own[0].model_dump(mode="json")
    inputs = {
        "tokenizer": artifact("tokenizer", {"vocab_size": 40_478}),
        "pretrained": artifact("pretrained", {"model": shape}),
    }
    return forecast(
        node, config or node.settings(Path()), {**inputs, "corpus": artifact("corpus")}, CPU, store
    )


def test_a_task_of_the_hub_is_planned_by_its_number_of_examples(
    gpt1: dict[str, Node], store: Store
) -> None:
    work = {
        task: of_gpt1(gpt1[f"finetuned/{task}"], store)["work"]
        for task in ("mnli", "rte", "race", "mrpc")
    }
    each = 2 * 3 * 64 * ModelConfig.published("gpt1").flops_per_token()  # both arms, three epochs
    assert work["mnli"]["amount"] == pytest.approx(each * 392_702 * 0.98)
    assert work["rte"]["amount"] / work["mnli"]["amount"] == pytest.approx(2_490 / 392_702, rel=0.1)
    assert work["mrpc"]["amount"] == pytest.approx(
        each * 2 * 3_668
    )  # both orders; it has a validation split of its own
    assert work["race"]["amount"] == pytest.approx(
        each * 87_866 * 4 * 512 / 64
    )  # each of four answers after its passage
    assert {one["unsure"] for one in work.values()} == {1.0}
    fewer = gpt1["finetuned/mnli"].settings(Path()) | {"examples": 1000}
    assert of_gpt1(gpt1["finetuned/mnli"], store, fewer)["work"]["amount"] == pytest.approx(
        each * 1000
    )
    once = gpt1["experiments/ablations"].settings(Path())
    assert (
        of_gpt1(gpt1["experiments/ablations"], store, once)["work"]["amount"]
        > 4 * work["mnli"]["amount"] / 2
    )


@pytest.fixture
def gpt1_tiny() -> dict[str, Node]:
    return {node.name: node for node in nodes(load_recipe("gpt1-tiny"))}


def before_any_build(
    graph: dict[str, Node], store: Store
) -> dict[str, tuple[dict[str, Any], Artifact]]:
    """(forecast, stand-in) of each node, as a plan makes them of an empty store."""
    made: dict[str, tuple[dict[str, Any], Artifact]] = {}
    for name, node in graph.items():
        inputs, section = (
            {need: made[node.asset(need)][1] for need in node.needs},
            node.settings(Path()),
        )
        told = forecast(node, section, inputs, CPU, store)
        made[name] = told, planned(node, section, told, inputs)
    return made


def test_experiments_that_read_are_planned_by_what_their_models_read(
    gpt1_tiny: dict[str, Node], store: Store
) -> None:
    made = before_any_build(gpt1_tiny, store)
    work = {name: told["work"] for name, (told, _) in made.items()}
    shapes = {
        n: ModelConfig(family="gpt1", layers=n, width=128, heads=4, context=128, vocab_size=8192)
        for n in (1, 2, 4)
    }
    reading = {n: shape.flops_per_token() / 3 for n, shape in shapes.items()}
    held_out = sum(made["tokens"][1].metrics.values())
    assert held_out == pytest.approx(
        (0.05 + 0.05 + 0.15) * 5e6 / 3.5
    )  # of each source its own share
    assert work["experiments/depth"]["amount"] == pytest.approx(
        2 * held_out * 2 * sum(reading.values())
    )  # two seeds; overlapping windows
    windows = 500 * (1 + 2 + 4 + 8 + 16 + 32 + 64 + 128) * 3  # of each of three sources
    assert work["experiments/visible_context"]["amount"] == pytest.approx(
        windows * (reading[4] - 2 * 128 * 8192)
    )  # no head but the last
    lstm = (
        ModelConfig(
            family="lstm", layers=1, width=128, heads=1, context=128, vocab_size=8192
        ).flops_per_token()
        / 3
    )
    asked = 500 * 64 * (2 + 1 + 4 + 4)  # sentiment's two words, a sentence, two lists of options
    assert work["experiments/zero_shot_dynamics"]["amount"] == pytest.approx(
        8 * (reading[4] + lstm) * asked
    )
    for name in ("depth", "visible_context", "zero_shot_dynamics"):
        told = made[f"experiments/{name}"][0]
        assert (
            work[f"experiments/{name}"]["unit"] == "forward FLOPs"
            and told["seconds"]["expected"] > 5
        )
    known = replace(
        made["tokens"][1], metrics={"held_out/plays/tokens": 1000, "training/plays/tokens": 9000}
    )
    inputs = {
        name: known if name == "tokens" else made[name][1]
        for name in gpt1_tiny["experiments/depth"].needs
    }
    once_built = forecast(gpt1_tiny["experiments/depth"], {}, inputs, CPU, store)
    assert once_built["work"]["amount"] == pytest.approx(2 * 1000 * 2 * sum(reading.values()))


IMPORTING = {
    "name": "mine",
    "imported": {"hub": "a/b"},
    "finetuning": {"tasks": ["sentiment"], "examples": {"sentiment": 100}},
    "corpus": {
        "sources": [{"name": "notes", "path": "notes.txt", "documents": "lines"}],
        "held_out": 0.1,
    },
    "pretraining": {"tokens": 20_480, "batch_tokens": 512, "learning_rate": 1e-3},
}


def test_an_imported_model_is_planned_by_its_own_size_and_before_it_is_here_by_one_that_is_said(
    store: Store, tmp_path: Path
) -> None:
    graph = {node.name: node for node in nodes(Recipe.model_validate(IMPORTING))}
    made = before_any_build(graph, store)
    small = ModelConfig.published("gpt2-small")
    told = made["pretrained"][0]
    assert (
        told["work"]["amount"] == 20_480 * small.flops_per_token() and told["work"]["unsure"] == 10
    )
    said = "The imported model is not here yet, so GPT-2 small's size is assumed: 10 times less or more is within the interval."
    assert said in told["basis"] and said in made["finetuned/sentiment"][0]["basis"]
    shape = ModelConfig(layers=2, width=32, heads=2, context=64, vocab_size=300)
    (tmp_path / "shape.json").write_text(shape.model_dump_json())
    here = replace(
        artifact("imported", {"hub": "a/b"}, {"vocab_size": 300}), path=tmp_path
    )  # its section has no vocabulary
    inputs = {"base": here, "tokenizer": here, "tokens": artifact("tokens")}
    section = graph["pretrained"].settings(Path())
    known = forecast(graph["pretrained"], section, inputs, CPU, store)
    assert (
        known["work"]["amount"] == 20_480 * shape.flops_per_token()
        and "imported" not in known["basis"]
    )
    trained = planned(graph["pretrained"], section, known, inputs)
    task = {"pretrained": trained, "tokenizer": here, "corpus": artifact("corpus")}
    finetuned = forecast(
        graph["finetuned/sentiment"],
        graph["finetuned/sentiment"].settings(Path()),
        task,
        CPU,
        store,
    )
    assert (
        finetuned["work"]["amount"] == 2 * 3 * 100 * 64 * shape.flops_per_token()
        and "imported" not in finetuned["basis"]
    )
    (tmp_path / "not_run.json").write_text('{"not_run": "no hub"}')
    assert (
        forecast(graph["pretrained"], section, inputs, CPU, store)["work"]["unit"] == "artifacts"
    )  # nothing to do


def test_no_loss_is_foretold_of_a_model_that_others_began_and_none_of_a_model_of_ones_own_from_theirs(
    store: Store,
) -> None:
    graph = {node.name: node for node in nodes(Recipe.model_validate(IMPORTING))}
    assert not {"loss", "loss_basis"} & before_any_build(graph, store)["pretrained"][0].keys()
    alone = forecast(pretrained_node(), config(), INPUTS, CPU, store)
    assert "loss" in alone
    building = store.building(store.fingerprint("pretrained", "x", {}, {}))
    (building.files / "weights").write_bytes(b"0")
    provenance = {
        "profile": CPU.model_dump(mode="json"),
        "forecast": alone,
        "stage_seconds": 9.0,
        "seconds": 9.0,
        "attempts": 1,
    }
    base = artifact("imported")
    store.publish(
        building,
        Facts("pretrained", "x", {}, {"base": base}, {"held_out/bpb": 0.9}, provenance),
        {},
    )
    after = forecast(pretrained_node(), config(), INPUTS, CPU, store)
    assert after["loss"] == alone["loss"] and after["seconds"] != alone["seconds"]


def test_a_known_corpus_has_its_size_and_an_unknown_one_of_the_hub_a_wide_interval(
    gpt1: dict[str, Node], store: Store
) -> None:
    node = gpt1["corpus"]
    books = node.settings(Path())
    assert of_gpt1(node, store)["work"]["size"] == 4.854e9
    other = {**books, "sources": [{**books["sources"][0], "hub": "somebody/letters"}]}
    for seconds in (
        9.0,
        10.0,
        11.0,
    ):  # small ones of the same size as the guess, so that their interval alone would be narrow
        built(store, node, {**other, "seconds": seconds}, seconds, 1.0)
    for quantity in ("seconds", "bytes"):
        known, unknown = of_gpt1(node, store)[quantity], of_gpt1(node, store, other)[quantity]
        assert unknown["high"] >= 10 * unknown["expected"] >= 100 * unknown["low"]
        assert known["expected"] > 100 * unknown["expected"]
    assert (
        "unverified: 10 times" in of_gpt1(node, store, other)["basis"]
        and "unverified" not in of_gpt1(node, store)["basis"]
    )
    wikipedia = {
        **books,
        "sources": [
            {
                **books["sources"][0],
                "hub": "wikimedia/wikipedia",
                "config": "20231101.en",
                "group": None,
            }
        ],
    }
    assert "unverified: 2 times" in of_gpt1(node, store, wikipedia)["basis"]
    part = {**wikipedia, "sources": [{**wikipedia["sources"][0], "limit": 64_078}]}
    assert of_gpt1(node, store, part)["work"]["size"] == pytest.approx(20.2e9 / 100, rel=0.01)


def test_a_plan_says_what_is_not_run_where_the_hub_does_not_answer(
    cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    said = cli("plan", "gpt1", "--json")
    assert said.returncode == 0, said.stderr
    facts = json.loads(said.stdout)
    rows = {row["asset"].partition("/")[2]: row for row in facts["stages"]}
    tasks = [row for name, row in rows.items() if name.startswith("finetuned/")]
    assert len(tasks) == 12 and all(
        row["why"].startswith("not run here: ") and not row["forecast"] for row in tasks
    )
    assert (
        sum("which does not answer" in row["why"] for row in tasks) == 11
        and "on request" in rows["finetuned/storycloze"]["why"]
    )
    for name in ("layers_transferred", "ablations"):
        assert (
            rows[f"experiments/{name}"]["why"].startswith("not run here: ")
            and not rows[f"experiments/{name}"]["forecast"]
        )
    assert (
        "sentiment, acceptability, questions not run here: "
        in rows["experiments/zero_shot_dynamics"]["why"]
    )
    assert rows["tokens"]["forecast"]["bytes"]["expected"] > 1e9  # of the corpus's planned size
    drawn = _drawn(facts)
    assert "116.5M: token embedding 31.09M" in drawn and "held-out loss" in drawn
    for row in facts[
        "stages"
    ]:  # as where the recipe's own model is found, and an experiment's is not
        row["asset"] = row["asset"].replace("/pretrained", "/depth/layers_1")
    assert "loss" not in _drawn(facts).lower()


def _drawn(facts: dict[str, Any]) -> str:
    console = Console(width=240, record=True, file=io.StringIO())
    console.print(draw_plan(facts))
    return console.export_text()


def test_a_published_size_is_planned_where_the_hub_does_not_answer(
    cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    said = cli("plan", "gpt2-xl", "--json")
    assert said.returncode == 0, said.stderr
    facts = json.loads(said.stdout)
    assert facts["parameters"]["all"] == 1_557_611_200
    assert (
        facts["stages"][0]["asset"] == "gpt2_xl/corpus"
        and "the hub does not answer" in facts["stages"][0]["why"]
    )
    built = cli("run", "gpt2-xl")
    assert (
        built.returncode != 0
        and "could not be asked which commit 'main' of Skylion007/openwebtext is"
        in built.stdout + built.stderr
    )
