"""A team: two machines on one store, one Postgres and one S3 server; and a third that has nothing
but the address of the last.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
from conftest import ROOT, environment_of, write_local_recipe
from machines import HEAD, Machines, missing
from postgres_server import PASSWORD, postgres_server
from s3_server import SECRET, s3_server

from assets.store.home import DATABASE
from assets.store.remote import VARIABLE
from assets.store.store import Store

pytest.importorskip("s3fs", reason="pip install -e .[remote]")
pytest.importorskip("moto", reason="pip install -e .[test]")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=str(missing()))]

HEAD_ADDRESS = "10.77.0.1"
MAKE_BUCKET = "import s3fs; s3fs.S3FileSystem().mkdir('team')"


def begin(
    machines: Machines,
    name: str,
    environment: Mapping[str, str],
    mount: Path | None,
    *arguments: str,
) -> subprocess.Popen[str]:
    """`gpt-lineage` on a machine, with the volume of GlusterFS at `mount`."""
    command = [sys.executable, "-m", "pipelines.cli", *arguments]
    return subprocess.Popen(
        machines.on(name, machines.mounting(mount, command) if mount else command),
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def contents(home: Path, fingerprint: str) -> dict[str, str]:
    """name -> sha256 of what an artifact is published with."""
    folder = home / "artifacts" / fingerprint
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    published = [name for name in names if name.parts[0] not in ("journal", "names")]
    return {
        str(name): hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in published
    }


def test_two_machines_build_nothing_twice_and_a_third_pulls_all_of_it(
    tmp_path: Path, downloads: Path
) -> None:
    shared, third = tmp_path / "shared", tmp_path / "third"
    brick = tmp_path / "brick" if shutil.which("glusterd") else shared  # where its files lie
    home = brick / "lineage"
    recipe = str(write_local_recipe(tmp_path, tokens=2048, paragraphs=200))
    with (
        Machines(tmp_path / "machines") as machines,
        postgres_server(HEAD_ADDRESS, partial(machines.on, HEAD)) as postgres,
        s3_server(tmp_path / "log", HEAD_ADDRESS, partial(machines.on, HEAD)) as s3,
    ):
        if brick != shared:
            machines.start_gluster(brick)
        environment = environment_of(shared / "lineage", downloads) | s3
        environment |= {"PYTHONPATH": str(ROOT), VARIABLE: "s3://team/lineage"}
        environment[DATABASE] = postgres.address("dagster")
        environment["MLFLOW_TRACKING_URI"] = postgres.address("mlflow")
        subprocess.run(
            machines.on(HEAD, [sys.executable, "-c", MAKE_BUCKET]), env=environment, check=True
        )

        def ended(*runs: subprocess.Popen[str]) -> list[dict[str, object]]:
            printed = [run.communicate(timeout=300) for run in runs]
            for run, (_, error) in zip(runs, printed, strict=True):
                assert run.returncode == 0, error
            secrets = (PASSWORD, SECRET)
            assert not [text for pair in printed for text in pair for s in secrets if s in text]
            return [json.loads(output) for output, _ in printed]

        command = ("run", recipe, "--profile", "single", "--json")
        mount = shared if brick != shared else None
        first, second = ended(
            *(begin(machines, name, environment, mount, *command) for name in machines.names)
        )
        artifacts = Store(home).fingerprints()
        assert len(artifacts) > 3 and first["built"] + second["built"] == len(artifacts)
        assert {run["built"] + run["found"] for run in (first, second)} == {len(artifacts)}
        assert Store(home).misnamed() == [] and not list((home / "building").iterdir())

        assert postgres.query("dagster", "SELECT status FROM runs") == [("SUCCESS",)] * 2
        hosts = "SELECT value FROM run_tags WHERE key LIKE '%/host'"
        assert {host for (host,) in postgres.query("dagster", hosts)} == set(machines.names)
        builds = (
            "SELECT r.status FROM runs r JOIN tags t USING (run_uuid) WHERE t.key = 'lineage.build'"
        )
        assert postgres.query("mlflow", builds) == [("FINISHED",)] * len(artifacts)
        metrics = (
            "SELECT key, step, max(step) OVER (PARTITION BY run_uuid), count(*) FROM metrics "
            "GROUP BY run_uuid, key, step"
        )
        repeated = [row for row in postgres.query("mlflow", metrics) if row[3] != 1]
        # a curve's last point is a result too
        assert all(step == last and count == 2 for _, step, last, count in repeated), repeated
        assert not [path for path in home.rglob("*.db") if "downloads" not in path.parts]

        empty = environment_of(third, downloads)
        environment |= {name: empty[name] for name in ("LINEAGE_HOME", "DAGSTER_HOME")}
        [pulled] = ended(begin(machines, "n1", environment, None, *command))
        assert (pulled["built"], pulled["found"]) == (0, len(artifacts))
    assert Store(third).fingerprints() == artifacts and Store(third).misnamed() == []
    assert all(contents(third, each) == contents(home, each) for each in artifacts)
    for folder in (home, third):
        files = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
        assert not [file for file in files for s in (PASSWORD, SECRET) if s.encode() in file]
        assert not list((folder / "locks").glob("process.*"))
