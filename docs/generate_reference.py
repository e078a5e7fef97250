"""The reference pages of the documentation site, generated while mkdocs builds it (`hooks` in
mkdocs.yml): every key of what a person writes from the pydantic sections that read it, and every
command from the command line itself. None of them is committed, so none can be out of date.
"""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from typer.cli import get_docs_for_click
from typer.main import get_command

from assets.recipe.depth import DepthSection
from assets.recipe.profile import PROFILES, Profile, load_profile
from assets.recipe.recipe import RECIPES, Recipe, load_recipe
from assets.recipe.yaml_file import read_yaml
from assets.stages import STAGES, stage_named
from gpt_model.evaluation.suites import TaskMetadata
from gpt_model.finetuning.entry import CATALOGUE, TaskEntry
from gpt_model.sizing import Rules
from gpt_model.strict import Bounds
from pipelines.cli.main import app
from pipelines.cli.plan import memory_facts

ROOT = Path(__file__).resolve().parent.parent
KINDS = {int: "integer", float: "number", str: "text", bool: "true or false"}
# Fields that a plan fills in: they stand in manifests, and nobody writes them.
FILLED_IN = "filled in when a build is planned"
HEADING = "| key | what it is | type | unit | default |\n|---|---|---|---|---|"


@dataclass(frozen=True)
class Key:
    """A key as the reference shows it."""

    name: str
    kind: str
    unit: str
    default: str
    meaning: str

    def row(self) -> str:
        cells = (f"`{self.name}`", self.meaning, self.kind, self.unit, self.default)
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def alternatives(annotation: Any) -> list[Any]:
    """The members of a union without None; of anything else, itself."""
    if get_origin(annotation) in (Union, types.UnionType):
        return [each for each in get_args(annotation) if each is not type(None)]
    return [annotation]


def bounds(annotation: Any, metadata: Any = ()) -> list[Bounds]:
    """The bounds that a field's numbers have, outermost first."""
    here = []
    for item in metadata:
        if isinstance(item, Bounds):
            here.append(item)
        elif isinstance(item, FieldInfo):
            here += bounds(None, item.metadata)
    if get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        return [*here, *bounds(annotation, more)]
    inner = [] if get_origin(annotation) is Literal else get_args(annotation)
    return list(dict.fromkeys([*here, *(found for each in inner for found in bounds(each))]))


def sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a value of this type holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is not Literal:
        for each in get_args(annotation):
            yield from sections(each)


def kind_of(annotation: Any, links: Mapping[type[BaseModel], str]) -> str:
    """A type in words: "list of integer", with a link to each section."""
    if get_origin(annotation) is Annotated:
        return kind_of(get_args(annotation)[0], links)
    if len(several := alternatives(annotation)) > 1:
        return " or ".join(dict.fromkeys(kind_of(each, links) for each in several))
    [annotation] = several
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated or get_origin(annotation) in (Union, types.UnionType):
        return kind_of(annotation, links)
    if origin is Literal:
        return ", ".join(f"`{json.dumps(each).strip(chr(34))}`" for each in arguments)
    if origin is list:
        return f"list of {kind_of(arguments[0], links)}"
    if origin is tuple:
        return f"[{', '.join(kind_of(each, links) for each in arguments)}]"
    if origin is dict:
        return f"mapping of {kind_of(arguments[0], links)} to {kind_of(arguments[1], links)}"
    if annotation in links:
        return f"[`{links[annotation].replace('-', '.')}`](#{links[annotation]})"
    return KINDS.get(annotation, "any value")


def default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "its defaults"
    if value is None or value is PydanticUndefined or value in ("", [], {}):
        return "–"
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def meaning_of(field: FieldInfo) -> str:
    """A field's description; of a section without one, how its docstring begins."""
    if field.description:
        return field.description
    if len(constant := get_args(field.annotation)) == 1 and get_origin(field.annotation) is Literal:
        return f"always `{constant[0]}`: says which of the sections this is"
    for section in sections(field.annotation):
        document = " ".join((inspect.getdoc(section) or "").split("\n\n")[0].split())
        return re.split(r"(?<=[^ ]{3})\. (?=[A-Z])|\.$", document)[0]
    return ""


def keys_of(model: type[BaseModel], links: Mapping[type[BaseModel], str]) -> list[Key]:
    keys = []
    for name, field in model.model_fields.items():
        if FILLED_IN in (field.description or ""):
            continue
        meaning = meaning_of(field)
        limits = bounds(field.annotation, field.metadata)
        meaning = ". ".join(
            [meaning, *(f"{limit}"[0].upper() + f"{limit}"[1:] for limit in limits)]
        )
        keys.append(
            Key(
                field.alias or name,
                kind_of(field.annotation, links),
                ", ".join(dict.fromkeys(limit.unit for limit in limits if limit.unit)),
                default_of(field),
                meaning,
            )
        )
    return keys


