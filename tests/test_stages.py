"""The descriptions of all stages: what each names exists, and describing imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from assets.contract import Deferred
from assets.stages import STAGES, stage_named


def deferred_functions(name: str) -> Iterator[Deferred]:
    stage = stage_named(name)
    functions = [stage.run, stage.show, stage.pin, *(check.verdict for check in stage.checks)]
    return (function for function in functions if isinstance(function, Deferred))


@pytest.mark.parametrize("name", STAGES)
def test_every_function_that_a_stage_names_exists(name: str) -> None:
    assert stage_named(name).name == name
    for function in deferred_functions(name):
        assert callable(function.resolve())


def test_every_stage_is_described_without_what_it_runs() -> None:
    heavy = {"torch", "deepspeed", "matplotlib", "lm_eval", "datasets", "mlflow"}
    script = (
        "import sys; from assets.stages import STAGES, stage_named\n"
        "for name in STAGES: stage_named(name)\n"
        f"print(sorted({heavy!r} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script]
    assert subprocess.run(command, capture_output=True, text=True).stdout.strip() == "[]"
