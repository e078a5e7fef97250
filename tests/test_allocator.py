"""Memory that is freed goes back to the system where that is asked for, though workers keep it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from assets.launch.launcher import MALLOC

SCRIPT = """
from pathlib import Path
from gpt_model.training.allocator import freed_memory_returned

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 1_000_000

def freed():
    before = resident()
    blocks = [b"x" * 20_000_000 for _ in range(10)]
    hole = b"x" * 1_000_000  # keeps the heap from shrinking
    del blocks
    return resident() - before

with freed_memory_returned():
    within = freed()
after, before = freed(), resident()
with freed_memory_returned(wanted=False):
    unwanted = resident()
with freed_memory_returned():
    pass
print(within < 80, after > 110, unwanted == before, resident() < before - 100)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_within_freed_blocks_and_what_was_kept_before_go_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        env=os.environ | MALLOC,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["True"] * 4, done.stdout
