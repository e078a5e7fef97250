"""The recipe's `scaling` section as nodes: a ladder of small models of it, the prediction of the
largest, and what came of it.

    scaling/rung_1 … rung_n-1 ─► scaling/prediction ─┐
    scaling/rung_n (built after the prediction,      ├─► experiments/scaling
                    which has nothing of it)        ─┘

A rung is the pre-training stage with another size, by the rules of `gpt_model/sizing.py` anchored
at the recipe itself. Rungs are numbered by compute. `gpt_model.scaling_laws` fits their losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from assets.contract import Config
from assets.node import Node
from assets.recipe.recipe import PretrainingSection, Recipe, ScalingSection
from assets.stages.experiments import PREDICTION, SCALING
from assets.stages.experiments import SCALING_LEVEL as LEVEL
from assets.stages.pretraining import PRETRAINED
from gpt_model.errors import UserError
from gpt_model.sizing import Rules, Size, scaled_settings, sized
from gpt_model.strict import explanation

FOLDER = "scaling/"  # what the ladder's assets are called
FEWEST_STEPS = 10  # of a rung: what is below has hardly left its first weights


@dataclass(frozen=True)
class Rung:
    """One model of the ladder: the sections of its training."""

    name: str
    model: dict[str, Any]
    pretraining: dict[str, Any]


def scaling_nodes(recipe: Recipe) -> list[Node]:
    """Every asset of the section `scaling`, each after what it needs; none where the recipe has no
    such section.
    """
    if recipe.scaling is None:
        return []
    *steps, top = ladder(recipe, recipe.scaling)
    small, largest = [rung.name for step in steps for rung in step], [rung.name for rung in top]
    target = {"model": top[0].model, "tokens": top[0].pretraining["tokens"], "level": LEVEL}
    rules = _rules(recipe).model_dump(mode="json")
    text = ("tokens", "tokenizer")
    return [
        *(_trained(recipe, rung) for step in steps for rung in step),
        Node(recipe.name, "scaling/prediction", PREDICTION, lambda base: target, (*small, *text)),
        *(_trained(recipe, rung, after=("scaling/prediction",)) for rung in top),
        Node(
            recipe.name,
            "experiments/scaling",
            SCALING,
            lambda base: {"largest": largest, "rules": rules},
            ("scaling/prediction", *small, *largest, *text),
            field="scaling",
        ),
    ]


def ladder(recipe: Recipe, section: ScalingSection) -> list[list[Rung]]:
    """The rungs in order of compute, each with a model a seed. Raises UserError where two take the
    same compute.
    """
    shape, pretraining = recipe.model_and_training
    rules, sizes = _rules(recipe), []
    for ratio in section.ratios:
        for number, rung in enumerate(section.rungs):
            layers, width = (rung, None) if isinstance(rung, int) else rung
            fixed = {
                **shape.model_dump(exclude={"layers", "width", "heads"}),
                "vocab_size": recipe.model_config_for().vocab_size,
            }
            try:
                size = sized(
                    rules.model_copy(update={"tokens_per_parameter": ratio}),
                    layers,
                    {**fixed, "width": width},
                )
            except ValidationError as error:
                raise UserError(
                    f"{explanation(error.errors()[0])}.", field=f"scaling.rungs[{number}]"
                ) from None
            if (steps := size.tokens // size.batch_tokens) < FEWEST_STEPS:
                raise UserError(
                    f"{_shape(size.model.layers, size.model.width)} at {ratio:g} tokens a "
                    f"parameter: {steps} steps of {size.batch_tokens} tokens, and fewer than "
                    f"{FEWEST_STEPS} say nothing. Raise tokens_per_parameter, lower "
                    "pretraining.batch_tokens, or leave the rung out.",
                    field=f"scaling.rungs[{number}]",
                )
            sizes.append(size)
    sizes.sort(key=_compute)
    if _compute(sizes[-1]) == _compute(sizes[-2]):
        raise UserError(
            "two rungs are the largest: make one of them larger, for it is what is predicted.",
            field="scaling.rungs",
        )
    return [
        [
            Rung(_name(number, seed, section), *_sections(size, pretraining, seed))
            for seed in section.seeds
        ]
        for number, size in enumerate(sizes, 1)
    ]


def dagster_runs(graph: Sequence[Node]) -> list[list[Node]]:
    """The graph in parts, each a Dagster run of its own: what a ladder needs, each of its models,
    the rest. Without a ladder one run.
    """
    rungs = [node for node in graph if node.name.startswith(FOLDER)]
    if not rungs:
        return [list(graph)]
    needed, names = {node.name: node for node in graph}, {node.name for node in rungs}
    below: set[str] = set()
    waiting = [name for node in rungs for name in node.upstream]
    while waiting:
        if (name := waiting.pop()) not in below | names:
            below.add(name)
            waiting += needed[name].upstream
    rest = [node for node in graph if node.name not in below | names]
    return [[node for node in graph if node.name in below], *([node] for node in rungs), rest]


def _rules(recipe: Recipe) -> Rules:
    return Rules.of(recipe.model_config_for(), recipe.model_and_training[1].model_dump(mode="json"))


def _shape(layers: int, width: int) -> str:
    return f"{layers} layer{'s' if layers > 1 else ''} of width {width}"


def _compute(size: Size) -> float:
    return size.model.flops_per_token() * size.tokens


def _sections(
    size: Size, pretraining: PretrainingSection, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of the pre-training stage: the recipe's own at this size, measured once, at the end."""
    settings = pretraining.model_dump(mode="json")
    scaled = scaled_settings(
        settings, size.tokens, size.batch_tokens, size.model.context, size.learning_rate
    )
    by_size: dict[str, Any] = {
        "tokens": size.tokens,
        "batch_tokens": size.batch_tokens,
        "learning_rate": size.learning_rate,
        "seed": seed,
    }
    measured = {"evaluations": 1, "samples": 0, "snapshots": 0}
    checked = PretrainingSection.model_validate({**settings, **scaled, **by_size, **measured})
    return size.model.model_dump(mode="json", exclude={"vocab_size"}), checked.model_dump(
        mode="json"
    )


def _name(number: int, seed: int, section: ScalingSection) -> str:
    return f"{FOLDER}rung_{number}" + (f"_seed_{seed}" if len(section.seeds) > 1 else "")


def _trained(recipe: Recipe, rung: Rung, after: tuple[str, ...] = ()) -> Node:
    config = {"model": rung.model, "pretraining": rung.pretraining}
    size = _shape(rung.model["layers"], rung.model["width"])
    how = f"A rung of the scaling ladder: {size}, trained on {rung.pretraining['tokens']:,} tokens."
    return Node(
        recipe.name,
        rung.name,
        PRETRAINED,
        partial(_as_it_is, config),
        ("tokens", "tokenizer"),
        description=f"{PRETRAINED.description} {how}",
        after=after,
    )


def _as_it_is(config: Config, base: Path) -> Config:
    return config
