"""A decoder's folder: the store's own and `transformers`' (config.json, safetensors). The
tokenizer's files are the caller's to add.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from gpt_model.config import ModelConfig
from gpt_model.convert.dialects import PREFIX, Weights, of_config, of_family, shape_of
from gpt_model.convert.network import filled, generation, theirs
from gpt_model.errors import CorruptFile, UserError
from gpt_model.io import CONFIG, INDEX, WEIGHTS, described, dump_json, weight_files
from gpt_model.tokenizer.exported import CONFIG_FILE, complete
from gpt_model.transformer import GPT, Decoder

NATIVE = {
    "gpt3": "gpt_lineage_gpt3",
    "lstm": "gpt_lineage_lstm",
}  # family -> model_type of the store's own folder


def save(model: Decoder, folder: Path | str, end_of_text: int | None = None) -> None:
    """Write the store's own folder, which `load` reads to the bit: for gpt1 and gpt2 what `export`
    writes, for others a native one.

    The same model gives the same bytes, and `transformers`, which takes seconds to import, is not
    needed.
    """
    if model.config.family not in NATIVE:
        return export(model, folder, end_of_text)
    described = {
        "model_type": NATIVE[model.config.family],
        "end_of_text": end_of_text,
        "model": model.config.model_dump(),
    }
    write(
        Path(folder),
        {CONFIG: described},
        {name: tensor.detach() for name, tensor in model.state_dict().items()},
    )


def export(model: Decoder, folder: Path | str, end_of_text: int | None = None) -> None:
    """Write config.json, generation_config.json and model.safetensors, which
    `AutoModelForCausalLM.from_pretrained` loads.

    Raises UserError where no class of `transformers` is this decoder.
    """
    dialect = of_family(model.config.family)
    described = {
        CONFIG: dialect.config(model.config, end_of_text),
        "generation_config.json": generation(model.config, end_of_text),
    }
    write(
        Path(folder),
        described,
        {f"{PREFIX}{name}": tensor for name, tensor in theirs(model, dialect).items()},
    )


def export_folder(source: Path, target: Path) -> None:
    """Copy a stored model folder, the tokenizer's and other files in it too, to `target`, as
    `transformers` and other programs load it. Its files are readable by everybody.

    Raises UserError, before anything is written, where no class of `transformers` is this decoder.
    """
    check_exportable(source)
    copy_readable(source, target)
    if (stored := described(source)).get("model_type") in NATIVE.values():
        export(load(source), target, stored.get("end_of_text"))
    if (target / CONFIG_FILE).is_file():
        complete(target, shape(source).context, "left")
    config = described(target)
    if config.get("model_type") == "gpt2":
        # llama.cpp's converter reads it; transformers writes it no more
        config = {"n_ctx": config["n_positions"], **config}
        dump_json(target / CONFIG, config, indent=2, sort_keys=True)


def copy_readable(source: Path, target: Path) -> None:
    """Copy the files in `source`, not who may read them: those of an artifact are its owner's."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file():
            shutil.copyfile(path, target / path.name)


def check_exportable(folder: Path) -> None:
    """Raises UserError where no class of `transformers` is this folder's decoder."""
    config = shape(folder)
    of_family(config.family).config(config, None)


def write(folder: Path, described: Mapping[str, Mapping[str, Any]], weights: Weights) -> None:
    """JSON files by name, and the weights, which whoever reads those may read too."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, contents in described.items():
        dump_json(folder / name, contents, indent=2, sort_keys=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in weights.items()},
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )
    # safetensors makes a file for its owner alone
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)


def load(folder: Path | str) -> GPT:
    """A GPT from a folder that `save`, `export` or `transformers` wrote. Raises UserError naming
    the file and field that do not fit.
    """
    model = load_decoder(folder)
    if not isinstance(model, GPT):
        raise UserError(
            f"{folder} is an {model.config.family.upper()}, and a GPT is wanted here. Give another "
            "model."
        )
    return model


def load_decoder(folder: Path | str) -> Decoder:
    """The same, of whatever kind it is."""
    folder = Path(folder)
    stored = described(folder)
    where = str(folder / CONFIG)
    if stored.get("model_type") in NATIVE.values():
        return filled(_native(stored, where), *_weights(folder))
    dialect = of_config(stored, where)
    return filled(dialect.read(stored, where), *_weights(folder), dialect)


def shape(folder: Path | str) -> ModelConfig:
    """The shape of a folder's decoder, by its config.json. Raises UserError as `load` does."""
    stored, where = described(Path(folder)), str(Path(folder) / CONFIG)
    return (
        _native(stored, where)
        if stored.get("model_type") in NATIVE.values()
        else of_config(stored, where).read(stored, where)
    )


def _native(stored: Mapping[str, Any], where: str) -> ModelConfig:
    fields = stored.get("model")
    return shape_of(fields if isinstance(fields, dict) else {}, where)


def _weights(folder: Path) -> tuple[Weights, str]:
    """Every tensor of a folder, and the file to name where one does not fit."""
    weights: Weights = {}
    files = weight_files(folder)
    for file in files:
        try:
            weights |= load_file(file)
        except (SafetensorError, ValueError) as error:
            raise CorruptFile(
                f"{file} is not a whole safetensors file: {error}. Fetch or export it again."
            ) from error
    return weights, str(files[0] if len(files) == 1 else folder / INDEX)
