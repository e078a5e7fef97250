"""The machine's load, sampled beside a stage, in the event log."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import pytest

from assets.launch import system_metrics
from assets.launch.system_metrics import of_gpus, sampled
from assets.tracking.event_log import EventReader, EventWriter, series

TWO_GPUS = """\
0, 1024, 81559, 37, 312.50
1, 0, 81559, [N/A], [N/A]
"""


def test_samples_stand_in_the_event_log_and_go_on_where_an_attempt_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system_metrics, "EVERY_SECONDS", 0.01)
    path = tmp_path / "events.jsonl"
    for _ in range(2):
        with closing(EventWriter(path)) as writer, sampled(writer.system, "cpu"):
            writer.metrics(1, {"loss": 1.0})
            time.sleep(0.1)
    samples = [event for event in EventReader(path).read() if event["kind"] == "system"]
    assert [event["step"] for event in samples] == list(range(len(samples)))
    assert len(samples) >= 2
    for event in samples:
        assert 0 <= event["values"]["system/cpu_utilization_percentage"] <= 100
        assert event["values"]["system/system_memory_usage_megabytes"] > 1
    assert set(series(path)) == {"loss"}  # no stage's check or picture sees them


def test_a_stage_of_seconds_has_a_sample_after_what_it_reports(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with closing(EventWriter(path)) as writer, sampled(writer.system, "cpu"):
        writer.metrics(1, {"loss": 1.0})
    assert [event["kind"] for event in EventReader(path).read()][-2:] == ["metrics", "system"]


def test_what_nvidia_smi_says_has_mlflows_names_and_what_a_gpu_lacks_is_left_out() -> None:
    assert of_gpus(TWO_GPUS) == {
        "system/gpu_0_memory_usage_megabytes": pytest.approx(1073.741824),
        "system/gpu_0_memory_usage_percentage": 1.3,
        "system/gpu_0_utilization_percentage": 37.0,
        "system/gpu_0_power_usage_watts": 312.5,
        "system/gpu_1_memory_usage_megabytes": 0.0,
        "system/gpu_1_memory_usage_percentage": 0.0,
    }
    assert of_gpus("No devices were found\n") == {}
