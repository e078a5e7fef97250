"""YAML files a person writes, read strictly: an unknown key, a wrong type or a bad value is one sentence with file, line and field."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from gpt_model.errors import UserError

M = TypeVar("M", bound=BaseModel)
Location = tuple[str | int, ...]
SUFFIXES = (".yaml", ".yml")


class _Loader(yaml.SafeLoader):
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
    return validate(model, read_yaml(path), path)


def validate(model: type[M], data: dict[str, Any], path: Path) -> M:
    """`data`, read from `path`, as `model`. Raises UserError, one sentence a mistake."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = error.errors()
        meant = {(*problem["loc"][:-1], near) for problem in problems if (near := _nearest(model, problem))}
        sentences = [_sentence(model, problem, path) for problem in problems if problem["type"] != "missing" or problem["loc"] not in meant]
        raise UserError("\n".join(dict.fromkeys(sentences))) from None


def _nearest(model: type[BaseModel], problem: Any) -> str | None:
    """The right key that an unknown one comes closest to."""
    if problem["type"] != "extra_forbidden":
        return None
    *parents, key = problem["loc"]
    return next(iter(difflib.get_close_matches(str(key), _keys_at(model, tuple(parents)), n=1, cutoff=0.5)), None)


def _sentence(model: type[BaseModel], problem: Any, path: Path) -> str:
    location: Location = tuple(part for part in problem["loc"] if not (isinstance(part, str) and part.startswith("function-")))
    line = _line_of(path, location)
    where = f"{path}{f', line {line}' if line else ''}: "
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


def _line_of(path: Path, location: Location) -> int | None:
    """The line on which the field at `location` stands, or the nearest enclosing one that stands in this file."""
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, yaml.YAMLError):
        return None
    line = None
    for part in location:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == part), None)
            if pair is None:
                return line
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line
    return line
