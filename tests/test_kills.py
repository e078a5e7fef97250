"""kill -9 at random moments, the first seconds of a new store included, changes nothing in the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.mark.slow
def test_killed_builds_end_with_the_digests_and_the_tracking_of_an_undisturbed_one(
    tmp_path: Path,
) -> None:
    """`python benchmarks/kills.py` does so a hundred times."""
    command = [sys.executable, str(ROOT / "benchmarks" / "kills.py"), "--kills", "2"]
    command += ["--stores", "1", "--json", str(tmp_path / "kills.json")]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "kills.json").read_text())
    assert (result["kills"], result["wrong"]) == (2, [])
