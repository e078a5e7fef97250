"""The lineage of an artifact as data and as a tree, down to the packages, files and checksums of
its text: `trace` and the scorecard.

Reads manifests only. No Dagster, MLflow or torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.tree import Tree

from assets.contract import Artifact
from assets.stages.zero_shot import members
from assets.store.store import SHORT, Store


def traced(
    store: Store, artifact: Artifact, names: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The artifact, how it was made, below "inputs" all it came from, and the "sources" that a
    stage read from outside the store.

    An artifact that is not in the store any more is there with "missing": true, and nothing below
    it. `names`: what to call an artifact, by fingerprint, where that is not the ref that names it
    now.
    """
    return _traced(store, store.lineage(artifact), names or {})


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
    """What the artifact's stage read from outside the store: a corpus's sources, a task's data, the
    suites' data. From its section.
    """
    if artifact.stage == "finetuned":
        return [_of_task(artifact.config["task"], artifact.config["source"])]
    if artifact.stage == "zero_shot":
        tasks = [
            (f"{suite}/{task['task']}", task["metadata"]["data"])
            for suite, contents in artifact.config["suites"].items()
            for task in members(contents)
        ]
        return [_of_task(name, data["entry"]) for name, data in tasks if data.get("entry")]
    if artifact.stage == "imported":
        return [_of_import(artifact.config)]
    if artifact.stage == "tokenizer" and (released := artifact.config.get("from")):
        return [{"name": "vocabulary", "path": released.get("folder"), **released}]
    return [dict(source) for source in artifact.config.get("sources", [])]


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
    source = entry["source"]
    files = source["file"]
    if not isinstance(files, str):
        files = ", ".join(file for file in files.values() if file)
    return {
        "name": name,
        **{key: source[key] for key in ("package", "kind", "sha256", "pinned") if source.get(key)},
        "files" if source.get("package") else "path": files,
        "licence": entry["licence"],
    }


def origin(source: Mapping[str, Any]) -> str:
    """Where a source is from: package, data set, path, a task of the catalogue or the store's
    votes; and the files in it.
    """
    if source.get("votes"):
        return "votes cast here"
    if task := source.get("task"):
        return f"task {task}"
    text = str(source.get("package") or source.get("hub") or source.get("path"))
    return f"{text}, {source['files']}" if source.get("files") else text


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
