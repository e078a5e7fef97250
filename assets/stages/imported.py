"""Stage `imported`: somebody else's model and tokenizer, from the Hugging Face hub or a folder laid
out like one, in this store's form.

From here on it is a model like any other: fine-tuned, evaluated, trained on, exported. What its
architecture has to be, and how weights are converted, is `gpt_model.convert`'s. The artifact:

    model/           as of a pre-trained one: weights, config and the tokenizer's files
    tokenizer.json … the tokenizer's files again, where the stages that take a tokenizer look for them
    shape.json       the ModelConfig
    imported.json    what was read, each file with its sha256

Or nothing but not_run.json, where the hub does not answer and nobody has said which commit is
meant.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from assets.contract import (
    NOT_RUN,
    SCRATCH,
    Built,
    Check,
    Config,
    Inputs,
    Metrics,
    Progress,
    Stage,
    Verdict,
)
from assets.stages.base_model import write_not_run, write_shape
from assets.store.home import downloads_folder
from gpt_model.data.hub import commit_of, silent
from gpt_model.data.location import PinnedFile, locate, pin
from gpt_model.disk import sha256_of
from gpt_model.errors import Unreachable, UserError, about_all_of
from gpt_model.model_folder import PICKLED, described, pickled, weight_files

if TYPE_CHECKING:
    from gpt_model.tokenizer import Tokenizer
    from gpt_model.transformer import GPT

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
OTHERS = ("config.json", "tokenizer.json", "vocab.json", "merges.txt")
FACTS = "imported.json"


# --- the recipe's section ---


def _pin(config: Config, base: Path) -> Config:
    """A repository tied to its commit, or `not_run`, why that is not known; a folder to its files'
    bytes, wherever it lies.
    """
    if config["hub"]:
        kept = {"hub": config["hub"], "licence": config["licence"]}
        try:
            return {**kept, "revision": commit_of(config["hub"], config["revision"], "model")}
        except Unreachable:
            reason = f"{config['hub']} is a model on the hub, which does not answer here"
            return {**kept, "revision": config["revision"], "not_run": reason}
    folder = base / Path(config["folder"]).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a folder. Give one with config.json, model.safetensors and a tokenizer.",
            field="folder",
        )
    with about_all_of("folder"):
        described(folder)
        weight_files(folder)
    paths = sorted(path for pattern in (*WEIGHTS, *OTHERS) for path in folder.glob(pattern))
    pinned = [
        pin(str(path), base, downloads_folder())[0].model_copy(update={"path": path.name})
        for path in paths
    ]
    return {
        "folder": folder.name,
        "licence": config["licence"],
        "files": [file.model_dump(mode="json") for file in pinned],
    }


# --- run ---


def run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Fetch or find the files, convert them, and write the artifact."""
    if reason := config.get("not_run"):
        write_not_run(output, reason)
        progress.log(f"Not run here: {reason}.")
        return {"not_run": 1.0}
    from gpt_model import convert

    with _folder(config, output / SCRATCH, progress) as (folder, name):
        try:
            model, tokenizer = _read(folder)
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
    convert.save(model, output / "model", tokenizer.end_of_text)
    tokenizer.save(output / "model")
    tokenizer.save(output)
    write_shape(model.config, output)
    facts = {
        "from": {key: config[key] for key in ("hub", "revision", "folder") if key in config},
        "files": files,
    }
    (output / FACTS).write_text(
        json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )
    return {
        "parameters": model.config.parameters(),
        "vocab_size": tokenizer.vocab_size,
        "bytes_read": read,
    }


@contextmanager
def _folder(config: Config, scratch: Path, progress: Progress) -> Iterator[tuple[Path, str]]:
    """A folder with the files, and what to call it in a sentence. Raises UserError where they are
    not to be had.
    """
    if "hub" in config:
        name = f"{config['hub']} at {config['revision'][:12]}"
        progress.log(f"fetching {name} from the hub")
        yield _fetched(config["hub"], config["revision"]), name
        return
    scratch.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=scratch) as made:
        for file in config["files"]:
            pinned = PinnedFile.model_validate(file)
            (Path(made) / pinned.path).symlink_to(
                locate(pinned, downloads_folder(), downloads_folder())
            )
        yield Path(made), config["folder"]


