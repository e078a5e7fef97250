"""The wheel: what `pip install gpt-lineage` brings works outside a clone, and has no top-level name
that another project may have.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, write_local_recipe

SPEC = importlib.util.spec_from_file_location("backend", ROOT / "distribution" / "backend.py")
assert SPEC is not None and SPEC.loader is not None
backend = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(backend)

MODULES = frozenset({"assets.node", "assets.stages", "pipelines.cli"})


def test_imports_and_named_modules_are_rewritten() -> None:
    source = (
        "from assets.node import Node  # of assets.node\n"
        "import assets.stages as stages, os\n"
        'WHERE, KEY = "é", ["pipelines.cli", "pipelines.cli.x", "assets"]\n'
    )
    assert backend.rewritten(source.encode(), MODULES, "x.py").decode() == (
        "from gpt_lineage.assets.node import Node  # of assets.node\n"
        "import gpt_lineage.assets.stages as stages, os\n"
        'WHERE, KEY = "é", ["gpt_lineage.pipelines.cli", "pipelines.cli.x", "assets"]\n'
    )


def test_an_import_that_binds_a_top_level_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"x.py:2: write `from"):
        backend.rewritten(b"\nimport assets.node\n", MODULES, "x.py")


def test_no_module_of_the_wheel_names_the_checkouts_floors(tmp_path: Path) -> None:
    backend.lay_out(ROOT, tmp_path)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {
        "gpt_model",
        "gpt_lineage",
    }
    for path in (tmp_path / "gpt_lineage").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] in backend.FLOORS], path
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not node.value.startswith(("assets.", "pipelines.")), (path, node.value)


def run(command: list[str | Path], **options: object) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return str(done.stdout)


@pytest.mark.slow
def test_the_installed_wheel_trains_outside_a_clone(tmp_path: Path, downloads: Path) -> None:
    build = "import sys, backend; print(backend.build_wheel(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "distribution")}
    run([sys.executable, "-c", build, tmp_path], env=environment, cwd=ROOT)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = archive.namelist()
        workspace = yaml.safe_load(archive.read("gpt_lineage/workspace.yaml"))
    shipped = [
        *(ROOT / "recipes").glob("*.yaml"),
        *(ROOT / "profiles").glob("*.yaml"),
        *(ROOT / "assets").rglob("*.jinja"),
        *(ROOT / "gpt_model").rglob("*.yaml"),
        *(ROOT / "gpt_model").rglob("py.typed"),
    ]
    names = {path.relative_to(ROOT).as_posix() for path in shipped}
    assert names <= {name.removeprefix("gpt_lineage/") for name in files}
    [location] = workspace["load_from"]
    assert location["python_module"]["module_name"] == "gpt_lineage.pipelines.definitions"

    environment_folder = tmp_path / "venv"
    venv.create(environment_folder, with_pip=False)
    python = environment_folder / "bin" / "python"
    run(
        [
            sys.executable,
            "-m",
            "pip",
            "--python",
            python,
            "install",
            "--no-deps",
            "--no-index",
            wheel,
        ]
    )
    # what the wheel depends on is the tests' own, whose clone is not on this path
    [site] = (environment_folder / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")

    here = tmp_path / "here"
    (here / "recipes").mkdir(parents=True)
    (here / "assets").mkdir()
    (here / "assets" / "__init__.py").write_text("raise ImportError('another project's')")
    (here / "gpt_model.py").write_text("raise ImportError('another one')")
    write_local_recipe(here / "recipes", "mine", tokens=2_048)
    cleared = ("PYTHONPATH", "LINEAGE_HOME", "DAGSTER_HOME")
    data = tmp_path / "home"
    clean = {key: value for key, value in os.environ.items() if key not in cleared}
    clean |= {"HOME": str(data), "XDG_DATA_HOME": str(data)}

    def cli(*arguments: str) -> str:
        return run([environment_folder / "bin" / "gpt-lineage", *arguments], env=clean, cwd=here)

    # the module by which MLflow loads a fine-tuned model; what a wheel's model named before
    for module in ("gpt_model.finetuning.pyfunc", "gpt_lineage.assets.tracking.task_pyfunc"):
        run([python, "-I", "-c", f"from {module} import _load_pyfunc"], env=clean)
    assert json.loads(cli("list", "--json")) == []
    plan = json.loads(cli("plan", "tiny", "--json"))
    assert plan["recipe"] == "tiny"
    report = json.loads(cli("run", "mine", "--profile", "single", "--json"))
    assert report["succeeded"] and report["built"] == len(report["artifacts"]) > 3
    shown = json.loads(cli("show", "mine/pretrained", "--json"))
    assert shown["metrics"]["tokens"] == 2_048
    assert shown["provenance"]["git"] == {"commit": None, "dirty": None}
    assert shown["provenance"]["packages"]["gpt-lineage"]
    [home] = data.rglob("store.json")
    assert home.parent.name == "gpt-lineage" and not (here / "lineage").exists()
