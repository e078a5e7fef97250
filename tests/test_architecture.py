"""docs/ARCHITECTURE.md against the repository: its tree names the rooms that there are, and no
others.
"""

from __future__ import annotations

import ast
import os
import re
import socket
from collections import Counter
from pathlib import Path

import pytest

from gpt_model.io import temporary_name

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("gpt_model", "assets", "pipelines")


def documented_rooms() -> dict[str, set[str]]:
    """Floor -> its modules ("config.py") and packages ("ops/") in the page's tree."""
    page = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    (tree,) = re.findall(r"^```\n(gpt_model/\n.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    rooms: dict[str, set[str]] = {}
    for line in tree.splitlines():
        if not line.startswith(" "):
            floor = line.rstrip("/")
            rooms[floor] = set()
        else:
            names = re.match(r"((?:\w+(?:\.py|/) ?)+)", line.strip())
            assert names, line
            rooms[floor] |= set(names[1].split())
    return rooms


@pytest.mark.parametrize("floor", FLOORS)
def test_the_tree_of_the_architecture_page_is_the_repositorys(floor: str) -> None:
    folder = ROOT / floor
    modules = {path.name for path in folder.glob("*.py")} - {"__init__.py"}
    packages = {f"{path.name}/" for path in folder.iterdir() if any(path.rglob("*.py"))}
    assert documented_rooms()[floor] == modules | packages


def module_constants(path: Path) -> list[str]:
    names = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        for target in node.targets if isinstance(node, ast.Assign) else []:
            names += [name.id for name in ast.walk(target) if isinstance(name, ast.Name)]
    return names


def test_no_module_defines_a_constant_twice() -> None:
    """Linters and mypy accept the second definition, which silently replaces the first."""
    twice = {
        f"{path.relative_to(ROOT)}: {name}"
        for floor in FLOORS
        for path in (ROOT / floor).rglob("*.py")
        for name, count in Counter(module_constants(path)).items()
        if count > 1
    }
    assert twice == set()


def test_no_temporary_file_is_named_by_a_process_number_alone() -> None:
    """Hosts that share a folder have processes of the same number: `gpt_model.io.temporary_name` is
    for all.
    """
    alone = {
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for floor in FLOORS
        for path in (ROOT / floor).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.JoinedStr) and "os.getpid()}." in ast.unparse(node)
    }
    assert alone == set()
    here = temporary_name(Path("folder") / "file.json")
    assert here.name.startswith(f"file.json.{socket.gethostname()}-{os.getpid()}-")