def _fetched(repository: str, commit: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(
                repository,
                revision=commit,
                allow_patterns=[*WEIGHTS, *OTHERS],
                cache_dir=downloads_folder() / "hub",
            )
        )
    except Exception as error:
        if silent(error):
            raise Unreachable(
                f"The hub did not give {repository} at {commit[:12]}: it does not answer. Try again where it can be reached."
            ) from None
        raise
    if not any(folder.glob("*.safetensors")):
        what = f"What {repository} at {commit[:12]} has in place of safetensors ({PICKLED})"
        raise pickled(what, "Choose a revision or another repository that has them.")
    return folder


def _read(folder: Path) -> tuple[GPT, Tokenizer]:
    from gpt_model import convert
    from gpt_model.tokenizer import Tokenizer

    model = convert.load(folder)
    files = folder / "vocab.json", folder / "merges.txt"
    if (folder / "tokenizer.json").is_file() or not all(file.is_file() for file in files):
        tokenizer = Tokenizer.load(folder)
    else:  # as older repositories have it
        tokenizer = (
            Tokenizer.from_gpt1_files(*files)
            if model.config.family == "gpt1"
            else Tokenizer.from_gpt2_files(*files)
        )
    if tokenizer.vocab_size != model.config.vocab_size:
        raise UserError(
            f"{folder}/config.json: vocab_size is {model.config.vocab_size}, but the tokenizer beside it has {tokenizer.vocab_size} "
            "tokens. Give a model and the tokenizer it was trained with."
        )
    return model, tokenizer


# --- checks and what a person is shown ---


def if_run(verdict: Callable[[Built], Verdict]) -> Callable[[Built], Verdict]:
    """A check of what is there; where nothing is, there is nothing to check."""

    def of(built: Built) -> Verdict:
        path = built.output / NOT_RUN
        if path.is_file():
            return Verdict(
                True, f"Not run here: {json.loads(path.read_text(encoding='utf-8'))['not_run']}."
            )
        return verdict(built)

    return of


def _model_loads(built: Built) -> Verdict:
    from gpt_model import convert

    model = convert.load(built.output / "model")
    numbers = all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    shape = model.config
    return Verdict(
        numbers,
        f"model/ loads as {shape.family}, {shape.layers} layers of width {shape.width}, {shape.parameters():,} parameters"
        + ("." if numbers else ", some of which are not numbers."),
        {"parameters": shape.parameters()},
    )


def show(built: Built, folder: Path) -> None:
    """imported.md: where it is from, and its files."""
    if not (built.output / FACTS).is_file():
        (folder / "imported.md").write_text(
            f"Not run here: {built.config['not_run']}.\n", encoding="utf-8"
        )
        return
    facts: Mapping[str, Any] = json.loads((built.output / FACTS).read_text(encoding="utf-8"))
    lines = [
        f"- {name}: {value}"
        for name, value in {**facts["from"], "licence": built.config["licence"]}.items()
    ]
    lines += [
        f"- parameters: {built.metrics['parameters']:,.0f}",
        "",
        "| file | bytes | sha256 |",
        "|---|---:|---|",
    ]
    lines += [
        f"| {file['path']} | {file['bytes']:,} | `{file['sha256']}` |" for file in facts["files"]
    ]
    (folder / "imported.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


IMPORTED = Stage(
    name="imported",
    version="1",
    run=run,
    description="A model and its tokenizer from the Hugging Face hub or a folder, tied to a commit or to the files' bytes.",
    kinds=("huggingface", "pytorch"),
    checks=(
        Check(
            "model_loads", True, "model/ loads, and its weights are numbers.", if_run(_model_loads)
        ),
    ),
    show=show,
    pin=_pin,
    model=True,
)
