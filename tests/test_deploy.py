"""compose.yaml and the values for Dagster's chart name what this repository has: nothing here runs a
container.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml
from conftest import ROOT

COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
VALUES = yaml.safe_load((ROOT / "deploy" / "helm-values.yaml").read_text())
(DEPLOYMENT,) = VALUES["dagster-user-deployments"]["deployments"]


def variables() -> Iterator[str]:
    for service in COMPOSE["services"].values():
        yield from service.get("environment", {})
    for entry in DEPLOYMENT["env"]:
        yield entry["name"]


def test_every_variable_of_ours_is_one_that_the_code_reads() -> None:
    ours = {name for name in variables() if name.startswith("LINEAGE_")}
    code = "".join(path.read_text() for path in (ROOT / "assets").rglob("*.py"))
    assert {"LINEAGE_REMOTE", "LINEAGE_DAGSTER_DB", "LINEAGE_HOME"} <= ours
    assert not [name for name in ours if f'"{name}"' not in code]


def test_services_volumes_and_files_that_are_named_are_there() -> None:
    services: dict[str, Any] = COMPOSE["services"]
    for service in services.values():
        assert set(service.get("depends_on", ())) <= services.keys()
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert (
                (ROOT / source).is_file()
                if source.startswith(".")
                else source in COMPOSE["volumes"]
            )
    image = (ROOT / "Dockerfile").read_text()
    assert f"LINEAGE_HOME={services['dagster']['volumes'][0].partition(':')[2]}" in image
    assert (ROOT / "pipelines" / "definitions.py").is_file()
    assert DEPLOYMENT["dagsterApiGrpcArgs"] == ["--module-name", "pipelines.definitions"]
    assert {mount["name"] for mount in DEPLOYMENT["volumeMounts"]} == {
        volume["name"] for volume in DEPLOYMENT["volumes"]
    }


def test_no_password_stands_in_them_and_only_this_machine_reaches_the_ports() -> None:
    text = (ROOT / "compose.yaml").read_text()
    assert not re.findall(r"(?:PASSWORD|SECRET_ACCESS_KEY): (?!\$\{)\S+", text)
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", ())]
    assert len(ports) == 3 and all(port.startswith("127.0.0.1:") for port in ports)
    for name in (".dockerignore", ".gitignore"):  # the passwords are in .env
        assert ".env" in (ROOT / name).read_text().split()
