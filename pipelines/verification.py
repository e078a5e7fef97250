"""Recomputing checksums along a lineage: is everything still the bytes that were published?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from assets.contract import Artifact
from assets.store.provenance import execution
from assets.store.store import SHORT, Store
from gpt_model.errors import CorruptFile


@dataclass(frozen=True)
class Verification:
    """How many artifacts were verified, and a sentence for each problem. Of `unsummed` ones, which
    an earlier version published, nothing is recorded beside their files and identity.
    """

    artifacts: int
    unsummed: int
    problems: list[str]


def verified(store: Store, root: Artifact | None, console: Console) -> Verification:
    """Verify `root` and its lineage, or with None the whole store."""
    problems: list[str] = []
    roots = [root] if root else list(store.artifacts(damaged=problems.append))
    artifacts, broken = _lineage(store, roots)
    problems += [problem for problem in broken if problem not in problems]
    problems += [] if root else store.misnamed()
    percentage = TextColumn("{task.percentage:>3.0f} %")
    columns = (TextColumn("{task.description}"), BarColumn(), percentage, TimeRemainingColumn())
    hidden = not console.is_interactive
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("verifying", total=sum(artifact.size for artifact in artifacts))
        for artifact in artifacts:
            name = f"{artifact.stage} {artifact.fingerprint[:SHORT]}"
            bar.update(task, description=escape(name))
            problems += store.verify(artifact)
            bar.advance(task, artifact.size)
    unsummed = sum(not store.is_summed(artifact) for artifact in artifacts)
    return Verification(len(artifacts), unsummed, problems)


def _lineage(store: Store, roots: Sequence[Artifact]) -> tuple[list[Artifact], list[str]]:
    """`roots` and everything they were built from, each once, the sources' end first."""
    visited: dict[str, Artifact] = {}
    problems: list[str] = []

    def visit(artifact: Artifact) -> None:
        if artifact.fingerprint in visited:
            return
        for entry in artifact.manifest["inputs"]:
            fingerprint, digest = entry["fingerprint"], entry["digest"]
            try:
                below = visited.get(fingerprint) or store.find(fingerprint)
            except CorruptFile as error:
                problems.append(str(error))
                continue
            if below is None:
                problems.append(
                    f"{entry['stage']} {fingerprint[:SHORT]}, an input of {artifact.stage} "
                    f"{artifact.fingerprint[:SHORT]}, is not in the store any more."
                )
                continue
            if (below.stage, below.digest) != (entry["stage"], digest):
                problems.append(
                    f"{artifact.stage} {artifact.fingerprint[:SHORT]} was made from "
                    f"{entry['name']}, a {entry['stage']} of digest {digest[:SHORT]}; here that is "
                    f"a {below.stage} of {below.digest[:SHORT]}, built by "
                    f"{execution(below.manifest['provenance'])}."
                )
            visit(below)
        visited[artifact.fingerprint] = artifact

    for root in roots:
        visit(root)
    return list(visited.values()), list(dict.fromkeys(problems))
