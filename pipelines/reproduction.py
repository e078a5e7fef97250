"""Building an artifact again from its manifest, and comparing what comes out.

It is the ordinary build (`assets.build`) with the recorded configuration, inputs and profile, in a
temporary store that links to the inputs. The artifact is not kept, and MLflow gets no run of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from assets.build import Request, WorkerFailed, build
from assets.contract import Artifact, Inputs
from assets.launch.transport import launcher_for
from assets.node import Node
from assets.recipe.profile import Profile
from assets.stages import STAGES, stage_named
from assets.store.provenance import execution
from assets.store.store import SHORT, Building, Store
from assets.tracking.outbox import Say
from assets.tracking.tracking import Build, Tracking
from gpt_model.errors import UserError
from pipelines.progress import BuildDisplay


class Untracked(Tracking):
    """Reports to no server: a reproduction has no run of its own."""

    def begin(self, building: Building, build: Build, dagster_run: str | None = None) -> None: ...

    @contextmanager
    def stream(self, building: Building) -> Iterator[None]:
        yield

    def failed(self, building: Building, reason: str) -> None: ...

    def serve(self, dagster_run: str | None, say: Say) -> None: ...

    def cache_hit(
        self, recipe: str, stage: str, fingerprint: str, dagster_run: str | None
    ) -> None: ...

    def finish(self, folder: Path, at_most: float = 15.0) -> None: ...


def reproduced(store: Store, original: Artifact, console: Console) -> list[str]:
    """Build `original` again and compare. Returns a sentence for each file that differs.

    Raises UserError where it cannot be built from what is here: an input is gone or changed, the
    stage's code has another version, or its worker fails.
    """
    node, inputs = _node(original), _inputs(store, original)
    profile = _profile(original.manifest["provenance"]["profile"])
    store.home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="reproduction.", dir=store.home) as folder:
        temporary = _temporary_store(Path(folder), store, inputs)
        launcher, tracking = launcher_for(profile), Untracked(temporary.home)
        with BuildDisplay(temporary.home, console) as display:
            display.began(node.ref)
            request = Request(node, inputs, original.config, profile, say=display.say)
            try:
                again = build(request, temporary, launcher, tracking).artifact
            except WorkerFailed as failure:  # its log goes with the folder
                log = store.home / "reproduction.log"
                log.write_text(failure.details, encoding="utf-8")
                raise UserError(f"{failure.sentence} What it said last: {log}") from None
        differing = _differing_files(original, again)
        return differing and [*differing, *_reasons(original, again)]


def _node(original: Artifact) -> Node:
    """The artifact as a node of its own. Raises UserError where the stage has another version, or
    is not in this code.
    """
    record = original.manifest["provenance"]
    if original.stage not in STAGES:
        raise UserError(
            f"{record['asset']} {original.fingerprint[:SHORT]} was built by the stage "
            f"{original.stage!r}, which this code does not have. Check out commit "
            f"{record['git']['commit'] or '(not recorded)'} to reproduce it."
        )
    stage = stage_named(original.stage)
    version = original.manifest["version"]
    if stage.version != version:
        raise UserError(
            f"{record['asset']} {original.fingerprint[:SHORT]} was built by version {version} of "
            f"the stage {stage.name!r}; the code here is version {stage.version}. Check out commit "
            f"{record['git']['commit'] or '(not recorded)'} to reproduce it."
        )
    recipe, _, name = record["asset"].partition("/")
    return Node(recipe, name, stage, lambda base: original.config)


def _profile(recorded: Mapping[str, Any]) -> Profile:
    """The recorded profile, without the settings that profiles no longer have."""
    settings = {key: value for key, value in recorded.items() if key in Profile.model_fields}
    return Profile.model_validate(settings)


def _inputs(store: Store, original: Artifact) -> dict[str, Artifact]:
    """The recorded inputs, verified."""
    inputs = {}
    for entry in original.manifest["inputs"]:
        name, artifact = entry["name"], store.find(entry["fingerprint"])
        if artifact is None:
            raise UserError(
                f"Its input {name} {entry['fingerprint'][:SHORT]} is not in the store any more: "
                "build that again first."
            )
        inputs[name] = store.check(artifact)
    return inputs


def _temporary_store(folder: Path, store: Store, inputs: Inputs) -> Store:
    """An empty store at `folder` with links to the inputs, and to the downloads, of `store`."""
    temporary = Store(folder)
    temporary.artifacts_folder.mkdir()
    downloads = store.home / "downloads"
    downloads.mkdir(exist_ok=True)
    (folder / "downloads").symlink_to(downloads.resolve(), target_is_directory=True)
    for artifact in {artifact.fingerprint: artifact for artifact in inputs.values()}.values():
        link = temporary.artifacts_folder / artifact.fingerprint
        link.symlink_to(artifact.path.parent, target_is_directory=True)
    return temporary


def _reasons(original: Artifact, again: Artifact) -> list[str]:
    """A sentence for each way in which it was built differently: by other code, on other ranks, on
    another machine, with other packages.
    """
    then, now = original.manifest["provenance"], again.manifest["provenance"]
    sentences = []
    if then["git"] != now["git"] or now["git"]["dirty"]:
        built_by, here = (
            f"commit {(made['git']['commit'] or 'not recorded')[:SHORT]}"
            + (" with changes" if made["git"]["dirty"] else "")
            for made in (then, now)
        )
        sentences.append(
            f"It was built by the code of {built_by}; the code here is that of {here}."
        )
    if execution(then) != execution(now):
        sentences.append(
            f"It was built by {execution(then)}; here by {execution(now)}: numbers are added in "
            "another order."
        )
    for name, what in (("hardware", "on"), ("packages", "with")):
        differing = [
            (key, then[name].get(key), now[name].get(key))
            for key in dict.fromkeys([*then[name], *now[name]])
            if then[name].get(key) != now[name].get(key)
        ]
        if differing:
            before, here = (
                ", ".join(f"{key} {values[side] or 'none'}" for key, *values in differing)
                for side in (0, 1)
            )
            sentences.append(f"It was built {what} {before}; here {what} {here}.")
    return sentences


def _differing_files(original: Artifact, again: Artifact) -> list[str]:
    published, rebuilt = (
        {file["path"]: file["sha256"] for file in artifact.manifest["files"]}
        for artifact in (original, again)
    )
    sentences = []
    for path in sorted(published.keys() | rebuilt.keys()):
        before, after = published.get(path), rebuilt.get(path)
        if before != after:
            before, after = ((digest or "not there")[:SHORT] for digest in (before, after))
            sentences.append(f"{path}: {before} as published, {after} built again")
    return sentences
