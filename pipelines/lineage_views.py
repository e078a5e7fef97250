"""What is in the store, as data for scripts and as text for people: list, show, diff.

Each view is a function that returns JSON values and one that draws them. They read manifests only,
and import no Dagster, MLflow or torch, so these commands answer at once. `trace` is
`assets.report.lineage_tree`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from assets.contract import Artifact
from assets.store.provenance import execution
from assets.store.store import SHORT, Store
from gpt_model.errors import CorruptFile
from pipelines.progress import duration, human

# Parts of the names of metrics that are scores.
SCORES = {
    *("accuracy", "acc", "norm", "f1", "matthews", "pearson", "bpb", "loss", "perplexity"),
    *("em", "exact", "bleu", "rouge", "win", "rate", "reward", "kl", "score", "bits"),
}
BASELINES = ("constant", "random", "uniform", "majority", "chance", "bag_of_words")
ENDS = ("_low", "_high")  # of an interval, behind a score's name
LISTED = 4  # fields that a line names
PINNED = re.compile(r"(.*\bpinned)\[\d+\]\.\w+")  # a field of a file that was pinned
ORDER = "On another number of them numbers are added in another order, which gives other bytes."


def listed(store: Store, damaged: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row for each name of each artifact, by name; artifacts without a name last. `damaged` gets
    a sentence for each that is left out.
    """
    rows = []
    for artifact in store.artifacts(damaged):
        record = artifact.manifest["provenance"]
        try:
            failed, warnings = (
                store.failed_checks(artifact, blocking=blocking) for blocking in (True, False)
            )
        except CorruptFile:
            failed, warnings = ["the verdicts are damaged"], []
        for ref in _names(store, artifact) or (None,):
            rows.append(
                {
                    "ref": ref,
                    "stage": artifact.stage,
                    "fingerprint": artifact.fingerprint,
                    "digest": artifact.digest,
                    "bytes": artifact.size,
                    "here": artifact.path.is_dir(),
                    "seconds": record["seconds"],
                    "built": record["ended"],
                    "failed_checks": failed,
                    "warnings": warnings,
                }
            )
    return sorted(rows, key=lambda row: (row["ref"] is None, row["ref"] or row["built"]))


def _names(store: Store, artifact: Artifact) -> list[str]:
    refs = store.refs().items()
    return [ref for ref, fingerprint in refs if fingerprint == artifact.fingerprint]


def draw_list(rows: list[dict[str, Any]]) -> Table:
    columns = ["artifact", "fingerprint", "built", "took", "size", "checks"]
    where = not all(row["here"] for row in rows)
    table = Table(*columns, *["files"] * where, box=None, pad_edge=False)
    for row in rows:
        failed, warnings = ", ".join(row["failed_checks"]), ", ".join(row["warnings"])
        checks = f"[red]failed: {failed}" if failed else "passed"
        checks += f" [yellow](warning: {warnings})" if warnings else ""
        name = row["ref"] or f"({row['stage']}, no name)"
        built = str(row["built"])[:16].replace("T", " ")
        took, size = duration(row["seconds"]), f"{human(row['bytes'])}B"
        files = ["here" if row["here"] else "in the remote"] * where
        table.add_row(escape(name), row["fingerprint"][:SHORT], built, took, size, checks, *files)
    return table


# show


def shown(store: Store, artifact: Artifact) -> dict[str, Any]:
    """The manifest, names, verdicts and path of one artifact."""
    checks = {
        name: vars(verdict) | {"figures": dict(verdict.figures)}
        for name, verdict in store.gate(artifact).items()
    }
    path = str(artifact.path) if artifact.path.is_dir() else None
    return {"refs": _names(store, artifact), "path": path, **artifact.manifest, "checks": checks}


