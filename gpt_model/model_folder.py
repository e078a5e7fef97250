"""The files of a model folder, as `transformers` lays one out: config.json, weights as safetensors.
No torch: tensors are `convert`'s.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpt_model.errors import CorruptFile, UserError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"  # of a model in several files: tensor -> file
PICKLED = "pytorch_model*.bin"


def described(folder: Path) -> dict[str, Any]:
    """What config.json says. Raises UserError where there is none."""
    file = folder / CONFIG
    if not file.is_file():
        raise UserError(
            f"{folder} is not a model folder: it has no {CONFIG}. Give a folder with {CONFIG} and {WEIGHTS}."
        )
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptFile(f"{file} is not JSON: {error}.") from error
    if not isinstance(stored, dict):
        raise CorruptFile(f"{file} is not a JSON object.")
    return stored


def weight_files(folder: Path) -> list[Path]:
    """The one file of weights, or those that an index names. Raises UserError where they are not
    there, or are pickled.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        if files := sorted(folder.glob(PICKLED)):
            raise pickled(
                str(files[0]),
                f"Give the model as safetensors: transformers' save_pretrained writes {WEIGHTS}.",
            )
        raise UserError(
            f"{folder} is not a model folder: it has no {WEIGHTS}. Give a folder with {CONFIG} and {WEIGHTS}."
        )
    try:
        names = sorted(
            set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptFile(
            f"{folder / INDEX} is not an index of weights: {error!r}. Fetch or export the model again."
        ) from error
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise UserError(
                f"{folder / INDEX} names the file {name!r}, which is not beside it. Fetch or export the model again."
            )
    return [folder / name for name in names]


def pickled(what: str, instead: str) -> UserError:
    """The refusal of weights that are no safetensors."""
    return UserError(
        f"{what} is pickled, and reading it could run whatever its author wrote into it. {instead}"
    )
