"""Brings a model and its tokenizer from the Hugging Face hub or a folder into the store's form.

`gpt_model.convert` says which architectures fit, and converts the weights. The artifact:

    model/           as of a pre-trained one: weights, config and the tokenizer's files
    tokenizer.json … the tokenizer's files again, for the stages that take a tokenizer
    shape.json       the ModelConfig
    imported.json    the files that were read, each with its sha256
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from assets.contract import SCRATCH, Built, Config, Inputs, Metrics, Progress, Verdict
from assets.execution.tuning import are_numbers
from assets.stages.base_model import write_shape
from assets.stages.imported import OTHER_FILES, SOURCE_FILE, WEIGHT_FILES
from assets.store.home import downloads_folder
from gpt_model import convert
from gpt_model.data.hub import snapshot
from gpt_model.data.local_files import PinnedFile, linked
from gpt_model.errors import Unavailable, UserError
from gpt_model.io import PICKLED, dump_json, pickled, sha256_of
from gpt_model.tokenizer import Tokenizer
from gpt_model.transformer import GPT

# Programs pad a vocabulary to such a multiple, for speed: GPT-2's 50,257 to 50,304 or 51,200.
PADDED_TO, WIDEST_PADDING = 8, 1024
PADDING = "padding"  # in SOURCE_FILE: rows that were cut off


def run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Fetch or find the files, convert them, and write the artifact."""
    if reason := config.get("not_run"):
        raise Unavailable(reason)
    with _folder(config, output / SCRATCH, progress) as (folder, name):
        try:
            model, tokenizer, padding = _read(folder)
        except UserError as error:
            raise type(error)(
                str(error).replace(str(folder), name), field=config.get("folder") and "folder"
            ) from None
        paths = sorted(path for path in folder.iterdir() if path.is_file())
        read = sum(path.stat().st_size for path in paths)
        files = [
            {"path": path.name, "sha256": sha256_of(path), "bytes": path.stat().st_size}
            for path in paths
        ]
    if padding:
        progress.log(padded(padding, tokenizer.vocab_size))
    convert.save(model, output / "model", tokenizer.end_of_text)
    tokenizer.save(output / "model")
    tokenizer.save(output)
    write_shape(model.config, output)
    facts = {
        "from": {key: config[key] for key in ("hub", "revision", "folder") if key in config},
        "files": files,
        **({PADDING: padding} if padding else {}),
    }
    dump_json(output / SOURCE_FILE, facts, indent=1, sort_keys=True)
    return {
        "parameters": model.config.parameters(),
        "vocab_size": tokenizer.vocab_size,
        "bytes_read": read,
    }


@contextmanager
def _folder(config: Config, scratch: Path, progress: Progress) -> Iterator[tuple[Path, str]]:
    """A folder with the files, and its name in sentences. Raises UserError where the files cannot
    be had.
    """
    if "hub" in config:
        name = f"{config['hub']} at {config['revision'][:12]}"
        progress.log(f"fetching {name} from the hub")
        yield _fetched(config["hub"], config["revision"]), name
        return
    scratch.mkdir(parents=True, exist_ok=True)
    files = [PinnedFile.model_validate(file) for file in config["files"]]
    with linked(files, downloads_folder(), scratch) as folder:
        yield folder, config["folder"]


def _fetched(repository: str, commit: str) -> Path:
    folder = snapshot(repository, commit, [*WEIGHT_FILES, *OTHER_FILES], downloads_folder())
    if not any(folder.glob("*.safetensors")):
        pickled_weights = (
            f"What {repository} at {commit[:12]} has in place of safetensors ({PICKLED})"
        )
        raise pickled(pickled_weights, "Choose a revision or another repository that has them.")
    return folder


def _read(folder: Path) -> tuple[GPT, Tokenizer, int]:
    """The model, its tokenizer, and how many rows of padding the model's vocabulary had: they are
    cut off, as no token is theirs.
    """
    model = convert.load(folder)
    style = "gpt1" if model.config.family == "gpt1" else "gpt2"
    tokenizer = Tokenizer.from_folder(folder, style)
    padding = model.config.vocab_size - tokenizer.vocab_size
    if 0 < padding < WIDEST_PADDING and model.config.vocab_size % PADDED_TO == 0:
        return convert.with_vocabulary(model, tokenizer.vocab_size), tokenizer, padding
    if padding:
        raise UserError(
            f"{folder}/config.json: vocab_size is {model.config.vocab_size}, but the tokenizer "
            f"beside it has {tokenizer.vocab_size} "
            "tokens. Give a model and the tokenizer it was trained with."
        )
    return model, tokenizer, 0


def padded(padding: int, vocab_size: int) -> str:
    return (
        f"The vocabulary of {vocab_size + padding:,} has {padding:,} rows that no token of its "
        f"tokenizer has: cut to {vocab_size:,}."
    )


def model_loads(built: Built) -> Verdict:
    model = convert.load(built.output / "model")
    (finite, broken), shape = are_numbers(model.parameters()), model.config
    padding = json.loads((built.output / SOURCE_FILE).read_text(encoding="utf-8")).get(PADDING)
    return Verdict(
        finite,
        f"model/ loads as {shape.family}, {shape.layers} layers of width {shape.width}, "
        f"{shape.parameters():,} parameters{broken}."
        + (f" {padded(padding, shape.vocab_size)}" if padding else ""),
        {"parameters": shape.parameters()},
    )