def draw_artifact(facts: Mapping[str, Any]) -> Group:
    record = facts["provenance"]
    commit = record["git"]["commit"]
    changes = " with changes" if record["git"]["dirty"] else ""
    inputs = [f"{entry['name']} {entry['fingerprint'][:SHORT]}" for entry in facts["inputs"]]
    head = {
        "names": ", ".join(facts["refs"]) or "none",
        "stage": f"{facts['stage']}, version {facts['version']}",
        "fingerprint": facts["fingerprint"],
        "digest": facts["digest"],
        "inputs": ", ".join(inputs) or "none, the sources",
        "built": f"{record['started'][:19].replace('T', ' ')} UTC in {duration(record['seconds'])}"
        f", {execution(record)}"
        f", peak memory {human(record['peak_memory_bytes'])}B",
        "code": f"{commit[:SHORT]}{changes}" if commit else "not from a clone",
        "path": facts["path"] or "in the remote alone: a command that reads files fetches them",
    }
    grid = Table.grid(padding=(0, 2))
    for name, value in head.items():
        grid.add_row(f"[bold]{name}", escape(value))
    verdicts = facts["checks"].items()
    checks = [(_mark(check), escape(name), escape(check["summary"])) for name, check in verdicts]
    numbers = sorted(facts["metrics"].items())
    metrics = [(escape(name), f"{value:.6g}") for name, value in numbers]
    config = [(escape(name), escape(str(value))) for name, value in flat(facts["config"]).items()]
    files = [
        (escape(file["path"]), f"{human(file['size'])}B", file["sha256"][:SHORT])
        for file in facts["files"]
    ]
    parts: list[RenderableType] = [grid]
    for title, rows in (("checks", checks), ("metrics", metrics), ("configuration", config)):
        parts += ["", _titled(title, rows)] if rows else []
    return Group(*parts, "", _titled("files", files))


def _mark(check: Mapping[str, Any]) -> str:
    if check["passed"]:
        return "[green]passed"
    return "[bold red]FAILED" if check["blocking"] else "[yellow]warning"


def _titled(title: str, rows: Sequence[tuple[str, ...]]) -> Table:
    """A table of cells in rich's markup."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.show_header = False
    for row in rows:
        table.add_row(*row)
    return table


# diff


def differences(store: Store, a: Artifact, b: Artifact) -> dict[str, Any]:
    """Which inputs, fields, metrics and files differ between two artifacts, and the first stages of
    their lineage that do.
    """
    stages = [{"stage": x.stage, "version": x.manifest["version"]} for x in (a, b)]
    inputs = [{entry["name"]: entry["digest"] for entry in x.manifest["inputs"]} for x in (a, b)]
    files = [{file["path"]: file["sha256"] for file in x.manifest["files"]} for x in (a, b)]
    return {
        "a": a.fingerprint,
        "b": b.fingerprint,
        "names": {side: _names(store, x) for side, x in (("a", a), ("b", b))},
        "same": a.digest == b.digest,
        "stage": _differing(*stages),
        "built": _differing(*map(_execution, (a, b))),
        "inputs": _differing(*inputs),
        "config": _differing(flat(a.config), flat(b.config)),
        "fields": changed_fields(flat(a.config), flat(b.config)),
        "metrics": _differing(a.metrics, b.metrics),
        "files": _differing(*files),
        "first": list(_first(store, a, b, set())),
        "held_out": _differing(_held_out(store, a), _held_out(store, b)),
    }


def _held_out(store: Store, artifact: Artifact) -> dict[str, str]:
    """The sha256 of each source's held-out text, of the corpus that the artifact is from."""
    if artifact.stage == "corpus":
        files = {file["path"]: file["sha256"] for file in artifact.manifest["files"]}
        return {path: digest for path, digest in files.items() if "/held_out." in path}
    for entry in artifact.manifest["inputs"]:
        upstream = store.find(entry["fingerprint"])
        if upstream is not None and (texts := _held_out(store, upstream)):
            return texts
    return {}


