"""How much memory this process has held at most. No torch."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def peak_resident_bytes() -> int:
    """The most bytes resident in this process so far."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux; its ru_maxrss also counts what the parent had before exec
        line = next(
            (line for line in status.read_text().splitlines() if line.startswith("VmHWM:")), None
        )
        if line is not None:
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
