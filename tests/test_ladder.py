"""A scaling ladder trained for real: what is predicted, that it is before and without the largest,
what the page and the plan say of it.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import torch
from conftest import Cli, write_local_recipe
from small_recipes import small_recipe
from training_ranks import MODEL, SECTION, RecordingProgress, make_inputs

from assets.contract import Artifact, Built
from assets.estimate import estimate
from assets.execution.scaling import rules_header
from assets.graph import node_named, nodes
from assets.recipe.profile import load_profile
from assets.recipe.recipe import Recipe, load_recipe
from assets.stages.experiments import FIT, PREDICTED, PREDICTION, RULES, SCALING
from assets.stages.ladder import dagster_runs, ladder
from assets.stages.pretraining import check_shared_out
from assets.store.manifest import Facts
from assets.store.store import Store
from gpt_model.config import ModelConfig
from gpt_model.errors import UserError
from gpt_model.experiments.document import FILE, read_document
from gpt_model.scaling_laws import PF_DAY, Law
from gpt_model.sizing import Rules, counted
from pipelines.definitions import RecipeFile, build_defs

pytestmark = pytest.mark.slow

SIZES = [[1, 16], [1, 32], [2, 32], [2, 48], [2, 64]]
SCALING_SECTION: dict[str, Any] = {"rungs": SIZES, "tokens_per_parameter": 0.3}


def recipe_of(**scaling: Any) -> Recipe:
    return small_recipe(
        tokenizer={"vocab_size": 320},
        model={**MODEL, "dropout": 0.0},
        pretraining={**SECTION, "snapshots": 3},
        scaling={**SCALING_SECTION, **scaling},
    )


def test_rungs_are_the_recipe_at_other_sizes_in_order_of_compute() -> None:
    recipe = recipe_of(rungs=[4, 1, [2, 64]], seeds=[1, 2, 3])
    rungs = ladder(recipe, recipe.scaling)  # type: ignore[arg-type]
    assert [[step[0].model[name] for name in ("layers", "width", "heads")] for step in rungs] == [
        [1, 16, 1],
        [2, 64, 4],
        [4, 64, 4],
    ]
    assert [rung.name for rung in rungs[0]] == [f"scaling/rung_1_seed_{seed}" for seed in (1, 2, 3)]
    model, trained = recipe.model_and_training
    for step in rungs:
        for seed, rung in enumerate(step, 1):
            pretraining = rung.pretraining
            size = counted(recipe.model_config_for().model_copy(update=rung.model))
            assert pretraining["tokens"] == pytest.approx(
                0.3 * size, abs=pretraining["batch_tokens"] / 2 + 1
            )
            assert pretraining["learning_rate"] == pytest.approx(
                trained.learning_rate * (rung.model["width"] / model.width) ** -0.77, rel=0.01
            )
            assert pretraining["warmup_tokens"] / pretraining["tokens"] == pytest.approx(
                trained.warmup_tokens / trained.tokens, rel=0.01
            )
            assert (pretraining["seed"], pretraining["snapshots"], pretraining["weight_decay"]) == (
                seed,
                0,
                trained.weight_decay,
            )
    two = recipe_of(rungs=[1, 2, 3], tokens_per_parameter=[0.3, 1.0])
    assert len(ladder(two, two.scaling)) == 6  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        (
            {"rungs": [1, 2, 3]},
            r"`scaling.rungs`: an interval takes four models below the largest size: found 2\. Add "
            r"a rung, or seeds\.$",
        ),
        (
            {"rungs": [1, 2], "seeds": [1, 2, 3, 4]},
            r"`scaling.rungs`: a law takes three sizes, .*: found 2\. Add a rung\.$",
        ),
        ({"rungs": [1, 2, 3, 4, 4]}, "rungs: one stands twice"),
        ({"rungs": [[2, 64], 1, 2, 3, 4], "seeds": []}, "scaling.seeds"),
        ({"tokens_per_parameter": 0.0}, "tokens_per_parameter` is 0.0: it should be above 0"),
        ({"rungs": [1, 2, 3, 4, [2, 0]]}, "scaling"),
        (
            {"rungs": [2, 3, 4, 5, 1], "tokens_per_parameter": 0.2},
            r"rungs\[4\].*1 layer of width 16 at 0.2 tokens a parameter: 6 steps of 256 .* leave "
            r"the rung out\.$",
        ),
    ],
)
def test_a_ladder_that_makes_no_law_is_refused(
    tmp_path: Path, scaling: dict[str, Any], expected: str
) -> None:
    path = write_local_recipe(tmp_path)
    path.write_text(path.read_text() + f"scaling: {json.dumps({**SCALING_SECTION, **scaling})}\n")
    with pytest.raises(UserError, match=rf"local\.yaml, line 9: .*{expected}"):
        nodes(load_recipe(str(path)))


def test_the_prediction_knows_nothing_of_the_largest_but_its_size() -> None:
    graph = nodes(recipe_of())
    prediction, top, outcome = (
        node_named(graph, f"{name}")
        for name in ("scaling/prediction", "scaling/rung_5", "experiments/scaling")
    )
    assert set(prediction.needs) == {
        *(f"scaling/rung_{n}" for n in range(1, 5)),
        "tokens",
        "tokenizer",
    }
    assert set(prediction.config(Path())) == {"model", "tokens", "level"}
    assert (
        top.after == ("scaling/prediction",) and "scaling/prediction" not in top.needs
    )  # first in a run, no part of its identity
    assert {"scaling/rung_5", "scaling/prediction"} <= set(outcome.needs)
    untouched = nodes(recipe_of(rungs=[*SIZES[:-1], [4, 64]]))
    for name in (
        f"scaling/rung_{n}" for n in range(1, 5)
    ):  # another largest: another prediction, of the same smaller models
        assert node_named(untouched, name).config(Path()) == node_named(graph, name).config(Path())
    assert node_named(untouched, "scaling/prediction").config(Path()) != prediction.config(Path())


def test_gpt3_tiny_has_a_ladder_of_itself_that_two_ranks_can_share() -> None:
    recipe = load_recipe("gpt3-tiny")
    assert recipe.scaling is not None and recipe.scaling.ratios == [0.3]
    rungs = [rung for step in ladder(recipe, recipe.scaling) for rung in step]
    assert [(rung.model["layers"], rung.model["width"]) for rung in rungs] == [
        (1, 32),
        (2, 64),
        (3, 96),
        (4, 128),
        (6, 192),
    ]
    whole, local = recipe.model_config_for(), recipe.model_and_training[1]
    at_the_recipe = rungs[3]
    assert at_the_recipe.model == whole.model_dump(mode="json", exclude={"vocab_size"})
    assert (
        at_the_recipe.pretraining["learning_rate"],
        at_the_recipe.pretraining["batch_tokens"],
    ) == (local.learning_rate, local.batch_tokens)
    for rung in rungs:
        size = ModelConfig(**rung.model, vocab_size=whole.vocab_size)
        assert rung.pretraining["tokens"] == pytest.approx(0.3 * counted(size), rel=0.02)
        check_shared_out(rung.pretraining, size.context, "cpu", load_profile("cpu").processes)
    cut_down = load_recipe(str(Path(__file__).parent / "recipes" / "gpt3-ci.yaml"))
    assert cut_down.scaling is None  # what the tests build is to stay cheap


def test_each_model_of_the_ladder_is_a_dagster_run_after_what_it_needs(tmp_path: Path) -> None:
    recipe = recipe_of()
    parts = dagster_runs(nodes(recipe))
    names = [[node.name for node in part] for part in parts]
    assert names == [
        ["corpus", "tokenizer", "tokens"],
        *([f"scaling/rung_{n}"] for n in range(1, 5)),
        ["scaling/prediction"],
        ["scaling/rung_5"],
        ["pretrained", "experiments/scaling", "scorecard"],
    ]
    definitions = build_defs([RecipeFile(recipe, tmp_path / "small.yaml")])
    top = definitions.resolve_asset_graph().get(dg.AssetKey(["small", "scaling", "rung_5"]))
    assert dg.AssetKey(["small", "scaling", "prediction"]) in top.parent_keys
    plain = recipe.model_copy(update={"scaling": None})
    assert [[node.name for node in part] for part in dagster_runs(nodes(plain))] == [
        [node.name for node in nodes(plain)]
    ]


# --- a ladder, trained ---


class Trained:
    """Every rung through the real stage in this process, on made-up text; the prediction; what came
    of it.
    """

    def __init__(self, folder: Path, store: Store) -> None:
        given = make_inputs(folder / "inputs")
        self.recipe, self.folder, self.artifacts = recipe_of(), folder, {}
        for name, metrics in (("tokens", {}), ("tokenizer", {"vocab_size": 320.0})):
            self.artifacts[name] = Artifact(
                given / name, name, name, f"digest of {name}", {}, metrics
            )
        for node in nodes(self.recipe):
            if node.name.startswith("scaling/") or node.name == "experiments/scaling":
                self.artifacts[node.name] = self.made(
                    node.name, folder / node.name.replace("/", "_")
                )

    def made(self, name: str, output: Path, **changes: Any) -> Artifact:
        node = node_named(nodes(self.recipe), name)
        config, inputs = (
            {**node.config(Path()), **changes},
            {need: self.artifacts[need] for need in node.needs},
        )
        output.mkdir()
        metrics = node.stage.run(config, inputs, output, RecordingProgress(name))
        return Artifact(output, node.stage.name, name, f"digest of {name}", config, metrics)

    def built(self, name: str, **times: Mapping[str, str]) -> Built:
        """As a check sees it; `times`: of an input, in its manifest."""
        node, item = node_named(nodes(self.recipe), name), self.artifacts[name]
        values = {need: {"provenance": times.get(need.split("/")[-1], {})} for need in node.needs}
        inputs = {
            need: dataclasses.replace(self.artifacts[need], manifest=manifest)
            for need, manifest in values.items()
        }
        return Built(item.config, inputs, item.path, item.metrics, {}, ())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("ladder")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "0",
        }.items():
            patch.setenv(name, value)
        elsewhere = tmp_path_factory.mktemp("elsewhere")
        patch.setenv("HOME", str(elsewhere))
        patch.chdir(elsewhere)
        made = Trained(folder, Store(folder / "lineage"))
    torch.set_num_threads(threads)
    # as tests/test_published_recipes.py holds it of every other stage
    assert list(elsewhere.rglob("*")) == [], "a stage of the ladder writes outside its output"
    return made


def test_the_prediction_is_the_law_of_the_smaller_models_at_the_largest_ones_compute(
    trained: Trained,
) -> None:
    document = json.loads((trained.artifacts["scaling/prediction"].path / PREDICTED).read_text())
    small = [trained.artifacts[f"scaling/rung_{n}"] for n in range(1, 5)]
    assert [item["loss"] for item in document["fitted"]] == pytest.approx(
        [item.metrics["held_out/loss"] for item in small], rel=1e-5
    )
    top = trained.artifacts["scaling/rung_5"]
    model = trained.recipe.model_config_for().model_copy(update=top.config["model"])
    assert document["target"]["compute"] == pytest.approx(
        model.flops_per_token() * top.metrics["tokens"] / PF_DAY, rel=1e-5
    )
    law = Law.from_json(document["law"])
    assert (document["loss"], document["low"], document["high"]) == pytest.approx(
        (law.at(document["target"]["compute"]), *law.interval(document["target"]["compute"])),
        rel=1e-3,
    )
    assert law.exponent > 0 and document["low"] < document["loss"] < document["high"]
    assert (
        str(top.metrics["held_out/loss"])[:7]
        not in (trained.artifacts["scaling/prediction"].path / PREDICTED).read_text()
    )


def test_the_predictions_file_stays_as_it_is_when_the_largest_is_trained_otherwise(
    trained: Trained, tmp_path: Path
) -> None:
    before = (trained.artifacts["scaling/prediction"].path / PREDICTED).read_bytes()
    top = trained.artifacts["scaling/rung_5"]
    other = dataclasses.replace(
        top, metrics={**top.metrics, "held_out/loss": top.metrics["held_out/loss"] * 1.5}
    )
    page, retained = trained.artifacts["experiments/scaling"].path, dict(trained.artifacts)
    trained.artifacts["scaling/rung_5"] = other
    try:
        again, outcome = (
            trained.made("scaling/prediction", tmp_path / "prediction"),
            trained.made("experiments/scaling", tmp_path / "scaling"),
        )
    finally:
        trained.artifacts.update(retained)
    assert (again.path / PREDICTED).read_bytes() == before
    assert (outcome.path / FILE).read_bytes() != (page / FILE).read_bytes()


def test_the_page_says_what_was_predicted_what_came_and_what_gpt3s_line_is_worth(
    trained: Trained, tmp_path: Path
) -> None:
    item = trained.artifacts["experiments/scaling"]
    document, record = (
        read_document(item.path),
        json.loads((trained.artifacts["scaling/prediction"].path / PREDICTED).read_text()),
    )
    results = trained.artifacts["scaling/rung_5"].metrics["held_out/loss"]
    landed = "inside" if record["low"] <= results <= record["high"] else "outside"
    predicted = (
        f"{record['loss']:.3f} nats a token were predicted ({record['low']:.3f} to "
        f"{record['high']:.3f}, 90%)"
    )
    outcome = rf"{results:.3f} \(([\d.]+) to ([\d.]+)\) came: {landed}\. Of [\d,]+ held-out"
    search = re.search(f"{re.escape(predicted)} and {outcome}", document.summary[0])
    assert search and float(search[1]) < results < float(search[2])
    assert item.metrics["inside"] == (landed == "inside")
    assert "5 different models are fewer than the six" in document.summary[2]
    assert "2.57 · C^-0.048" in document.summary[3] and "not comparable" in document.summary[3]
    models = document.tables[0].rows
    assert [row[0] for row in models] == [f"rung_{n}" for n in range(1, 6)]
    assert [row[-1] for row in models] == ["fitted"] * 4 + ["predicted"]
    assert all(
        re.fullmatch(r"[\d.]+ \([\d.]+ to [\d.]+\)", str(row[column]))
        for row in models
        for column in (6, 7)
    )
    nats, bits = (
        [float(part) for part in re.findall(r"[\d.]+", str(models[0][column]))] for column in (6, 7)
    )
    each = (nats[0] / bits[0], (nats[2] - nats[1]) / (bits[2] - bits[1]))
    assert each[1] == pytest.approx(
        each[0], rel=0.05
    )  # one source: nats a token are bits a byte times its bytes a token
    assert re.search(r"on [\d,]+ held-out tokens", document.tables[0].caption)
    fitted, law, largest, gpt3 = document.plots[0].series
    assert (
        (len(fitted.x), len(largest.x)) == (4, 1)
        and largest.y == [pytest.approx(results, rel=1e-5)]
        and law.low
        and law.high
    )
    assert gpt3.y == pytest.approx([2.57 * compute**-0.048 for compute in gpt3.x], rel=1e-4)
    SCALING.show(trained.built("experiments/scaling"), tmp_path)
    PREDICTION.show(trained.built("scaling/prediction"), tmp_path)
    assert (tmp_path / "1.png").stat().st_size > 10_000
    shown = (tmp_path / "prediction.md").read_text()
    assert (
        f"{record['loss']:.3f} ({record['low']:.3f} – {record['high']:.3f}) nats a token" in shown
    )
    assert (
        len(
            re.findall(
                r"\| [\d.]+ \([\d.]+ to [\d.]+\) \|", (tmp_path / "prediction.md").read_text()
            )
        )
        == 4
    )


def test_the_checks_say_whether_it_landed_and_whether_it_was_said_before(trained: Trained) -> None:
    inside, before = (check.verdict for check in SCALING.checks)
    assert not any(check.blocking for check in SCALING.checks)
    early, late = (
        {"started": "2026-01-01T00:00", "ended": "2026-01-01T01:00"},
        {"started": "2026-01-01T02:00", "ended": "2026-01-01T03:00"},
    )
    assert before(trained.built("experiments/scaling", prediction=early, rung_5=late)).passed
    verdict = before(trained.built("experiments/scaling", prediction=late, rung_5=early))
    assert not verdict.passed and "made from the others alone, but not before" in verdict.summary
    built = trained.built("experiments/scaling")
    assert inside(built).passed == (built.metrics["inside"] == 1)
    missed = dataclasses.replace(
        built, metrics={**built.metrics, "inside": 0.0, "largest_loss": 99.0}
    )
    assert not inside(missed).passed
    assert re.search(
        r"99\.000 nats a held-out token \(95 % over its windows: [\d.]+ to [\d.]+\), not inside",
        inside(missed).summary,
    )


def test_rules_say_which_of_them_the_ladder_was_fitted_for(
    trained: Trained, tmp_path: Path
) -> None:
    header = [
        line
        for line in (trained.artifacts["experiments/scaling"].path / RULES).read_text().splitlines()
        if line.startswith("# ")
    ]
    of = {line[2:].split(":")[0]: line for line in header}
    assert (
        "carried over, not fitted" in of["tokens_per_parameter"]
        and "three sizes at three numbers" in of["tokens_per_parameter"]
    )
    assert (
        "not fitted: slopes through GPT-3's table 2.1"
        in of["learning_rate_exponent, batch_exponent"]
    )
    assert "carried over" in of["all else"]
    fitted = rules_header(9, fitted=True)
    assert fitted[1].startswith("tokens_per_parameter: fitted here") and "9 models" in fitted[1]
    assert fitted[2:] == [line[2:] for line in header[2:]]


def test_the_ladder_leaves_rules_that_a_dial_reads(trained: Trained, tmp_path: Path) -> None:
    shutil.copy(trained.artifacts["experiments/scaling"].path / RULES, tmp_path / RULES)
    write_local_recipe(tmp_path)
    (tmp_path / "deep.yaml").write_text(
        f"extends: local\nname: deep\ndepth: {{layers: 4, rules: {RULES}}}\n"
    )
    recipe = load_recipe(str(tmp_path / "deep.yaml"))
    rules = Rules.of(
        trained.recipe.model_config_for(),
        trained.recipe.model_and_training[1].model_dump(mode="json"),
    )
    assert recipe.model_and_training[0].width == 64 and recipe.model_and_training[
        1
    ].learning_rate == pytest.approx(rules.learning_rate * 2**-0.77, rel=0.01)
    assert recipe.model_and_training[1].tokens == pytest.approx(
        0.3 * counted(recipe.model_config_for()), rel=0.05
    )


def test_loss_is_estimated_by_the_ladder_of_the_same_text_and_family(
    trained: Trained, tmp_path: Path
) -> None:
    store, ladder = Store(tmp_path / "lineage"), trained.artifacts["experiments/scaling"]
    building = store.building("0" * 64)
    shutil.copytree(ladder.path, building.files, dirs_exist_ok=True)
    inputs = {"tokens": trained.artifacts["tokens"]}
    facts = Facts("scaling", "1", ladder.config, inputs, ladder.metrics, {})
    store.publish(building, facts, {})
    node = node_named(nodes(trained.recipe), "pretrained")
    config, profile = node.config(Path()), load_profile("single")
    inputs = {name: trained.artifacts[name] for name in ("tokens", "tokenizer")}
    artifacts = list(store.artifacts())
    answer = estimate(node, config, inputs, profile, artifacts)
    law = Law.from_json(json.loads((ladder.path / FIT).read_text())["bpb"])
    compute = answer["work"]["amount"] / PF_DAY
    low, high = law.interval(compute, 0.95)
    assert answer["loss"] == {"low": low, "expected": law.at(compute), "high": high}
    basis = "The law of 5 models of the same text, ladder 000000000000"
    assert answer["loss_basis"].startswith(basis)
    other = inputs | {"tokens": dataclasses.replace(inputs["tokens"], digest="of another text")}
    assert "loss" not in estimate(node, config, other, profile, artifacts)
    # a law of Transformers says nothing of an LSTM
    lstm = {**config, "model": {**config["model"], "family": "lstm"}}
    assert "loss" not in estimate(node, lstm, inputs, profile, artifacts)


def test_a_recipe_with_a_ladder_is_built_a_run_a_model(
    cli: Cli, home: Path, tmp_path: Path
) -> None:
    path = write_local_recipe(tmp_path, tokens=5120, paragraphs=200)
    path.write_text(
        path.read_text()
        + "scaling: {rungs: [[1, 16], [1, 20], [1, 24], [1, 32], [1, 48]], tokens_per_parameter: "
        "0.5}\n"
    )
    done = cli("run", str(path), "--profile", "single", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["built"] == 5 + 5 + 2  # no one twice, however many runs
    with dg.DagsterInstance.get() as instance:
        kind = dg.DagsterEventType.ASSET_MATERIALIZATION
        logs = [
            instance.all_logs(run.run_id, of_type=kind) for run in reversed(instance.get_runs())
        ]
    made = [
        ["/".join(log.get_dagster_event().asset_key.path[1:]) for log in of_run] for of_run in logs
    ]  # type: ignore[union-attr]
    assert made[1:-1] == [
        *([f"scaling/rung_{n}"] for n in range(1, 5)),
        ["scaling/prediction"],
        ["scaling/rung_5"],
    ]
    store = Store(home)
    gate = store.gate(store.resolve("local/experiments/scaling"))
    assert gate["predicted_before"].passed, gate["predicted_before"].summary
