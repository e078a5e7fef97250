"""Checkpoints of a training run: atomic, checksummed, the last two kept, written while training
goes on.

    checkpoints/step-000000120/          appears by one rename, when all of it is on the disk
      rank-00000.safetensors             the weights and moments of that rank (`Engine.fragments`)
      manifest.json                      step, layout, sha256 of every file and of itself

A rank copies its fragments in memory, which is all that training waits for; a thread writes them.
They are named by parameter and first element, so a checkpoint loads under any world size and ZeRO
stage; under the ones it was written with, training goes on bit for bit. Each rank hashes its share
of the files, and reads the elements that it keeps, no others. All ranks must see the folder.
Nothing is pickled. Random state is not kept: the loop's is a function of the step.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gpt_model.errors import CorruptFile, UserError
from gpt_model.io import fsync, sha256_of, write_json
from gpt_model.training.engine import Engine, Execution, of_rank_0, sum_over_ranks
from gpt_model.training.sharded import Fragment, shares

RETAINED = 2
VERSION = 1
MANIFEST = "manifest.json"


class Checkpoints:
    """One run's checkpoints, as one rank sees them. Methods marked collective must be called by all
    ranks together.
    """

    def __init__(self, folder: Path, execution: Execution, log: Callable[[str], None]) -> None:
        self.folder, self.execution, self.log = folder, execution, log
        self.longest_stall = 0.0  # seconds
        self._last = time.monotonic()
        self._snapshot: dict[str, Tensor] = {}
        self._writer: threading.Thread | None = None
        self._failure: Exception | None = None
        self._stopping = threading.Event()

    # Reading

    def latest(self) -> dict[str, Any] | None:
        """The manifest of the newest checkpoint whose every byte is right, or None. Damaged ones
        are named, and removed. Each rank hashes its share of the files. Collective.
        """
        for path, older in self._newest_first():
            try:
                manifest = self._verified(path)
            except CorruptFile as error:
                then = "the one before it is used" if older else "training starts again from step 0"
                self.log(f"{error} It is left out: {then}.")
                if self.execution.rank == 0:
                    shutil.rmtree(path)
                continue
            layout = self._layout()
            if manifest["layout"] != layout:
                self.log(
                    f"{path} was written under {manifest['layout']} and is read under {layout}: "
                    "same weights, other order of additions."
                )
            return manifest
        return None

    def _newest_first(self) -> list[tuple[Path, bool]]:
        """Each checkpoint as rank 0 sees them, and whether there is one before it. Collective."""
        names: list[str] = []
        if self.execution.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for unfinished in self.folder.glob("*.partial"):
                shutil.rmtree(unfinished)
            names = sorted((path.name for path in self.folder.glob("step-*")), reverse=True)
        names = of_rank_0(names)
        return [(self.folder / name, index + 1 < len(names)) for index, name in enumerate(names)]

    def _verified(self, path: Path) -> dict[str, Any]:
        """`verify`, its hashing shared out among the ranks; raises on all of them. Collective."""
        rank, ranks = self.execution.rank, self.execution.world_size
        manifest, problem = None, None
        try:
            manifest = verify(path, rank, ranks)
        except CorruptFile as error:
            problem = str(error)
        problems: list[Any] = [None] * ranks
        torch.distributed.all_gather_object(problems, problem)
        if message := next(filter(None, problems), None):
            raise CorruptFile(message)
        assert manifest is not None
        return manifest

    def load_weights(self, manifest: dict[str, Any], model: nn.Module) -> None:
        """Fill what this rank has of a model that no engine has taken hold of yet: an engine makes
        its own copies of the weights as it starts.
        """
        self._read(manifest, shares(model))

    def load_moments(self, manifest: dict[str, Any], engine: Engine) -> None:
        """Fill the fragments of the moments that this rank's engine keeps."""
        for fragments in engine.fragments():
            self._read(manifest, (replace(each, values=each.moments()) for each in fragments))
        engine.set_steps_taken(manifest["step"])

    def _read(self, manifest: dict[str, Any], fragments: Iterable[Fragment]) -> None:
        """Fill the values of the fragments, at most one of each parameter. Of the files, only what
        overlaps with them is read.
        """
        targets = {
            f"{kind}/{fragment.name}": (fragment.start, values)
            for fragment in fragments
            for kind, values in fragment.values.items()
        }
        folder = self.folder / _name(manifest["step"])
        read_overlaps([folder / file for file in manifest["files"]], targets)

    # Writing

    def due(self) -> bool:
        """Whether it is time and the last one is written: rank 0 decides for all. Raises UserError
        (full disk). Collective.
        """
        self._raise_failure()
        idle = self._writer is None or not self._writer.is_alive()
        late = time.monotonic() - self._last >= self.execution.checkpoint_seconds
        of_rank_0 = self.execution.rank == 0 and idle and late
        decision = torch.tensor([float(of_rank_0)], device=self.execution.device)
        sum_over_ranks(decision)
        return bool(decision.item())

    def save(self, engine: Engine, step: int, facts: dict[str, Any]) -> None:
        """Keep the state after `step` steps. Copies it and returns; a thread writes it. `facts` go
        into the manifest. Collective.
        """
        began = time.monotonic()
        if self._writer is not None:
            self._writer.join()
        for fragments in engine.fragments():
            for fragment in filter(lambda fragment: fragment.owned, fragments):
                self._copy(fragment)
        if self.execution.device == "cuda":
            torch.cuda.synchronize()
        manifest = {"version": VERSION, "step": step, "layout": self._layout(), **facts}
        self._writer = threading.Thread(
            target=self._write, args=(manifest,), name="checkpoint", daemon=True
        )
        self._writer.start()
        self._last = time.monotonic()
        self.longest_stall = max(self.longest_stall, self._last - began)

    def _copy(self, fragment: Fragment) -> None:
        for kind, values in fragment.values.items():
            key = f"{kind}/{fragment.name}/{fragment.start}"
            if key not in self._snapshot:  # the copy's memory is kept for the next one
                self._snapshot[key] = torch.empty(
                    values.shape, dtype=values.dtype, pin_memory=values.is_cuda
                )
            self._snapshot[key].copy_(values, non_blocking=values.is_cuda)

    def _layout(self) -> dict[str, int]:
        return {"world_size": self.execution.world_size, "zero_stage": self.execution.zero_stage}

    def finish(self) -> None:
        """Wait for what is being written. Raises UserError (full disk)."""
        if self._writer is not None:
            self._writer.join()
        self._raise_failure()

    def abandon(self) -> None:
        """Stop writing, as training failed."""
        self._stopping.set()

    def _raise_failure(self) -> None:
        if isinstance(
            self._failure, OSError | SafetensorError
        ):  # the latter is also what a full disk is to safetensors
            raise UserError(
                f"{self.folder}: a checkpoint cannot be written ({self._failure}). Make room on "
                "that disk, or move LINEAGE_HOME to another, and run again: it goes on from the "
                "last one."
            ) from self._failure
        if self._failure is not None:
            raise self._failure

    def _write(self, manifest: dict[str, Any]) -> None:
        try:
            partial = self.folder / f"{_name(manifest['step'])}.partial"
            partial.mkdir(exist_ok=True)
            file = partial / f"rank-{self.execution.rank:05d}.safetensors"
            save_file(self._snapshot, file)
            fsync(file)
            write_json(file.with_suffix(".json"), {"sha256": sha256_of(file)})
            if self.execution.rank == 0:
                self._publish(partial, manifest)
        except Exception as error:  # raised again where the loop asks whether a checkpoint is due
            self._failure = error

    def _publish(self, partial: Path, manifest: dict[str, Any]) -> None:
        """Wait for every rank's file, write the manifest, rename, and remove what is older than the
        last two.
        """
        notes = [partial / f"rank-{rank:05d}.json" for rank in range(self.execution.world_size)]
        while not all(note.exists() for note in notes):
            if self._stopping.wait(0.01):
                return
        manifest["files"] = {
            note.with_suffix(".safetensors").name: json.loads(note.read_text(encoding="utf-8"))[
                "sha256"
            ]
            for note in notes
        }
        for note in notes:
            note.unlink()
        write_json(partial / MANIFEST, {**manifest, "sha256": _checksum(manifest)})
        fsync(partial)
        partial.rename(self.folder / _name(manifest["step"]))
        fsync(self.folder)
        for old in sorted(self.folder.glob("step-*"))[:-RETAINED]:
            shutil.rmtree(old)


