"""The experiments that fine-tune: what of a model is transferred, intervals over examples and
seeds, and both stages on real ranks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_finetuning import GIVEN, MODEL, PASSAGES, artifacts, recipe, write_task
from training_ranks import Ranks, read_record

from assets.contract import SCRATCH, Built
from assets.graph import nodes
from assets.recipe.recipe import Recipe
from assets.stages.experiments import (
    ABLATIONS,
    LAYERS_TRANSFERRED,
    ablations_config,
    layers_transferred_config,
)
from benchmarks.gpu_check import ALONE
from gpt_model import GPT, ModelConfig, convert
from gpt_model.errors import Unavailable, UserError
from gpt_model.experiments.document import FILE, ONE_RUN, read_document
from gpt_model.experiments.finetuning_variants import BAG_OF_WORDS
from gpt_model.experiments.gpt1_figure2_left_layers_transferred import transferred
from gpt_model.finetuning.metrics import Scoring
from gpt_model.finetuning.objective import FineTuning
from gpt_model.finetuning.start import start_decoder
from gpt_model.lstm import build
from gpt_model.statistics import cluster_bootstrap, slope_weights, wilson
from gpt_model.training.engine import Execution
from gpt_model.training.sharded import shares

pytestmark = pytest.mark.slow

# --- what is transferred ---


@pytest.mark.parametrize("family", ["gpt1", "gpt2"])
@pytest.mark.parametrize("layers", [-1, 0, 1, 3])
@pytest.mark.parametrize("zero_stage", [1, 3])
def test_the_lower_layers_are_kept_and_the_rest_is_fresh(
    family: Any, layers: int, zero_stage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ALONE.items():
        monkeypatch.setenv(name, value)
    config = ModelConfig(family=family, layers=3, width=16, heads=2, context=8, vocab_size=40)
    gpt = GPT(config, seed=1)
    for parameter in gpt.parameters():
        parameter.data += 1.0  # so that no bias or gain is as fresh ones are
    convert.save(gpt, tmp_path)
    settings = FineTuning(1, 2, 1e-3, 0.0, 0.5, 0.1, 0.0, 1.0, seed=2)
    execution = Execution(zero_stage=zero_stage)
    decoder = start_decoder(tmp_path, settings, execution, transferred(layers, 3))
    assert (decoder.config.dropout, decoder.config.vocab_size) == (0.1, 43)
    result = {share.name: share.values["weight"] for share in shares(decoder)}
    fresh = GPT(decoder.config, seed=2).state_dict()
    assert torch.equal(result["wte.weight"][40 * 16 :], fresh["wte.weight"][40:].flatten())
    result["wte.weight"], fresh["wte.weight"] = (
        result["wte.weight"][: 40 * 16],
        fresh["wte.weight"][:40],
    )
    for name, tensor in gpt.state_dict().items():
        block = int(name.split(".")[1]) if name.startswith("h.") else None
        retained = (
            layers >= 0
            if name.startswith("w")
            else block < layers
            if block is not None
            else layers == 3
        )
        expected = tensor if retained else fresh[name]
        assert torch.equal(result[name], expected.flatten()), name
        assert not torch.equal(tensor, fresh[name])


# --- intervals ---

ACCURACY = Scoring("accuracy").statistic


def cells(right: np.ndarray) -> list[list[np.ndarray]]:
    """[points, seeds, examples] of right and wrong as `Scoring("accuracy").parts` has them."""
    return [
        [np.stack([item, np.ones_like(item)], 1) for item in point] for point in right.astype(float)
    ]


def test_one_models_interval_is_that_of_its_examples() -> None:
    right = np.random.default_rng(1).random((1, 1, 800)) < 0.7
    interval = cluster_bootstrap(cells(right), ACCURACY, [str(i) for i in range(800)]).intervals()[
        0
    ]
    alone = wilson(int(right.sum()), 800)
    assert interval.value == right.mean() and (interval.low, interval.high) == pytest.approx(
        (alone.low, alone.high), abs=0.006
    )


def test_a_slope_is_least_squares_and_its_interval_holds_what_the_models_were_drawn_from() -> None:
    x, held = [0, 1, 2, 3, 4], 0
    for trial in range(40):
        draw = np.random.default_rng(trial)
        truth = (
            0.6 + 0.03 * np.asarray(x)[:, None] + draw.normal(0, 0.02, (5, 3))
        )  # seeds differ by 2 points
        right = draw.random((5, 3, 300)) < truth[:, :, None]
        points = cluster_bootstrap(cells(right), ACCURACY, [str(i) for i in range(300)])
        slope = points.interval(slope_weights(x))
        assert slope.value == pytest.approx(np.polyfit(x, right.mean((1, 2)), 1)[0])
        held += slope.low <= 0.03 <= slope.high
    assert 34 <= held <= 40  # of 40 intervals of 95 %


def test_seeds_that_disagree_widen_an_interval_and_paired_examples_narrow_a_difference() -> None:
    groups, draw = [str(i) for i in range(400)], np.random.default_rng(0)
    hard = draw.random(400) < 0.5
    same = np.stack([np.stack([hard, hard, hard])] * 2)
    agree = cluster_bootstrap(cells(same), ACCURACY, groups)
    assert (
        agree.interval([1, -1]).low == agree.interval([1, -1]).high == 0
    )  # the same answers: no difference, and that for certain
    apart = same.copy()
    apart[0, 0], apart[0, 1] = True, False
    spread = cluster_bootstrap(cells(apart), ACCURACY, groups).intervals()
    assert spread[0].high - spread[0].low > 3 * (spread[1].high - spread[1].low)


def test_models_that_always_answer_alike_are_not_certain() -> None:
    groups = [str(i // 2) for i in range(400)]  # each of one that is right and one that is wrong
    same = np.tile(np.arange(400) % 2 == 0, (2, 3, 1))
    points = cluster_bootstrap(cells(same), ACCURACY, groups)
    for interval in points.intervals():
        assert (
            interval.value == 0.5 and 0.485 < interval.low < 0.497 and 0.503 < interval.high < 0.515
        )
    apart = points.interval([1.0, -1.0])
    assert apart.value == 0 and -0.03 < apart.low < -0.005 and 0.005 < apart.high < 0.03


def test_tasks_resampled_by_numbers_of_their_own_are_independent_and_their_mean_narrows() -> None:
    draw, groups = np.random.default_rng(4), [str(i) for i in range(300)]
    tasks = [
        cluster_bootstrap(cells(draw.random((2, 3, 300)) < 0.6), ACCURACY, groups, number)
        for number in range(9)
    ]
    lone = [task.samples[:, 0] - task.samples[:, 1] for task in tasks]
    assert np.abs(np.corrcoef(lone)[np.triu_indices(9, 1)]).max() < 0.15
    assert np.mean(lone, 0).std() == pytest.approx(
        np.mean([item.std() for item in lone]) / 3, rel=0.15
    )  # 1/√9


# --- the section ---


def with_experiments(**experiments: Any) -> Recipe:
    given = recipe(
        tasks=["./gates.yaml"],
        epochs=2,
        batch=16,
        learning_rate=7e-3,
        warmup=0.1,
        examples={"gates": 128},
    )
    return Recipe.model_validate(
        {**given.model_dump(exclude_none=True), "experiments": experiments}
    )


def test_an_experiment_is_a_node_of_the_graph_and_names_only_tasks_of_the_recipe(
    tmp_path: Path,
) -> None:
    write_task(tmp_path)
    graph = {
        node.name: node
        for node in nodes(with_experiments(layers_transferred={"task": "gates"}, ablations={}))
    }
    assert graph["experiments/layers_transferred"].needs == ("pretrained", "tokenizer")
    assert graph["experiments/ablations"].needs == ("pretrained", "tokenizer", "experiments/lstm")
    assert {"experiments/layers_transferred", "experiments/ablations"} <= set(
        graph["scorecard"].needs
    )
    with pytest.raises(UserError, match=r"'gate' is not among finetuning\.tasks: gates"):
        layers_transferred_config(with_experiments(layers_transferred={"task": "gate"}), tmp_path)
    with pytest.raises(UserError, match="3 layers cannot be transferred from a model of 2"):
        layers_transferred_config(
            with_experiments(layers_transferred={"task": "gates", "layers": [0, 3]}), tmp_path
        )
    size = {"task": "gates", "examples": 64, "epochs": 1, "learning_rate": 1e-3}
    config = layers_transferred_config(with_experiments(layers_transferred=size), tmp_path)
    [task] = config["tasks"]
    assert (
        task["examples"],
        task["finetuning"]["epochs"],
        task["finetuning"]["learning_rate"],
        task["seeds"],
    ) == (64, 1, 1e-3, 3)


# --- both stages on real ranks ---

SHARDED = "_sharded"  # at ZeRO 3


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Built]:
    """Both experiments on a task whose label follows from one word, of a model as pre-trained as
    random weights can be.
    """
    from gpt_model.tokenizer import Tokenizer

    folder = tmp_path_factory.mktemp("inputs")
    write_task(folder)
    tokenizer = Tokenizer.train(PASSAGES, vocab_size=300)
    tokenizer.save(folder / "tokenizer")
    shape = ModelConfig(**MODEL, vocab_size=tokenizer.vocab_size)
    lstm = ModelConfig(
        family="lstm",
        layers=1,
        width=32,
        heads=1,
        context=MODEL["context"],
        vocab_size=tokenizer.vocab_size,
    )  # type: ignore[arg-type]
    for name, config in {"pretrained": shape, "experiments/lstm": lstm}.items():
        convert.save(build(config, 9), folder / name / "model", tokenizer.end_of_text)
    needs = ("pretrained", "tokenizer", "experiments/lstm")
    size = {"seeds": 2, "epochs": 1, "examples": 64, "held_back": 40}
    given = with_experiments(layers_transferred={"task": "gates", **size}, ablations=size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LINEAGE_DOWNLOADS", str(folder / "downloads"))
        configs = {
            stage: stage.pin(section(given, folder), folder)
            for stage, section in (
                (LAYERS_TRANSFERRED, layers_transferred_config),
                (ABLATIONS, ablations_config),
            )
        }
        jobs = [
            {
                "what": stage.name,
                "config": config,
                "given": GIVEN,
                "needs": needs,
                "output": folder / f"{stage.name}{end}",
                "zero_stage": zero_stage,
            }
            for stage, config in configs.items()
            for end, zero_stage in (("", 1), (SHARDED, 3))
        ]
        Ranks(folder, jobs).wait()
    given_inputs = {**artifacts(folder)}
    return {
        stage.name: Built(
            config,
            given_inputs,
            folder / stage.name,
            read_record(folder / stage.name)["result"],
            {},
            [],
        )
        for stage, config in configs.items()
    }


def test_models_that_are_shared_out_start_and_train_as_whole_ones(built: dict[str, Built]) -> None:
    for name, experiment in built.items():
        whole = read_record(experiment.output)
        sharded = read_record(experiment.output.with_name(f"{name}{SHARDED}"))
        for step, values in whole["metrics"].items():
            for metric in {metric for metric in values if not metric.endswith("_per_second")}:
                near = pytest.approx(values[metric], rel=1e-5, abs=1e-5)
                assert sharded["metrics"][step][metric] == near, (step, metric)
        assert sharded["whole"] == 0 < whole["whole"]


def test_figure_2_left_is_a_curve_from_embeddings_to_all_layers_with_its_slope(
    built: dict[str, Built], tmp_path: Path
) -> None:
    layers_transferred = built["layers_transferred"]
    document, m = read_document(layers_transferred.output), layers_transferred.metrics
    [plot], [table] = document.plots, document.tables
    assert plot.series[0].x == [0, 1, 2] and plot.series[0].y == pytest.approx(
        [m[f"{n}/accuracy"] for n in range(3)], abs=1e-5
    )
    assert (
        m["slope"] == pytest.approx((m["2/accuracy"] - m["0/accuracy"]) / 2)
        and m["slope_low"] <= m["slope"] <= m["slope_high"]
    )
    assert [row[0] for row in table.rows] == [
        "nothing",
        "embeddings",
        "embeddings and 1",
        "embeddings and 2",
        BAG_OF_WORDS,
    ]
    # It has the rows that the models had: which name comes first is in no bag of words.
    assert table.rows[-1][2] == f"{m['bag_of_words']:.3f}"
    assert plot.levels[1].y == pytest.approx(m["bag_of_words"], abs=1e-5)
    seeds = [float(value) for value in str(table.rows[1][2]).split(", ")]
    assert len(seeds) == 2 and np.mean(seeds) == pytest.approx(m["0/accuracy"], abs=6e-4)
    assert "2 seeds. gates: 64 of 248 training" in table.caption and any(
        "read off a plot" in line for line in document.summary
    )
    check = next(check for check in LAYERS_TRANSFERRED.checks if check.name == "layers_help")
    assert (
        check.verdict(layers_transferred).passed == (m["slope_low"] > 0)
        and f"{m['slope']:+.4f}" in check.verdict(layers_transferred).summary
    )
    LAYERS_TRANSFERRED.show(layers_transferred, tmp_path)
    assert (tmp_path / "1.png").stat().st_size > 2000 and "embeddings and 2" in (
        tmp_path / "page.md"
    ).read_text()
    assert {path.name for path in layers_transferred.output.iterdir()} == {
        SCRATCH,
        "record.json",
        FILE,
    }


def test_table_5_has_each_way_and_what_is_lost_beside_the_papers_own(
    built: dict[str, Built],
) -> None:
    ablations = built["ablations"]
    document, m = read_document(ablations.output), ablations.metrics
    scores, lost, published = document.tables
    assert [row[0] for row in scores.rows] == [
        "whole (with the auxiliary objective)",
        "without pre-training",
        "without the auxiliary objective",
        "LSTM, with the auxiliary objective",
        BAG_OF_WORDS,
    ]
    assert m["gates/bag_of_words"] == built["layers_transferred"].metrics["bag_of_words"]
    assert str(scores.rows[-1][2]).startswith(f"{m['gates/bag_of_words']:.3f}")
    for name in ("no_pretraining", "no_auxiliary", "lstm"):
        assert m[f"average/{name}_loss"] == pytest.approx(m["gates/whole"] - m[f"gates/{name}"])
        assert (
            m[f"average/{name}_loss_low"]
            <= m[f"average/{name}_loss"]
            <= m[f"average/{name}_loss_high"]
        )
    first = next(
        values for _, values in sorted(read_record(ablations.output)["metrics"].items())
    )  # of the first step of each model
    texts = {
        name.split("/")[1]: loss for name, loss in first.items() if name.endswith("/1/text_loss")
    }
    assert (
        set(texts) == {"whole", "no_pretraining", "lstm"} and len(set(texts.values())) == 3
    )  # each another model
    assert first["gates/no_auxiliary/1/label_loss"] == pytest.approx(
        first["gates/whole/1/label_loss"]
    )  # and but for that the same
    assert str(lost.rows[0][1]).startswith(f"{m['average/no_pretraining_loss']:+.3f}")
    assert ONE_RUN in document.summary  # of each network, which no seed of fine-tuning tells of
    assert published.rows[0][:3] == ["gpt1", "74.7", "45.4"] and len(published.rows) == 4
    labels = [series.label for series in document.plots[0].series]
    assert labels == [row[0] for row in scores.rows[:-1]]


def test_an_experiment_without_any_task_that_can_be_run_is_unavailable(
    built: dict[str, Built], tmp_path: Path
) -> None:
    from training_ranks import RecordingProgress

    reason = "it is read from the hub, which does not answer here"
    for stage in (ABLATIONS, LAYERS_TRANSFERRED):
        config = built[stage.name].config
        (task,) = config["tasks"]
        absent = {**config, "tasks": [{**task, "not_run": reason}]}
        with pytest.raises(Unavailable, match=f"gates: {reason}"):
            stage.run(absent, built[stage.name].inputs, tmp_path, RecordingProgress("absent"))
        assert not list(tmp_path.iterdir())
