"""YAML files a person writes, read strictly: an unknown key, a wrong type or a bad value is one
sentence with file, line and field.
"""

from __future__ import annotations

import copy
import difflib
import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from gpt_model import yaml_reader
from gpt_model.errors import UserError, dotted, naming_path
from gpt_model.strict import (
    KINDS,
    Location,
    dotted_location,
    explanation,
    location_of,
    sentence,
    shown,
)

M = TypeVar("M", bound=BaseModel)
Nodes = dict[Path, yaml.Node | None]
RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SUFFIXES = (".yaml", ".yml")
LARGEST = 2**18  # bytes of a file of settings
LONGEST_KEY = 80  # characters, that a misspelt key may have
HOMES = 3  # sections with a misplaced key that are named
MISTAKES = 20  # of one file that are listed; more are counted


def yaml_files(folder: Path) -> list[Path]:
    """The YAML files in `folder`, by name."""
    return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)


def is_path(name: str) -> bool:
    """Whether `name` is the path of a YAML file, and no name of one that is known here."""
    return name.endswith(SUFFIXES) or "/" in name


def stem(name: str) -> str:
    """What a file that is named by its path is called; any other name as it stands."""
    return Path(name).stem if is_path(name) else name


def here_and(shipped: Path) -> list[Path]:
    """Where files of a kind are found by name: the folder of that name here, if there is one, then
    `shipped`, which comes with the code.
    """
    here = Path(shipped.name).absolute()
    return [here, shipped] if here.is_dir() and not here.samefile(shipped) else [shipped]


def named_files(folders: Iterable[Path]) -> dict[str, Path]:
    """The YAML files in `folders` by their stems. Of two with one stem, the first folder's."""
    files: dict[str, Path] = {}
    for folder in folders:
        files = {path.stem: path for path in yaml_files(folder)} | files
    return files


