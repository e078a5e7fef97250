"""A recipe's graph: which stages it has, what feeds what, and the section that identifies each. No Dagster; `stage.py` wraps it.

corpus ─► tokenizer ─► tokens ─► pretrained ─┬─► finetuned/<task> … ─┬─► scorecard
                                             └─► zero_shot           ─┘
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from assets.contract import Config
from assets.corpus import CORPUS
from assets.evaluation import ZERO_SHOT, zero_shot_config
from assets.experiments.nodes import experiment_nodes
from assets.finetuning import FINETUNED, finetuning_config, task_names
from assets.node import Node
from assets.pretraining import PRETRAINED
from assets.recipe import Recipe
from assets.scorecard import SCORECARD
from assets.tokenizer import TOKENIZER, TOKENS
from assets.yaml_file import naming
from gpt_model.errors import UserError

__all__ = ["Node", "check", "node_named", "nodes"]


def nodes(recipe: Recipe) -> list[Node]:
    """Every asset of `recipe`, each after what it needs. Raises UserError for an unknown or repeated task."""
    with naming(recipe.files):
        return [replace(node, files=recipe.files) for node in _graph(recipe)]


def check(graph: list[Node], base: Path, read: Callable[[Node, Path], Config] = Node.config) -> None:
    """Whether all that `graph` is told can be read, before any of it is built. Raises UserError with a sentence for each mistake."""
    mistakes = []
    for node in graph:
        try:
            read(node, base)
        except UserError as error:
            mistakes.append(str(error))
    if mistakes:
        raise UserError("\n".join(dict.fromkeys(mistakes)))


def _graph(recipe: Recipe) -> list[Node]:
    name = recipe.name

    def dumped(part: str) -> Callable[[Path], Config]:
        return lambda base: getattr(recipe, part).model_dump(mode="json")

    graph = [
        Node(name, "corpus", CORPUS, "assets.corpus:CORPUS", dumped("corpus"), field="corpus"),
        Node(name, "tokenizer", TOKENIZER, "assets.tokenizer:TOKENIZER", dumped("tokenizer"), ("corpus",), field="tokenizer"),
        Node(name, "tokens", TOKENS, "assets.tokenizer:TOKENS", lambda base: {}, ("corpus", "tokenizer")),
        Node(
            name, "pretrained", PRETRAINED, "assets.pretraining:PRETRAINED",
            lambda base: {"model": recipe.model.model_dump(mode="json"), "pretraining": recipe.pretraining.model_dump(mode="json")},
            ("tokens", "tokenizer"),
        ),
    ]  # fmt: skip
    for number, task in enumerate(task_names(recipe)):
        node = Node(name, f"finetuned/{task}", FINETUNED, "assets.finetuning:FINETUNED", partial(finetuning_config, recipe, task))
        node = replace(node, needs=("pretrained", "tokenizer", "corpus"), field=f"finetuning.tasks[{number}]")
        graph.append(replace(node, description=f"{FINETUNED.description} Task: {task}."))
    if recipe.evaluation:
        graph.append(
            Node(
                name, "zero_shot", ZERO_SHOT, "assets.evaluation:ZERO_SHOT",
                lambda base: zero_shot_config(recipe), ("pretrained", "tokenizer", "corpus", "tokens"), field="evaluation",
            )
        )  # fmt: skip
    graph += experiment_nodes(recipe)
    everything = tuple(node.name for node in graph)
    graph.append(
        Node(
            name, "scorecard", SCORECARD, "assets.scorecard:SCORECARD", lambda base: {"recipe": recipe.model_dump(mode="json")}, everything
        )
    )
    return graph


def node_named(graph: list[Node], name: str) -> Node:
    """The node `name`, e.g. "pretrained". Raises KeyError."""
    return next(node for node in graph if node.name == name)
