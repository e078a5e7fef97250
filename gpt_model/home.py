"""Where a person's store is: one rule for whoever plans a build, and for the worker that runs it,
which inherits the environment.
"""

from __future__ import annotations

import os
from pathlib import Path


def store_home() -> Path:
    """$LINEAGE_HOME, else ./lineage; absolute."""
    return Path(os.environ.get("LINEAGE_HOME") or "lineage").expanduser().absolute()
