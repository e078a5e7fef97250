"""The build backend: setuptools', with the modules of a wheel in another place than a checkout's.

`assets` and `pipelines` are names that other projects have too, a Dagster project above all. So a
wheel has them inside a package of the distribution's name, and what they read beside them:

    checkout                        wheel
    assets/ pipelines/              gpt_lineage/assets/ gpt_lineage/pipelines/
    recipes/ profiles/              gpt_lineage/recipes/ gpt_lineage/profiles/
    workspace.yaml                  gpt_lineage/workspace.yaml
    gpt_model/                      gpt_model/

Import statements are rewritten, and so are strings that are the dotted name of a module (a stage
names what it runs). `gpt_model` stays at the top: it is the library that people import, and
checkpoints pickle its classes by name. An sdist and `pip install -e` are as the checkout is.
"""

from __future__ import annotations

import ast
import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

PACKAGE = "gpt_lineage"
FLOORS = ("assets", "pipelines")
BESIDE = ("recipes", "profiles", "workspace.yaml")
AS_THEY_ARE = ("gpt_model", "README.md", "LICENSE")
CONSOLE_SCRIPT = '"pipelines.cli.main:main"'
INIT = '"""The modules of gpt-lineage, as `pip install gpt-lineage` brings them."""\n'


def build_wheel(
    wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None
) -> str:
    """PEP 517's hook. Returns the wheel's file name."""
    wheels = str(Path(wheel_directory).absolute())
    with _wheel_tree():
        return str(build_meta.build_wheel(wheels, config_settings))


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: Any = None) -> str:
    """PEP 517's hook. Returns the folder's name."""
    metadata = str(Path(metadata_directory).absolute())
    with _wheel_tree():
        return str(build_meta.prepare_metadata_for_build_wheel(metadata, config_settings))


@contextlib.contextmanager
def _wheel_tree() -> Iterator[None]:
    """Makes a copy of the checkout in the wheel's layout the current folder."""
    checkout = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        lay_out(checkout, tree)
        with contextlib.chdir(tree):
            yield


def lay_out(checkout: Path, tree: Path) -> None:
    """Copy what a wheel has of `checkout` to `tree`, in the wheel's layout."""
    for name in AS_THEY_ARE:
        _copy(checkout / name, tree / name)
    for name in (*FLOORS, *BESIDE):
        _copy(checkout / name, tree / PACKAGE / name)
    (tree / PACKAGE / "__init__.py").write_text(INIT, encoding="utf-8")
    _copy(checkout / "gpt_model" / "py.typed", tree / PACKAGE / "py.typed")
    modules = frozenset(
        ".".join(path.relative_to(checkout).with_suffix("").parts).removesuffix(".__init__")
        for floor in FLOORS
        for path in (checkout / floor).rglob("*.py")
    )
    for path in (tree / PACKAGE).rglob("*.py"):
        path.write_bytes(rewritten(path.read_bytes(), modules, str(path.relative_to(tree))))
    for name, old in (("pyproject.toml", CONSOLE_SCRIPT), ("workspace.yaml", " pipelines.")):
        text = (checkout / name).read_text(encoding="utf-8")
        if text.count(old) != 1:
            raise ValueError(f"{name}: expected {old} once, found it {text.count(old)} times.")
        target = tree / name if name == "pyproject.toml" else tree / PACKAGE / name
        new = old.replace("pipelines.", f"{PACKAGE}.pipelines.")
        target.write_text(text.replace(old, new), encoding="utf-8")


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    else:
        shutil.copyfile(source, target)


def rewritten(source: bytes, modules: frozenset[str], name: str) -> bytes:
    """A module's source with `PACKAGE.` before each of `modules` that it imports or names.

    Raises ValueError for `import assets.x` without `as`, which binds the top-level name.
    """
    lines = source.splitlines(keepends=True)
    for line, column, module in sorted(_mentions(ast.parse(source), modules, name), reverse=True):
        content = lines[line - 1]
        start = content.find(module.encode(), column)
        if start < 0:
            raise ValueError(f"{name}:{line}: write {module} on the line of its statement.")
        lines[line - 1] = content[:start] + f"{PACKAGE}.".encode() + content[start:]
    return b"".join(lines)


def _mentions(tree: ast.AST, modules: frozenset[str], name: str) -> Iterator[tuple[int, int, str]]:
    """(line, column in bytes, dotted name) of each mention of one of `modules`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module in modules:
            yield node.lineno, node.col_offset + len("from "), node.module
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in modules and alias.asname is None:
                    raise ValueError(f"{name}:{node.lineno}: write `from … import`, or add `as`.")
                if alias.name in modules:
                    yield alias.lineno, alias.col_offset, alias.name
        elif isinstance(node, ast.Constant) and "." in str(node.value) and node.value in modules:
            yield node.lineno, node.col_offset, node.value
