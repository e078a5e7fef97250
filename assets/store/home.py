"""Where a person's store and downloads are: one rule for whoever plans a build, and for the worker
that runs it, which inherits the environment.
"""

from __future__ import annotations

import os
from pathlib import Path


def store_home() -> Path:
    """$LINEAGE_HOME, else ./lineage; absolute."""
    return Path(os.environ.get("LINEAGE_HOME") or "lineage").expanduser().absolute()


def downloads_folder() -> Path:
    """$LINEAGE_DOWNLOADS, else `downloads` in the store's home; absolute."""
    downloads = os.environ.get("LINEAGE_DOWNLOADS") or store_home() / "downloads"
    return Path(downloads).expanduser().absolute()
