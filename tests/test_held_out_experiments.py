"""The experiments on held-out text: which models `depth` has trained, what its intervals are over,
and the samples both pages say.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_recipes import small_recipe
from training_ranks import MODEL, SECTION, make_inputs
from world import Alone

from assets.contract import Artifact, Built
from assets.graph import nodes
from assets.node import Node
from assets.stages.experiments import DEPTH, VISIBLE_CONTEXT
from gpt_model import GPT, ModelConfig, convert
from gpt_model.data.shards import TokenData
from gpt_model.errors import UserError
from gpt_model.experiments.depth import bootstrap_windows
from gpt_model.experiments.document import Document, read_document
from gpt_model.tokenizer import Tokenizer
from gpt_model.training.engine import Execution
from gpt_model.training.measure import held_out

# --- the models ---


def graph(**depth: Any) -> dict[str, Node]:
    """Of a recipe of two layers, by name."""
    recipe = small_recipe(
        tokenizer={"vocab_size": 320},
        model=MODEL,
        pretraining={**SECTION, "seed": 3, "snapshots": 2},
        experiments={"depth": depth},
    )
    return {node.name: node for node in nodes(recipe)}


def test_with_neither_tokens_nor_seeds_the_recipes_own_model_is_the_one_of_its_depth() -> None:
    result = graph(layers=[1, 2])
    assert result["experiments/depth"].needs == (
        "tokens",
        "tokenizer",
        "pretrained",
        "depth/layers_1",
    )
    local, shallow = (
        result["pretrained"].config(Path())["pretraining"],
        result["depth/layers_1"].config(Path()),
    )
    assert shallow["pretraining"] == local | {"snapshots": 0} and shallow["model"]["layers"] == 1


def test_with_tokens_or_seeds_every_depth_is_trained_for_the_experiment_and_alike() -> None:
    result = graph(layers=[1, 4], tokens=5120, seeds=2)
    names = [f"depth/layers_{n}_seed_{seed}" for n in (1, 2, 4) for seed in (3, 4)]
    assert (
        result["experiments/depth"].needs == ("tokens", "tokenizer", *names)
        and [n for n in result if n.startswith("depth/")] == names
    )
    for name in names:
        settings = result[name].config(Path())
        assert (settings["model"]["layers"], settings["pretraining"]["seed"]) == (
            int(name[13]),
            int(name[-1]),
        )
        pretraining = settings["pretraining"]
        assert (pretraining["tokens"], pretraining["warmup_tokens"], pretraining["snapshots"]) == (
            5120,
            256,
            0,
        )  # half as long
    assert set(graph(layers=[1], tokens=5120)) >= {"depth/layers_1", "depth/layers_2"}
    with pytest.raises(
        UserError, match="100 tokens are less than one batch of 256: make it larger"
    ) as error:
        graph(layers=[1], tokens=100)
    assert error.value.field == "experiments.depth.tokens"


# --- intervals ---


def windows(bits: float, spread: float = 0.0, count: int = 3000) -> np.ndarray:
    """Of 100 bytes each, that take about so many bits a byte; some are harder than others for
    whichever model.
    """
    harder = np.random.default_rng(5).normal(0, 0.3, count)
    normal = np.random.default_rng(int(bits * 1e6)).normal(0, spread, count) if spread else 0.0
    return np.stack(
        [(bits + harder + normal) * math.log(2) * 100, np.full(count, 30.0), np.full(count, 100.0)],
        1,
    )


def test_models_of_the_same_windows_are_compared_in_pairs_and_seeds_that_disagree_widen_the_interval() -> (
    None
):
    alike = bootstrap_windows([[windows(2.5, 0.01)] * 2, [windows(2.0, 0.01)] * 2], 0)
    item, saved = alike.intervals()[0], alike.interval([1, -1])
    assert saved.value == pytest.approx(
        0.5, abs=0.01
    ) and item.value - saved.value == pytest.approx(alike.values[1])
    assert (item.high - item.low) / (2 * 1.96 * 0.3 / math.sqrt(3000)) == pytest.approx(1, abs=0.15)
    assert saved.high - saved.low < (item.high - item.low) / 5  # the hard windows are the same ones
    apart = bootstrap_windows([[windows(2.6), windows(2.4)], [windows(2.1), windows(1.9)]], 0)
    assert apart.interval([1, -1]).value == pytest.approx(saved.value, abs=0.01)
    assert (
        apart.interval([1, -1]).low < 0.4 < saved.low
        and saved.high < 0.6 < apart.interval([1, -1]).high
    )


# --- the stages ---


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Tokens, and models of one and two layers and two seeds, of random weights."""
    folder = make_inputs(tmp_path_factory.mktemp("inputs"))
    tokenizer = Tokenizer.load(folder / "tokenizer")
    values = {"tokens": Artifact(folder / "tokens", "tokens", "", "", {}, {})}
    values["tokenizer"] = Artifact(
        folder / "tokenizer", "tokenizer", "", "", {}, {"vocab_size": tokenizer.vocab_size}
    )
    for layers in (1, 2):
        shape = {**MODEL, "layers": layers}
        for seed in (1, 2):
            path = folder / f"layers_{layers}_seed_{seed}"
            model = GPT(ModelConfig(**shape, vocab_size=tokenizer.vocab_size), seed=seed)  # type: ignore[arg-type]
            model.wte.weight.data *= layers  # the deeper ones are clearly another model
            convert.save(model, path / "model", tokenizer.end_of_text)
            values[f"depth/{path.name}"] = Artifact(
                path, "pretrained", "", "", {"model": shape, "pretraining": SECTION}, {}
            )
    return values


