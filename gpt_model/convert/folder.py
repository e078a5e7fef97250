"""A decoder's folder: the store's own and `transformers`' (config.json, safetensors). The
tokenizer's files are the caller's to add.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from gpt_model.config import ModelConfig
from gpt_model.convert.dialects import GPT1_NAMES, PREFIX, Weights, of_config, of_family, shape_of
from gpt_model.convert.network import filled, generation, require_shapes, theirs
from gpt_model.errors import CorruptFile, UserError
from gpt_model.io import CONFIG, INDEX, WEIGHTS, described, dump_json, weight_files
from gpt_model.lstm import build
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
    needed. One parameter is asked for at a time, so that no rank needs the whole model.
    """
    names = {_stored_name(model, name): name for name, _ in model.named_parameters()}
    _write_one_by_one(
        Path(folder),
        _described(model.config, end_of_text),
        {stored: model.get_parameter(name).shape for stored, name in names.items()},
        lambda stored: model.weight(names[stored]),
    )


def save_again(
    source: Path, folder: Path, config: ModelConfig, end_of_text: int | None = None
) -> None:
    """What `save` writes of the model that it wrote to `source`, described by `config`, which has
    its weights. They are copied as they lie there: nobody needs them in memory.
    """
    _write_described(folder, _described(config, end_of_text))
    shutil.copyfile(source / WEIGHTS, folder / WEIGHTS)
    _let_read(folder)


def _stored_name(model: Decoder, name: str) -> str:
    """What the store's own folder calls the parameter `name`."""
    if model.config.family in NATIVE:
        return name
    return PREFIX + (GPT1_NAMES.get(name, name) if model.config.family == "gpt1" else name)


def _described(config: ModelConfig, end_of_text: int | None) -> dict[str, dict[str, Any]]:
    """The JSON files of the store's own folder."""
    if config.family not in NATIVE:
        return _exported(config, end_of_text)
    model_type = NATIVE[config.family]
    native = {"model_type": model_type, "end_of_text": end_of_text, "model": config.model_dump()}
    return {CONFIG: native}


def _exported(config: ModelConfig, end_of_text: int | None) -> dict[str, dict[str, Any]]:
    """The JSON files that `transformers` reads. Raises UserError where no class is this decoder."""
    return {
        CONFIG: of_family(config.family).config(config, end_of_text),
        "generation_config.json": generation(config, end_of_text),
    }


def export(model: Decoder, folder: Path | str, end_of_text: int | None = None) -> None:
    """Write config.json, generation_config.json and model.safetensors, which
    `AutoModelForCausalLM.from_pretrained` loads.

    Raises UserError where no class of `transformers` is this decoder.
    """
    described = _exported(model.config, end_of_text)
    weights = theirs(model, of_family(model.config.family))
    write(Path(folder), described, {f"{PREFIX}{name}": tensor for name, tensor in weights.items()})


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
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    _write_one_by_one(folder, described, shapes, weights.__getitem__)


def _write_one_by_one(
    folder: Path,
    described: Mapping[str, Mapping[str, Any]],
    shapes: Mapping[str, torch.Size],
    weight: Callable[[str], Tensor],
) -> None:
    """`write`, with weights of these shapes that `weight` gives as they are written."""
    _write_described(folder, described)
    stream_tensors(folder / WEIGHTS, shapes, weight)
    _let_read(folder)


