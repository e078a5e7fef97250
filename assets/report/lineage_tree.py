"""The lineage of an artifact as data and as a tree, down to the packages, files and checksums of
its text: `trace` and the scorecard.

Reads manifests only. No Dagster, MLflow or torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.tree import Tree

from assets.contract import Artifact
from assets.stages.zero_shot import members
from assets.store.store import SHORT, Store
from gpt_model.finetuning.entry import TaskSource

NOT_STATED = "not stated"  # the licence of a public data set, which no suite has


def traced(
    store: Store,
    artifact: Artifact,
    names: Mapping[str, str] | None = None,
    recipe: str | None = None,
) -> dict[str, Any]:
    """The artifact, how it was made, below "inputs" all it came from, and the "sources" that a
    stage read from outside the store.

    An artifact that is not in the store any more is there with "missing": true, and nothing below
    it. `names`: what to call an artifact, by fingerprint, where that is not the ref that names it
    now; default: as `recipe` names it, else the recipe that built `artifact`.
    """
    if names is None:
        recipe = recipe or artifact.manifest["provenance"].get("asset", "").partition("/")[0]
        refs = store.refs().items()
        names = {identity: ref for ref, identity in refs if ref.partition("/")[0] == recipe}
    return _traced(store, store.lineage(artifact), names)


def _traced(store: Store, node: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    artifact = None if node["missing"] else store.find(node["fingerprint"])
    facts: dict[str, Any] = {
        key: node[key] for key in ("stage", "ref", "fingerprint", "digest", "missing")
    }
    facts["ref"] = names.get(node["fingerprint"], node["ref"])
    if artifact is not None:
        made = artifact.manifest["provenance"]
        facts |= {
            "built": made["ended"],
            "git": made["git"],
            "config": artifact.config,
            "failed_checks": store.failed_checks(artifact, blocking=True),
        }
        if sources := sources_of(artifact):
            facts["sources"] = sources
    return {**facts, "inputs": [_traced(store, below, names) for below in node["inputs"]]}


def is_complete(lineage: Mapping[str, Any]) -> bool:
    """Whether everything in a traced lineage is still in the store."""
    return not lineage["missing"] and all(is_complete(below) for below in lineage["inputs"])


def sources_of(artifact: Artifact) -> list[dict[str, Any]]:
    """What the artifact's stage read from outside the store: a corpus's sources, the data of tasks
    and suites, imported weights. From its section.
    """
    config = artifact.config
    if artifact.stage == "imported":
        return [_of_import(config)]
    if artifact.stage == "tokenizer" and (released := config.get("from")):
        return [{"name": "vocabulary", "path": released.get("folder"), **released}]
    if artifact.stage == "zero_shot":
        return [*_of_suites(config["suites"])]
    tasks = [_of_task(name, entry) for name, entry in _tasks(config)]
    return tasks or [dict(source) for source in config.get("sources", [])]


def _tasks(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(name, entry) of the tasks in a stage's section whose data it read: of a fine-tuning, or of
    an experiment on several.
    """
    tasks = config.get("tasks", [config] if "task" in config else [])
    for task in tasks.values() if isinstance(tasks, dict) else tasks:
        if task and "not_run" not in task:
            yield task.get("task") or task["name"], task.get("entry") or task["source"]


def _of_import(config: Mapping[str, Any]) -> dict[str, Any]:
    origin = (
        {"hub": config["hub"], "revision": config["revision"]}
        if "hub" in config
        else {"path": config["folder"]}
    )
    return {
        "name": "weights",
        **origin,
        "pinned": config.get("files"),
        "licence": config["licence"],
    }


