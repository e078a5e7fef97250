"""A recipe's graph: which stages it has, what feeds what, and the section that identifies each. No
Dagster; `stage.py` wraps it.

corpus ─► tokenizer ─► tokens ─┬─► pretrained ─┬─► finetuned/<task> … ─┬─► scorecard
                               │               ├─► zero_shot          ─┤
                               │               ├─► experiments/<name> ─┤
                               │               └─► supervised … aligned ─┤ (`assets.stages.alignment_nodes`)
                               └─► scaling/… ───► experiments/scaling ─┘

A recipe that imports a model has `imported` in place of tokenizer and pretrained; or only of the
tokenizer, where it goes on training it on a corpus: then `pretrained` is what comes of that. It has
neither experiments nor scaling.
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
    """Every asset of `recipe`, each after what it needs. Raises UserError for an unknown or
    repeated task.
    """
    with naming(recipe.files):
        return [replace(node, files=recipe.files) for node in _graph(recipe)]


def check(
    graph: list[Node],
    base: Path,
    read: Callable[[Node, Path], Config] = Node.config,
    passing: tuple[type[UserError], ...] = (),
) -> None:
    """Whether all that `graph` is told can be read, before any of it is built. Raises UserError
    with a sentence for each mistake.

    `passing`: kinds of error that are none here.
    """
    mistakes = []
    for node in graph:
        try:
            read(node, base)
        except passing:
            continue
        except UserError as error:
            mistakes.append(str(error))
    if mistakes:
        raise UserError("\n".join(dict.fromkeys(mistakes)))


def _graph(recipe: Recipe) -> list[Node]:
    name = recipe.name
    graph, roles = _imported(recipe) if recipe.imported else (_trained_here(recipe), ())
    there = {node.name for node in graph}

    def needing(*needs: str) -> tuple[str, ...]:
        return tuple(need for need in needs if dict(roles).get(need, need) in there)

    for number, task in enumerate(task_names(recipe)):
        node = Node(name, f"finetuned/{task}", FINETUNED, partial(finetuning_config, recipe, task))
        rows = (
            f"finetuning.files.{task}"
            if recipe.finetuning and task in recipe.finetuning.files
            else f"finetuning.tasks[{number}]"
        )
        node = replace(
            node, needs=needing("pretrained", "tokenizer", "corpus"), roles=roles, field=rows
        )
        graph.append(replace(node, description=f"{FINETUNED.description} Task: {task}."))
    if recipe.evaluation:
        graph.append(
            Node(
                name,
                "zero_shot",
                ZERO_SHOT,
                lambda base: zero_shot_config(recipe),
                needing("pretrained", "tokenizer", "corpus", "tokens"),
                roles,
                field="evaluation",
            )
        )
    graph += [
        *experiment_nodes(recipe),
        *scaling_nodes(recipe),
        *alignment_nodes(recipe, there, roles),
    ]
    everything = tuple(node.name for node in graph)
    for node in graph:  # Dagster takes no two assets of one key, and says so of all recipes at once
        if everything.count(node.name) > 1:
            raise UserError(
                f"Two assets of this recipe are named {node.name}. Leave out what asks for one of "
                "them.",
                field=node.field,
            )
    graph.append(
        Node(
            name,
            "scorecard",
            SCORECARD,
            lambda base: {"recipe": recipe.model_dump(mode="json")},
            everything,
        )
    )
    return graph


def _trained_here(recipe: Recipe) -> list[Node]:
    """From text to a model."""
    name = recipe.name

    def pretrained(base: Path) -> Config:
        model, pretraining = recipe.own
        return {
            "model": model.model_dump(mode="json"),
            "pretraining": pretraining.model_dump(mode="json"),
        }

    return [
        Node(name, "corpus", CORPUS, _section(recipe, "corpus"), field="corpus"),
        Node(
            name,
            "tokenizer",
            TOKENIZER,
            _section(recipe, "tokenizer"),
            ("corpus",),
            field="tokenizer",
        ),
        Node(name, "tokens", TOKENS, lambda base: {}, ("corpus", "tokenizer")),
        Node(name, "pretrained", PRETRAINED, pretrained, ("tokens", "tokenizer")),
    ]


def _imported(recipe: Recipe) -> tuple[list[Node], tuple[tuple[str, str], ...]]:
    """Somebody else's model, its tokens of a corpus if there is one, and what comes of training it
    on them; and who is what to the rest.
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

    node = Node(name, "pretrained", PRETRAINED, pretrained, ("tokens", "tokenizer", "base"), roles)
    how = "adapters of it (LoRA) trained" if recipe.lora else "trained further"
    graph.append(
        replace(
            node, description=f"The imported model, {how} on the corpus's tokens, by DeepSpeed."
        )
    )
    return graph, roles


def _section(recipe: Recipe, part: str) -> Callable[[Path], Config]:
    """A section of the recipe as it stands."""
    return lambda base: getattr(recipe, part).model_dump(mode="json")


def node_named(graph: list[Node], name: str) -> Node:
    """The node `name`, e.g. "pretrained". Raises KeyError."""
    return next(node for node in graph if node.name == name)
