"""Models in the store: importing one from elsewhere, the folder of one, generating text with it,
exporting it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from assets.build import Outcome, Request, WorkerFailed, build
from assets.contract import Artifact
from assets.estimate import with_estimate
from assets.graph import node_named, nodes
from assets.launch.transport import launcher_for
from assets.lineage import prepare_home
from assets.recipe.profile import Profile
from assets.recipe.recipe import ImportedSection, Recipe
from assets.report.lineage_tree import traced
from assets.report.model_card import LICENSE, Card, licence_notes, model_card
from assets.store.manifest import explain_full_disk, payload, read_json
from assets.store.store import SHORT, Store
from assets.tracking.tracking import Tracking
from gpt_model.data.hub import silent
from gpt_model.errors import CorruptFile, UserError, shortened
from gpt_model.io import sha256_of, temporary_name, write_json
from pipelines.progress import BuildDisplay

WEIGHTS = "model.safetensors"
EXPORT = "lineage.json"  # of an exported folder: its lineage, and the sha256 of its files
TEXT_GENERATION, TEXT_CLASSIFICATION = "text-generation", "text-classification"
HEAD = "head.safetensors"  # of a fine-tuned model (`gpt_model.finetuning.heads`)


def model_folder(store: Store, artifact: Artifact) -> Path:
    """The artifact's model folder, as `transformers` loads it, verified. Raises UserError naming
    the artifacts that have one, and CorruptFile where it is not what was published.
    """
    if folder := _folder(store.check(artifact)):
        return folder
    hint = "No artifact here has one: build a recipe first (gpt-lineage run RECIPE)."
    models = {other.fingerprint for other in store.artifacts() if _folder(other)}
    if refs := [ref for ref, fingerprint in store.refs().items() if fingerprint in models]:
        hint = f"These have: {', '.join(refs)}."
    name = f"{artifact.stage} {artifact.fingerprint[:SHORT]}"
    raise UserError(f"{name} has no model in it. {hint}")


def _folder(artifact: Artifact) -> Path | None:
    folders = (artifact.path / "model", artifact.path)
    return next((folder for folder in folders if (folder / WEIGHTS).is_file()), None)


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
    # torch takes seconds to import, and most callers only look for a folder.
    import torch

    from gpt_model import convert, generation
    from gpt_model.tokenizer import Tokenizer

    tokenizer, model = Tokenizer.load(folder), convert.load(folder)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    ids = tokenizer.encode(prompt) or [tokenizer.end_of_text]
    continuations = generation.generate(
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
    return [tokenizer.decode(continuation) for continuation in continuations]


def export(
    store: Store,
    artifact: Artifact,
    target: Path,
    *,
    name: str = "",
    replace: bool = False,
    languages: Sequence[str] = (),
    address: str | None = None,
) -> tuple[Path, str]:
    """Copy the model folder, verified, to `target`, for `transformers` without our code: written
    beside it, then renamed. `lineage.json` in it has the lineage, and which files there are;
    README.md and LICENSE say what the model is and what it was made from.

    `name`: which of the artifact's refs to call it by. `replace`: also where an earlier export is.
    `languages`: of its text, codes of ISO 639. `address`: how `transformers` will find it; default:
    `target`'s name. Returns `target` and the pipeline of `transformers` that it is for. Raises
    UserError where that is something else, and where no class of `transformers` is this decoder.
    """
    # these import torch, for which the other commands do not wait
    from gpt_model import convert
    from gpt_model.finetuning.export import export_classifier

    folder, target = model_folder(store, artifact), target.resolve()
    convert.check_exportable(folder)
    _require_replaceable(target, store.home, replace)
    part, aside = (
        temporary_name(target.with_name(f".{target.name}.{name}")) for name in ("new", "old")
    )
    with explain_full_disk(target):
        try:
            part.mkdir(parents=True)
            task = TEXT_GENERATION
            if (folder / HEAD).is_file() and export_classifier(folder, part):
                task = TEXT_CLASSIFICATION
            else:
                convert.export_folder(folder, part)
            refs = [ref for ref, other in store.refs().items() if other == artifact.fingerprint]
            name = name if name in refs else next(iter(refs), target.name)
            lineage = traced(store, artifact, recipe=name.partition("/")[0] if refs else None)
            card = Card(artifact, lineage, name, task, address or target.name, languages)
            (part / "README.md").write_text(f"{model_card(store, card)}\n", encoding="utf-8")
            (part / LICENSE).write_text(licence_notes(card), encoding="utf-8")
            files = {path.relative_to(part).as_posix(): sha256_of(path) for path in payload(part)}
            identity = {"stage": artifact.stage, "fingerprint": artifact.fingerprint}
            identity["digest"] = artifact.digest
            write_json(part / EXPORT, {**identity, "files": files, "lineage": lineage})
            if target.exists():
                target.rename(aside)
            part.rename(target)
            shutil.rmtree(aside, ignore_errors=True)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return target, task


def _require_replaceable(target: Path, home: Path, replace: bool) -> None:
    """Raises UserError unless `target` is missing or empty, or, to `replace` it, an earlier export
    with nothing else in it.
    """
    if target.is_relative_to(home.resolve()) or home.resolve().is_relative_to(target):
        raise UserError(
            f"{target} is in the store {home}, or holds it: give a folder apart from it."
        )
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"{target} is a file: give a folder.")
    if not any(target.iterdir()):
        return
    if not replace:
        raise UserError(
            f"{target} is not empty. Give another folder, or --force to replace an earlier export."
        )
    remedy = "It is not replaced. Give another folder, or remove it yourself."
    checkouts = [path for path in (target, *target.parents) if (path / ".git").exists()]
    if checkout := next(iter(checkouts), next(target.rglob(".git"), None)):
        raise UserError(f"{target} is in, or holds, a checkout ({checkout}). {remedy}")
    try:
        written = dict(read_json(target / EXPORT)["files"])
    except (FileNotFoundError, CorruptFile, LookupError, TypeError, ValueError):
        raise UserError(f"{target} is no export: it has no {EXPORT} of one. {remedy}") from None
    for path in payload(target, links=True):
        name = path.relative_to(target).as_posix()
        if name != EXPORT and (path.is_symlink() or written.get(name) != sha256_of(path)):
            raise UserError(f"{path} is not what an export wrote there. {remedy}")


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
        return node.ref, build(request, store, launcher_for(profile), Tracking(store.home))
    except WorkerFailed as failure:
        raise UserError(str(failure)) from None


def push(folder: Path, hub_id: str, message: str, *, private: bool) -> str:
    """Upload an exported folder to a model repository of the hub, by its own client, and make that
    repository if need be. Returns the commit's address.

    The token is the client's to find: HF_TOKEN, or the one of `hf auth login`. Raises UserError.
    """
    # slow to import, and only this command needs it
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    if not get_token():
        raise UserError(
            "The hub needs a token that may write: set HF_TOKEN to one of "
            "https://huggingface.co/settings/tokens, or run `hf auth login`."
        )
    hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        hub.create_repo(hub_id, private=private or None, exist_ok=True)
        commit = hub.upload_folder(repo_id=hub_id, folder_path=folder, commit_message=message)
    except HfHubHTTPError as error:
        if silent(error):
            raise _unanswered(hub_id) from None
        if error.response is not None and error.response.status_code in (401, 403, 404):
            raise UserError(
                f"The hub does not let this token write to {hub_id}. Give HF_TOKEN a token that "
                "may, or another HUB_ID."
            ) from None
        raise UserError(f"The hub refused {hub_id}: {shortened(str(error))}") from None
    except Exception as error:
        if silent(error):
            raise _unanswered(hub_id) from None
        raise
    return str(commit.commit_url)


def _unanswered(hub_id: str) -> UserError:
    return UserError(
        f"{hub_id} is not pushed: the hub does not answer. Try again where it can be reached."
    )
