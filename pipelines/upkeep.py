"""What the store takes on the disk, and what of it may go: du, prune, rm, pin.

A pin is a name of a person's own, `pinned/NAME`, beside those that recipes give. No Dagster, MLflow
or torch.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from assets.contract import Artifact
from assets.store.catalogue import FOLDER as CATALOGUE
from assets.store.home import ARTIFACTS, downloads_folder
from assets.store.refs import PINNED
from assets.store.remote import address_of
from assets.store.removal import Needed, built_from, remove, size, unfinished
from assets.store.store import LAYOUT, SHORT, Store
from assets.tracking import session
from assets.tracking.relocation import ARTIFACTS as MLFLOW_ARTIFACTS
from assets.tracking.server import PAGES
from assets.tracking.session import SESSIONS
from assets.tracking.state import LOCAL
from gpt_model.errors import UserError
from pipelines.progress import human

NAMELESS = "(no name)"
# What a store has beside artifacts and downloads: whose it is -> entries of its home.
BESIDE = {
    "unfinished builds": ("building", "pulling"),
    "set aside as damaged": ("corrupt", "removed"),
    "MLflow": (f"{LOCAL}*", MLFLOW_ARTIFACTS, SESSIONS),
    "Dagster": ("dagster",),
    "conversations, votes": ("chat", "votes"),
    "names, locks, notes": (
        *("refs", "recipes", "locks", CATALOGUE, LAYOUT),
        *(f"{PAGES}*", "reproduction.*"),
    ),
}
LISTED = 6  # names that a sentence lists; more are counted

Say = Callable[[str], None]


def names_of(store: Store) -> dict[str, list[str]]:
    """Fingerprint -> its names."""
    names: dict[str, list[str]] = {}
    for name, fingerprint in store.refs().items():
        names.setdefault(fingerprint, []).append(name)
    return names


def described(artifact: Artifact, names: Sequence[str] = ()) -> str:
    return f"{', '.join(names) or artifact.stage} {artifact.fingerprint[:SHORT]}"


# du


def usage(store: Store) -> dict[str, Any]:
    """Bytes by recipe and by artifact, of what is beside the artifacts, and free on the disk."""
    names = names_of(store)
    artifacts: list[dict[str, Any]] = []
    recipes: dict[str, dict[str, Any]] = {}
    in_artifacts = 0
    for folder in map(store.folder_of, store.fingerprints()):
        refs, taken = names.get(folder.name, []), size(folder)
        users = list(dict.fromkeys(ref.partition("/")[0] for ref in refs))
        row = {"fingerprint": folder.name, "refs": refs, "recipes": users, "bytes": taken}
        artifacts.append(row)
        in_artifacts += taken
        for user in users or [NAMELESS]:
            blank = {"artifacts": 0, "bytes": 0, "shared": 0, "with": []}
            total = recipes.setdefault(user, blank)
            total["artifacts"] += 1
            total["bytes"] += taken
            if len(users) > 1:
                total["shared"] += taken
                total["with"] = sorted({*total["with"], *users} - {user})
    home = store.home
    beside = {
        name: sum(size(path) for entry in entries for path in home.glob(entry))
        for name, entries in BESIDE.items()
    }
    beside |= {
        "downloads": size(downloads_folder()),
        "anything else": sum(map(size, unknown(home))),
    }
    return {
        "home": str(home),
        "recipes": dict(sorted(recipes.items())),
        "artifacts": sorted(artifacts, key=lambda row: -row["bytes"]),
        "artifact_bytes": in_artifacts,
        "beside": beside,
        "bytes": in_artifacts + sum(beside.values()),
        "free": _free(home),
    }


def unknown(home: Path) -> list[Path]:
    """What lies in a store and no gpt-lineage put there."""
    entries = [ARTIFACTS, "downloads", *(entry for group in BESIDE.values() for entry in group)]
    known = {path for entry in entries for path in home.glob(entry)}
    return sorted(set(home.glob("*")) - known)


def _free(home: Path) -> int:
    return shutil.disk_usage(next(path for path in (home, *home.parents) if path.exists())).free


def draw_usage(facts: dict[str, Any], recipe: str | None) -> Group:
    """By recipe; by artifact where it is of one `recipe`."""
    columns = ("artifact", "fingerprint") if recipe else ("recipe", "artifacts")
    table = Table(box=None, pad_edge=False)
    table.add_column(columns[0])
    table.add_column(columns[1], justify="left" if recipe else "right")
    table.add_column("size", justify="right")
    table.add_column("shared with" if recipe else "of it shared", justify="left")
    if recipe:
        for row in facts["artifacts"]:
            if recipe in row["recipes"]:
                mine = ", ".join(ref for ref in row["refs"] if ref.startswith(f"{recipe}/"))
                others = ", ".join(ref for ref in row["refs"] if not ref.startswith(f"{recipe}/"))
                table.add_row(
                    escape(mine), row["fingerprint"][:SHORT], _bytes(row["bytes"]), escape(others)
                )
        return Group(table)
    for name, total in facts["recipes"].items():
        shared = f"{_bytes(total['shared'])} with {', '.join(total['with'])}"
        table.add_row(
            escape(name),
            str(total["artifacts"]),
            _bytes(total["bytes"]),
            escape(shared) if total["shared"] else "",
        )
    rest = Table(box=None, pad_edge=False, show_header=False)
    rest.add_column()
    rest.add_column(justify="right")
    count = len(facts["artifacts"])
    rest.add_row(f"{count} artifacts, each once", _bytes(facts["artifact_bytes"]))
    for name, total in facts["beside"].items():
        if not total:
            continue
        rest.add_row(name, _bytes(total))
    rest.add_row("[bold]all of it", f"[bold]{_bytes(facts['bytes'])}")
    rest.add_row("free on its disk", _bytes(facts["free"]))
    hint = "[dim]gpt-lineage du RECIPE lists artifacts; gpt-lineage prune says what may go."
    return Group(table, "", rest, "", hint)


def _bytes(number: float) -> str:
    return f"{human(number)}B"


# prune


def removable(store: Store, *, abandoned: bool) -> dict[str, list[dict[str, Any]]]:
    """What no name, pin or unfinished build leads to, and what was set aside as damaged; with
    `abandoned` also the unfinished builds at which nobody is at work. Of a session of which nothing
    is here any more, what MLflow's parent run was written from.
    """
    needed = Needed(store)()
    artifacts = [
        {
            "stage": _stage(store, fingerprint),
            "fingerprint": fingerprint,
            "bytes": size(store.folder_of(fingerprint)),
        }
        for fingerprint in store.fingerprints()
        if fingerprint not in needed
    ]
    aside = [
        {"path": str(path), "bytes": size(path)}
        for folder in ("corrupt", "removed")
        for path in sorted((store.home / folder).glob("*"))
    ]
    builds = [
        {
            "asset": build.asset,
            "fingerprint": build.building.fingerprint,
            "bytes": size(build.building.folder),
        }
        for build in (unfinished(store) if abandoned else ())
        if _is_idle(store, build.building.fingerprint)
    ]
    sessions = [
        {"path": str(folder), "bytes": size(folder)}
        for folder, record in session.sessions(store.home)
        if session.status(store.home, record) != "RUNNING" and not _is_in_store(store, record)
    ]
    return {"artifacts": artifacts, "set_aside": aside, "unfinished": builds, "sessions": sessions}


def _is_in_store(store: Store, record: dict[str, Any]) -> bool:
    """Whether anything of a session is still here."""
    return any(
        (store.home / folder / entry["fingerprint"]).is_dir()
        for folder in (ARTIFACTS, "building")
        for entry in record["artifacts"].values()
    )


def _is_idle(store: Store, fingerprint: str) -> bool:
    with store.idle(fingerprint) as idle:
        return idle


def _stage(store: Store, fingerprint: str) -> str:
    try:
        artifact = store.find(fingerprint)
    except UserError:
        return "damaged"
    return artifact.stage if artifact else "gone"


def prune(store: Store, what: dict[str, list[dict[str, Any]]], say: Say) -> int:
    """Removes what `removable` found, and is not needed by now. Returns the bytes freed."""
    needed, freed = Needed(store), 0
    for row in what["unfinished"]:
        with store.idle(row["fingerprint"]) as idle:
            if idle:
                store.throw_away(store.home / "building" / row["fingerprint"])
                freed += row["bytes"]
    for row in what["artifacts"]:
        fingerprint = row["fingerprint"]
        if remove(store, fingerprint, partial(_is_needed, needed, fingerprint), say):
            freed += row["bytes"]
        else:
            say(f"{row['stage']} {fingerprint[:SHORT]} stays: somebody has come to need it.")
    for row in [*what["set_aside"], *what["sessions"]]:
        shutil.rmtree(row["path"], ignore_errors=True)
        freed += row["bytes"]
    return freed


def _is_needed(needed: Needed, fingerprint: str) -> bool:
    return fingerprint in needed()


def draw_removable(what: dict[str, list[dict[str, Any]]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("what", "fingerprint", "size", "why"):
        table.add_column(column, justify="right" if column == "size" else "left")
    for row in what["artifacts"]:
        why = "no name, pin or unfinished build leads to it"
        table.add_row(escape(row["stage"]), row["fingerprint"][:SHORT], _bytes(row["bytes"]), why)
    for row in what["unfinished"]:
        why = "nobody is at work on it; the next run would resume it"
        table.add_row(escape(row["asset"]), row["fingerprint"][:SHORT], _bytes(row["bytes"]), why)
    for row in what["set_aside"]:
        name = Path(row["path"]).name[:SHORT]
        table.add_row("set aside", name, _bytes(row["bytes"]), "damaged; replaced where needed")
    for row in what["sessions"]:
        name = Path(row["path"]).name[:SHORT]
        table.add_row("session", name, _bytes(row["bytes"]), "nothing of it is here any more")
    return table


# rm


def objections(
    store: Store, artifact: Artifact, reference: str, others: Collection[str]
) -> list[str]:
    """Why the artifact that a person calls `reference` should stay, a sentence each: what was built
    from it, apart from `others`, which go too; names that other recipes and pins have for it;
    unfinished builds that read it.
    """
    names, fingerprint = names_of(store), artifact.fingerprint
    reasons = []
    above = [each for each in built_from(store, fingerprint) if each.fingerprint not in others]
    if above:
        listed = [described(each, names.get(each.fingerprint, ())) for each in above]
        reasons.append(f"built from it: {_listed(listed)}")
    mine = reference.partition("/")[0]
    if "/" not in reference and (refs := names.get(fingerprint)):
        mine = refs[0].partition("/")[0]
    if elsewhere := [ref for ref in names.get(fingerprint, ()) if ref.partition("/")[0] != mine]:
        reasons.append(f"also named {_listed(elsewhere)}")
    readers = [
        f"{build.asset} {build.building.fingerprint[:SHORT]}"
        for build in unfinished(store)
        if fingerprint in build.inputs.values()
    ]
    if readers:
        reasons.append(f"read by an unfinished build: {_listed(readers)}")
    return reasons


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return ", ".join(items[:LISTED]) + more


def remove_artifacts(
    store: Store, references: Sequence[str], force: bool, say: Say
) -> list[dict[str, Any]]:
    """Removes each artifact with its names. Raises UserError, and removes nothing, where something
    stands on one of them, unless `force`.
    """
    artifacts = {store.resolve(text).fingerprint: text for text in references}
    sentences = []
    for fingerprint, text in artifacts.items() if not force else ():
        artifact = store.resolve(text)
        if reasons := objections(store, artifact, text, artifacts):
            sentences.append(f"{text} ({fingerprint[:SHORT]}) stays: {'; '.join(reasons)}.")
    if sentences:
        hint = (
            "--force removes it all the same, with its names; what was built from it stays, with "
        )
        raise UserError("\n".join([*sentences, f"{hint}a gap in its lineage."]))
    removed = []
    for fingerprint, text in artifacts.items():
        folder = store.folder_of(fingerprint)
        names, taken = names_of(store).get(fingerprint, []), size(folder)
        remote = address_of(folder)
        store.unset_refs(names)

        def wanted(mine: str = fingerprint) -> bool:
            reads = any(mine in build.inputs.values() for build in unfinished(store))
            return not force and (mine in store.named() or reads)

        if remove(store, fingerprint, wanted, say):
            row = {"artifact": text, "fingerprint": fingerprint, "refs": names, "bytes": taken}
            removed.append(row | {"remote": remote})
        else:
            raise UserError(f"{text} stays: a run has come to need it just now.")
    return removed


# pins


def pin(store: Store, artifact: Artifact, name: str | None) -> str:
    """Gives the artifact a pin's name; returns it. Raises UserError where another has it."""
    given = name or artifact.fingerprint[:SHORT]
    if not given.replace("-", "").replace("_", "").replace(".", "").isalnum() or given[0] in ".-":
        raise UserError(f"A pin's name has letters, digits, _, - and . only; found {given!r}.")
    taken = store.get_ref(PINNED, given)
    if taken not in (None, artifact.fingerprint):
        raise UserError(
            f"{PINNED}/{given} is {str(taken)[:SHORT]} already. Give another name, or remove that "
            f"pin: gpt-lineage unpin {given}"
        )
    store.set_ref(PINNED, given, artifact.fingerprint)
    return f"{PINNED}/{given}"


def unpin(store: Store, name: str) -> str:
    """Takes a pin's name away; the artifact stays. Raises UserError where there is no such pin."""
    ref = f"{PINNED}/{name.removeprefix(f'{PINNED}/')}"
    pins = [each for each in store.names() if each.startswith(f"{PINNED}/")]
    if ref not in pins:
        raise UserError(f"There is no pin {ref}. There are: {', '.join(pins) or 'none'}.")
    store.unset_refs([ref])
    return ref
