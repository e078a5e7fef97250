"""Using a built model from the command line: writing text with it, and taking its folder elsewhere. torch is imported when used."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from assets.contract import Artifact
from assets.resources.store import Store
from gpt_model.errors import CorruptFile, UserError

WEIGHTS, HEAD = "model.safetensors", "head.safetensors"  # the head: of a fine-tuned model (`gpt_model.tasks.model`)


def model_folder(store: Store, artifact: Artifact) -> Path:
    """The artifact's model folder, as `transformers` loads it. Raises UserError naming the artifacts that have one."""
    if folder := _folder(artifact):
        return folder
    there = [ref for ref, fingerprint in store.refs().items() if (other := store.find(fingerprint)) and _folder(other)]
    raise UserError(
        f"{artifact.stage} {artifact.fingerprint[:12]} has no model in it. "
        + (f"These have: {', '.join(there)}." if there else "No artifact here has one: build a recipe first (gpt-lineage run RECIPE).")
    )


def _folder(artifact: Artifact) -> Path | None:
    return next((folder for folder in (artifact.path / "model", artifact.path) if (folder / WEIGHTS).is_file()), None)


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
    """`samples` continuations of `prompt`, up to end-of-text; an empty one begins a new document. `on_token`: see `generation.generate`."""
    import torch

    from gpt_model import convert, generation
    from gpt_model.tokenizer import Tokenizer

    tokenizer, model = Tokenizer.load(folder), convert.load(folder)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    ids = tokenizer.encode(prompt) or [tokenizer.end_of_text]
    written = generation.generate(
        model, [ids] * samples, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed,
        stop=[tokenizer.end_of_text], on_token=on_token,
    )  # fmt: skip
    return [tokenizer.decode(ids) for ids in written]


def export(store: Store, artifact: Artifact, target: Path, *, replace: bool) -> Path:
    """Copy the model folder to `target`, verified first. `replace`: a folder with something in it is emptied. Returns `target`."""
    folder = model_folder(store, artifact)
    if problems := store.verify(artifact):
        raise CorruptFile(f"It is not exported, as it is not what was published: {problems[0]}")
    if target.is_file():
        raise UserError(f"{target} is a file: give a folder.")
    if target.is_dir() and any(target.iterdir()):
        if not replace:
            raise UserError(f"{target} is not empty. Give another folder, or --force to replace what is in it.")
        shutil.rmtree(target)
    shutil.copytree(folder, target, dirs_exist_ok=True)
    return target
