"""TensorBoard event files: FOLDER/RECIPE/STAGE/FINGERPRINT/, one file a build.

A file is a function of the build's event log, byte for byte: times are the events'. So a build that
is sent again is written from its beginning, and a TensorBoard that reads it meanwhile notices
nothing. The file stays what `torch.utils.tensorboard` writes, without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from assets.store.store import SHORT

if TYPE_CHECKING:
    from assets.tracking.follower import Finished


class TensorBoard:
    """The files below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"tensorboard {folder}"
        self.title = f"TensorBoard's files in {folder}"

    def begin(self, folder: Path, build: Mapping[str, Any]) -> EventFile:
        return EventFile(self._file(build), build["attempts"][0]["began"])

    def is_there(self, build: Mapping[str, Any]) -> bool:
        return self._file(build).is_file()

    def reset(self) -> None:
        """A file that is begun again is written over."""

    def _file(self, build: Mapping[str, Any]) -> Path:
        began = f"{build['attempts'][0]['began']:010.0f}"
        name = f"events.out.tfevents.{began}.{build['build'][:SHORT]}"
        return self.folder / build["recipe"] / build["stage"] / build["fingerprint"][:SHORT] / name


class EventFile:
    """The event file of one build."""

    def __init__(self, path: Path, began: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = RecordWriter(path.open("wb"))
        self._write(Event(wall_time=began, file_version="brain.Event:2"))

    def log(self, row: int, event: Mapping[str, Any], values: Mapping[str, float]) -> None:
        self._scalars(event["time"], event["step"], values)

    def flush(self) -> None:
        self._writer.flush()

    def finish(self, finished: Finished) -> None:
        if finished.metrics:
            self._scalars(finished.time, finished.step, finished.metrics)
        self._writer.close()

    def _scalars(self, time: float, step: int, values: Mapping[str, float]) -> None:
        summary = Summary(
            value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        )
        self._write(Event(wall_time=time, step=step, summary=summary))

    def _write(self, event: Event) -> None:
        self._writer.write(event.SerializeToString())
