"""`make bench` fails where a bar is missed, says which, and runs the rest all the same. What is
measured is the benchmarks' own.
"""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from assets.recipe.profile import Profile
from benchmarks import bars, bits_per_byte, peers, throughput
from benchmarks.__main__ import PARTS, run

MAKES_A_FIGURE = """
import sys
from benchmarks.bars import at_least, at_most, below, verdict
print("speed", at_least("speed", float(sys.argv[1]), 1.5), below("memory", 400, 500, "MB"))
sys.exit(verdict())
"""


@pytest.mark.parametrize(("value", "met"), [(1.0, True), (1.0000001, False), (float("nan"), False)])
def test_a_missed_bar_is_kept_with_its_figure_and_makes_the_status_1(
    value: float, met: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bars, "_missed", [])
    monkeypatch.delenv(bars.MISSED_FILE, raising=False)
    assert bars.at_most("time", value, 1.0, "s") == f"(bar ≤ 1 s: {'met' if met else 'MISSED'})"
    assert bars.verdict() == (0 if met else 1)
    assert [
        line.endswith("s, bar ≤ 1 s") and line.startswith("time ") for line in bars._missed
    ] == ([] if met else [True])
    assert "MISSED" in bars.below("time", 1.0, 1.0) and "MISSED" in bars.at_least("speed", 0.9, 1.0)


def test_all_parts_are_run_and_what_was_missed_stands_at_the_end(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    script = tmp_path / "figure.py"
    script.write_text(MAKES_A_FIGURE)
    assert (
        run(
            {
                "slow": [str(script), "1.2"],
                "broken": ["-c", "raise SystemExit(3)"],
                "fast": [str(script), "1.6"],
            }
        )
        == 1
    )
    out = capfd.readouterr().out
    assert (
        "speed (bar ≥ 1.5: met) (bar < 500 MB: met)" in out
    )  # the last part was run though the first had missed
    assert out.splitlines()[-2:] == [
        "slow missed: speed 1.2, bar ≥ 1.5",
        "broken failed with status 3",
    ]
    assert run({"fast": [str(script), "1.6"]}) == 0 and "every bar met" in capfd.readouterr().out


@pytest.mark.slow
def test_a_benchmark_that_misses_its_bar_ends_with_status_1(tmp_path: Path) -> None:
    """A real one, whose bar no process with torch-free Python can meet: set to one megabyte."""
    script = (
        (ROOT / "benchmarks" / "tokenize_memory.py")
        .read_text()
        .replace("BAR_MEGABYTES = 500", "BAR_MEGABYTES = 1")
    )
    (tmp_path / "tight.py").write_text(script)
    command = [
        sys.executable,
        str(tmp_path / "tight.py"),
        "--megabytes",
        "1",
        "--folder",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 1 and done.stdout.splitlines()[-1].startswith(
        "missed: peak memory "
    ), done.stdout + done.stderr


def test_every_benchmark_ends_with_the_verdict_on_its_bars() -> None:
    for script in {command[0] for command in PARTS.values()}:
        text = (ROOT / "benchmarks" / script).read_text()
        assert "    return verdict()\n" in text and "sys.exit(main())" in text, script


def test_the_opponent_is_tried_as_often_as_ours_and_the_best_stands() -> None:
    best = bits_per_byte.Settings(batch=4, rate=3e-3, final=0.0, precision="bfloat16")

    def score(settings: bits_per_byte.Settings) -> float:
        rate = abs(math.log(settings.rate / best.rate))
        other = sum(
            getattr(settings, n) != getattr(best, n) for n in ("final", "precision", "betas")
        )
        return 2.0 + rate + abs(settings.batch - best.batch) / 10 + other / 10

    outcomes = list(bits_per_byte.tries(score))
    assert len(outcomes) == bits_per_byte.TRIES == 21
    assert outcomes[0][0] == bits_per_byte.Settings(32, 1e-3)  # nanoGPT's own
    chosen = min(outcomes, key=lambda outcome: outcome[1])[0]
    assert chosen == dataclasses.replace(best, rate=4e-3 / 1.5 * 1.25)


@pytest.mark.slow
def test_the_ranks_of_the_measured_pipeline_meet(tmp_path: Path) -> None:
    shape = {"family": "gpt2", "layers": 1, "width": 32, "heads": 2, "context": 32, "dropout": 0.0}
    case = {"model": shape, "vocab_size": 400, "steps": 4, "batch_tokens": 128}
    throughput.make_inputs(tmp_path, 400, words_known=200)
    profile = Profile(name="two", processes=2, threads=1, zero_stage=1)
    measured = throughput.run_pipeline(tmp_path, {**case, "precision": "float32"}, profile)
    assert measured["tokens_per_second"] > 0 and math.isfinite(measured["bits_per_byte"])


def test_a_peer_runs_with_the_fastest_of_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    tries = peers.micro_batches(12, padding_free=True)
    sizes = [(t["per_device_train_batch_size"], t["gradient_accumulation_steps"]) for t in tries]
    assert sizes == [(12, 1), (6, 2), (3, 4)]  # 12 rows have no eighth
    seconds = {12: 3.0, 6: 1.5, 3: 2.0}
    fastest = peers.fastest(tries, lambda tried: seconds[tried["per_device_train_batch_size"]])
    assert fastest == tries[1] and capsys.readouterr().out.count("peer with") == 3
