"""The nodes of a recipe's experiments, and of the models that are trained for them alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from assets.contract import Config
from assets.experiments.ablations import ABLATIONS, ablations_config
from assets.experiments.depth import DEPTH
from assets.experiments.layers_transferred import LAYERS_TRANSFERRED, layers_transferred_config
from assets.experiments.visible_context import VISIBLE_CONTEXT
from assets.experiments.zero_shot_dynamics import TASKS, ZERO_SHOT_DYNAMICS
from assets.node import Node
from assets.pretraining import PRETRAINED
from assets.recipe import Recipe
from assets.task_entries import entry_named
from gpt_model.config import ModelShape
from gpt_model.errors import UserError

LSTM = "experiments/lstm"


def experiment_nodes(recipe: Recipe) -> list[Node]:
    """Every asset of the section `experiments`, each after what it needs; none where the recipe has no such section."""
    section, made = recipe.experiments, []
    if section is None:
        return []
    if section.visible_context:
        settings = section.visible_context.model_dump(mode="json")
        made.append(_experiment(recipe, VISIBLE_CONTEXT, lambda base: settings, ("pretrained", "tokens")))
    if section.depth:
        own, _ = recipe.own
        others = [n for n in section.depth.layers if n != own.layers]
        made += [_trained(recipe, f"depth/layers_{n}", own.model_copy(update={"layers": n}), snapshots=0) for n in others]
        made.append(_experiment(recipe, DEPTH, lambda base: {}, ("tokenizer", "pretrained", *(f"depth/layers_{n}" for n in others))))
    beside_lstm = [one for one in (section.zero_shot_dynamics, section.ablations) if one and one.lstm]
    if beside_lstm:
        model, _ = recipe.own
        shape = ModelShape(family="lstm", layers=1, width=model.width, heads=1, context=model.context, dropout=model.dropout)
        made.append(_trained(recipe, LSTM, shape, snapshots=recipe.own[1].snapshots if section.zero_shot_dynamics else 0))

    def lstm(one: Any) -> tuple[str, ...]:
        return (LSTM,) if one in beside_lstm else ()

    if section.zero_shot_dynamics:
        if recipe.pretraining is None or recipe.pretraining.snapshots < 2:
            told = "It is a curve over pre-training, of which this recipe keeps fewer than two snapshots: set pretraining.snapshots."
            raise UserError(told, field="experiments.zero_shot_dynamics")
        needs = ("pretrained", "tokenizer", "corpus", *lstm(section.zero_shot_dynamics))
        made.append(_experiment(recipe, ZERO_SHOT_DYNAMICS, partial(_dynamics, recipe), needs))
    if section.layers_transferred:
        settings_of = partial(layers_transferred_config, recipe)
        made.append(_experiment(recipe, LAYERS_TRANSFERRED, settings_of, ("pretrained", "tokenizer")))
    if section.ablations:
        needs = ("pretrained", "tokenizer", *lstm(section.ablations))
        made.append(_experiment(recipe, ABLATIONS, partial(ablations_config, recipe), needs))
    return made


def _experiment(recipe: Recipe, stage: Any, section: Callable[[Path], Config], needs: tuple[str, ...]) -> Node:
    path = f"assets.experiments.{stage.name}:{stage.name.upper()}"
    return Node(recipe.name, f"experiments/{stage.name}", stage, path, section, needs, field=f"experiments.{stage.name}")


def _trained(recipe: Recipe, name: str, model: ModelShape, snapshots: int) -> Node:
    """A model of another shape, trained as the recipe's own is."""
    settings = {"model": model.model_dump(mode="json"), "pretraining": recipe.own[1].model_dump(mode="json") | {"snapshots": snapshots}}
    return Node(recipe.name, name, PRETRAINED, "assets.pretraining:PRETRAINED", lambda base: settings, ("tokens", "tokenizer"))


def _dynamics(recipe: Recipe, base: Path) -> Config:
    assert recipe.experiments and recipe.experiments.zero_shot_dynamics
    section = recipe.experiments.zero_shot_dynamics
    tasks: dict[str, Any] = {}
    for task in TASKS:
        given = getattr(section, task)
        if (task, given) == ("acceptability", "held_out"):
            tasks[task] = None
            continue
        entry = entry_named(given, base, f"experiments.zero_shot_dynamics.{task}")
        tasks[task] = {"name": given, "entry": entry.model_dump(mode="json", exclude_none=True)}
    return {"tasks": tasks, "examples": section.examples, "split_seed": recipe.split_seed}
