"""What is in the store, as data for scripts and as text for people: list, show, diff. Reads
manifests only. Trace is `assets.report.lineage_tree`.

Each view is a function to JSON values and one that draws them. No Dagster, MLflow or torch: these
commands answer at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from assets.contract import Artifact
from assets.store.store import SHORT, Store
from gpt_model.errors import UserError
from pipelines.progress import duration, human

# list


def listed(store: Store) -> list[dict[str, Any]]:
    """Every artifact under each of its names, by name; those without one last."""
    refs = store.refs()
    rows = []
    for artifact in store.artifacts():
        made = artifact.manifest["provenance"]
        names = [ref for ref, fingerprint in refs.items() if fingerprint == artifact.fingerprint]
        for ref in names or (None,):
            rows.append(
                {
                    "ref": ref,
                    "stage": artifact.stage,
                    "fingerprint": artifact.fingerprint,
                    "digest": artifact.digest,
                    "bytes": artifact.size,
                    "seconds": made["seconds"],
                    "built": made["ended"],
                    "failed_checks": store.failed_checks(artifact, blocking=True),
                    "warnings": store.failed_checks(artifact, blocking=False),
                }
            )
    return sorted(rows, key=lambda row: (row["ref"] is None, row["ref"] or row["built"]))


def draw_list(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        "artifact", "fingerprint", "built", "took", "size", "checks", box=None, pad_edge=False
    )
    for row in rows:
        checks = (
            f"[red]failed: {', '.join(row['failed_checks'])}" if row["failed_checks"] else "passed"
        )
        checks += f" [yellow](warning: {', '.join(row['warnings'])})" if row["warnings"] else ""
        name = row["ref"] or f"({row['stage']}, no name)"
        built = str(row["built"])[:16].replace("T", " ")
        table.add_row(
            escape(name),
            row["fingerprint"][:SHORT],
            built,
            duration(row["seconds"]),
            f"{human(row['bytes'])}B",
            checks,
        )
    return table


# show


def shown(store: Store, artifact: Artifact) -> dict[str, Any]:
    """The manifest, the names and the verdicts of one artifact, and where it lies."""
    refs = [ref for ref, fingerprint in store.refs().items() if fingerprint == artifact.fingerprint]
    gate = {
        name: vars(verdict) | {"figures": dict(verdict.figures)}
        for name, verdict in store.gate(artifact).items()
    }
    return {"refs": refs, "path": str(artifact.path), **artifact.manifest, "checks": gate}


def draw_artifact(facts: Mapping[str, Any]) -> Group:
    made = facts["provenance"]
    head = Table.grid(padding=(0, 2))
    commit = made["git"]["commit"]
    for name, value in {
        "names": ", ".join(facts["refs"]) or "none",
        "stage": f"{facts['stage']}, version {facts['version']}",
        "fingerprint": facts["fingerprint"],
        "digest": facts["digest"],
        "inputs": ", ".join(
            f"{entry['name']} {entry['fingerprint'][:SHORT]}" for entry in facts["inputs"]
        )
        or "none, the sources",
        "built": f"{made['started'][:19].replace('T', ' ')} UTC in {duration(made['seconds'])}, profile {made['profile'].get('name')}, "
        f"peak memory {human(made['peak_memory_bytes'])}B",
        "code": f"{commit[:SHORT]}{' with changes' if made['git']['dirty'] else ''}"
        if commit
        else "not from a clone",
        "path": facts["path"],
    }.items():
        head.add_row(f"[bold]{name}", escape(str(value)))
    parts: list[RenderableType] = [head]
    if facts["checks"]:
        parts += [
            "",
            _titled(
                "checks", [(_mark(c), name, c["summary"]) for name, c in facts["checks"].items()]
            ),
        ]
    if facts["metrics"]:
        parts += [
            "",
            _titled(
                "metrics",
                [(name, f"{value:.6g}") for name, value in sorted(facts["metrics"].items())],
            ),
        ]
    if facts["config"]:
        parts += [
            "",
            _titled(
                "configuration",
                [(name, str(value)) for name, value in flat(facts["config"]).items()],
            ),
        ]
    parts += [
        "",
        _titled(
            "files",
            [(f["path"], f"{human(f['size'])}B", f["sha256"][:SHORT]) for f in facts["files"]],
        ),
    ]
    return Group(*parts)


def _mark(check: Mapping[str, Any]) -> str:
    return "passed" if check["passed"] else ("FAILED" if check["blocking"] else "warning")


def _titled(title: str, rows: list[tuple[str, ...]]) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        show_header=False,
        box=None,
        pad_edge=False,
    )
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table


# diff


def differences(store: Store, a: Artifact, b: Artifact) -> dict[str, Any]:
    """Which inputs, fields, metrics and files differ between two artifacts, and the first stages of
    their lineage that do.
    """
    inputs_a, inputs_b = (
        {entry["name"]: entry["digest"] for entry in x.manifest["inputs"]} for x in (a, b)
    )
    files_a, files_b = (
        {file["path"]: file["sha256"] for file in x.manifest["files"]} for x in (a, b)
    )
    return {
        "a": a.fingerprint,
        "b": b.fingerprint,
        "same": a.digest == b.digest,
        "stage": _unlike(
            {"stage": a.stage, "version": a.manifest["version"]},
            {"stage": b.stage, "version": b.manifest["version"]},
        ),
        "inputs": _unlike(inputs_a, inputs_b),
        "config": _unlike(flat(a.config), flat(b.config)),
        "metrics": _unlike(a.metrics, b.metrics),
        "files": _unlike(files_a, files_b),
        "first": list(_first(store, a, b, set())),
    }


def _unlike(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {
        key: [a.get(key), b.get(key)] for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)
    }


def _first(
    store: Store, a: Artifact, b: Artifact, seen: set[tuple[str, str]]
) -> Iterator[dict[str, Any]]:
    """The stages, nearest the sources, where two lineages part: their own section, version or input
    names differ, or only their result.
    """
    if a.fingerprint == b.fingerprint or (a.fingerprint, b.fingerprint) in seen:
        return
    seen.add((a.fingerprint, b.fingerprint))
    below_a, below_b = ({entry["name"]: entry for entry in x.manifest["inputs"]} for x in (a, b))
    config = _unlike(flat(a.config), flat(b.config))
    if (
        config
        or a.stage != b.stage
        or a.manifest["version"] != b.manifest["version"]
        or below_a.keys() != below_b.keys()
    ):
        yield {"stage": a.stage, "a": a.fingerprint, "b": b.fingerprint, "config": config}
    for name in below_a.keys() & below_b.keys():
        if below_a[name]["digest"] == below_b[name]["digest"]:
            continue
        inner_a, inner_b = (
            store.find(below_a[name]["fingerprint"]),
            store.find(below_b[name]["fingerprint"]),
        )
        if inner_a is None or inner_b is None:
            yield {
                "stage": below_a[name]["stage"],
                "a": below_a[name]["fingerprint"],
                "b": below_b[name]["fingerprint"],
                "config": {},
            }
        elif inner_a.fingerprint == inner_b.fingerprint:
            raise UserError(
                f"{inner_a.fingerprint[:SHORT]} was published with two digests: run gpt-lineage verify."
            )
        else:
            yield from _first(store, inner_a, inner_b, seen)


def draw_differences(found: Mapping[str, Any]) -> Group:
    if found["same"] and found["a"] == found["b"]:
        return Group("They are the same artifact.")
    parts: list[RenderableType] = [
        "The files are the same, byte for byte." if found["same"] else "The files differ."
    ]
    if found["first"]:
        where = ", ".join(
            f"{first['stage']} ({', '.join(first['config']) or 'version or result'})"
            for first in found["first"]
        )
        parts.append(f"The lineages part first at: {escape(where)}")
    for part in ("stage", "inputs", "config", "metrics", "files"):
        if found[part]:
            table = Table(part, "a", "b", title_justify="left", box=None, pad_edge=False)
            for name, (left, right) in found[part].items():
                table.add_row(escape(name), _cell(left, part), _cell(right, part))
            parts += ["", table]
    return Group(*parts)


def _cell(value: Any, part: str) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    return escape(str(value)[:SHORT] if part in ("inputs", "files") else str(value))


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested JSON as dotted fields: {"sources": [{"name": "a"}]} -> {"sources[0].name": "a"}."""
    if isinstance(value, Mapping) and value:
        return {
            k: v
            for key, item in value.items()
            for k, v in flat(item, f"{prefix}.{key}" if prefix else str(key)).items()
        }
    if isinstance(value, list) and value:
        return {
            k: v for i, item in enumerate(value) for k, v in flat(item, f"{prefix}[{i}]").items()
        }
    return {prefix: value} if prefix else {}
