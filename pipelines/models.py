"""Models in the store: the folder of one, generating text with it, exporting it.

torch is imported when used: it takes seconds, and most callers only look for a folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from assets.contract import Artifact
from assets.store.store import SHORT, Store
from gpt_model.errors import CorruptFile, UserError

WEIGHTS = "model.safetensors"
HEAD = "head.safetensors"  # of a fine-tuned model (`gpt_model.finetuning.heads`)


def model_folder(store: Store, artifact: Artifact) -> Path:
    """The artifact's model folder, as `transformers` loads it. Raises UserError naming the
    artifacts that have one.
    """
    if folder := _folder(artifact):
        return folder
    hint = "No artifact here has one: build a recipe first (gpt-lineage run RECIPE)."
    artifacts = {ref: store.find(fingerprint) for ref, fingerprint in store.refs().items()}
    if refs := [ref for ref, other in artifacts.items() if other and _folder(other)]:
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


def export(store: Store, artifact: Artifact, target: Path, *, replace: bool) -> Path:
    """Copy the model folder, verified first, to `target`, for `transformers` without our code.

    `replace`: empty a folder that is not empty. Returns `target`. Raises UserError where no class
    of `transformers` is this decoder.
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
