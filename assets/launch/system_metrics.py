"""The machine's load while a build runs, under MLflow's names of system metrics.

Sampled in a thread beside the stage: some 0.1 ms a sample, and a call of nvidia-smi where the
profile's device is a GPU.
"""

from __future__ import annotations

import csv
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil

EVERY_SECONDS = 10.0  # as MLflow
SAMPLES = 1000  # about as many in a build of days: it samples less often the longer it runs
GPU_FIELDS = {
    "index": "",
    "memory.used": "memory_usage_megabytes",
    "memory.total": "",
    "utilization.gpu": "utilization_percentage",
    "power.draw": "power_usage_watts",
}
MEBIBYTE = (1 << 20) / 1e6  # in megabytes


@contextmanager
def sampled(report: Callable[[dict[str, float]], None], device: str) -> Iterator[None]:
    """Calls `report` with a sample from time to time while the block runs. Not at once: MLflow
    lists and compares first what a run reported first, and that should be the stage's own.
    """
    over = threading.Event()
    psutil.cpu_percent()  # the next call counts from here

    def sample_often() -> None:
        began, pause, is_over = time.monotonic(), EVERY_SECONDS, False
        while not is_over:
            is_over = over.wait(pause)
            if is_over and time.monotonic() - began > EVERY_SECONDS:
                return  # only a stage of seconds has its sample at the end
            report(machine() | (gpus() if device == "cuda" else {}))
            pause = max(EVERY_SECONDS, (time.monotonic() - began) / SAMPLES)

    thread = threading.Thread(target=sample_often, name="system metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def machine() -> dict[str, float]:
    """CPU since the last call, and memory, of the whole machine."""
    memory = psutil.virtual_memory()
    return {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": round(memory.used / 1e6, 1),
        "system/system_memory_usage_percentage": memory.percent,
    }


def gpus() -> dict[str, float]:
    """Of each GPU of the machine; nothing where nvidia-smi does not answer."""
    query = ["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    with suppress(OSError, subprocess.SubprocessError):
        return of_gpus(subprocess.run(query, capture_output=True, text=True, timeout=10).stdout)
    return {}


def of_gpus(table: str) -> dict[str, float]:
    """What nvidia-smi wrote, a GPU a line. A field that a GPU does not have is left out."""
    sample = {}
    for line in csv.reader(table.splitlines(), skipinitialspace=True):
        fields = dict(zip(GPU_FIELDS, line, strict=False))
        gpu = f"system/gpu_{fields['index']}_"
        for field, name in GPU_FIELDS.items():
            with suppress(KeyError, ValueError):
                if name:
                    value = float(fields[field])
                    sample[gpu + name] = value * (MEBIBYTE if field == "memory.used" else 1.0)
        with suppress(KeyError, ValueError, ZeroDivisionError):
            share = float(fields["memory.used"]) / float(fields["memory.total"])
            sample[f"{gpu}memory_usage_percentage"] = round(100 * share, 1)
    return sample