def built(
    stage: Any, config: dict[str, Any], inputs: dict[str, Artifact], output: Path
) -> tuple[Built, Document]:
    done = Built(config, inputs, output, stage.run(config, inputs, output, Alone()), {}, [])
    assert all(check.verdict(done).summary for check in stage.checks)
    return done, read_document(output)


def test_each_depth_is_the_mean_of_its_seeds_on_all_held_out_text_and_the_page_says_how_much(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    done, document = built(DEPTH, {}, inputs, tmp_path)
    data, each = TokenData(inputs["tokens"].path), {}
    for n in (1, 2):
        models = [
            convert.load(inputs[f"depth/layers_{n}_seed_{seed}"].path / "model").eval()
            for seed in (1, 2)
        ]
        each[n] = [held_out(model, data, Execution())["plays"] for model in models]
        assert done.metrics[f"plays/{n}/bpb"] == pytest.approx(
            np.mean([item.bpb for item in each[n]])
        )
    assert done.metrics["plays/saved"] == pytest.approx(
        done.metrics["plays/1/bpb"] - done.metrics["plays/2/bpb"]
    )
    assert (
        done.metrics["plays/saved_low"]
        < done.metrics["plays/saved"]
        < done.metrics["plays/saved_high"]
    )
    caption = document.tables[0].caption
    assert (
        caption.startswith("Each model trained on 10,240 tokens. Held out: ")
        and "Means of 2 seeds a depth" in caption
    )
    assert (
        f"plays {len(data.tokens('plays', 'held_out')):,} tokens in {len(each[1][0].windows):,} "
        "windows" in caption
    )
    assert [series.x for series in document.plots[0].series] == [[1, 2]] * 2 and document.tables[
        0
    ].rows[1][0] == 2


def test_of_one_seed_the_page_says_that_another_is_not_in_the_intervals(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    lone = {name: item for name, item in inputs.items() if not name.endswith("seed_2")}
    _, document = built(DEPTH, {}, lone, tmp_path)
    assert (
        "One seed a depth" in document.tables[0].caption
        and "another seed would give is not in them" in document.tables[0].caption
    )


def test_the_visible_context_says_its_sample_and_that_it_is_of_one_model(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    given = {"tokens": inputs["tokens"], "pretrained": inputs["depth/layers_1_seed_1"]}
    _, document = built(
        VISIBLE_CONTEXT, {"contexts": [1, 8], "positions": 50, "seed": 0}, given, tmp_path
    )
    data, caption = TokenData(inputs["tokens"].path), document.tables[0].caption
    for source in ("plays", "facts"):
        assert (
            f"{source} 50 tokens of {len(data.tokens(source, 'held_out')):,} held out in 10 "
            "documents" in caption
        )
    assert (
        "each a window of its own" in caption
        and "One model: what another seed of pre-training would give is not in them." in caption
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_models_are_read_in_the_precision_that_each_was_trained_in(
    precision: str, inputs: dict[str, Artifact], tmp_path: Path, bfloat16_passes: list[bool]
) -> None:
    trained = {**SECTION, "precision": precision}
    models = {
        name: replace(artifact, config={**artifact.config, "pretraining": trained})
        if name.endswith("seed_1")
        else artifact
        for name, artifact in inputs.items()
    }
    built(DEPTH, {}, models, tmp_path)
    assert set(bfloat16_passes) == {False, precision == "bfloat16"}
    bfloat16_passes.clear()
    given = {"tokens": inputs["tokens"], "pretrained": models["depth/layers_1_seed_1"]}
    built(VISIBLE_CONTEXT, {"contexts": [1, 8], "positions": 50, "seed": 0}, given, tmp_path)
    assert set(bfloat16_passes) == {precision == "bfloat16"}
