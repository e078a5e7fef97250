"""The plan and the estimates it is made of: their figures, their basis, what is measured."""

from __future__ import annotations

import io
import json
import math
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from rich.console import Console
from small_recipes import small_recipe

from assets.build import Request
from assets.contract import Artifact, Metrics, Stage
from assets.estimate import (
    CORE_FLOPS,
    MODEL_ASSUMED,
    PF_DAY,
    TEXT_ASSUMED,
    default_rate,
    estimate,
    has_whole_models,
    loss_text,
    planned,
    ppo_bytes,
    ppo_bytes_per_rank,
    readable,
    smallest_profile,
    training_flops,
    with_estimate,
)
from assets.graph import node_named, nodes
from assets.node import Node
from assets.recipe.profile import PROFILES, Profile, load_profile
from assets.recipe.recipe import RECIPES, BatchRamp, load_recipe
from assets.recipe.sections import PPOSection
from assets.store.manifest import Facts
from assets.store.store import Store
from docs.generate_reference import CPU_MEMORY_GB, PUBLISHED
from gpt_model.config import ModelConfig
from gpt_model.errors import UserError
from gpt_model.scaling_laws import fit_compute
from gpt_model.training.memory import Setting, mapped_bytes, memory_per_rank, moments, shared_bytes
from gpt_model.training.schedules import BatchSchedule
from pipelines.cli.plan import (
    MISSING,
    draw_plan,
    memory_facts,
    parameters_by_part,
    plan_of,
    what_does_not_fit,
)

RECIPE = small_recipe()
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


def estimated(
    store: Store,
    config: dict[str, Any],
    profile: Profile = CPU,
    inputs: dict[str, Artifact] = INPUTS,
) -> dict[str, Any]:
    """The estimate of the stage `pretrained`."""
    return estimate(pretrained_node(), config, inputs, profile, list(store.artifacts()))


def published(
    store: Store,
    tokens: int,
    seconds: float,
    profile: Profile = CPU,
    attempts: int = 1,
    metrics: Metrics | None = None,
) -> None:
    """Publish a pre-trained model as a build that took `seconds` would have."""
    node, section = pretrained_node(), config(tokens)
    provenance = {
        "profile": profile.model_dump(mode="json"),
        "forecast": estimated(store, section, profile),
        "stage_seconds": seconds,
        "attempts": attempts,
    }
    identity = {**section, "seconds": seconds}
    fingerprint = store.fingerprint(node.stage.name, node.stage.version, identity, {})
    building = store.building(fingerprint)
    (building.files / "weights").write_bytes(b"0")
    store.publish(building, Facts("pretrained", "1", section, {}, metrics or {}, provenance), {})


