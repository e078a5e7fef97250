"""Building an artifact again from its manifest, in a store of its own that only borrows the inputs,
and comparing what comes out.

It is the ordinary build (`assets.build`) with the recorded configuration, inputs and profile.
Nothing of it is kept, and MLflow is not told.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from assets.build import Request, WorkerFailed, build
from assets.contract import Artifact, as_it_stands
from assets.launch.launcher import LocalLauncher
from assets.node import Node
from assets.recipe.profile import Profile
from assets.stages import stage_named
from assets.store.provenance import git_state
from assets.store.store import Building, Store
from assets.tracking.outbox import Say
from assets.tracking.tracking import Build, Tracking
from gpt_model.errors import UserError
from pipelines.lineage_views import SHORT
from pipelines.progress import BuildDisplay


class Untracked(Tracking):
    """Tells no server: a reproduction is not a build of its own."""

    def begin(self, building: Building, build: Build, dagster_run: str | None = None) -> None: ...

    @contextmanager
    def stream(self, building: Building) -> Iterator[None]:
        yield

    def failed(self, building: Building, reason: str) -> None: ...

    def serve(self, dagster_run: str | None, say: Say) -> None: ...

    def finish(self, folder: Path, at_most: float = 15.0) -> None: ...


def reproduced(store: Store, original: Artifact, console: Console) -> list[str]:
    """Build `original` again and compare: a sentence for each file that is not the same, [] where
    all are.

    Raises UserError where it cannot be built from what is here: an input is gone or changed, the
    stage's code has another version, or its worker fails.
    """
    node = _node(original)
    inputs = _inputs(store, original)
    recorded = original.manifest["provenance"]["profile"]
    profile = Profile.model_validate(
        {key: value for key, value in recorded.items() if key in Profile.model_fields}
    )  # others are gone
    store.home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="reproduction.", dir=store.home) as folder:
        own = _store_with(Path(folder), store, node, inputs)
        with BuildDisplay(own.home, console) as display:
            display.began(node.ref)
            request = Request(node, Path.cwd(), profile, say=display.say)
            try:
                again = build(
                    request, own, LocalLauncher(profile.device), Untracked(own.home)
                ).artifact
            except WorkerFailed as failure:  # its log goes with the folder
                (log := store.home / "reproduction.log").write_text(
                    failure.details, encoding="utf-8"
                )
                raise UserError(f"{failure.sentence} What it said last: {log}") from None
        unlike = _unlike(original, again)
        return unlike and [*unlike, *_code(original)]


def _node(original: Artifact) -> Node:
    """The artifact's place in a graph of its own, its section as recorded, local files already tied
    to their bytes.
    """
    made = original.manifest["provenance"]
    stage = stage_named(original.stage)
    recipe, _, name = made["asset"].partition("/")
    if stage.version != original.manifest["version"]:
        commit = made["git"]["commit"]
        raise UserError(
            f"{made['asset']} {original.fingerprint[:SHORT]} was built by version {original.manifest['version']} of the stage "
            f"{stage.name!r}; the code here is version {stage.version}. Check out commit {commit or '(not recorded)'} to reproduce it."
        )
    needs = tuple(entry["name"] for entry in original.manifest["inputs"])
    return Node(recipe, name, replace(stage, pin=as_it_stands), lambda base: original.config, needs)


def _inputs(store: Store, original: Artifact) -> dict[str, Artifact]:
    """The recorded inputs, verified."""
    inputs = {}
    for entry in original.manifest["inputs"]:
        artifact = store.find(entry["fingerprint"])
        if artifact is None:
            raise UserError(
                f"Its input {entry['name']} {entry['fingerprint'][:SHORT]} is not in the store any more: build that again first."
            )
        if problems := store.verify(artifact):
            raise UserError(
                f"Its input {entry['name']} is not what it was built from: {problems[0]}"
            )
        inputs[entry["name"]] = artifact
    return inputs


def _store_with(folder: Path, store: Store, node: Node, inputs: dict[str, Artifact]) -> Store:
    """An empty store at `folder` that has the inputs, and the downloads, of `store`."""
    own = Store(folder)
    own.artifacts_folder.mkdir()
    (store.home / "downloads").mkdir(exist_ok=True)
    (folder / "downloads").symlink_to(
        (store.home / "downloads").resolve(), target_is_directory=True
    )
    for name, artifact in inputs.items():
        link = own.artifacts_folder / artifact.fingerprint
        if not link.exists():
            link.symlink_to(artifact.path.parent, target_is_directory=True)
        own.set_ref(node.recipe, name, artifact.fingerprint)
    return own


def _code(original: Artifact) -> list[str]:
    """What may be why: the code is not the code it was built with."""
    then, now = original.manifest["provenance"]["git"], git_state()
    if then == now and not now["dirty"]:
        return []
    was, is_ = (
        f"commit {(git['commit'] or 'not recorded')[:SHORT]}{' with changes' if git['dirty'] else ''}"
        for git in (then, now)
    )
    return [f"It was built by the code of {was}; the code here is that of {is_}."]


def _unlike(original: Artifact, again: Artifact) -> list[str]:
    before, now = (
        {file["path"]: file["sha256"] for file in artifact.manifest["files"]}
        for artifact in (original, again)
    )
    sentences = []
    for path in sorted(before.keys() | now.keys()):
        if before.get(path) != now.get(path):
            was, is_ = (
                files[path][:SHORT] if path in files else "not there" for files in (before, now)
            )
            sentences.append(f"{path}: {was} as published, {is_} built again")
    return sentences
