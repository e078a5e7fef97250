"""Bringing somebody else's model into the store: the build of a recipe with one section."""

from __future__ import annotations

import re
from pathlib import Path

from assets.build import Outcome, Request, WorkerFailed, build
from assets.estimate import with_estimate
from assets.graph import node_named, nodes
from assets.launch.launcher import LocalLauncher
from assets.lineage import prepare_home
from assets.recipe.profile import Profile
from assets.recipe.recipe import ImportedSection, Recipe
from assets.store.store import Store
from assets.tracking.tracking import Tracking
from gpt_model.errors import UserError
from pipelines.progress import BuildDisplay

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def imported(
    store: Store,
    source: str,
    revision: str | None,
    licence: str,
    name: str | None,
    profile: Profile,
    display: BuildDisplay,
) -> tuple[str, Outcome]:
    """Build NAME/imported from `source`, a repository on the hub or a folder, or find it built.

    Returns (ref, outcome). Raises UserError.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if revision:
            raise UserError(f"{folder} is a folder, which has no revisions: leave --revision out.")
        section = ImportedSection(folder=str(folder.resolve()), licence=licence)
    elif source.startswith((".", "/", "~")) or not HUB_ID.fullmatch(source):
        raise UserError(
            f"{source} is neither a folder here nor a repository on the hub (OWNER/NAME)."
        )
    else:
        section = ImportedSection(hub=source, revision=revision or "main", licence=licence)
    basename = folder.resolve().name if section.folder else source.rpartition("/")[2]
    name = name or re.sub(r"[^A-Za-z0-9_]+", "_", basename)
    if not re.fullmatch(r"[A-Za-z0-9_]+", name):
        raise UserError(f"{name!r} is no name: letters, digits and _. Give another --name.")
    node = node_named(nodes(Recipe(name=name, imported=section)), "imported")
    config = node.config(Path.cwd())
    if reason := config.get("not_run"):
        raise UserError(f"It is not imported: {reason}. Try again where it can be reached.")
    prepare_home(store.home)
    display.began(node.ref)
    request = with_estimate(Request(node, {}, config, profile, say=display.say), store)
    try:
        return node.ref, build(request, store, LocalLauncher(profile.device), Tracking(store.home))
    except WorkerFailed as failure:
        raise UserError(str(failure)) from None