def find_file(name_or_path: str, folders: Sequence[Path], what: str, base: Path = Path()) -> Path:
    """The file of that name in the first of `folders` that has one, or a path relative to `base`.
    Raises UserError with the names there are.
    """
    folder = folders[-1]
    if is_path(name_or_path):
        with naming_path(name_or_path):
            path = (base / Path(name_or_path).expanduser()).resolve()
            if path.is_file():
                return path
        raise UserError(
            f"There is no {what} file {path}. Give the path of a YAML file, or a name under "
            f"{folder.name}/."
        )
    files = named_files(folders)
    if name_or_path in files:
        return files[name_or_path]
    near = difflib.get_close_matches(name_or_path, files, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    if (base / f"{name_or_path}.yaml").is_file():
        hint = f" A file is given by its path: {name_or_path}.yaml is here."
    raise UserError(
        f"There is no {what} {name_or_path!r} under {folder.name}/.{hint} There are: "
        f"{', '.join(files) or 'none'}."
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, without the keys that begin with `x-`, a home for anchors. Raises
    UserError where it is not one.
    """
    data = copy.deepcopy(_parsed(_text(path), str(path)))
    if data is None:
        raise UserError(f"{path}: there is nothing in it. Write `key: value` lines.")
    if not isinstance(data, dict):
        raise UserError(
            f"{path}: expected `key: value` lines, found "
            f"{'a list' if isinstance(data, list) else f'only {shown(data)}'}."
        )
    return {key: value for key, value in data.items() if not key.startswith("x-")}


@functools.lru_cache(maxsize=256)
def _parsed(text: str, name: str) -> Any:
    """The recipes name the same suites and parents: reading all of them parses each file once."""
    return yaml_reader.load(text, name)


def _text(path: Path) -> str:
    with naming_path(path), path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise UserError(
            f"{path} has more than {LARGEST:,} bytes, which no file of settings has. Give another "
            "file."
        )
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: byte {error.start} is not UTF-8. Save the file as UTF-8."
        ) from None


def load_strict(model: type[M], name_or_path: str, folders: Sequence[Path], what: str) -> M:
    """Read and validate one file. Raises UserError naming file, line and field of every mistake."""
    path = find_file(name_or_path, folders, what)
    return validate(model, read_yaml(path), [path])


def validate(model: type[M], data: dict[str, Any], files: Sequence[Path]) -> M:
    """`data`, read from `files` (each merged over the next), as `model`. Raises UserError, one
    sentence a mistake.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems: list[Any] = [
            {**problem, "loc": location_of(data, problem)}
            for problem in islice(error.errors(include_url=False), 5 * MISTAKES)
        ]
        nodes = compose_files(files)
        meant = {
            (*problem["loc"][:-1], near)
            for problem in problems
            if (near := _nearest(model, problem))
        }
        wrong = {problem["loc"]: _expected(model, problem["loc"], problems) for problem in problems}
        sentences = [
            _sentence(model, problem, wrong[problem["loc"]], nodes)
            for problem in problems
            if (problem["type"] != "missing" or problem["loc"] not in meant)
            and not (problem["type"] in KINDS and not wrong[problem["loc"]])
            # a mapping where a word may stand too: what is wrong in it is said of its key
            and not (problem["type"] == "literal_error" and _is_wrong_inside(problem, problems))
        ]
        listed = list(dict.fromkeys(sentences))[:MISTAKES]
        if error.error_count() > len(problems) or len(listed) < len(set(sentences)):
            listed.append(f"These are the first {MISTAKES} mistakes; there are more.")
        raise UserError("\n".join(listed)) from None


def _expected(model: type[BaseModel], location: Location, problems: Sequence[Any]) -> str:
    """The kinds a value at `location` may be of; "" where it is of one of them, in which something
    else is wrong.
    """
    here = [problem["type"] for problem in problems if problem["loc"] == location]
    if _is_wrong_inside({"loc": location}, problems) or any(kind not in KINDS for kind in here):
        return ""
    keys = f" with keys of {', '.join(_keys_at(model, location))}"
    return " or ".join(
        dict.fromkeys(KINDS[kind] + (keys if kind.startswith("model") else "") for kind in here)
    )


def _is_wrong_inside(problem: Any, problems: Sequence[Any]) -> bool:
    """Whether one of `problems` is deeper in the value that `problem` is about."""
    location = problem["loc"]
    return any(
        len(other["loc"]) > len(location) and other["loc"][: len(location)] == location
        for other in problems
    )


def _nearest(model: type[BaseModel], problem: Any) -> str | None:
    """The right key that an unknown one comes closest to."""
    if problem["type"] != "extra_forbidden":
        return None
    *parents, key = problem["loc"]
    if len(str(key)) > LONGEST_KEY:
        return None  # comparing takes time by the square of its length
    return next(
        iter(difflib.get_close_matches(str(key), _keys_at(model, tuple(parents)), n=1, cutoff=0.5)),
        None,
    )


def _sentence(model: type[BaseModel], problem: Any, expected: str, nodes: Nodes) -> str:
    location, kind = problem["loc"], problem["type"]
    where = f"{_file_and_line(nodes, location[:-1] if kind == 'missing' else location)}: "
    name = dotted_location(location)
    if kind in ("extra_forbidden", "invalid_key"):
        homes = _homes(model, str(location[-1]))
        if near := _nearest(model, problem):
            hint = f" Did you mean `{near}`?"
        else:
            hint = f" It is a key of {' and of '.join(homes)}." if 0 < len(homes) <= HOMES else ""
        keys = ", ".join(_keys_at(model, location[:-1]))
        return f"{where}`{name}` is not a key here.{hint} Keys here: {keys}."
    reason = (
        f"it should be {expected}"
        if expected
        else explanation(problem, _description_at(model, location))
    )
    value, section = problem.get("input"), _model_at(model, location)
    hint = ""
    # `path` is a key of a source of text, and of a task's another name of `file`
    by_path = section is not None and bool({"path", "file"} & _fields(section).keys())
    if kind.startswith("model") and isinstance(value, str) and by_path:
        hint = f" Did you mean {{path: {shown(value)}}}?"
    return f"{where}{sentence(problem, name, reason)}{hint}"


def _homes(model: type[BaseModel], key: str, above: str = "", depth: int = 3) -> list[str]:
    """The sections below `model` that have `key`, as a person writes them; those `depth` deep."""
    homes = []
    for name, field in _fields(model).items() if depth else ():
        inner = _inner_model(field.annotation)
        if inner is None:
            continue
        path = f"{above}{name}"
        homes += [f"`{path}`"] * (key in _fields(inner))
        homes += _homes(inner, key, f"{path}.", depth - 1)
    return homes


def _keys_at(model: type[BaseModel], location: Location) -> list[str]:
    """The keys a mapping at `location` may have."""
    section = _model_at(model, location)
    return list(_fields(section)) if section else []


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Its fields by their keys in YAML."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _model_at(model: type[BaseModel], location: Location) -> type[BaseModel] | None:
    current: Any = model
    for part in location:
        if isinstance(part, int):
            current = _inner_model(current)
        elif (
            isinstance(current, type)
            and issubclass(current, BaseModel)
            and (field := _fields(current).get(part))
        ):
            current = _inner_model(field.annotation) or field.annotation
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None


def _description_at(model: type[BaseModel], location: Location) -> str:
    """The description of the field at `location`; "" where it is none of a section."""
    section = _model_at(model, location[:-1])
    field = _fields(section).get(str(location[-1])) if section and location else None
    return (field.description if field else None) or ""


def _inner_model(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        if model := _inner_model(argument):
            return model
    return None


@contextmanager
def naming(files: Sequence[Path], part: str = "") -> Iterator[None]:
    """A UserError in here that knows its field says where that is written: "tiny.yaml, line 7:
    `corpus.sources[0].path`: …".

    `files`: each merged over the next, none where nobody knows. `part`: where in them the fields
    are.
    """
    try:
        yield
    except UserError as error:
        if error.field is None or not files:
            raise
        field = error.field[1:] if error.field.startswith(".") else dotted(part, error.field)
        where = _file_and_line(compose_files(files), location_from(field))
        error.args = (f"{where}: {f'`{field}`: ' if field else ''}{error}",)
        error.field = None
        raise


def location_from(field: str) -> Location:
    """`corpus.sources[0].path` as keys and positions."""
    return tuple(
        int(name) if name.isdecimal() else name for name in re.findall(r"[^.\[\]]+", field)
    )


def compose_files(files: Sequence[Path]) -> Nodes:
    """What stands in each file, with its lines; None for one that cannot be read any more."""
    nodes: Nodes = {}
    for path in files:
        try:
            nodes[path] = yaml_reader.compose(_text(path), str(path))
        except UserError:
            nodes[path] = None
    return nodes


def _file_and_line(nodes: Nodes, location: Location) -> str:
    file, line = source_of(nodes, location)
    return f"{file}{f', line {line}' if line else ''}"


def source_of(nodes: Nodes, location: Location) -> tuple[Path, int | None]:
    """The file, and the line in it, that the field at `location` was read from; the nearest
    enclosing one where it stands nowhere. `nodes`: of `compose_files`.
    """
    matches = [(*_depth_and_line(node, location), file) for file, node in nodes.items()]
    depth = max(depth for depth, _, _ in matches)
    return next((file, line) for reached, line, file in matches if reached == depth)


def _depth_and_line(node: yaml.Node | None, location: Location) -> tuple[int, int | None]:
    """How many parts of `location` stand in a file, and the line of the last; a list's element
    counts as the whole: lists do not merge.
    """
    depth, line = 0, None
    for depth, part in enumerate(location):
        if isinstance(node, yaml.MappingNode) and (
            pair := next((pair for pair in node.value if pair[0].value == str(part)), None)
        ):
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif (
            isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value)
        ):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return (
                len(location)
                if any(isinstance(part, int) for part in location[: depth + 1])
                else depth
            ), line
    return len(location), line
