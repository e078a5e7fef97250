"""Recomputing checksums along a lineage: is everything still the bytes that were published?"""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from assets.contract import Artifact
from assets.store.store import SHORT, Store
from gpt_model.errors import CorruptFile


def verified(store: Store, artifact: Artifact | None, console: Console) -> tuple[int, list[str]]:
    """Verify `artifact` and all it came from, or with None the whole store: (artifacts looked at, a
    sentence for each thing wrong).
    """
    artifacts, problems = _lineage(store, artifact) if artifact else _everything(store)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_interactive
    ) as bar:
        task = bar.add_task("verifying", total=sum(one.size for one in artifacts))
        for one in artifacts:
            bar.update(task, description=escape(f"{one.stage} {one.fingerprint[:SHORT]}"))
            problems += store.verify(one)
            bar.advance(task, one.size)
    return len(artifacts), problems


def _everything(store: Store) -> tuple[list[Artifact], list[str]]:
    artifacts, problems = [], []
    folders = sorted(store.artifacts_folder.iterdir()) if store.artifacts_folder.is_dir() else []
    for folder in folders:
        try:
            artifacts += [found] if (found := store.find(folder.name)) else []
        except CorruptFile as error:
            problems.append(str(error))
    for ref, fingerprint in store.refs().items():
        if not (store.artifacts_folder / fingerprint).is_dir():
            problems.append(f"{ref} names {fingerprint[:SHORT]}, which is not in the store.")
    return artifacts, problems


def _lineage(store: Store, artifact: Artifact) -> tuple[list[Artifact], list[str]]:
    """`artifact` and everything it came from, each once, the sources' end first."""
    found: dict[str, Artifact] = {}
    problems: list[str] = []

    def gather(one: Artifact) -> None:
        for entry in one.manifest["inputs"]:
            if entry["fingerprint"] in found:
                continue
            try:
                below = store.find(entry["fingerprint"])
            except CorruptFile as error:
                problems.append(str(error))
                continue
            if below is None:
                problems.append(
                    f"{entry['stage']} {entry['fingerprint'][:SHORT]}, an input of {one.stage}, is not in the store any more."
                )
            else:
                if below.digest != entry["digest"]:
                    problems.append(
                        f"{one.stage} was made from {entry['name']} of digest {entry['digest'][:SHORT]}, here it is {below.digest[:SHORT]}."
                    )
                gather(below)
        found[one.fingerprint] = one

    gather(artifact)
    return list(found.values()), problems
