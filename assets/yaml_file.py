"""YAML files a person writes, read strictly: an unknown key, a wrong type or a bad value is one sentence with file, line and field."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from gpt_model.errors import UserError, dotted

M = TypeVar("M", bound=BaseModel)
Location = tuple[str | int, ...]
SUFFIXES = (".yaml", ".yml")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml's, where PyYAML has it: ten times faster
    """The safe loader, reading 2e-3 as a number (YAML 1.2) and refusing a key written twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # no key of ours; PyYAML says so
            if key_node.value in seen:
                raise UserError(f"line {key_node.start_mark.line + 1}: {key_node.value!r} stands twice; keep one of them")
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_FLOAT = re.compile(r"[-+]?(?![0-9_]+$)(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9_]+)(?:[eE][-+]?[0-9]+)?$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def yaml_files(folder: Path) -> list[Path]:
    """The YAML files in `folder`, by name."""
    return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)


def find_file(name_or_path: str, folder: Path, what: str) -> Path:
    """`name` under `folder`, or a path as it stands. Raises UserError with the names there are."""
    if name_or_path.endswith(SUFFIXES) or "/" in name_or_path:
        path = Path(name_or_path).expanduser().resolve()
        if path.is_file():
            return path
        raise UserError(f"There is no {what} file {path}. Give the path of a YAML file, or a name under {folder.name}/.")
    files = {path.stem: path for path in yaml_files(folder)}
    if name_or_path in files:
        return files[name_or_path]
    near = difflib.get_close_matches(name_or_path, files, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UserError(f"There is no {what} {name_or_path!r} under {folder.name}/.{hint} There are: {', '.join(files) or 'none'}.")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError where it is not one."""
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
    except UserError as error:
        raise UserError(f"{path}, {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: this is not valid YAML ({getattr(error, 'problem', error)}).") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8. Save the file as UTF-8.") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected `key: value` lines, found {type(data).__name__}.")
    return data


def load_strict(model: type[M], name_or_path: str, folder: Path, what: str) -> M:
    """Read and validate one file. Raises UserError naming file, line and field of every mistake."""
    path = find_file(name_or_path, folder, what)
    return validate(model, read_yaml(path), [path])


def validate(model: type[M], data: dict[str, Any], files: Sequence[Path]) -> M:
    """`data`, read from `files` (each merged over the next), as `model`. Raises UserError, one sentence a mistake."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = error.errors()
        meant = {(*problem["loc"][:-1], near) for problem in problems if (near := _nearest(model, problem))}
        sentences = [
            _sentence(model, problem, files) for problem in problems if problem["type"] != "missing" or problem["loc"] not in meant
        ]
        raise UserError("\n".join(dict.fromkeys(sentences))) from None


def _nearest(model: type[BaseModel], problem: Any) -> str | None:
    """The right key that an unknown one comes closest to."""
    if problem["type"] != "extra_forbidden":
        return None
    *parents, key = problem["loc"]
    return next(iter(difflib.get_close_matches(str(key), _keys_at(model, tuple(parents)), n=1, cutoff=0.5)), None)


def _sentence(model: type[BaseModel], problem: Any, files: Sequence[Path]) -> str:
    location: Location = tuple(part for part in problem["loc"] if not (isinstance(part, str) and part.startswith("function-")))
    where = f"{_place(files, location)}: "
    name = _dotted(location)
    kind, found = problem["type"], problem.get("input")
    if kind == "extra_forbidden":
        near = _nearest(model, problem)
        hint = f" Did you mean `{near}`?" if near else ""
        return f"{where}`{name}` is not a key here.{hint} Keys here: {', '.join(_keys_at(model, location[:-1]))}."
    if kind == "missing":
        return f"{where}`{name}` is missing."
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if kind in ("value_error", "assertion_error"):
        return f"{where}{f'`{name}`: ' if name else ''}{message[0].lower() + message[1:] if name else message}."
    return f"{where}`{name}` is {found!r}: {message[0].lower() + message[1:]}."


def _dotted(location: Location) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
    return text


def _keys_at(model: type[BaseModel], location: Location) -> list[str]:
    """The keys a mapping at `location` may have."""
    current: Any = model
    for part in location:
        if isinstance(part, int):
            current = _inner_model(current)
        elif isinstance(current, type) and issubclass(current, BaseModel) and part in current.model_fields:
            current = _inner_model(current.model_fields[part].annotation) or current.model_fields[part].annotation
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []


def _inner_model(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        if found := _inner_model(argument):
            return found
    return None


@contextmanager
def naming(files: Sequence[Path], part: str = "") -> Iterator[None]:
    """A UserError in here that knows its field says where that is written: "tiny.yaml, line 7: `corpus.sources[0].path`: …".

    `files`: each merged over the next, none where nobody knows. `part`: where in them the fields are.
    """
    try:
        yield
    except UserError as error:
        if error.field is None or not files:
            raise
        field = dotted(part, error.field)
        location = tuple(int(name) if name.isdigit() else name for name in re.findall(r"[^.\[\]]+", field))
        raise type(error)(f"{_place(files, location)}: {f'`{field}`: ' if field else ''}{error}") from None


def _place(files: Sequence[Path], location: Location) -> str:
    """The file, and the line in it, that the field at `location` was read from; the nearest enclosing one where it stands nowhere."""
    found = [(*_found(file, location), file) for file in files]
    depth = max(depth for depth, _, _ in found)
    line, file = next((line, file) for reached, line, file in found if reached == depth)
    return f"{file}{f', line {line}' if line else ''}"


def _found(path: Path, location: Location) -> tuple[int, int | None]:
    """How many parts of `location` stand in a file, and the line of the last; a list's element counts as the whole: lists do not merge."""
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, yaml.YAMLError):
        return 0, None
    depth, line = 0, None
    for depth, part in enumerate(location):
        if isinstance(node, yaml.MappingNode) and (pair := next((pair for pair in node.value if pair[0].value == part), None)):
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return (len(location) if any(isinstance(part, int) for part in location[:depth]) else depth), line
    return len(location), line
