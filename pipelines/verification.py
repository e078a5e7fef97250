"""Recomputing checksums along a lineage: is everything still the bytes that were published?"""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from assets.contract import Artifact
from assets.store.store import SHORT, Store
from gpt_model.errors import CorruptFile


def verified(store: Store, root: Artifact | None, console: Console) -> tuple[int, list[str]]:
    """Verify `root` and its lineage, or with None the whole store.

    Returns how many artifacts were checked, and a sentence for each problem.
    """
    artifacts, problems = _lineage(store, root) if root else _everything(store)
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
    return len(artifacts), problems


def _everything(store: Store) -> tuple[list[Artifact], list[str]]:
    artifacts, problems = [], []
    folders = sorted(store.artifacts_folder.iterdir()) if store.artifacts_folder.is_dir() else []
    for folder in folders:
        try:
            if artifact := store.find(folder.name):
                artifacts.append(artifact)
        except CorruptFile as error:
            problems.append(str(error))
    for ref, fingerprint in store.refs().items():
        if not (store.artifacts_folder / fingerprint).is_dir():
            problems.append(f"{ref} names {fingerprint[:SHORT]}, which is not in the store.")
    return artifacts, problems


def _lineage(store: Store, root: Artifact) -> tuple[list[Artifact], list[str]]:
    """`root` and everything it was built from, each once, the sources' end first."""
    visited: dict[str, Artifact] = {}
    problems: list[str] = []

    def visit(artifact: Artifact) -> None:
        for entry in artifact.manifest["inputs"]:
            fingerprint, digest = entry["fingerprint"], entry["digest"]
            if fingerprint in visited:
                continue
            try:
                below = store.find(fingerprint)
            except CorruptFile as error:
                problems.append(str(error))
                continue
            if below is None:
                problems.append(
                    f"{entry['stage']} {fingerprint[:SHORT]}, an input of {artifact.stage}, is not "
                    "in the store any more."
                )
                continue
            if below.digest != digest:
                problems.append(
                    f"{artifact.stage} was made from {entry['name']} of digest {digest[:SHORT]}, "
                    f"here it is {below.digest[:SHORT]}."
                )
            visit(below)
        visited[artifact.fingerprint] = artifact

    visit(root)
    return list(visited.values()), problems
