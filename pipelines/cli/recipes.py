"""A recipe as the command line reads it: its mistakes are reported before anything is built."""

from __future__ import annotations

from pathlib import Path

from assets.graph import check, nodes
from assets.node import Node
from assets.recipe.profile import Profile, load_profile
from assets.recipe.recipe import RECIPES, Recipe, load_recipe
from assets.recipe.yaml_file import find_file, here_and, naming
from assets.stages.pretraining import PRETRAINED, check_shared_out
from gpt_model.errors import UserError


def checked(
    recipe: str, profile: str, ignored: tuple[type[UserError], ...] = ()
) -> tuple[Recipe, Path, list[Node], Profile]:
    """Recipe, its file, its graph, profile. Raises UserError for a mistake that can be seen before
    a build.

    `ignored`: kinds of error that are no mistake here.
    """
    path = find_file(recipe, here_and(RECIPES), "recipe")
    loaded, execution = load_recipe(str(path)), load_profile(profile)
    graph = nodes(loaded)
    check(graph, path.parent, ignored=ignored)
    with naming(loaded.files):
        for config in (node.settings(path.parent) for node in graph if node.stage is PRETRAINED):
            if "model" in config:  # an imported model's context is known once it is here
                context = config["model"]["context"]
                section = config["pretraining"]
                check_shared_out(section, context, execution.name, execution.processes)
    return loaded, path, graph, execution
