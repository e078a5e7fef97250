"""The names under which MLflow has a stage's numbers."""

from __future__ import annotations

import pytest

from assets.tracking.metric_names import of_results, of_series


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("loss", "train/loss"),
        ("pretrained/loss", "train/pretrained/loss"),
        ("training_accuracy", "train/accuracy"),
        ("held_out/plays/bpb", "eval/plays/bpb"),
        ("held_out_sample/bpb", "eval/sample/bpb"),
        ("random/validation_accuracy", "eval/random/accuracy"),
        ("held_out", "eval/held_out"),
        ("system/cpu_utilization_percentage", "system/cpu_utilization_percentage"),
    ],
)
def test_a_curve_is_of_training_or_of_evaluation(name: str, expected: str) -> None:
    assert of_series(name) == expected


def test_scores_usage_and_counts_are_told_apart_and_a_curve_gets_its_last_point() -> None:
    values = {
        "accuracy": 0.5,
        "accuracy_low": 0.4,
        "held_out/bpb": 2.0,
        "loss": 3.0,
        "seconds": 9.0,
        "tokens_per_second": 5.0,
        "peak_memory_bytes": 7.0,
        "training/plays/tokens": 100,
        "test_examples": 20.0,
    }
    metrics, parameters = of_results(values, {"loss", "held_out/bpb"})
    assert metrics == {
        "eval/accuracy": 0.5,
        "eval/accuracy_low": 0.4,
        "eval/bpb": 2.0,
        "train/loss": 3.0,
        "usage/seconds": 9.0,
        "usage/tokens_per_second": 5.0,
        "usage/peak_memory_bytes": 7.0,
    }
    assert parameters == {"result.training/plays/tokens": 100, "result.test_examples": 20.0}
