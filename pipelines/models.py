"""Models and the command line: writing text with one, bringing one in from elsewhere, and taking
one there. torch is imported when used.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from assets.contract import Artifact
from assets.store.store import Store
from gpt_model.errors import CorruptFile, UserError

if TYPE_CHECKING:
    from assets.build import Outcome
    from assets.recipe.profile import Profile
    from pipelines.progress import BuildDisplay

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
WEIGHTS, HEAD = (
    "model.safetensors",
    "head.safetensors",
)  # the head: of a fine-tuned model (`gpt_model.finetuning.heads`)


def model_folder(store: Store, artifact: Artifact) -> Path:
    """The artifact's model folder, as `transformers` loads it. Raises UserError naming the
    artifacts that have one.
    """
    if folder := _folder(artifact):
        return folder
    there = [
        ref
        for ref, fingerprint in store.refs().items()
        if (other := store.find(fingerprint)) and _folder(other)
    ]
    raise UserError(
        f"{artifact.stage} {artifact.fingerprint[:12]} has no model in it. "
        + (
            f"These have: {', '.join(there)}."
            if there
            else "No artifact here has one: build a recipe first (gpt-lineage run RECIPE)."
        )
    )


def _folder(artifact: Artifact) -> Path | None:
    return next(
        (
            folder
            for folder in (artifact.path / "model", artifact.path)
            if (folder / WEIGHTS).is_file()
        ),
        None,
    )


def generate(
    folder: Path,
    prompt: str,
    on_token: Callable[[int, int], None],
    *,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    samples: int,
) -> list[str]:
    """`samples` continuations of `prompt`, up to end-of-text; an empty one begins a new document.
    `on_token`: see `generation.generate`.
    """
    import torch

    from gpt_model import convert, generation
    from gpt_model.tokenizer import Tokenizer

    tokenizer, model = Tokenizer.load(folder), convert.load(folder)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    ids = tokenizer.encode(prompt) or [tokenizer.end_of_text]
    written = generation.generate(
        model,
        [ids] * samples,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=[tokenizer.end_of_text],
        on_token=on_token,
    )
    return [tokenizer.decode(ids) for ids in written]


def imported(
    store: Store,
    given: str,
    revision: str | None,
    licence: str,
    name: str | None,
    profile: Profile,
    display: BuildDisplay,
) -> tuple[str, Outcome]:
    """Bring a model of the hub, or of a folder, into the store as NAME/imported, or find it there:
    (ref, outcome). Raises UserError.

    It is the build of a recipe with nothing in it but that.
    """
    from assets.build import Request, WorkerFailed, build
    from assets.estimate import with_estimate
    from assets.graph import nodes
    from assets.launch.launcher import LocalLauncher
    from assets.lineage import prepare_home
    from assets.recipe.recipe import ImportedSection, Recipe
    from assets.stages.imported import IMPORTED
    from assets.tracking.tracking import Tracking

    folder = Path(given).expanduser()
    if folder.is_dir():
        if revision:
            raise UserError(f"{folder} is a folder, which has no revisions: leave --revision out.")
        section = ImportedSection(folder=str(folder.resolve()), licence=licence)
    elif given.startswith((".", "/", "~")) or not HUB_ID.fullmatch(given):
        raise UserError(
            f"{given} is neither a folder here nor a repository on the hub (OWNER/NAME)."
        )
    else:
        section = ImportedSection(hub=given, revision=revision or "main", licence=licence)
    called = name or re.sub(
        r"[^A-Za-z0-9_]+",
        "_",
        folder.resolve().name if section.folder else given.rpartition("/")[2],
    )
    if not re.fullmatch(r"[A-Za-z0-9_]+", called):
        raise UserError(f"{called!r} is no name: letters, digits and _. Give another --name.")
    node = next(
        node for node in nodes(Recipe(name=called, imported=section)) if node.stage is IMPORTED
    )
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


def export(store: Store, artifact: Artifact, target: Path, *, replace: bool) -> Path:
    """The model folder, verified first, at `target` as `transformers` loads it with nothing of
    ours. Returns `target`.

    `replace`: a folder with something in it is emptied. Raises UserError where no class of
    `transformers` is this decoder.
    """
    from gpt_model import convert

    folder = model_folder(store, artifact)
    if problems := store.verify(artifact):
        raise CorruptFile(f"It is not exported, as it is not what was published: {problems[0]}")
    if target.is_file():
        raise UserError(f"{target} is a file: give a folder.")
    if target.is_dir() and any(target.iterdir()) and not replace:
        raise UserError(
            f"{target} is not empty. Give another folder, or --force to replace what is in it."
        )
    convert.check_exportable(folder)  # before anything is removed
    shutil.rmtree(target, ignore_errors=True)
    convert.export_folder(folder, target)
    return target
