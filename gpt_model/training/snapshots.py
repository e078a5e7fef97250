"""Snapshots: the weights a training run had after steps on a log schedule, kept for good beside the
finished model. Not checkpoints: those hold the moments too, go on from a kill, and are gone at the
end.

    snapshots/index.json   {"precision": "float32", "snapshots": [{"step": …, "tokens": …}, …]}
    snapshots/<step>/      model.safetensors and config.json: the weights as trained, to the bit
    model/                 the last one, which is not stored twice
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from gpt_model import convert
from gpt_model.io import fsync, write_json
from gpt_model.transformer import Decoder

FOLDER, INDEX, MODEL = "snapshots", "index.json", "model"


def snapshot_steps(steps: int, count: int) -> list[int]:
    """After which of `steps` steps a snapshot is taken: `count` of them, the first after one step,
    the last at the end, evenly spaced in the logarithm as far as whole steps allow. All steps where
    there are fewer.
    """
    if count < 2:
        return [steps] * count
    taken: list[int] = []
    for number in range(min(count, steps)):
        even = round(steps ** (number / (min(count, steps) - 1))) if steps > 1 else 1
        taken.append(max(even, taken[-1] + 1 if taken else 1))
    return taken


def save_snapshot(model: Decoder, output: Path, step: int) -> None:
    """The model as it is after `step` steps."""
    save_model(model, output / FOLDER / str(step))


def save_model(model: Decoder, folder: Path, end_of_text: int | None = None) -> None:
    """The model in `folder`, whole or not at all; in place of one that a killed attempt may have
    left.
    """
    partial_ = folder.with_name(f"{folder.name}.partial")
    for leftover in (folder, partial_):
        shutil.rmtree(leftover, ignore_errors=True)
    convert.save(model, partial_, end_of_text)
    fsync(partial_ / "model.safetensors")
    partial_.rename(folder)


def write_index(output: Path, tokens: dict[int, int]) -> None:
    """`tokens`: step -> tokens trained on, of every snapshot, the end's too."""
    known = [{"step": step, "tokens": tokens[step]} for step in sorted(tokens)]
    write_json(output / FOLDER / INDEX, {"precision": "float32", "snapshots": known})


def snapshots(artifact: Path) -> Iterator[tuple[float, Path]]:
    """(tokens trained on, the model's folder) of each snapshot in a pre-trained artifact's folder,
    in order; nothing where none were kept.
    """
    index = artifact / FOLDER / INDEX
    known = json.loads(index.read_text(encoding="utf-8"))["snapshots"] if index.is_file() else []
    for snapshot in known:
        folder = artifact / FOLDER / str(snapshot["step"])
        yield float(snapshot["tokens"]), folder if folder.is_dir() else artifact / MODEL