def test_plan_counts_what_the_model_has(store: Store, base: Path) -> None:
    facts = plan_of(RECIPE, base, CPU, store)
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
    seconds = [stage["forecast"]["seconds"] for stage in facts["stages"]]
    assert facts["seconds"] == {"expected": sum(each["expected"] for each in seconds)}
    assert facts["cost"] == {
        "unit": "core hours",
        "expected": pytest.approx(facts["seconds"]["expected"] * 2 / 3600),
    }
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
    of them. What a step takes besides is the same on any number of ranks.
    """
    model = ModelConfig.published("gpt2-xl")
    gpu = Setting(0, 8, 1, device="cuda")
    on = {
        ranks: [moments(model, replace(gpu, zero_stage=s, ranks=ranks)) for s in range(4)]
        for ranks in (4, 8)
    }
    n = model.parameters()
    saved = [few["forward"] - many["forward"] for few, many in zip(*on.values(), strict=True)]
    assert saved == pytest.approx([n * shared / 8 for shared in (0, 12, 16, 20)], rel=0.01)
    step = on[8][0]
    assert step["optimizer"] == 16 * n and step["exchange"] == 16 * n + min(4 * n, 2e9)
    apart = Setting(1, 4, 1, hosts=2)
    few, many = (moments(model, replace(apart, ranks=r))["forward"] for r in (4, 8))
    assert few - many == pytest.approx(n * 12 / 8, rel=0.01)
    # On one host CPUs have the weights once between them
    few, many = (moments(model, Setting(1, ranks, 1))["forward"] for ranks in (4, 8))
    assert few - many == pytest.approx(n * 16 / 8, rel=0.01)


def test_a_rank_of_cpus_is_charged_its_own_part_of_shared_memory() -> None:
    model = ModelConfig.published("gpt2-xl")
    on = {ranks: shared_bytes(model, Setting(1, ranks, 1)) for ranks in (1, 2, 24)}
    assert on == {1: 0, 2: 2**26, 24: 0}  # two sum gradients there
    weights = 4 * model.parameters()
    assert mapped_bytes(model, Setting(1, 2, 1)) == 2**26 + weights / 2
    assert mapped_bytes(model, Setting(1, 24, 1)) == weights * 23 / 24
    assert mapped_bytes(model, Setting(0, 24, 1)) == 0
    for apart in ({"hosts": 2}, {"device": "cuda"}, {"zero_stage": 3}):
        assert shared_bytes(model, replace(Setting(1, 2, 1), **apart)) == 0


def test_muon_takes_one_moment_less_and_some_flops_more(store: Store, base: Path) -> None:
    model = ModelConfig.published("gpt2-xl")
    matrices = 48 * 12 * 1600**2
    for stage in range(4):
        setting = Setting(stage, 64, 1)
        adamw, muon = (
            moments(model, each)["forward"] for each in (setting, replace(setting, muon=True))
        )
        assert adamw - muon == pytest.approx(4 * matrices / (64 if stage else 1))
    section = RECIPE.model_and_training[1].model_dump(mode="json")
    recipe = small_recipe(pretraining={**section, "optimizer": "muon"})
    plain, muon = (plan_of(each, base, CPU, store) for each in (RECIPE, recipe))
    assert plain["flops"] == muon["flops"]  # the model's
    assert plain["seconds"]["expected"] < muon["seconds"]["expected"]
    assert plain["checkpoint_bytes"] > muon["checkpoint_bytes"]


def test_recomputing_blocks_and_bfloat16_take_less_activations_and_more_copies() -> None:
    model = ModelConfig.published(
        "gpt2-xl"
    )  # a context that CPU kernels leave to torch's operators
    plain = Setting(0, 1, 1, device="cuda")
    tokens, width, layers = 1024, 1600, 48
    [full, sparing, half] = [
        moments(model, each)["backward"] - 16 * model.parameters()
        for each in (
            plain,
            replace(plain, checkpointing=True),
            replace(plain, precision="bfloat16"),
        )
    ]
    # of each token and layer: 64 bytes a unit of width in float32, 36 in bfloat16
    assert full - sparing == pytest.approx(tokens * width * (layers * (64 - 4) - 64))
    copies = 2 * 12 * width**2 * layers
    states = tokens * width * 4
    slopes = tokens * width * (28 - 24)
    assert full - half == tokens * width * layers * (64 - 36) - copies + states + slopes


def test_cost_is_the_hours_of_every_gpu(store: Store, base: Path) -> None:
    profile = Profile(name="gpus", processes=4, device="cuda")
    facts = plan_of(RECIPE, base, profile, store)
    expected = facts["seconds"]["expected"] * 4 / 3600
    assert facts["cost"] == {"unit": "GPU hours", "expected": pytest.approx(expected)}


def test_ppos_four_models_take_16_bytes_a_trained_parameter_and_4_a_frozen_one() -> None:
    model = ModelConfig.published("gpt3-xl")
    assert ppo_bytes(model, shared_value=False) == 40 * model.parameters()
    assert ppo_bytes(model, shared_value=True) == 24 * model.parameters()


def test_at_zero_3_every_rank_has_a_share_of_ppos_models_one_block_and_its_answers_cache() -> None:
    model = ModelConfig.published("gpt3-xl")
    section = PPOSection(learning_rate=1e-5, max_new_tokens=256).model_dump(mode="json")
    profile = Profile(name="gpus", device="cuda", processes=8)

    def each(zero_stage: int, ranks: int, **changes: object) -> float:
        changed = {**section, **changes}
        return ppo_bytes_per_rank(model, changed, profile, zero_stage, ranks)

    # Policy and critic: weight, gradient, two moments, DeepSpeed's flat copy; two frozen weights
    state = (2 * 20 + 2 * 4) * model.parameters()
    assert each(3, 16) - each(3, 32) == pytest.approx(state / 32)
    weights_of_frozen = 8 * model.parameters()
    assert each(2, 8) - each(3, 8) > weights_of_frozen * 7 / 8
    assert each(3, 64) > each(3, 64, value="shared") > state / 2 / 64


def test_plan_says_on_how_many_ranks_ppo_fits(store: Store, base: Path) -> None:
    recipe, hopper = load_recipe("instructgpt-6b"), load_profile("hopper8")
    model = ModelConfig.published("gpt3-6.7b")
    needed = memory_facts(recipe, model, hopper)["ppo_memory"]
    assert not needed["fits"] and needed["ranks"] == 9
    [sentence] = what_does_not_fit({"ppo_memory": needed}, "hopper8")
    assert "a rank at ZeRO 3, and hopper8 has 80GB. At ZeRO 3, 9 of its ranks would do." in sentence
    small = plan_of(RECIPE, base, CPU, store)
    assert MISSING not in _drawn(small) and MISSING in _drawn(small | {"ppo_memory": needed})
    more = hopper.model_copy(update={"processes": 9})
    assert memory_facts(recipe, model, more)["ppo_memory"]["fits"]


SIZES = [path.stem for path in sorted(RECIPES.glob("*.yaml")) if path.stem.startswith(PUBLISHED)]
SIZES = [name for name in SIZES if not name.endswith("-tiny")]


@pytest.mark.parametrize("profile", sorted(path.stem for path in PROFILES.glob("*.yaml")))
def test_every_published_size_fits_each_shipped_profile_or_does_not(profile: str) -> None:
    assert len(SIZES) == 13 + 3
    loaded, needed = load_profile(profile), {}
    loaded = loaded.model_copy(update={"memory_gb": loaded.memory_gb or CPU_MEMORY_GB})
    for name in SIZES:
        recipe = load_recipe(name)
        facts = memory_facts(recipe, recipe.model_config_for(), loaded)
        trainings = [facts[each] for each in ("memory_per_rank", "ppo_memory") if each in facts]
        assert len(trainings) == 1 + name.startswith("instructgpt")
        for training in trainings:
            size = training["bytes_by_zero_stage"][str(loaded.zero_stage)]
            assert 0 < size < 1e13 and training["available"] == loaded.memory_gb * 1e9
            assert training["fits"] == (size <= training["available"])
        needed[name] = trainings[0]
        sentences = " ".join(what_does_not_fit(facts, profile))
        assert ("Pre-training takes " in sentences) == (not trainings[0]["fits"])
        assert ("smallest profile that would do: processes: " in sentences) == (
            not trainings[0]["fits"]
        )
    order = ["gpt3-small", "gpt3-medium", "gpt3-large", "gpt3-xl", "gpt3-2.7b", "gpt3-6.7b"]
    order += ["gpt3-13b", "gpt3-175b"]
    stage = str(loaded.zero_stage)
    sizes = [needed[name]["bytes_by_zero_stage"][stage] for name in order]
    assert sizes == sorted(sizes) and not needed["gpt3-175b"]["fits"]
    assert needed["gpt2-small"]["fits"]
    if profile == "hopper8":
        assert needed["gpt3-13b"]["fits"]


def test_plan_refuses_more_processes_than_sequences_and_counts_the_time_they_have_none(
    store: Store, base: Path
) -> None:
    with pytest.raises(UserError, match="fewer than the processes of the profile 'many', 99"):
        plan_of(RECIPE, base, Profile(name="many", processes=99), store)
    facts = plan_of(RECIPE, base, Profile(name="three", processes=3), store)
    share = facts["memory_per_rank"]["idle_share"]
    assert 0 < share < 0.5
    assert f"ZeRO 1; {share:.0%} of their time without a sequence" in _drawn(facts)


@pytest.mark.slow
def test_planning_imports_no_torch_and_no_dagster(base: Path) -> None:
    recipe = base / "small.yaml"
    recipe.write_text(json.dumps(RECIPE.model_dump(mode="json", exclude_none=True)))
    script = (
        "import sys; from pipelines.cli.main import app\n"
        "app(['plan', sys.argv[1], '--json'], standalone_mode=False)\n"
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


def test_default_is_a_plain_number_by_a_stated_rate(store: Store) -> None:
    answer = estimated(store, config())
    model = RECIPE.model_config_for()
    flops = 20_480 * model.flops_per_token()
    assert default_rate(CPU)[0] == 2 * CORE_FLOPS
    assert answer["work"]["amount"] == flops
    assert answer["seconds"] == {"expected": pytest.approx(5 + flops / (2 * CORE_FLOPS))}
    assert answer["bytes"] == {"expected": pytest.approx(4.3 * model.parameters())}
    assert "No earlier build" in answer["basis"] and "1e+11 FLOP/s a core" in answer["basis"]
    assert "loss" not in answer  # no ladder of this text


def test_seconds_follow_the_median_rate_of_earlier_builds(store: Store) -> None:
    default = estimated(store, config(20_480_000))["seconds"]["expected"]
    for factor in (2.0, 2.2, 9.0):
        published(store, 20_480_000, factor * default)
    answer = estimated(store, config(20_480_000))
    assert answer["seconds"]["expected"] == pytest.approx(2.2 * default)
    spread = math.exp(2.2 * statistics.stdev(map(math.log, (2.0, 2.2, 9.0))) * math.sqrt(4 / 3))
    assert answer["seconds"]["low"] == pytest.approx(2.2 * default / spread)
    assert answer["seconds"]["high"] == pytest.approx(2.2 * default * spread)
    assert answer["basis"] == "From 3 earlier builds on this profile."
    elsewhere = estimated(store, config(20_480_000), CPU.model_copy(update={"processes": 4}))
    assert elsewhere["seconds"] == {"expected": pytest.approx(5 + (default - 5) / 2)}
    renamed = CPU.model_copy(update={"name": "other", "description": "the same machine"})
    assert estimated(store, config(20_480_000), renamed)["seconds"] == answer["seconds"]


def test_interval_needs_several_builds_of_about_this_size(store: Store) -> None:
    default = estimated(store, config(20_480_000))["seconds"]["expected"]
    for factor in (1.0, 1.1):
        published(store, 20_480_000, factor * default)
    assert set(estimated(store, config(20_480_000))["seconds"]) == {"expected"}
    published(store, 20_480_000, 1.2 * default)
    assert set(estimated(store, config(20_480_000))["seconds"]) == {"low", "expected", "high"}
    far = estimated(store, config(20_480_000_000))
    assert set(far["seconds"]) == {"expected"}
    assert far["basis"].startswith("From 3 earlier builds on this profile, the nearest ")
    assert "times apart in size" in far["basis"]


def damage_manifest(store: Store, change: Any) -> Path:
    """Publish a build, as an earlier version did, without sums; and change its manifest: some keys,
    or all of the text.
    """
    published(store, 20_480, 7.0)
    (path,) = store.artifacts_folder.glob("*/artifact.json")
    facts = json.loads(path.read_text()) | {"format": 1}
    path.write_text(change if isinstance(change, str) else json.dumps(facts | change))
    (path.parent / "sums.json").unlink()
    return path


@pytest.mark.parametrize(
    "change",
    [
        "",
        "[]",
        '{"stage": "pretrained"}',
        {"provenance": None},
        {"provenance": []},
        {"provenance": {"forecast": 1}},
        {
            "provenance": {
                "forecast": {"work": {"with_start": 1}},
                "attempts": 1,
                "stage_seconds": 7,
            }
        },
        {"metrics": None},
        {"stage": "scaling", "files": [{"path": "fit.json"}]},
        {"stage": "scaling", "inputs": 5},
    ],
)
def test_damaged_manifest_is_named_and_left_out(change: Any, store: Store, base: Path) -> None:
    default = plan_of(RECIPE, base, CPU, store)
    path = damage_manifest(store, change)
    facts = plan_of(RECIPE, base, CPU, store)
    (sentence,) = facts.pop("damage")
    assert str(path) in sentence and "Run its recipe again" in sentence
    assert facts == {name: value for name, value in default.items() if name != "damage"}
    node, sentences = node_named(nodes(RECIPE), "corpus"), list[str]()
    request = Request(node, {}, node.config(base), CPU, say=sentences.append)
    assert with_estimate(request, store).estimate == estimate(node, request.config, {}, CPU, [])
    assert sentences == [sentence]
    shown = io.StringIO()
    Console(file=shown, width=1000).print(draw_plan(facts | {"damage": [sentence]}))
    assert sentence in shown.getvalue()


def test_damaged_ladder_is_named_and_left_out(store: Store) -> None:
    building = store.building(store.fingerprint("scaling", "1", {}, {}))
    (building.files / "fit.json").write_text("{}")
    store.publish(building, Facts("scaling", "1", {}, {}, {}, {}), {})
    (ladder,) = readable(store, pytest.fail)
    (ladder.path / "fit.json").write_text("half a l")
    sentences: list[str] = []
    assert readable(store, sentences.append) == []
    assert len(sentences) == 1 and f"{ladder.path / 'fit.json'} has sha256" in sentences[0]


def test_resumed_build_tells_nothing_of_seconds(store: Store) -> None:
    """Only its last attempt was timed."""
    before = estimated(store, config())
    published(store, 20_480, 0.01, attempts=2)
    assert estimated(store, config()) == before


@pytest.mark.parametrize(("seconds", "metrics"), [(0.0, {}), (0.01, {"not_run": 1.0})])
def test_build_that_ran_nothing_tells_nothing_of_seconds(
    store: Store, seconds: float, metrics: Metrics
) -> None:
    before = estimated(store, config())
    published(store, 20_480, seconds, metrics=metrics)
    assert estimated(store, config()) == before


def test_builds_of_manifests_with_intervals_count_too(store: Store) -> None:
    """Earlier versions wrote {low, expected, high} for every quantity, and more of the work."""
    work = {"amount": 1e9, "with_start": 2e9, "unit": "training FLOPs", "size": 1.0, "unsure": 1.0}
    seconds = {"low": 1.0, "expected": 3.0, "high": 9.0}
    provenance = {
        "profile": CPU.model_dump(mode="json"),
        "forecast": {"seconds": seconds, "work": work, "basis": "No earlier build."},
        "stage_seconds": 4.0,
        "attempts": 1,
    }
    building = store.building("ab" * 32)
    store.publish(building, Facts("pretrained", "1", {}, {}, {}, provenance), {})
    answer = estimated(store, config())
    amount = answer["work"]["with_start"]
    assert answer["seconds"]["expected"] == pytest.approx(4.0 / 2e9 * amount)


def test_estimate_is_frozen_by_whoever_starts_a_build(store: Store, base: Path) -> None:
    node = node_named(nodes(RECIPE), "corpus")
    request = Request(node, {}, node.config(base), CPU)
    assert request.estimate == {}
    with_it = with_estimate(request, store)
    assert with_it.estimate == estimate(node, request.config, {}, CPU, [])
    assert with_it.fingerprint == request.fingerprint
    building = store.building(request.fingerprint)
    store.publish(building, Facts("corpus", "1", request.config, {}, {}, {}), {})
    assert with_estimate(request, store) is request  # built: nothing to estimate


@pytest.mark.parametrize("stage", [node.name for node in nodes(RECIPE)])
@pytest.mark.parametrize("profile", ["cpu", "gpu", "single", "slurm-2x8"])
def test_every_stage_has_an_estimate_on_every_profile(
    stage: str, profile: str, store: Store, base: Path
) -> None:
    row = next(
        row
        for row in plan_of(RECIPE, base, load_profile(profile), store)["stages"]
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
    assert plan_of(RECIPE, base, CPU, store)["stages"][0]["state"] == "found"
    newer: Stage = replace(node.stage, version="next")
    monkeypatch.setattr("assets.graph.CORPUS", newer)
    row = plan_of(RECIPE, base, CPU, store)["stages"][0]
    assert (row["state"], row["why"]) == ("build", f"stage version {node.stage.version} → next")
    monkeypatch.undo()
    (base / "notes.txt").write_text("another text\n" * 500)
    assert "changed: the file " in plan_of(RECIPE, base, CPU, store)["stages"][0]["why"]


def test_plan_counts_a_ramps_steps_and_what_snapshots_take(store: Store, base: Path) -> None:
    ramp = {"from_tokens": 64, "over_tokens": 8192}
    longer = RECIPE.model_copy(
        update={
            "pretraining": RECIPE.model_and_training[1].model_copy(
                update={"batch_ramp": BatchRamp(**ramp), "snapshots": 6}
            )
        }
    )
    plain, facts = plan_of(RECIPE, base, CPU, store), plan_of(longer, base, CPU, store)
    assert (
        plain["steps"] == 40
        and facts["steps"] == BatchSchedule(512, 64, 8192).steps_within(20_480) > 50
    )
    assert (plain["snapshot_bytes"], facts["snapshot_bytes"]) == (
        0,
        5 * 4 * facts["parameters"]["all"],
    )
    assert bytes_of(facts, "small/pretrained") == pytest.approx(
        6 * bytes_of(plain, "small/pretrained")
    )
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(draw_plan(facts))
    text = console.export_text()
    assert "steps of 512, from 64 over the first 8.19k tokens" in text and "5 snapshots" in text


def bytes_of(facts: dict[str, Any], asset: str) -> float:
    (row,) = [row for row in facts["stages"] if row["asset"] == asset]
    return row["forecast"]["bytes"]["expected"]


@pytest.fixture
def gpt1() -> dict[str, Node]:
    return {node.name: node for node in nodes(load_recipe("gpt1"))}


def of_gpt1(node: Node, config: dict[str, Any] | None = None) -> dict[str, Any]:
    """Its estimate where the hub would answer, and nothing is built yet."""
    shape = load_recipe("gpt1").model_and_training[0].model_dump(mode="json")
    inputs = {
        "tokenizer": artifact("tokenizer", {"vocab_size": 40_478}),
        "pretrained": artifact("pretrained", {"model": shape}),
        "corpus": artifact("corpus"),
    }
    return estimate(node, config or node.settings(Path()), inputs, CPU, [])


def test_a_task_of_the_hub_is_planned_by_its_number_of_examples(gpt1: dict[str, Node]) -> None:
    answers = {task: of_gpt1(gpt1[f"finetuned/{task}"]) for task in ("mnli", "rte", "race", "mrpc")}
    amounts = {task: answer["work"]["amount"] for task, answer in answers.items()}
    each = 2 * 3 * 64 * ModelConfig.published("gpt1").flops_per_token()  # both arms, three epochs
    assert amounts["mnli"] == pytest.approx(each * 392_702 * 0.98)
    assert amounts["rte"] / amounts["mnli"] == pytest.approx(2_490 / 392_702, rel=0.1)
    # both orders; it has a validation split of its own
    assert amounts["mrpc"] == pytest.approx(each * 2 * 3_668)
    # each of four answers after its passage
    assert amounts["race"] == pytest.approx(each * 87_866 * 4 * 512 / 64)
    assert {answer["assumption"] for answer in answers.values()} == {""}
    fewer = gpt1["finetuned/mnli"].settings(Path()) | {"examples": 1000}
    assert of_gpt1(gpt1["finetuned/mnli"], fewer)["work"]["amount"] == pytest.approx(each * 1000)
    once = gpt1["experiments/ablations"].settings(Path())
    ablations = of_gpt1(gpt1["experiments/ablations"], once)
    assert ablations["work"]["amount"] > 4 * amounts["mnli"] / 2


@pytest.fixture
def gpt1_tiny() -> dict[str, Node]:
    return {node.name: node for node in nodes(load_recipe("gpt1-tiny"))}


def before_any_build(
    graph: dict[str, Node], profile: Profile = CPU
) -> dict[str, tuple[dict[str, Any], Artifact]]:
    """(estimate, stand-in) of each node, as a plan makes them of an empty store."""
    results: dict[str, tuple[dict[str, Any], Artifact]] = {}
    for name, node in graph.items():
        inputs = {need: results[node.asset(need)][1] for need in node.needs}
        section = node.settings(Path())
        answer = estimate(node, section, inputs, profile, [])
        results[name] = answer, planned(node, section, answer, inputs)
    return results


def test_experiments_that_read_are_planned_by_what_their_models_read(
    gpt1_tiny: dict[str, Node],
) -> None:
    results = before_any_build(gpt1_tiny)
    amounts = {name: answer["work"]["amount"] for name, (answer, _) in results.items()}
    sizes: dict[str, Any] = {"width": 128, "context": 128, "vocab_size": 8192}
    shapes = {n: ModelConfig(family="gpt1", layers=n, heads=4, **sizes) for n in (1, 2, 4)}
    reading = {n: shape.flops_per_token() / 3 for n, shape in shapes.items()}
    held_out = sum(results["tokens"][1].metrics.values())
    # of each source its own share
    assert held_out == pytest.approx((0.05 + 0.05 + 0.15) * 5e6 / 3.5)
    # two seeds; overlapping windows
    depth = 2 * held_out * 2 * sum(reading.values())
    assert amounts["experiments/depth"] == pytest.approx(depth)
    windows = 500 * (1 + 2 + 4 + 8 + 16 + 32 + 64 + 128) * 3  # of each of three sources
    no_head_but_the_last = windows * (reading[4] - 2 * 128 * 8192)
    assert amounts["experiments/visible_context"] == pytest.approx(no_head_but_the_last)
    lstm = ModelConfig(family="lstm", layers=1, heads=1, **sizes).flops_per_token() / 3
    read = 500 * 64 * (1 + 4 + 4)  # a row of sentiment, two lists of options
    dynamics = 8 * (reading[4] + lstm) * read
    assert amounts["experiments/zero_shot_dynamics"] == pytest.approx(dynamics)
    for name in ("depth", "visible_context", "zero_shot_dynamics"):
        answer = results[f"experiments/{name}"][0]
        assert answer["work"]["unit"] == "forward FLOPs"
        assert answer["seconds"]["expected"] > 5
    metrics = {"held_out/plays/tokens": 1000, "training/plays/tokens": 9000}
    node = gpt1_tiny["experiments/depth"]
    inputs = {name: results[name][1] for name in node.needs}
    inputs["tokens"] = replace(results["tokens"][1], metrics=metrics)
    once_built = estimate(node, {}, inputs, CPU, [])
    assert once_built["work"]["amount"] == pytest.approx(2 * 1000 * 2 * sum(reading.values()))


def test_ranks_without_a_row_of_an_alignment_stages_batch_save_no_time() -> None:
    graph = {node.name: node for node in nodes(load_recipe("instructgpt-175b"))}
    profiles = [Profile(name="gpus", device="cuda", processes=n) for n in (8, 128)]
    eight, many = (before_any_build(graph, profile) for profile in profiles)
    for name, rows in {
        "supervised": 8,
        "policy_init": 8,
        "reward_model": 64,
        "aligned": 64,
    }.items():
        speed = [results[name][0]["seconds"]["expected"] - 8 for results in (eight, many)]
        idle = f"{128 - rows} of 128 ranks have no row of a step."
        assert idle in many[name][0]["basis"] and "no row" not in eight[name][0]["basis"]
        assert speed[0] / speed[1] == pytest.approx(rows / 8, rel=0.01), name
    assert "no row" not in many["pretrained"][0]["basis"] + many["zero_shot"][0]["basis"]


IMPORTING = small_recipe(
    name="mine",
    imported={"hub": "a/b"},
    finetuning={"tasks": ["sentiment"], "examples": {"sentiment": 100}},
    tokenizer=None,
    model=None,
)


def test_an_imported_model_is_planned_by_its_own_size_or_by_a_stated_assumption(
    tmp_path: Path,
) -> None:
    graph = {node.name: node for node in nodes(IMPORTING)}
    results = before_any_build(graph)
    small = ModelConfig.published("gpt2-small")
    answer = results["pretrained"][0]
    assert answer["work"]["amount"] == 20_480 * small.flops_per_token()
    assert answer["assumption"] == MODEL_ASSUMED and MODEL_ASSUMED in answer["basis"]
    assert results["finetuned/sentiment"][0]["assumption"] == MODEL_ASSUMED
    assert "loss" not in answer
    shape = ModelConfig(layers=2, width=32, heads=2, context=64, vocab_size=300)
    (tmp_path / "shape.json").write_text(shape.model_dump_json())
    # its section has no vocabulary
    here = replace(artifact("imported", {"hub": "a/b"}, {"vocab_size": 300}), path=tmp_path)
    inputs = {"base": here, "tokenizer": here, "tokens": artifact("tokens")}
    section = graph["pretrained"].settings(Path())
    known = estimate(graph["pretrained"], section, inputs, CPU, [])
    assert known["work"]["amount"] == 20_480 * shape.flops_per_token()
    assert known["assumption"] == ""
    trained = planned(graph["pretrained"], section, known, inputs)
    task = {"pretrained": trained, "tokenizer": here, "corpus": artifact("corpus")}
    node = graph["finetuned/sentiment"]
    finetuned = estimate(node, node.settings(Path()), task, CPU, [])
    assert finetuned["work"]["amount"] == 2 * 3 * 100 * 64 * shape.flops_per_token()
    assert finetuned["assumption"] == ""
    (tmp_path / "not_run.json").write_text('{"not_run": "no hub"}')
    nothing = estimate(graph["pretrained"], section, inputs, CPU, [])
    assert nothing["work"]["unit"] == "artifacts"


def test_a_known_corpus_has_its_size_and_an_unknown_one_a_stated_assumption(
    gpt1: dict[str, Node],
) -> None:
    node = gpt1["corpus"]
    books = node.settings(Path())
    assert of_gpt1(node)["bytes"] == {"expected": pytest.approx(0.4 * 4.854e9)}
    assert of_gpt1(node)["assumption"] == ""

    def of_source(**fields: Any) -> dict[str, Any]:
        return of_gpt1(node, {**books, "sources": [{**books["sources"][0], **fields}]})

    unknown = of_source(hub="somebody/letters")
    assert unknown["work"]["amount"] == 5e6
    assert unknown["assumption"] == TEXT_ASSUMED and TEXT_ASSUMED in unknown["basis"]
    wikipedia = {"hub": "wikimedia/wikipedia", "config": "20231101.en", "group": None}
    assert of_source(**wikipedia)["work"]["amount"] == 20.2e9
    part = of_source(**wikipedia, limit=64_078)
    assert part["work"]["amount"] == pytest.approx(20.2e9 / 100, rel=0.01)


def test_rate_of_earlier_builds_gives_no_interval_of_an_assumed_size(store: Store) -> None:
    graph = {node.name: node for node in nodes(IMPORTING)}
    small = ModelConfig.published("gpt2-small")
    amount = 20_480 * small.flops_per_token()
    default = 5 + amount / (2 * CORE_FLOPS)
    model = small.model_dump(exclude={"vocab_size"})
    section = {**config(), "model": model}
    for number, factor in enumerate((1.9, 2.0, 2.1)):
        inputs = {"tokens": artifact("tokens"), "tokenizer": artifact("tokenizer")}
        provenance = {
            "profile": CPU.model_dump(mode="json"),
            "forecast": estimated(store, section, inputs=inputs),
            "stage_seconds": factor * default,
            "attempts": 1,
        }
        building = store.building(f"{number}" * 64)
        store.publish(building, Facts("pretrained", "1", section, {}, {}, provenance), {})
    inputs = {"base": artifact("imported"), "tokens": artifact("tokens")}
    section = graph["pretrained"].settings(Path())
    answer = estimated(store, section, inputs=inputs)
    assert answer["seconds"] == {"expected": pytest.approx(2.0 * default)}
    assert answer["basis"] == f"From 3 earlier builds on this profile. {MODEL_ASSUMED}"


@pytest.mark.slow
def test_a_plan_says_what_is_not_run_where_the_hub_does_not_answer(
    cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = cli("plan", "gpt1", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    rows = {row["asset"].partition("/")[2]: row for row in facts["stages"]}
    tasks = [row for name, row in rows.items() if name.startswith("finetuned/")]
    assert len(tasks) == 12
    assert all(row["why"].startswith("not run here: ") and not row["forecast"] for row in tasks)
    assert sum("which does not answer" in row["why"] for row in tasks) == 11
    assert "on request" in rows["finetuned/storycloze"]["why"]
    for name in ("experiments/layers_transferred", "experiments/ablations"):
        assert rows[name]["why"].startswith("not run here: ") and not rows[name]["forecast"]
    assert (
        "sentiment, acceptability, questions not run here: "
        in rows["experiments/zero_shot_dynamics"]["why"]
    )
    # of the corpus's planned size
    assert bytes_of(facts, "gpt1/tokens") == pytest.approx(2.6 * 0.4 * 4.854e9 * 2 / 3.5)
    assert "116.5M: token embedding 31.09M" in _drawn(facts)


def test_plan_draws_the_loss_of_the_recipes_model_and_not_of_an_experiments(
    store: Store, base: Path
) -> None:
    facts = plan_of(RECIPE, base, CPU, store)
    assert "held-out loss  cannot be said from here" in _drawn(facts)
    (row,) = [row for row in facts["stages"] if row["asset"] == "small/pretrained"]
    loss = {"low": 2.1, "expected": 2.25, "high": 2.4}
    row["forecast"] |= {"loss": loss, "loss_basis": "The law of 5 models."}
    drawn = _drawn(facts)
    assert "2.25 (2.10 to 2.40) bits per byte" in drawn and "Loss: The law of 5 models." in drawn
    row["asset"] = "small/depth/layers_1"
    assert "loss" not in _drawn(facts).lower()


def _drawn(facts: dict[str, Any]) -> str:
    console = Console(width=240, record=True, file=io.StringIO())
    console.print(draw_plan(facts))
    return console.export_text()


def test_loss_is_foreseen_within_a_factor_of_30_in_compute_or_by_the_published_law_labelled(
    tmp_path: Path,
) -> None:
    """A ladder of models of 5 million parameters says nothing of GPT-2 XL."""
    model = RECIPE.model_config_for()
    compute = training_flops(model, 20_480) / PF_DAY
    fits = {1: (1, 1), 29: (29, 40), 31: (31, 40)}  # the ladder's span, times this model's compute
    losses = [3.0 - 0.05 * math.log(c) for c in (1.0, 10.0, 100.0)]
    law = fit_compute([compute, 10 * compute, 100 * compute], losses).as_json()
    answers = {}
    for times, span in fits.items():
        folder = tmp_path / f"ladder {times}"
        folder.mkdir()
        fit = {"family": model.family, "models": 3, "ratios": [1, 10], "bpb": law}
        fit |= {"compute": [end * compute for end in span]}
        (folder / "fit.json").write_text(json.dumps(fit))
        inputs = [{"name": "tokens", "digest": "of tokens"}]
        ladder = replace(artifact("scaling"), path=folder, manifest={"inputs": inputs})
        tokens = replace(artifact("tokens"), digest="of tokens")
        given = {**INPUTS, "tokens": tokens}
        answers[times] = estimate(pretrained_node(), config(), given, CPU, [ladder])
    assert answers[1]["loss"]["expected"] and "times beyond" not in answers[1]["loss_basis"]
    assert answers[29]["loss"] and "29 times beyond" in answers[29]["loss_basis"]
    assert "loss" not in answers[31] and "published_loss" not in answers[31]
    assert loss_text(answers[31]) == "cannot be said from here"
    assert "is 31 times away in compute" in answers[31]["loss_basis"]
    # Chinchilla itself: 70 billion parameters, 1.4 trillion tokens (Hoffmann et al. 2022)
    section = config(1_400_000_000_000)
    section["model"] |= {"layers": 80, "width": 8192, "heads": 64, "context": 2048}
    answer = estimate(pretrained_node(), section, INPUTS, CPU, [])
    assert answer["published_loss"]["expected"] == pytest.approx(1.937, abs=0.005)
    assert loss_text(answer) == (
        "cannot be said from here; the published law has 1.94 nats a token of its own text, of "
        "which 1.69 is its floor"
    )


def test_what_does_not_fit_is_said_with_the_smallest_profile_that_would_do(
    store: Store, base: Path
) -> None:
    gpu = {
        "name": "gpu",
        "device": "cuda",
        "memory_gb": 80,
        "price_per_hour": 2,
        "peak_tflops": 312,
    }
    one = Profile.model_validate(gpu)
    assert default_rate(one) == (pytest.approx(0.35 * 312e12), "35% of the profile's peak, assumed")
    assert default_rate(Profile(name="gpu", device="cuda"))[0] == 1e14
    facts = plan_of(RECIPE, base, one, store)
    assert facts["memory_per_rank"]["fits"] and "does not fit" not in _drawn(facts)
    assert facts["memory_per_rank"]["host_bytes"] == 4 * facts["parameters"]["all"]
    assert "while its ranks build the model" in _drawn(facts) and "offloads" not in _drawn(facts)
    offload = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
    offloading = Profile.model_validate({**gpu, "deepspeed": offload})
    assert "offloads to it is counted on the device" in _drawn(
        plan_of(RECIPE, base, offloading, store)
    )
    hours = facts["seconds"]["expected"] / 3600
    assert facts["cost"]["price"] == {"expected": pytest.approx(2 * hours)}
    assert "at the profile's price" in _drawn(facts)

    xl, large = (ModelConfig.published(name) for name in ("gpt2-xl", "gpt3-175b"))
    cuda = Setting(0, 1, 1, precision="bfloat16", communication="bfloat16", device="cuda")

    def needed(model: ModelConfig, fields: dict[str, Any], **changes: Any) -> float:
        names = {"processes": "ranks", "activation_checkpointing": "checkpointing"}
        values = {names.get(name, name): value for name, value in fields.items()} | changes
        values.pop("memory_gb", None)
        return memory_per_rank(model, replace(cuda, **values))

    fields = smallest_profile(xl, cuda, 512, 30e9)
    assert (fields["processes"], fields["activation_checkpointing"]) == (2, True)
    assert needed(xl, fields) <= 30e9 < needed(xl, fields, ranks=1, zero_stage=0)
    assert needed(xl, fields, zero_stage=fields["zero_stage"] - 1) > 30e9
    fields = smallest_profile(large, cuda, 1536, 80e9)
    assert (fields["processes"], fields["zero_stage"]) == (128, 3)
    assert needed(large, fields) <= 80e9 < needed(large, fields, ranks=96)
    fields = smallest_profile(large, cuda, 16, 80e9)  # no more than a rank for each sequence
    assert fields["processes"] == 16 and fields["zero_stage"] == 3
    assert fields["memory_gb"] * 1e9 >= needed(large, fields) > 80e9
    tight = Profile.model_validate({**gpu, "memory_gb": 0.0005})
    facts = plan_of(RECIPE, base, tight, store)
    assert not facts["memory_per_rank"]["fits"]
    [sentence] = what_does_not_fit(facts, "gpu")
    assert "a rank at ZeRO 1, and gpu has 500kB. The smallest profile that would do: " in sentence
    assert "does not fit  " in _drawn(facts) and sentence in _drawn(facts)
    assert MISSING in _drawn(facts)


def test_plan_says_the_ranks_of_each_stage_and_that_memory_of_evaluation_rises_with_them(
    store: Store, base: Path
) -> None:
    recipe, memory = small_recipe(evaluation={"suites": ["held_out"]}), []
    for processes in (1, 4):
        profile = Profile(name="cpus", processes=processes)
        facts = plan_of(recipe, base, profile, store)
        ranks = {row["asset"].rpartition("/")[2]: row["ranks"] for row in facts["stages"]}
        assert (ranks["corpus"], ranks["tokens"], ranks["zero_shot"]) == (1, processes, processes)
        memory.append(facts["evaluation_memory"])
    parameters = facts["parameters"]["all"]
    assert [each["bytes_per_rank"] for each in memory] == [2 * 4 * parameters] * 2  # laid out too
    assert [each["bytes_per_host"] for each in memory] == [8 * parameters, 32 * parameters]
    assert "ranks" in _drawn(facts) and "whole models" in _drawn(facts)
    tight = Profile(name="cpus", processes=4, memory_gb=1e-5)
    _, sentence = what_does_not_fit(plan_of(recipe, base, tight, store), "cpus")
    assert sentence.startswith("Evaluation takes ") and "fewer processes on a host" in sentence
    for room, whole in ((None, False), (1e-5, False), (1.0, True)):  # zero_shot alone
        sharing = Profile(name="cpus", processes=4, zero_stage=3, memory_gb=room)
        assert ("evaluation_memory" in plan_of(recipe, base, sharing, store)) == whole
    model = recipe.model_config_for()
    room = 2.5 * 4 * model.parameters() / 1e9  # for a model and its layout; preferences has two
    sharing = Profile(name="cpus", processes=4, zero_stage=3, memory_gb=room)
    stages = ("depth", "zero_shot", "instructed", "preferences")
    whole = [has_whole_models(stage, model, sharing) for stage in stages]
    assert whole == [True, True, True, False]


@pytest.mark.slow
def test_a_published_size_is_planned_where_the_hub_does_not_answer(
    cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    done = cli("plan", "gpt2-xl", "--json", "--profile", "gpu", "--strict")
    assert done.returncode == 0, done.stderr
    too_large = cli("plan", "gpt3-175b", "--profile", "hopper8", "--strict")
    assert too_large.returncode == 1 and "does not fit" in too_large.stdout
    assert "a rank at ZeRO 3, and hopper8 has 80GB. The smallest profile" in too_large.stdout
    facts = json.loads(done.stdout)
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