def _of_task(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    source = TaskSource.model_validate(entry["source"])
    names = ", ".join(source.names())
    listed = {"config": source.subset, "split": names} if source.hub else {"path": names}
    return {
        "name": name,
        **_pinned_location(entry["source"]),
        **({"files": names} if source.package else listed),
        "licence": entry["licence"],
    }


def _of_suites(suites: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A row a task of its own rows or of the catalogue, a row a suite and public data set, and a
    row a classifier.
    """
    for suite, contents in suites.items():
        data_sets: dict[str, dict[str, set[str]]] = {}
        classifiers = {}
        for task in members(contents):
            metadata = task["metadata"]
            data = metadata["data"]
            if "entry" in data and "not_run" not in data:
                yield _of_task(f"{suite}/{task['task']}", data["entry"])
            for source in (data.get("source"), data.get("demonstrations")):
                if isinstance(source, dict) and "not_run" not in source:
                    location = json.dumps({**_pinned_location(source), **_files(source)})
                    parts = data_sets.setdefault(location, {"config": set(), "split": set()})
                    for part, values in parts.items():
                        values |= {source[part]} if source.get(part) else set()
            if (classifier := metadata.get("classifier")) and "not_run" not in classifier:
                classifiers[json.dumps(classifier)] = classifier
        for location, parts in data_sets.items():
            joined = {part: ", ".join(sorted(values)) for part, values in parts.items() if values}
            yield {"name": suite, **json.loads(location), **joined, "licence": NOT_STATED}
        for classifier in classifiers.values():
            where = {} if "hub" in classifier else {"path": classifier["folder"]}
            licence = classifier["licence"]
            name = f"{suite}, classifier"
            yield {"name": name, **_pinned_location(classifier), **where, "licence": licence}


def _pinned_location(source: Mapping[str, Any]) -> dict[str, Any]:
    """Where data lies and what it is tied to; which part of it is read stands elsewhere."""
    keys = ("package", "kind", "sha256", "hub", "revision", "pinned")
    return {key: source[key] for key in keys if source.get(key)}


def _files(source: Mapping[str, Any]) -> dict[str, Any]:
    return {key: source[key] for key in ("files", "path") if source.get(key)}


def origin(source: Mapping[str, Any]) -> str:
    """Where a source is from: package, data set, path, a task of the catalogue or the store's
    votes; and the files or splits in it.
    """
    if source.get("votes"):
        return "votes cast here"
    if task := source.get("task"):
        return f"task {task}"
    text = str(source.get("package") or source.get("hub") or source.get("path"))
    if source.get("hub") and source.get("config"):
        text += f" ({source['config']})"
    part = source.get("files") or source.get("split")
    return f"{text}, {part}" if part else text


def draw_lineage(lineage: Mapping[str, Any]) -> Tree:
    """The lineage as a tree; what stands in it twice is drawn once, where the longest way leads to
    it.
    """
    root = Tree(_label(lineage))
    _grow(root, lineage, {lineage["fingerprint"]})
    return root


def draw_lineages(title: str, lineages: Sequence[Mapping[str, Any]]) -> Tree:
    """Several as one tree under `title`."""
    root = Tree(title)
    _grow(root, {"inputs": lineages}, set())
    return root


def _grow(tree: Tree, lineage: Mapping[str, Any], drawn: set[str]) -> None:
    for source in lineage.get("sources", []):
        tree.add(_source(source))
    for below in sorted(lineage["inputs"], key=_depth, reverse=True):
        if below["fingerprint"] in drawn:
            tree.add(f"{_name(below)} [dim](as above)")
            continue
        drawn.add(below["fingerprint"])
        _grow(tree.add(_label(below)), below, drawn)


def _depth(lineage: Mapping[str, Any]) -> int:
    return 1 + max(map(_depth, lineage["inputs"]), default=0)


def _name(node: Mapping[str, Any]) -> str:
    return f"[bold]{escape(node['ref'] or node['stage'])}[/bold] {node['fingerprint'][:SHORT]}"


def _label(node: Mapping[str, Any]) -> str:
    name = _name(node)
    if node["missing"]:
        return f"{name} [red]not in the store any more"
    facts = [f"digest {node['digest'][:SHORT]}", f"built {node['built'][:16].replace('T', ' ')}"]
    if commit := node["git"]["commit"]:
        facts.append(f"code {commit[:8]}{'+' if node['git']['dirty'] else ''}")
    failed = ", ".join(node["failed_checks"])
    return f"{name} [dim]{', '.join(facts)}[/dim]" + (
        f" [red]failed: {failed}[/red]" if failed else ""
    )


def _source(source: Mapping[str, Any]) -> str:
    """Where a source is from, its share of the mixture, its licence and its checksums."""
    weight = f", weight {source['weight']:g}" if "weight" in source else ""
    lines = [
        f"[cyan]{escape(source['name'])}[/cyan] {escape(origin(source))}{weight}",
        f"  licence {escape(source['licence'])}",
        *(f"  {pin} {source[pin]}" for pin in ("sha256", "revision") if source.get(pin)),
        *(
            f"  sha256 {file['sha256']}  {escape(file['path'])}"
            for file in source.get("pinned") or []
        ),
    ]
    return "\n".join(lines)
