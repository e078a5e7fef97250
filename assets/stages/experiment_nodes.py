"""The graph of the section `experiments`, and of the models that are trained for them alone.

pretrained ─┬────────────────────────────► experiments/visible_context
            ├─ depth/layers_<n> … ───────► experiments/depth
            ├─ experiments/lstm (alike) ─┬► experiments/zero_shot_dynamics
            │                            └► experiments/ablations
            └────────────────────────────► experiments/layers_transferred
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from assets.contract import Config, Stage
from assets.node import Node
from assets.recipe.recipe import Recipe
from assets.recipe.sections import Depth, ExperimentsSection, VisibleContext
from assets.stages.experiments import (
    ABLATIONS,
    DEPTH,
    LAYERS_TRANSFERRED,
    LSTM_ASSET,
    VISIBLE_CONTEXT,
    ZERO_SHOT_DYNAMICS,
    ablations_config,
    layers_transferred_config,
    zero_shot_dynamics_config,
)
from assets.stages.pretraining import PRETRAINED
from gpt_model.config import ModelShape
from gpt_model.errors import UserError
from gpt_model.sizing import scaled_settings


def experiment_nodes(recipe: Recipe) -> list[Node]:
    """Every asset of the section `experiments`, each after what it needs; none where the recipe has
    no such section.
    """
    section, graph = recipe.experiments, []
    if section is None:
        return []
    if section.visible_context:
        graph.append(_visible_context(recipe, section.visible_context))
    if section.depth:
        graph += _depth(recipe, section.depth)
    dynamics, ablations = section.zero_shot_dynamics, section.ablations
    if (dynamics and dynamics.lstm) or (ablations and ablations.lstm):
        graph.append(_lstm(recipe, section))
    if dynamics:
        if recipe.pretraining is None or recipe.pretraining.snapshots < 2:
            raise UserError(
                "It is a curve over pre-training, of which this recipe keeps fewer than two "
                "snapshots: set pretraining.snapshots.",
                field="experiments.zero_shot_dynamics",
            )
        needs = ("pretrained", "tokenizer", "corpus", *((LSTM_ASSET,) if dynamics.lstm else ()))
        graph.append(_experiment(recipe, ZERO_SHOT_DYNAMICS, zero_shot_dynamics_config, needs))
    if section.layers_transferred:
        needs = ("pretrained", "tokenizer")
        graph.append(_experiment(recipe, LAYERS_TRANSFERRED, layers_transferred_config, needs))
    if ablations:
        needs = ("pretrained", "tokenizer", *((LSTM_ASSET,) if ablations.lstm else ()))
        graph.append(_experiment(recipe, ABLATIONS, ablations_config, needs))
    return graph


def _experiment(
    recipe: Recipe, stage: Stage, config: Callable[[Recipe, Path], Config], needs: tuple[str, ...]
) -> Node:
    name = f"experiments/{stage.name}"
    return Node(
        recipe.name, name, stage, partial(config, recipe), needs, field=f"experiments.{stage.name}"
    )


def _visible_context(recipe: Recipe, section: VisibleContext) -> Node:
    context = recipe.model_and_training[0].context
    if (longest := max(section.contexts or [1])) > context:
        raise UserError(
            f"No prediction of a model whose context is {context} sees {longest} tokens: leave it "
            "out.",
            field="experiments.visible_context.contexts",
        )

    def config(recipe: Recipe, base: Path) -> Config:
        return section.model_dump(mode="json")

    return _experiment(recipe, VISIBLE_CONTEXT, config, ("pretrained", "tokens"))


def _lstm(recipe: Recipe, section: ExperimentsSection) -> Node:
    """An LSTM of the Transformer's width, trained as it is."""
    model, pretraining = recipe.model_and_training
    shape = ModelShape(
        family="lstm",
        layers=1,
        width=model.width,
        heads=1,
        context=model.context,
        dropout=model.dropout,
    )
    snapshots = pretraining.snapshots if section.zero_shot_dynamics else 0
    return _trained(recipe, LSTM_ASSET, shape, snapshots=snapshots)


def _depth(recipe: Recipe, section: Depth) -> list[Node]:
    """The models of each depth that the recipe has not got anyway, and the experiment on all."""
    model, pretraining = recipe.model_and_training
    if len(depths := sorted({model.layers, *section.layers})) == 1:
        raise UserError(
            "It is the recipe's own depth, and there is no other model to set it against: list "
            f"others beside {model.layers}.",
            field="experiments.depth.layers",
        )
    changes: dict[str, Any] = {"snapshots": 0}
    if section.tokens:
        batch = pretraining.batch_tokens
        if section.tokens < batch:
            raise UserError(
                f"{section.tokens} tokens are less than one batch of {batch}: make it larger.",
                field="experiments.depth.tokens",
            )
        settings = pretraining.model_dump(mode="json")
        changes |= {"tokens": section.tokens}
        rate = pretraining.learning_rate
        changes |= scaled_settings(settings, section.tokens, batch, model.context, rate)
    # The recipe's pre-trained model is one of them where it is trained just so.
    shares_pretrained = section.tokens is None and section.seeds == 1
    models = [
        _trained(
            recipe,
            f"depth/layers_{layers}" + (f"_seed_{seed}" if section.seeds > 1 else ""),
            model.model_copy(update={"layers": layers}),
            **changes,
            seed=seed,
        )
        for layers in depths
        if not (shares_pretrained and layers == model.layers)
        for seed in range(pretraining.seed, pretraining.seed + section.seeds)
    ]
    pretrained = ("pretrained",) if shares_pretrained else ()
    needs = ("tokens", "tokenizer", *pretrained, *(node.name for node in models))
    return [*models, _experiment(recipe, DEPTH, lambda recipe, base: {}, needs)]


def _trained(recipe: Recipe, name: str, model: ModelShape, **changes: Any) -> Node:
    """A model of another shape, trained as the recipe's own but for `changes` of the section
    `pretraining`.
    """
    settings = {
        "model": model.model_dump(mode="json"),
        "pretraining": recipe.model_and_training[1].model_dump(mode="json") | changes,
    }
    return Node(recipe.name, name, PRETRAINED, lambda base: settings, ("tokens", "tokenizer"))