def changed_fields(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """The fields in which two flat sections differ, as a person reads them: of the files that were
    pinned their paths.
    """
    names = []
    for field in _differing(a, b):
        pinned = PINNED.fullmatch(field)
        before, after = (_pinned_files(x, pinned[1]) for x in (a, b)) if pinned else ({}, {})
        names += [
            f"the file {path}{'' if path in before and path in after else how}"
            for path in {**before, **after}
            if before.get(path) != after.get(path)
            for how in (", which is new" if path in after else ", which is gone",)
        ] or [field]
    return list(dict.fromkeys(names))


def _pinned_files(section: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The sha256 of each file of the list `key` of a flat section, by its path."""
    paths = {
        field.removesuffix("path"): str(path)
        for field, path in section.items()
        if field.startswith(f"{key}[") and field.endswith("].path")
    }
    return {path: section.get(f"{file}sha256") for file, path in paths.items()}


def _execution(artifact: Artifact) -> dict[str, Any]:
    """What of its execution can change the order of additions, and so its bytes."""
    made = artifact.manifest["provenance"]
    return {
        "profile": made["profile"].get("name"),
        "ranks": made.get("ranks"),
        "threads": made.get("threads"),
    }


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {
        key: [a.get(key), b.get(key)] for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)
    }


def _first(
    store: Store, a: Artifact, b: Artifact, seen: set[tuple[str, str]]
) -> Iterator[dict[str, Any]]:
    """The stages where two lineages part, the nearest to the sources first: by section, version,
    names of inputs, or result alone.
    """
    if a.fingerprint == b.fingerprint or (a.fingerprint, b.fingerprint) in seen:
        return
    seen.add((a.fingerprint, b.fingerprint))
    inputs_a, inputs_b = ({e["name"]: e for e in x.manifest["inputs"]} for x in (a, b))
    config = _differing(flat(a.config), flat(b.config))
    same_version = (a.stage, a.manifest["version"]) == (b.stage, b.manifest["version"])
    for name in (name for name in inputs_a if name in inputs_b):
        entry_a, entry_b = inputs_a[name], inputs_b[name]
        if entry_a["digest"] == entry_b["digest"]:
            continue
        identities = {"a": entry_a["fingerprint"], "b": entry_b["fingerprint"]}
        below_a, below_b = (store.find(fingerprint) for fingerprint in identities.values())
        if below_a is None or below_b is None:
            yield {"stage": entry_a["stage"], **identities, "config": {}}
        elif below_a.fingerprint == below_b.fingerprint:  # built twice; the later build is here
            built = execution(below_a.manifest["provenance"])
            yield {"stage": below_a.stage, **identities, "config": {}, "built": built}
        else:
            yield from _first(store, below_a, below_b, seen)
    if config or not same_version or inputs_a.keys() != inputs_b.keys():
        yield {
            "stage": a.stage,
            "a": a.fingerprint,
            "b": b.fingerprint,
            "config": config,
            "fields": changed_fields(flat(a.config), flat(b.config)),
        }


def draw_differences(facts: Mapping[str, Any], whole: bool = False) -> Group:
    """Scores first. What is long (configuration, other metrics, files) is counted, and shown where
    the `whole` is asked for.
    """
    if facts["same"] and facts["a"] == facts["b"]:
        return Group("They are the same artifact.")
    same = "The files are the same, byte for byte." if facts["same"] else "The files differ."
    a, b = (
        f"{side} is {next(iter(facts['names'][side]), 'an artifact without a name')} "
        f"{facts[side][:SHORT]}"
        for side in "ab"
    )
    parts: list[RenderableType] = [f"{escape(f'{a}, {b}')}. {same}"]
    if "stage" in facts["stage"]:
        left, right = facts["stage"]["stage"]
        parts.append(f"They are of two stages, {left} and {right}: compare artifacts of one stage.")
    elif facts["first"]:
        stages = ", ".join(
            f"{first['stage']} ({_fields(first.get('fields', [])) or 'version or result'})"
            for first in facts["first"]
        )
        parts.append(f"The lineages part first at: {escape(stages)}")
    if facts["held_out"] and "stage" not in facts["stage"]:
        sources = ", ".join(path.split("/")[-2] for path in facts["held_out"])
        parts.append(
            f"The held-out text differs ({escape(sources)}): their scores are of two texts."
        )
    parts += [
        f"{first['stage']} {first['a'][:SHORT]} was built twice, with two digests. The build that "
        f"is here is by {first['built']}. {ORDER}"
        for first in facts["first"]
        if "built" in first
    ]
    if facts["built"] and not facts["same"] and "stage" not in facts["stage"]:
        parts.append(f"They were built by another profile, on other ranks or threads. {ORDER}")
    metrics = facts["metrics"]
    scores = {name: pair for name, pair in metrics.items() if is_score(name)}
    others = {name: pair for name, pair in metrics.items() if name not in scores}
    shown = {part: facts[part] for part in ("inputs", "stage", "built")}
    folded = {"configuration": facts["config"], "other metrics": others, "files": facts["files"]}
    if values := {name: pair for name, pair in scores.items() if not name.endswith(ENDS)}:
        parts += ["", _score_table(values, scores)]
    for part, rows in (shown | (folded if whole else {})).items():
        if rows:
            parts += ["", _differing_table(part, rows)]
    counts = [f"{len(rows)} of {part}" for part, rows in folded.items() if rows and not whole]
    if counts:
        fields = _fields(facts["fields"])
        parts += ["", f"Folded: {', '.join(counts)}{f' ({escape(fields)})' if fields else ''}."]
        parts[-1] = f"[dim]{parts[-1]} --all shows them."
    return Group(*parts)


def is_score(metric: str) -> bool:
    """Whether a metric says how good the model is, and not how large or fast it is, or how good a
    baseline.
    """
    name = metric.lower()
    is_baseline = name.rpartition("/")[2].startswith(BASELINES)
    return not is_baseline and any(part in SCORES for part in re.split(r"[/_ ]", name))


def _fields(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{', '.join(names[:LISTED])}{more}"


def _score_table(values: Mapping[str, list[Any]], scores: Mapping[str, list[Any]]) -> Table:
    """`values`, each with its interval, which `scores` has under the name's ends."""
    table = Table("scores", "a", "b", "b - a", box=None, pad_edge=False)
    for name, pair in values.items():
        ends = [scores.get(f"{name}{end}", (None, None)) for end in ENDS]
        cells = []
        for side, value in enumerate(pair):
            low, high = (end[side] for end in ends)
            interval = f" ({low:.4g} – {high:.4g})" if None not in (value, low, high) else ""
            cells.append(f"{_cell(value, 'scores')}{interval}")
        change = "" if None in pair else f"{pair[1] - pair[0]:+.4g}"
        table.add_row(escape(name), *cells, change)
    return table


def _differing_table(part: str, rows: Mapping[str, list[Any]]) -> Table:
    table = Table(part, "a", "b", box=None, pad_edge=False)
    for name, (left, right) in rows.items():
        table.add_row(escape(name), _cell(left, part), _cell(right, part))
    return table


def _cell(value: Any, part: str) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    return escape(str(value)[:SHORT] if part in ("inputs", "files") else str(value))


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested JSON as dotted fields: {"sources": [{"name": "a"}]} -> {"sources[0].name": "a"}."""
    if isinstance(value, Mapping) and value:
        below = {f"{prefix}.{key}" if prefix else str(key): item for key, item in value.items()}
    elif isinstance(value, list) and value:
        below = {f"{prefix}[{index}]": item for index, item in enumerate(value)}
    else:
        return {prefix: value} if prefix else {}
    fields: dict[str, Any] = {}
    for name, item in below.items():
        fields |= flat(item, name)
    return fields
