"""`extends: NAME`: a recipe's file merged over another's. What the keys mean is `recipe.py`'s.

Mappings are merged key by key, `null` takes out what the other has, all else is replaced. A path is
relative to the file it is written in. Limits of
a task or a suite that is no longer named go with it, and so do the experiments on such a task, and
the training of a model where one is imported in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from assets.recipe.yaml_file import SUFFIXES, find_file, is_path, naming, read_yaml, stem
from gpt_model.data.local_files import seen_from
from gpt_model.data.location import is_folder
from gpt_model.errors import UserError, about, naming_path

Contents = dict[str, Any]
# sections of a model that is trained here, and of no imported one
OF_TRAINING_HERE = ("tokenizer", "model", "depth", "pretraining", "experiments", "scaling")
# section -> (the list of names in it, the mappings from those names)
LIMITS = {
    "finetuning": ("tasks", ("examples", "held_back", "files")),
    "evaluation": ("suites", ("examples", "files")),
}

# what says that a text is a path, and no name of something known here or on the hub -> where such
# texts stand, * for each in a list or mapping
PATHS: dict[Callable[[str], object], tuple[str, ...]] = {
    str.strip: (
        "corpus.sources.*.path",
        "corpus.sources.*.file",
        "tokenizer.from.folder",
        "imported.folder",
        "finetuning.files.*",
        "finetuning.files.*.*",  # a file a split
        "finetuning.files.*.test.*",
        "evaluation.files.*",
        "alignment.*.sources.*.path",
        "alignment.*.sources.*.file",
    ),
    is_folder: ("corpus.sources.*.hub", "tokenizer.from", "alignment.*.sources.*.hub"),
    is_path: (
        "finetuning.tasks.*",
        "evaluation.suites.*",
        "experiments.layers_transferred.task",
        "experiments.ablations.tasks.*",
        "experiments.zero_shot_dynamics.*",
        "alignment.*.sources.*.task",
        "alignment.preferences.suites.*",
    ),
}


def extended(path: Path, recipes: Sequence[Path]) -> dict[Path, Contents]:
    """What stands in a recipe's file, and in each one it extends, nearest first, with every path as
    seen from the first one's folder. `recipes`: the folders of those that have a name.
    """
    base = path.parent
    files = {path: read_yaml(path)}
    while (parent := files[path].pop("extends", None)) is not None:
        with naming([path]), about("extends"):
            path = _parent(str(parent), path.parent, recipes)
            if path in files:
                raise UserError(
                    f"It comes back to itself: {' → '.join(file.stem for file in (*files, path))}."
                )
        files[path] = read_yaml(path)
        if path.parent != base:
            for is_local, fields in PATHS.items():
                seen = partial(_seen_from, base, path.parent, is_local)
                for field in fields:
                    files[path] = _changed_at(files[path], field.split("."), seen)
        files[path].pop("schedule", None)  # or every recipe that extends one would run with it
    return _without_what_imports_replace(files)


def _seen_from(base: Path, folder: Path, is_local: Callable[[str], object], text: str) -> str:
    """A path relative to `folder`, as seen from `base`; any other text as it stands."""
    if not is_local(text) or text.startswith(("/", "~")):
        return text
    seen = seen_from(text, base, folder)
    return seen if is_local(seen) else f"./{seen}"


def _changed_at(contents: Any, where: Sequence[str], change: Callable[[str], str]) -> Any:
    """`contents` with each text at `where` changed. What is of a wrong kind stays: that is said
    when the whole is read.
    """
    if not where:
        return change(contents) if isinstance(contents, str) else contents
    first, *rest = where
    if isinstance(contents, list) and first == "*":
        return [_changed_at(value, rest, change) for value in contents]
    if not isinstance(contents, dict):
        return contents
    return {
        key: _changed_at(value, rest, change) if first in ("*", key) else value
        for key, value in contents.items()
    }


def _parent(name: str, folder: Path, recipes: Sequence[Path]) -> Path:
    """The recipe that `extends` means: a file as seen from `folder`, with or without its ending, or
    the name of one in it, or of one in `recipes`.
    """
    if name.endswith(SUFFIXES) or "/" in name:
        with naming_path(name):
            path = folder / Path(name).expanduser()
            endings = ("", *SUFFIXES)
            files = [path.with_name(f"{path.name}{ending}") for ending in endings if path.name]
            file = next((file for file in files if file.is_file()), path)
        return find_file(str(file), [folder], "recipe")
    return find_file(name, [folder, *recipes], "recipe")


def _without_what_imports_replace(files: dict[Path, Contents]) -> dict[Path, Contents]:
    """`files`, nearest first; those that are extended by one that imports a model, without the
    training that it replaces.
    """
    recipes = list(files.values())
    importing = [n for n, recipe in enumerate(recipes) if recipe.get("imported") is not None]
    last = max(importing, default=len(recipes))
    return {
        path: recipe
        if number <= last
        else {key: value for key, value in recipe.items() if key not in OF_TRAINING_HERE}
        for number, (path, recipe) in enumerate(files.items())
    }


def merged(base: Contents, over: Contents) -> Contents:
    """`over` over `base`, without the limits and experiments that `base` has for tasks and suites
    that `over` no longer names, and without settings of an optimizer that it replaces.
    """
    contents = _merge(base, over)
    if isinstance(training := over.get("pretraining"), dict):
        replaces_muon = training.get("optimizer", "muon") != "muon"
        if replaces_muon and "muon" not in training:
            contents["pretraining"].pop("muon", None)
    before, changed = base.get("alignment"), over.get("alignment")
    if isinstance(before, dict) and isinstance(changed, dict):
        # a step that is left out, though without a section it would have the default's
        left_out = [key for key, value in changed.items() if value is None and key in before]
        contents["alignment"] |= {key: None for key in left_out if isinstance(before[key], dict)}
    for part, (names, limits) in LIMITS.items():
        section, override = contents.get(part), over.get(part)
        if not (isinstance(section, dict) and isinstance(override, dict)):
            continue  # a section of a wrong kind is reported when the whole is read
        if not isinstance(named := override.get(names), list):
            continue  # nothing is replaced
        remaining = {stem(name) for name in named if isinstance(name, str)}
        for limit in limits:
            if isinstance(inherited := section.get(limit), dict):
                written = override.get(limit) or ()
                section[limit] = {
                    key: value
                    for key, value in inherited.items()
                    if key in written or _is_of(key, remaining)
                }
        if part == "finetuning":
            contents = _without_experiments_on_others(contents, over, remaining)
    return (
        _without_experiments_on_others(contents, over, set())
        if over.get("finetuning", over) is None
        else contents
    )


def _without_experiments_on_others(contents: Contents, over: Contents, tasks: set[str]) -> Contents:
    """`contents` without the experiments that `over` says nothing of and that fine-tune on none of
    `tasks`.

    Ablations are of all tasks where they name none, so those whose tasks are all gone are of the
    new ones, if there are any.
    """
    inherited, override = contents.get("experiments"), over.get("experiments") or {}
    if not isinstance(inherited, dict) or not isinstance(override, dict):
        return contents
    remaining = dict(inherited)
    transferred, ablations = remaining.get("layers_transferred"), remaining.get("ablations")
    if (
        isinstance(transferred, dict)
        and "layers_transferred" not in override
        and stem(str(transferred.get("task"))) not in tasks
    ):
        del remaining["layers_transferred"]
    if isinstance(ablations, dict) and "ablations" not in override:
        named = [task for task in ablations.get("tasks") or () if stem(str(task)) in tasks]
        others = {key: value for key, value in ablations.items() if key != "tasks"}
        of_named = {**others, **({"tasks": named} if named else {})}
        remaining["ablations"] = of_named if tasks else None
    return {**contents, "experiments": remaining}


def _is_of(key: Any, names: set[str]) -> bool:
    """Whether a limit's key is one of `names`, or a task of a suite among them
    ("gpt3_lambada/lambada").
    """
    return any(key == name or str(key).startswith(f"{name}/") for name in names)


def _merge(base: Contents, over: Contents) -> Contents:
    """Mappings are merged key by key, null takes out what `base` has, all else is replaced."""
    merged = {key: value for key, value in base.items() if key not in over or over[key] is not None}
    for key, value in over.items():
        if value is not None or key not in base:
            merged[key] = (
                _merge(base[key], value)
                if isinstance(value, dict) and isinstance(base.get(key), dict)
                else value
            )
    return merged
