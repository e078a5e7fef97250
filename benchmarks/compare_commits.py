"""Whether two commits make the same artifacts, shown on a store that the first of them built.

    python benchmarks/compare_commits.py STORE BEFORE AFTER [--recipes tiny gpt3-tiny …] [--fresh tiny]

BEFORE and AFTER are commits, or "." for the working tree. STORE is not changed: the script works on
a copy. It compares

1. what identifies every artifact of every recipe: stage, version, section of the recipe, inputs;
2. `gpt-lineage run RECIPE` by AFTER on the store: everything must be a cache hit;
3. the scorecard that AFTER writes from the stored artifacts: its digest, thus each of its numbers,
  must be the one of BEFORE;
4. with --fresh, the digest of every artifact that AFTER builds of a recipe from nothing.

The status is 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ["tiny", "gpt1-tiny", "gpt3-tiny", "chat-tiny"]

# Runs inside each commit, so it names only what both have.
IDENTITIES = """
import json, sys
from pipelines.definitions import recipe_files
files, broken = recipe_files()
identities = {f"broken {recipe.path.name}": recipe.mistake for recipe in broken}
for file in files:
    for node in file.nodes:
        identities[node.ref] = {
            "stage": node.stage.name, "version": node.stage.version, "section": node.settings(file.base),
            "inputs": {need: node.asset(need) for need in node.needs}, "after": node.after,
        }
json.dump(identities, sys.stdout, sort_keys=True)
"""


def checkout(commit: str, folder: Path) -> Path:
    """The tree of `commit`: the working tree for ".", otherwise an export of it into `folder`."""
    if commit == ".":
        return ROOT
    folder.mkdir()
    archive = subprocess.run(
        ["git", "archive", commit], cwd=ROOT, check=True, stdout=subprocess.PIPE
    )
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def python(tree: Path, *command: str, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    """This interpreter in `tree`, which its imports come from."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    if home:
        environment |= {"LINEAGE_HOME": str(home), "DAGSTER_HOME": str(home / "dagster")}
    return subprocess.run(
        [sys.executable, *command],
        cwd=tree,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        check=True,
    )


def identities(tree: Path) -> dict[str, Any]:
    return json.loads(python(tree, "-c", IDENTITIES).stdout)


def copy_of(store: Path, target: Path) -> Path:
    """A copy whose large files are hard links. Published files are never written to, and databases
    are copied.
    """
    for part in store.iterdir():
        if part.name == "dagster":  # its runs, and the pools they hold, are the store's own
            continue
        if part.name in ("artifacts", "downloads"):
            shutil.copytree(part, target / part.name, copy_function=os.link, symlinks=True)
        elif part.is_dir():
            shutil.copytree(part, target / part.name, symlinks=True)
        else:
            shutil.copy2(part, target / part.name)
    return target


def digests(home: Path, recipe: str) -> dict[str, str]:
    """The digest of each artifact that the refs of `recipe` name."""
    folder = home / "refs" / recipe
    refs = {
        str(path.relative_to(folder)): fingerprint(path)
        for path in folder.rglob("*")
        if path.is_file()
    }
    return {
        name: json.loads((home / "artifacts" / ref / "artifact.json").read_text())["digest"]
        for name, ref in refs.items()
    }


def fingerprint(ref: Path) -> str:
    named: str = json.loads(ref.read_text(encoding="utf-8"))["fingerprint"]
    return named


def differences(kind: str, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    names = sorted(before.keys() | after.keys())
    return [f"{kind} of {name} differs" for name in names if before.get(name) != after.get(name)]


def build(tree: Path, recipe: str, home: Path) -> dict[str, Any]:
    outcome: dict[str, Any] = json.loads(
        python(tree, "-m", "pipelines.cli", "run", recipe, "--json", home=home).stdout
    )
    return outcome


def compare(tree: Path, recipe: str, home: Path) -> list[str]:
    """`recipe` found whole in `home`, and its scorecard written again."""
    name = recipe.replace("-", "_")
    before = digests(home, name)
    outcome = build(tree, recipe, home)
    print(f"{recipe}: {outcome['found']} found, {outcome['built']} built", flush=True)
    wrong = [f"{recipe}: {outcome['built']} artifacts were built again"] if outcome["built"] else []
    shutil.rmtree(home / "artifacts" / fingerprint(home / "refs" / name / "scorecard"))
    again = build(tree, recipe, home)
    print(f"{recipe}: the scorecard written again, {again['built']} built", flush=True)
    return wrong + differences(f"{recipe}: the digest", before, digests(home, name))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument(
        "--recipes", nargs="*", default=RECIPES, help="recipes that STORE holds whole"
    )
    parser.add_argument(
        "--fresh", nargs="*", default=[], help="recipes to build from nothing as well"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="compare-", dir=given.store.resolve().parent) as folder:
        before, after = (
            checkout(commit, Path(folder) / name)
            for commit, name in ((given.before, "before"), (given.after, "after"))
        )
        known, now = identities(before), identities(after)
        wrong = differences("the identity", known, now)
        print(
            f"{len(known)} artifacts of every recipe, {len(wrong)} with another identity",
            flush=True,
        )
        home = copy_of(given.store.resolve(), Path(folder) / "store")
        for recipe in given.recipes:
            wrong += compare(after, recipe, home)
        for recipe in given.fresh:
            build(after, recipe, Path(folder) / recipe)
            name = recipe.replace("-", "_")
            wrong += differences(
                f"{recipe} from nothing: the digest",
                digests(given.store, name),
                digests(Path(folder) / recipe, name),
            )
    print("\n".join(wrong) or "nothing differs", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