def read_overlaps(files: Iterable[Path], targets: Mapping[str, tuple[int, Tensor]]) -> None:
    """Fill targets [n], by name, with elements from a first one on, out of files whose tensors are
    named NAME/START: the flat elements of NAME from START on. Only what overlaps is read.
    """
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - not a mapping
                name, _, start = key.rpartition("/")
                if name not in targets:
                    continue
                first_kept, target = targets[name]
                stored = tensors.get_slice(key)
                offset = int(start) - first_kept  # of the file's first element in the target
                first = max(0, offset)
                last = min(len(target), offset + stored.get_shape()[0])
                if first < last:
                    target[first:last].copy_(stored[first - offset : last - offset])


def verify(path: Path, rank: int = 0, ranks: int = 1) -> dict[str, Any]:
    """The manifest of the checkpoint in `path`, once every byte of it is right, or of this rank's
    share of its files. Raises CorruptFile naming the damaged file.
    """
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        right = manifest.pop("sha256") == _checksum(manifest) and manifest["version"] == VERSION
    except (OSError, ValueError, KeyError, AttributeError):
        right = False
    if not right:
        raise CorruptFile(
            f"{path / MANIFEST} is damaged: its checksum is not the one written in it."
        )
    for name, expected in list(manifest["files"].items())[rank::ranks]:
        file = path / name
        if not file.is_file() or sha256_of(file) != expected:
            raise CorruptFile(f"{file} is damaged: its sha256 is not the one its manifest has.")
    return manifest


def _name(step: int) -> str:
    return f"step-{step:09d}"


def _checksum(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
