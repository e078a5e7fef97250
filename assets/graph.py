"""A recipe's graph: its stages, their inputs, and the section that identifies each. No Dagster:
`stage.py` wraps it.

corpus ─► tokenizer ─► tokens ─┬─► pretrained ─┬─► finetuned/<task> … ─┬─► scorecard
                               │               ├─► zero_shot          ─┤
                               │               ├─► experiments/<name> ─┤
                               │               └─► supervised … aligned ─┤ (`alignment_nodes`)
                               └─► scaling/… ───► experiments/scaling ─┘

A recipe that imports a model has `imported` in place of tokenizer and pretrained. Where it trains
the imported model further on a corpus, `pretrained` is the result. Such a recipe has neither
experiments nor scaling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from assets.contract import Config
from assets.node import Node
from assets.recipe.recipe import Recipe
from assets.recipe.yaml_file import naming
from assets.stages.alignment_nodes import alignment_nodes
from assets.stages.corpus import CORPUS
from assets.stages.experiment_nodes import experiment_nodes
from assets.stages.finetuning import FINETUNED, finetuning_config, task_names
from assets.stages.imported import IMPORTED
from assets.stages.ladder import scaling_nodes
from assets.stages.pretraining import PRETRAINED
from assets.stages.scorecard import SCORECARD
from assets.stages.tokenizer import TOKENIZER, TOKENS
from assets.stages.zero_shot import ZERO_SHOT, zero_shot_config
from gpt_model.errors import UserError


def nodes(recipe: Recipe) -> list[Node]:
    """Every asset of `recipe`, each after its inputs. Raises UserError for an unknown or repeated
    task.
    """
    with naming(recipe.files):
        graph = _graph(recipe)
    blocking = {
        node.name: [check.name for check in node.stage.checks if check.blocking] for node in graph
    }
    return [
        replace(
            node,
            files=recipe.files,
            requires=tuple((name, check) for name in node.upstream for check in blocking[name]),
        )
        for node in graph
    ]


def node_named(graph: list[Node], name: str) -> Node:
    """The node `name`, e.g. "pretrained". Raises KeyError."""
    return next(node for node in graph if node.name == name)


def check(
    graph: list[Node],
    base: Path,
    read: Callable[[Node, Path], Config] = Node.config,
    ignored: tuple[type[UserError], ...] = (),
) -> None:
    """Reads every section before anything is built. Raises one UserError with a sentence for each
    mistake, errors of the kinds `ignored` apart.
    """
    mistakes = []
    for node in graph:
        try:
            read(node, base)
        except ignored:
            continue
        except UserError as error:
            mistakes.append(str(error))
    if mistakes:
        raise UserError("\n".join(dict.fromkeys(mistakes)))


def _graph(recipe: Recipe) -> list[Node]:
    graph, roles = _imported(recipe) if recipe.imported else (_trained_from_text(recipe), ())
    present = {node.name for node in graph}

    def available(*inputs: str) -> tuple[str, ...]:
        return tuple(name for name in inputs if dict(roles).get(name, name) in present)

    for number, task in enumerate(task_names(recipe)):
        has_files = recipe.finetuning and task in recipe.finetuning.files
        graph.append(
            Node(
                recipe.name,
                f"finetuned/{task}",
                FINETUNED,
                partial(finetuning_config, recipe, task),
                needs=available("pretrained", "tokenizer", "corpus"),
                roles=roles,
                description=f"Task {task}. {FINETUNED.description}",
                field=f"finetuning.files.{task}" if has_files else f"finetuning.tasks[{number}]",
            )
        )
    if recipe.evaluation:
        graph.append(
            Node(
                recipe.name,
                "zero_shot",
                ZERO_SHOT,
                partial(zero_shot_config, recipe),
                available("pretrained", "tokenizer", "corpus", "tokens"),
                roles,
                field="evaluation",
            )
        )
    graph += experiment_nodes(recipe)
    graph += scaling_nodes(recipe)
    graph += alignment_nodes(recipe, present, roles)
    names = tuple(node.name for node in graph)
    for node in graph:  # Dagster would name neither recipe nor field
        if names.count(node.name) > 1:
            raise UserError(
                f"Two assets of this recipe are named {node.name}. Remove what asks for one of "
                "them.",
                field=node.field,
            )
    whole: Config = {"recipe": recipe.model_dump(mode="json")}
    return [*graph, Node(recipe.name, "scorecard", SCORECARD, lambda base: whole, names)]


def _trained_from_text(recipe: Recipe) -> list[Node]:
    """From text to a pre-trained model."""
    name = recipe.name

    def pretrained(base: Path) -> Config:
        model, pretraining = recipe.model_and_training
        return {
            "model": model.model_dump(mode="json"),
            "pretraining": pretraining.model_dump(mode="json"),
        }

    learn = _section(recipe, "tokenizer")
    return [
        Node(name, "corpus", CORPUS, _section(recipe, "corpus"), field="corpus"),
        Node(name, "tokenizer", TOKENIZER, learn, ("corpus",), field="tokenizer"),
        Node(name, "tokens", TOKENS, lambda base: {}, ("corpus", "tokenizer")),
        Node(name, "pretrained", PRETRAINED, pretrained, ("tokens", "tokenizer")),
    ]


def _imported(recipe: Recipe) -> tuple[list[Node], tuple[tuple[str, str], ...]]:
    """The imported model, the tokens of the corpus and the model trained on them, where the recipe
    has these; and the roles of the imported model for other nodes.
    """
    name, roles = recipe.name, (("tokenizer", "imported"), ("base", "imported"))
    graph = [Node(name, "imported", IMPORTED, _section(recipe, "imported"), field="imported")]
    if recipe.corpus:
        graph.insert(0, Node(name, "corpus", CORPUS, _section(recipe, "corpus"), field="corpus"))
        graph.append(Node(name, "tokens", TOKENS, lambda base: {}, ("corpus", "tokenizer"), roles))
    if recipe.pretraining is None:
        return graph, (*roles, ("pretrained", "imported"))

    def pretrained(base: Path) -> Config:
        lora = {"lora": recipe.lora.model_dump(mode="json")} if recipe.lora else {}
        return {"pretraining": _section(recipe, "pretraining")(base), **lora}

    how = "adapters of it (LoRA) trained" if recipe.lora else "trained further"
    description = f"The imported model, {how} on the corpus's tokens, by DeepSpeed."
    inputs = ("tokens", "tokenizer", "base")
    node = Node(name, "pretrained", PRETRAINED, pretrained, inputs, roles, description=description)
    return [*graph, node], roles


def _section(recipe: Recipe, name: str) -> Callable[[Path], Config]:
    """A section of the recipe as it stands."""
    return lambda base: getattr(recipe, name).model_dump(mode="json")
