"""A recipe as the command line reads it: its mistakes are reported before anything is built."""

from __future__ import annotations

from pathlib import Path

from assets.graph import check, nodes
from assets.node import Node
from assets.recipe.profile import Profile, load_profile
from assets.recipe.recipe import RECIPES, Recipe, load_recipe
from assets.recipe.yaml_file import find_file, here_and, named_files, naming, read_yaml
from assets.stages.pretraining import PRETRAINED, check_shared_out
from gpt_model.data.formats import format_from_ending
from gpt_model.errors import UserError, naming_path

# What else is a YAML file: the keys that tell it, and the key of a recipe that names it.
OTHERS = (
    ("task", {"form", "columns"}, "finetuning.tasks"),
    ("suite", {"doc_to_text", "output_type"}, "evaluation.suites"),
)


def checked(
    recipe: str, profile: str, ignored: tuple[type[UserError], ...] = ()
) -> tuple[Recipe, Path, list[Node], Profile]:
    """Recipe, its file, its graph, profile. Raises UserError for a mistake that can be seen before
    a build.

    `ignored`: kinds of error that are no mistake here.
    """
    _refuse_data(Path(recipe), recipe)
    path = find_file(recipe, here_and(RECIPES), "recipe")
    _refuse_others(path)
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


def _refuse_data(path: Path, recipe: str) -> None:
    """Raises UserError where text or rows are given for the recipe."""
    with naming_path(path):
        is_folder = path.is_dir() and recipe not in named_files(here_and(RECIPES))
        is_data = path.is_file() and format_from_ending(path.name) not in (None, "yaml")
    if is_folder or is_data:
        raise UserError(
            f"{path} is no recipe but {'a folder' if is_folder else 'data'}. Write a recipe for "
            f"it: gpt-lineage new NAME {path}"
        )


def _refuse_others(path: Path) -> None:
    """Raises UserError where a task or a suite is given for the recipe."""
    keys = read_yaml(path).keys()
    for what, needed, field in OTHERS:
        if needed <= keys:
            raise UserError(
                f"{path} is a {what} and no recipe. A recipe names it under `{field}`: run that "
                "recipe."
            )
