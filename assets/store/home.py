"""Where a person's store and downloads are: one rule for whoever plans a build, and for the worker
that runs it, which inherits the environment.
"""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

ROOT = Path(__file__).resolve().parents[2]  # of the clone, or of the installed package
ARTIFACTS = "artifacts"  # in a store's home
# The variable of Dagster's database: postgresql://user:password@host/database
DATABASE = "LINEAGE_DAGSTER_DB"


def store_home() -> Path:
    """$LINEAGE_HOME, else ./lineage where this is a clone or where a store is there, else the
    system's folder for a person's data; absolute.
    """
    if home := os.environ.get("LINEAGE_HOME"):
        return Path(home).expanduser().absolute()
    here = Path("lineage").absolute()
    if is_checkout() or (here / ARTIFACTS).is_dir():
        return here
    return platformdirs.user_data_path("gpt-lineage", appauthor=False)


def is_checkout() -> bool:
    """Whether this code is a clone's, and no installed wheel's."""
    return (ROOT / "pyproject.toml").is_file()


def downloads_folder() -> Path:
    """$LINEAGE_DOWNLOADS, else `downloads` in the store's home; absolute."""
    downloads = os.environ.get("LINEAGE_DOWNLOADS") or store_home() / "downloads"
    return Path(downloads).expanduser().absolute()


# Variables that say where libraries keep what they fetch and derive -> the folder in downloads.
OF_THE_HUB = {"HF_HUB_CACHE": "hub", "HF_DATASETS_CACHE": "hub", "HF_XET_CACHE": "hub/xet"}
CACHES = {"MPLCONFIGDIR": "matplotlib", **OF_THE_HUB}


def cache_environment(downloads: Path) -> dict[str, str]:
    """The environment in which a worker writes to the store and `downloads` alone. What a person
    has set of it stays as they set it.
    """
    return {
        name: str(downloads / folder)
        for name, folder in CACHES.items()
        if name not in os.environ and not (name in OF_THE_HUB and "HF_HOME" in os.environ)
    }