def tree(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """(dotted path, section) of everything below a section, as a person writes them."""
    for name, field in model.model_fields.items():
        if FILLED_IN in (field.description or ""):
            continue
        here = f"{path}.{field.alias or name}".lstrip(".")
        for section in sections(field.annotation):
            yield here, section
            yield from tree(section, here)


def page(title: str, model: type[BaseModel], introduction: str, top_heading: str) -> str:
    """A page of a whole file: its keys, then each section once, where it stands first."""
    places: dict[type[BaseModel], list[str]] = {}
    for path, section in tree(model):
        places.setdefault(section, []).append(path)
    links = {
        section: paths[0].replace(".", "-") + (f"-{section.__name__.lower()}" if shared else "")
        for section, paths in places.items()
        for shared in [sum(other[0] == paths[0] for other in places.values()) > 1]
    }
    parts = [f"# {title}", introduction, f"## {top_heading} {{#top}}", HEADING]
    parts[-1] += "".join(f"\n{key.row()}" for key in keys_of(model, links))
    for section, paths in places.items():
        label = f"`{paths[0]}`"
        if links[section] != paths[0].replace(".", "-"):
            label += f": {section.__name__}"
        parts.append(f"## {label} {{#{links[section]}}}")
        if document := inspect.getdoc(section):
            parts.append(document)
        if others := [f"`{path}`" for path in dict.fromkeys(paths[1:]) if path != paths[0]]:
            parts.append(f"Also: {', '.join(others)}.")
        parts.append("\n".join([HEADING, *(key.row() for key in keys_of(section, links))]))
    return "\n\n".join(parts) + "\n"


def command_line() -> str:
    """Every command with its arguments and options, as `--help` prints them."""
    command = get_command(app)
    context = typer.Context(command)
    text = get_docs_for_click(obj=command, ctx=context, name="gpt-lineage", title="Command line")
    return text.replace("```console", "```text").replace("\n\n", f"\n\n{COMMANDS}\n\n", 1)


# Sizes of the papers; others are of a size that any machine has room for
PUBLISHED = ("gpt1", "gpt2-", "gpt3-", "instructgpt-")
CPU_MEMORY_GB = 16  # of a process, where a profile leaves it to the machine
FITS = (
    "Memory of a rank while each size is pre-trained, and for InstructGPT also by PPO, as "
    "`gpt-lineage plan` says it: [how it is counted](../how-to/machines.md#memory-of-a-training). "
    f'"No" stands where that is more than the profile\'s `memory_gb`, or {CPU_MEMORY_GB} GB a '
    "process where a CPU profile states none. `plan RECIPE --profile NAME` then names the smallest "
    "profile that would do."
)


def shipped() -> str:
    """What comes with the project and is called by name: recipes, profiles and tasks."""
    recipes = [load_recipe(str(path)) for path in sorted(RECIPES.glob("*.yaml"))]
    profiles = [load_profile(str(path)) for path in sorted(PROFILES.glob("*.yaml"))]
    tasks = {path.stem: read_yaml(path) for path in sorted(CATALOGUE.glob("*.yaml"))}
    rows = {
        "Recipes": [(recipe.files[0].stem, recipe.description) for recipe in recipes],
        "Profiles": [(profile.name, profile.description) for profile in profiles],
        "Tasks": [
            (name, f"{entry.get('description', '')} ({entry['form'].replace('_', ' ')})")
            for name, entry in tasks.items()
        ],
    }
    parts = [
        "# Recipes, profiles and tasks",
        "What comes with the project and is called by name. Files of your own are called by path. "
        "[Suites](../papers/evaluation.md#suites) have a page with their protocols.",
    ]
    for title, entries in rows.items():
        lines = [f"| `{name}` | {text} |" for name, text in entries]
        parts += [f"## {title}", "\n".join(["| name | what it is |", "|---|---|", *lines])]
    published = [
        recipe
        for recipe in recipes
        if (name := recipe.files[0].stem).startswith(PUBLISHED) and not name.endswith("-tiny")
    ]
    published.sort(key=lambda recipe: recipe.model_config_for().parameters())
    parts += ["## What fits {#what-fits}", FITS, what_fits(published, profiles)]
    return "\n\n".join(parts) + "\n"


def what_fits(recipes: Sequence[Recipe], profiles: Sequence[Profile]) -> str:
    """A row for each training of a published size: what it takes of a rank on each profile."""
    profiles = [
        each.model_copy(update={"memory_gb": each.memory_gb or CPU_MEMORY_GB}) for each in profiles
    ]
    header = f"| recipe | {' | '.join(f'`{profile.name}`' for profile in profiles)} |"
    lines = [header, "|---" * (len(profiles) + 1) + "|"]
    for recipe in recipes:
        facts = [memory_facts(recipe, recipe.model_config_for(), each) for each in profiles]
        for training, words in {"memory_per_rank": "", "ppo_memory": ", PPO"}.items():
            if training in facts[0]:
                cells = " | ".join(_fits(each[training]) for each in facts)
                lines.append(f"| `{recipe.files[0].stem}`{words} | {cells} |")
    return "\n".join(lines)


def _fits(memory: Mapping[str, Any]) -> str:
    size = memory["bytes_by_zero_stage"][str(memory["profile_stage"])]
    return f"{size / 1e9:,.1f} GB" + ("" if memory["fits"] else ", no")


def shared_out() -> str:
    """What of each stage the profile's processes share."""
    rows = [
        f"| `{name}` | {stage_named(name).shared_out or 'nothing: one process, with every core'} |"
        for name in STAGES
    ]
    return (
        "\n## `processes`, stage by stage {#shared-out}\n\n"
        "`gpt-lineage plan` says for each stage of a recipe how many ranks it has. "
        "[Memory, equal bytes, and why some have one](../how-to/machines.md#which-stages-use-every-"
        "process).\n\n"
        + "\n".join(["| stage | what its processes share |", "|---|---|", *rows])
        + "\n"
    )


def from_root(name: str) -> str:
    """A page that stands at the root of the repository, with links as seen from docs/."""
    return (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")


COMMANDS = (
    "RECIPE is a name under `recipes/` or a path to a YAML file. ARTIFACT is `recipe/stage` or the "
    "start of a fingerprint. `--json` is for scripts. The exit status is 0 only when the requested "
    "result exists: 1 with sentences on stderr where a person can act, 2 for a wrong command line, "
    "130 when interrupted. `make demo` installs the command at `.venv/bin/gpt-lineage`."
)
STRICT = (
    "Generated from the sections that read the file. Every key is checked: the error for a "
    "misspelt one names file, line and the nearest right key."
)


def pages() -> dict[str, str]:
    """Path in the site -> its text."""
    return {
        "reference/recipe.md": page(
            "Recipe",
            Recipe,
            f"{STRICT} [A recipe, line by line](../how-to/recipe-line-by-line.md) explains a whole "
            "one. A recipe may also have `extends: NAME`, which merges it over another, "
            "[`depth`](depth.md), and keys that begin with `x-`, which are ignored.",
            "A recipe",
        ),
        "reference/depth.md": page(
            "Depth: one dial",
            DepthSection,
            f"{STRICT} `depth: 8` is short for `depth: {{layers: 8}}`. "
            "`rules` is a YAML file with the keys of the second table.",
            "`depth`",
        )
        + "\n## A file of rules\n\n"
        + "\n".join([f"{inspect.getdoc(Rules)}\n", HEADING, *(k.row() for k in keys_of(Rules, {}))])
        + "\n",
        "reference/profile.md": page(
            "Profile",
            Profile,
            f"{STRICT} A profile is a YAML file under `profiles/`, or anywhere: "
            "`--profile PATH`. It is no part of a fingerprint.",
            "A profile",
        )
        + shared_out(),
        "reference/task.md": page(
            "Task",
            TaskEntry,
            f"{STRICT} [A task of your own](../tutorials/own-task.md) shows one at work.",
            "A task",
        ),
        "reference/suite.md": page(
            "Suite",
            TaskMetadata,
            f"{STRICT} A suite is lm_eval's task YAML; these are the keys of its `metadata`. "
            "[A suite of your own](../tutorials/own-suite.md) shows one at work.",
            "`metadata`",
        ),
        "reference/shipped.md": shipped(),
        "reference/command-line.md": command_line(),
        "contributing.md": from_root("CONTRIBUTING.md").replace("](CHANGELOG.md", "](changelog.md"),
        "changelog.md": from_root("CHANGELOG.md"),
    }


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Called by mkdocs."""
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Called by mkdocs. The theme's icons stand beside a text or in a labelled button: a screen
    reader need not announce them.
    """
    return output.replace("<svg ", '<svg aria-hidden="true" ')
