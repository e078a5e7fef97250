"""`depth: N`: what it sets, what stands beside it, and that an artifact knows the numbers only."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from conftest import write_local_recipe
from rich.console import Console

from assets.graph import node_named, nodes
from assets.recipe.profile import load_profile
from assets.recipe.recipe import load_recipe
from assets.store.store import Store
from gpt_model.config import PUBLISHED
from gpt_model.errors import UserError
from gpt_model.sizing import Rules, counted, sized
from pipelines.cli.plan import draw_plan, plan_of

FRESH = """\
name: fresh
depth: {depth}
corpus: {{sources: [{{name: notes, path: notes.txt}}]}}
tokenizer: {{vocab_size: 50257}}
"""


def written(folder: Path, text: str, name: str = "deep") -> str:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return str(path)


def test_the_exponents_are_the_slopes_through_gpt3s_table() -> None:
    """Table 2.1: learning rates and batches of the eight sizes, 13B at its printed width."""
    models = [model for name, model in PUBLISHED.items() if name.startswith("gpt3")]
    widths = [5140 if model.width == 5120 else model.width for model in models]
    rates, batches = [6.0, 3.0, 2.5, 2.0, 1.6, 1.2, 1.0, 0.6], [0.5, 0.5, 0.5, 1, 1, 2, 2, 3.2]
    assert Rules().learning_rate_exponent == pytest.approx(
        np.polyfit(np.log(widths), np.log(rates), 1)[0], abs=0.005
    )
    assert Rules().batch_exponent == pytest.approx(
        np.polyfit(np.log([m.parameters() for m in models]), np.log(batches), 1)[0], abs=0.005
    )


def test_without_a_recipe_to_lead_from_twelve_layers_are_gpt3_smalls(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, FRESH.format(depth=12), "fresh"))
    model, training = recipe.model_and_training
    assert (model.layers, model.width, model.heads) == (12, 768, 12)
    assert (training.learning_rate, training.batch_tokens) == (6e-4, 524_288)
    assert training.tokens == pytest.approx(20 * counted(recipe.model_config_for()), abs=524_288)
    small, large = (
        load_recipe(written(tmp_path, FRESH.format(depth=n), "fresh")).model_and_training
        for n in (6, 24)
    )
    assert (small[0].width, large[0].width) == (384, 1536)
    assert small[1].learning_rate == pytest.approx(6e-4 * 2**0.77, rel=0.01)
    assert (small[1].batch_tokens, large[1].batch_tokens) == (262_144, 1_048_576)


def test_a_dial_leads_from_the_recipe_it_extends_and_at_its_depth_changes_nothing(
    tmp_path: Path,
) -> None:
    base = load_recipe(str(write_local_recipe(tmp_path)))
    same = load_recipe(written(tmp_path, "extends: local\ndepth: 2\n"))
    assert same.model_and_training == base.model_and_training
    deeper = load_recipe(written(tmp_path, "extends: local\ndepth: 4\n"))
    (model, training), (base_model, trained) = deeper.model_and_training, base.model_and_training
    assert (model.layers, model.width, model.heads, model.context, model.dropout) == (
        4,
        64,
        4,
        base_model.context,
        base_model.dropout,
    )
    grown = counted(deeper.model_config_for()) / counted(base.model_config_for())
    assert training.tokens == pytest.approx(grown * trained.tokens, rel=0.05)
    assert training.warmup_tokens / training.tokens == pytest.approx(
        trained.warmup_tokens / trained.tokens, rel=0.01
    )
    assert training.learning_rate == pytest.approx(trained.learning_rate * 2**-0.77, rel=0.01)
    assert (
        training.batch_tokens in (trained.batch_tokens * 2, trained.batch_tokens * 4)
        and training.betas == trained.betas
    )


def test_muons_rate_follows_the_learning_rate(tmp_path: Path) -> None:
    write_local_recipe(tmp_path)
    muon = "extends: local\npretraining: {optimizer: muon, muon: {learning_rate: 8.0e-3}}\n"
    _, trained = load_recipe(written(tmp_path, muon, "muon")).model_and_training
    for name, sections in {
        "dialled": "depth: 4\n",
        "beside": "depth: 4\npretraining: {learning_rate: 1.0e-3}\n",
    }.items():
        recipe = load_recipe(written(tmp_path, f"extends: muon\n{sections}", name))
        _, training = recipe.model_and_training
        assert training.muon and training.learning_rate != trained.learning_rate
        ratio = training.muon.learning_rate / training.learning_rate
        assert ratio == pytest.approx(8e-3 / trained.learning_rate)


@pytest.mark.parametrize("muon", ["3", "{learning_rate: fast}"])
def test_a_mistake_in_muons_settings_is_named_below_a_dial_too(tmp_path: Path, muon: str) -> None:
    write_local_recipe(tmp_path)
    written(tmp_path, f"extends: local\npretraining: {{optimizer: muon, muon: {muon}}}\n", "muon")
    with pytest.raises(UserError, match=r"pretraining\.muon"):
        load_recipe(written(tmp_path, "extends: muon\ndepth: 4\n"))


def test_what_is_written_beside_the_dial_stands_and_the_rest_follows(tmp_path: Path) -> None:
    write_local_recipe(tmp_path)
    free = load_recipe(written(tmp_path, "extends: local\ndepth: 4\n"))
    recipe = load_recipe(
        written(
            tmp_path,
            "extends: local\ndepth: 4\nmodel: {width: 256}\npretraining: {tokens: 40960, "
            "learning_rate: 5.0e-3}\n",
            "wide",
        )
    )
    model, training = recipe.model_and_training
    assert (model.layers, model.width, model.heads) == (4, 256, 16)
    assert (training.tokens, training.learning_rate, training.warmup_tokens) == (
        40_960,
        5e-3,
        1024,
    )  # twice the tokens
    assert (
        training.batch_tokens > free.model_and_training[1].batch_tokens
    )  # by the parameters of the wider model
    dial = recipe.dial
    assert dial and set(dial.set) == {
        "model.layers",
        "model.heads",
        "pretraining.batch_tokens",
        "pretraining.warmup_tokens",
    }
    nearer = load_recipe(
        written(tmp_path, "extends: wide\nname: wider\npretraining: {batch_tokens: 256}\n", "wider")
    )
    assert (
        nearer.model_and_training[1].batch_tokens == 256
        and nearer.model_and_training[0] == model
        and nearer.dial
        and nearer.dial.layers == 4
    )


def test_an_artifact_is_identified_by_the_numbers_and_not_by_the_dial(tmp_path: Path) -> None:
    write_local_recipe(tmp_path)
    dialled = load_recipe(written(tmp_path, "extends: local\ndepth: 4\n"))
    model, training = dialled.model_and_training
    plain = load_recipe(
        written(
            tmp_path,
            f"extends: local\nmodel: {{layers: 4, width: {model.width}, heads: "
            f"{model.heads}}}\npretraining: {{tokens: {training.tokens}, "
            f"batch_tokens: {training.batch_tokens}, learning_rate: {training.learning_rate}, "
            f"warmup_tokens: {training.warmup_tokens}}}\n",
            "plain",
        )
    )
    configs = [
        node_named(nodes(recipe), "pretrained").config(tmp_path) for recipe in (dialled, plain)
    ]
    assert configs[0] == configs[1] and "depth" not in dialled.model_dump()


def test_rules_of_a_file_take_the_place_of_those(tmp_path: Path) -> None:
    write_local_recipe(tmp_path)
    (tmp_path / "rules.yaml").write_text(
        "aspect: 16\nhead_width: 16\nwidth: 32\nparameters: 35000\nlearning_rate: "
        "4.0e-3\nbatch_tokens: 512\ntokens_per_parameter: 2\n"
    )
    recipe = load_recipe(
        written(tmp_path, "extends: local\ndepth: {layers: 4, rules: rules.yaml}\n")
    )
    assert recipe.model_and_training[1].tokens == pytest.approx(
        2 * counted(recipe.model_config_for()), abs=recipe.model_and_training[1].batch_tokens
    )
    assert recipe.model_and_training[1].learning_rate == pytest.approx(4e-3 * 2**-0.77, rel=0.01)
    assert recipe.dial and recipe.dial.rules == "the rules in rules.yaml"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("depth: 0\n", r"deep\.yaml, line 2: `depth\.layers` is 0"),
        ("depth: deep\n", r"deep\.yaml, line 2: `depth\.layers` is 'deep'"),
        (
            "depth: {layers: 4, rules: none.yaml}\n",
            r"deep\.yaml, line 2: `depth`: There is no rules file",
        ),
        ("depth: {layer: 4}\n", r"`depth\.layer` is not a key here\. Did you mean `layers`"),
        (
            "depth: 4\nmodel: {width: 33, heads: 2}\n",
            r"deep\.yaml, line 2: `depth`: it makes no model .* width 33 is not divisible by heads "
            r"2",
        ),
        ("depth: 4\npretraining: {tokens: many}\n", r"`pretraining\.tokens` is 'many'"),
    ],
)
def test_a_mistake_at_the_dial_is_named_with_its_line(
    tmp_path: Path, text: str, expected: str
) -> None:
    write_local_recipe(tmp_path)
    with pytest.raises(UserError, match=expected):
        load_recipe(written(tmp_path, f"extends: local\n{text}"))


def test_plan_prints_what_the_dial_set_and_where_from(tmp_path: Path, home: Path) -> None:
    write_local_recipe(tmp_path)
    recipe = load_recipe(
        written(tmp_path, "extends: local\ndepth: 4\npretraining: {learning_rate: 5.0e-3}\n")
    )
    facts = plan_of(recipe, tmp_path, load_profile("single"), Store(home))
    assert (
        facts["dial"]["set"]["model.width"] == 64
        and "pretraining.learning_rate" not in facts["dial"]["set"]
    )
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(draw_plan(facts))
    text = console.export_text()
    assert (
        "depth 4 set model.layers 4, model.width 64, model.heads 4" in text
        and "from the recipe local" in text
    )


def test_sizes_grow_without_a_jump_and_batches_divide_as_the_anchors_do() -> None:
    rules = Rules.of(
        PUBLISHED["gpt2-small"], {"learning_rate": 6e-4, "batch_tokens": 524_288, "tokens": 10**10}
    )
    sizes = [sized(rules, n, {"context": 1024, "vocab_size": 50257}) for n in range(1, 49)]
    assert [size.model.width for size in sizes] == [64 * n for n in range(1, 49)]
    assert all(
        a.tokens < b.tokens and a.learning_rate > b.learning_rate
        for a, b in itertools.pairwise(sizes)
    )
    assert all(
        size.batch_tokens & (size.batch_tokens - 1) == 0 and size.tokens % size.batch_tokens == 0
        for size in sizes
    )
