"""The imported stage: a model and its tokenizer from the Hugging Face hub or a folder like one.

From here on it is a model like any other: fine-tuned, evaluated, trained on, exported. Where the
hub does not answer and the recipe names no commit, the stage is not run.
"""

from __future__ import annotations

from pathlib import Path

from assets.contract import Check, Config, Stage, deferred
from assets.store.home import downloads_folder
from gpt_model.data.hub import commit_of
from gpt_model.data.local_files import pin_files
from gpt_model.errors import Unreachable, UserError, about_all_of
from gpt_model.io import described, weight_files

EXECUTION = "assets.execution.imported"
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
OTHER_FILES = ("config.json", "tokenizer.json", "vocab.json", "merges.txt")
SOURCE_FILE = "imported.json"


def resolve(config: Config, base: Path) -> Config:
    """A repository with its commit, or with `not_run`, why that is unknown; a folder with its
    files' sha256.
    """
    if config["hub"]:
        resolved = {"hub": config["hub"], "licence": config["licence"]}
        try:
            return {**resolved, "revision": commit_of(config["hub"], config["revision"], "model")}
        except Unreachable:
            reason = f"{config['hub']} is a model on the hub, which does not answer here"
            return {**resolved, "revision": config["revision"], "not_run": reason}
    folder = base / Path(config["folder"]).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a folder. Give one with config.json, model.safetensors and a "
            "tokenizer.",
            field="folder",
        )
    with about_all_of("folder"):
        described(folder)
        weight_files(folder)
    paths = sorted(
        path for pattern in (*WEIGHT_FILES, *OTHER_FILES) for path in folder.glob(pattern)
    )
    return {
        "folder": folder.name,
        "licence": config["licence"],
        "files": [file.model_dump(mode="json") for file in pin_files(paths, downloads_folder())],
    }


IMPORTED = Stage(
    name="imported",
    version="1",
    run=deferred(EXECUTION, "run"),
    description="A model and its tokenizer from the Hugging Face hub or a folder, tied to a commit "
    "or to the files' bytes.",
    kinds=("huggingface", "pytorch"),
    checks=(
        Check(
            "model_loads",
            True,
            "model/ loads, and its weights are numbers.",
            deferred(EXECUTION, "model_loads"),
        ),
    ),
    show=deferred("assets.report.pretrained", "show_imported"),
    pin=resolve,
    model=True,
)
