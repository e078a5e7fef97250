"""The nodes of a recipe's experiments, and of the models that are trained for them alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from assets.contract import Config
from assets.node import Node
from assets.recipe.experiments_section import Depth
from assets.recipe.recipe import Recipe
from assets.recipe.task_entries import entry_named, task_name, with_files
from assets.stages.ablations import ABLATIONS, ablations_config
from assets.stages.depth import DEPTH
from assets.stages.layers_transferred import LAYERS_TRANSFERRED, layers_transferred_config
from assets.stages.lstm import LSTM
from assets.stages.pretraining import PRETRAINED
from assets.stages.probes import WANTED
from assets.stages.visible_context import VISIBLE_CONTEXT
from assets.stages.zero_shot_dynamics import TASKS, ZERO_SHOT_DYNAMICS
from gpt_model.config import ModelShape
from gpt_model.errors import UserError
from gpt_model.sizing import scaled_with_tokens


def experiment_nodes(recipe: Recipe) -> list[Node]:
    """Every asset of the section `experiments`, each after what it needs; none where the recipe has
    no such section.
    """
    section, made = recipe.experiments, []
    if section is None:
        return []
    if section.visible_context:
        settings, context = (
            section.visible_context.model_dump(mode="json"),
            recipe.model_and_training[0].context,
        )
        if (longest := max(section.visible_context.contexts or [1])) > context:
            told = f"No prediction of a model whose context is {context} sees {longest} tokens: leave it out."
            raise UserError(told, field="experiments.visible_context.contexts")
        made.append(
            _experiment(recipe, VISIBLE_CONTEXT, lambda base: settings, ("pretrained", "tokens"))
        )
    if section.depth:
        made += _depth(recipe, section.depth)
    beside_lstm = [
        one for one in (section.zero_shot_dynamics, section.ablations) if one and one.lstm
    ]
    if beside_lstm:
        model, _ = recipe.model_and_training
        shape = ModelShape(
            family="lstm",
            layers=1,
            width=model.width,
            heads=1,
            context=model.context,
            dropout=model.dropout,
        )
        made.append(
            _trained(
                recipe,
                LSTM,
                shape,
                snapshots=recipe.model_and_training[1].snapshots
                if section.zero_shot_dynamics
                else 0,
            )
        )

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
        made.append(
            _experiment(recipe, LAYERS_TRANSFERRED, settings_of, ("pretrained", "tokenizer"))
        )
    if section.ablations:
        needs = ("pretrained", "tokenizer", *lstm(section.ablations))
        made.append(_experiment(recipe, ABLATIONS, partial(ablations_config, recipe), needs))
    return made


def _experiment(
    recipe: Recipe, stage: Any, section: Callable[[Path], Config], needs: tuple[str, ...]
) -> Node:
    return Node(
        recipe.name,
        f"experiments/{stage.name}",
        stage,
        section,
        needs,
        field=f"experiments.{stage.name}",
    )


def _depth(recipe: Recipe, section: Depth) -> list[Node]:
    """The models of each depth that are not there anyway, and the experiment that sets all side by
    side.
    """
    own, pretraining = recipe.model_and_training
    if len(depths := sorted({own.layers, *section.layers})) == 1:
        told = f"It is the recipe's own depth, and there is no other model to set it against: list others beside {own.layers}."
        raise UserError(told, field="experiments.depth.layers")
    others: dict[str, Any] = {"snapshots": 0}
    if section.tokens:
        if section.tokens < pretraining.batch_tokens:
            told = f"{section.tokens} tokens are less than one batch of {pretraining.batch_tokens}: make it larger."
            raise UserError(told, field="experiments.depth.tokens")
        others |= {"tokens": section.tokens}
        others |= scaled_with_tokens(
            pretraining.model_dump(mode="json"),
            section.tokens,
            pretraining.batch_tokens,
            own.context,
        )
    apart = (
        section.tokens is not None or section.seeds > 1
    )  # then the pre-trained model is not one of them
    models = [
        _trained(
            recipe,
            f"depth/layers_{n}" + (f"_seed_{seed}" if section.seeds > 1 else ""),
            own.model_copy(update={"layers": n}),
            **others,
            seed=seed,
        )
        for n in depths
        if apart or n != own.layers
        for seed in range(pretraining.seed, pretraining.seed + section.seeds)
    ]
    needs = (
        "tokens",
        "tokenizer",
        *(() if apart else ("pretrained",)),
        *(node.name for node in models),
    )
    return [*models, _experiment(recipe, DEPTH, lambda base: {}, needs)]


def _trained(recipe: Recipe, name: str, model: ModelShape, **others: Any) -> Node:
    """A model of another shape, trained as the recipe's own is but for `others` of the section
    `pretraining`.
    """
    settings = {
        "model": model.model_dump(mode="json"),
        "pretraining": recipe.model_and_training[1].model_dump(mode="json") | others,
    }
    return Node(recipe.name, name, PRETRAINED, lambda base: settings, ("tokens", "tokenizer"))


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
        if (found := (entry.form, len(entry.label_names()))) != WANTED[task]:
            is_, wanted = (
                f"{form}{f' of {labels} labels' if labels else ''}"
                for form, labels in (found, WANTED[task])
            )
            told = f"{given} is {is_}, and this heuristic wants {wanted}: name another task."
            raise UserError(told, field=f"experiments.zero_shot_dynamics.{task}")
        if recipe.finetuning and given in recipe.finetuning.tasks:
            entry = with_files(entry, task_name(given), recipe.finetuning.files)
        tasks[task] = {"name": given, "entry": entry.model_dump(mode="json", exclude_none=True)}
    return {"tasks": tasks, "examples": section.examples, "split_seed": recipe.split_seed}