def _write_described(folder: Path, described: Mapping[str, Mapping[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, contents in described.items():
        dump_json(folder / name, contents, indent=2, sort_keys=True)


def _let_read(folder: Path) -> None:
    """Whoever may read the JSON files may read the weights."""
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)


def stream_tensors(
    path: Path, shapes: Mapping[str, torch.Size], tensor: Callable[[str], Tensor]
) -> None:
    """A file of float32 tensors of these shapes, each asked of `tensor` as it is written. Byte for
    byte what `safetensors.torch.save_file` writes, which takes them all at once: the length of the
    header, the header, the tensors in the names' order.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(shapes):
        start, end = end, end + 4 * shapes[name].numel()
        header[name] = {"dtype": "F32", "shape": list(shapes[name]), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in sorted(shapes):
            values = tensor(name).cpu().contiguous()
            if values.dtype != torch.float32 or values.shape != shapes[name]:
                raise ValueError(f"{name} is {values.dtype} {list(values.shape)}")
            file.write(values.numpy().data)


def load(folder: Path | str) -> GPT:
    """A GPT from a folder that `save`, `export` or `transformers` wrote. Raises UserError naming
    the file and field that do not fit.
    """
    return require_gpt(load_decoder(folder), folder)


def require_gpt(model: Decoder, folder: Path | str) -> GPT:
    """The model that `folder` has, if it is a GPT. Raises UserError where it is not."""
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


def load_elements(folder: Path | str, targets: Mapping[str, tuple[int, Tensor]]) -> None:
    """Fill targets [n], by parameter, with its elements from a first one on, flat: of a folder that
    `save` wrote. Only the rows that they lie in are read. Raises UserError as `load` does.
    """
    for name, file, stored_name in _stored(Path(folder)):
        if name in targets:
            read_elements(file, {stored_name: targets[name]})


def read_elements(file: Path, targets: Mapping[str, tuple[int, Tensor]]) -> None:
    """Fill targets [n], by the name of a tensor in the file, with its elements from a first one on,
    flat. Only the rows that they lie in are read. Raises CorruptFile.
    """
    for name, (first, target) in targets.items():
        with _opened(file) as tensors:  # anew for each, so that no memory of its mapping adds up
            stored = tensors.get_slice(name)
            row = math.prod(stored.get_shape()[1:])  # elements of one
            top, end = first // row, -(-(first + len(target)) // row)
            target.copy_(stored[top:end].flatten()[first - top * row :][: len(target)])


def weights(folder: Path | str) -> Iterator[tuple[str, Tensor]]:
    """Each parameter of a folder that `save` wrote, read when it is asked for: nobody needs the
    whole model. Raises UserError as `load` does, before the first.
    """
    for name, file, stored_name in _stored(Path(folder)):
        with _opened(file) as tensors:  # anew for each, so that no memory of its mapping adds up
            yield name, tensors.get_tensor(stored_name)


def _stored(folder: Path) -> list[tuple[str, Path, str]]:
    """(parameter, file, name in it) of all in a folder that `save` wrote, once they are what its
    config says. Raises UserError.
    """
    files: dict[str, Path] = {}
    shapes: dict[str, list[int]] = {}
    for file in weight_files(folder):
        with _opened(file) as tensors:
            for stored_name in tensors.keys():  # noqa: SIM118 - not a mapping
                files[stored_name] = file
                shapes[stored_name] = tensors.get_slice(stored_name).get_shape()
    with torch.device("meta"):
        model = build(shape(folder))
    expected = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    names = {_stored_name(model, name): name for name in expected}
    where = str(next(iter(files.values()), folder))
    require_shapes({stored: expected[name] for stored, name in names.items()}, shapes, where)
    return [(name, files[stored], stored) for stored, name in names.items()]


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """The tensors of a file. Raises CorruptFile."""
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except SafetensorError as error:
        raise _not_whole(file, error) from error


def _not_whole(file: Path, error: Exception) -> CorruptFile:
    return CorruptFile(
        f"{file} is not a whole safetensors file: {error}. Fetch or export it again."
    )


def _weights(folder: Path) -> tuple[Weights, str]:
    """Every tensor of a folder, and the file to name where one does not fit."""
    weights: Weights = {}
    files = weight_files(folder)
    for file in files:
        try:
            weights |= load_file(file)
        except (SafetensorError, ValueError) as error:
            raise _not_whole(file, error) from error
    return weights, str(files[0] if len(files) == 1 else folder / INDEX)
