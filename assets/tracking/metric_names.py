"""The names under which MLflow has a stage's numbers. Artifacts and event logs keep the
stage's; delivery alone translates them, so that a page sorted by name begins with `eval/…` and
`train/…`.

    held_out/plays/bpb, validation_accuracy   eval/plays/bpb, eval/accuracy
    loss, training_accuracy                   train/loss, train/accuracy
    system/…                                  as it is: MLflow's own page of the machine
    a score at the end                        eval/…
    seconds, bytes and their rates            usage/…
    a count at the end, which never changes   the parameter result.…
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from assets.tracking import limits

SYSTEM, USAGE, RESULT = "system/", "usage/", "result."
HELD_OUT = re.compile(r"(held_out|validation)(?:_(.+))?")
TRAINING = re.compile(r"(training)(?:_(.+))?")
OF_USAGE = re.compile(r".*seconds|.*_per_second|peak_.*|.*flops.*|compute")
COUNT = re.compile(
    r"kept|left_out|lost|shared|too_long|shortened|training|held_out|judge|words|bytes|rankings"
    r"|comparisons|demonstrations|epochs?|vocab_size|steps|tokens_an_epoch|not_run"
    r"|(.+_)?(documents|examples|dialogues|episodes|batches|prompts|tokens|pairs|ties|bytes|epoch)"
    r"|(without|prompts|epoch|best_epoch)_.+|.+_a_(step|batch)|.+_available"
)


def of_series(name: str) -> str:
    """Of a metric that a stage reports while it runs."""
    return name if name.startswith(SYSTEM) else _grouped(name, "train")


def of_results(
    values: Mapping[str, float], series: Collection[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """The numbers at the end as metrics and as parameters. One that is in `series` too is that
    curve's last point.
    """
    metrics, parameters = {}, {}
    for name, value in values.items():
        last = name.rpartition("/")[2]
        if name in series:
            metrics[of_series(name)] = value
        elif OF_USAGE.fullmatch(last):
            metrics[f"{USAGE}{name}"] = value
        elif COUNT.fullmatch(last):
            parameters[f"{RESULT}{name}"] = value
        else:
            metrics[_grouped(name, "eval")] = value
    return metrics, parameters


def of_manifest(
    manifest: Mapping[str, Any], series: Collection[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """The numbers of a published build as metrics and as parameters; what it cost, and was
    expected to, among the metrics.
    """
    metrics, parameters = of_results(_numbers(manifest["metrics"]), series)
    known = manifest["provenance"]
    usage = {name: known.get(name) for name in ("seconds", "peak_memory_bytes")}
    usage |= known.get("cost", {})
    usage |= dict(limits.flatten({"forecast": known.get("forecast", {})}, values=True))
    metrics |= {f"{USAGE}{name}": value for name, value in _numbers(usage).items()}
    return metrics, parameters


def scores(metrics: Mapping[str, float]) -> dict[str, str]:
    """Those of `metrics` that have an interval, with it, as a person reads them."""
    return {
        name: f"{value:.4g} [{metrics[f'{name}_low']:.4g}, {metrics[f'{name}_high']:.4g}]"
        for name, value in metrics.items()
        if f"{name}_low" in metrics and f"{name}_high" in metrics
    }


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _grouped(name: str, group: str) -> str:
    """`name` below "eval" or "train" where a part of it says which, else below `group`."""
    rest = []
    for part in name.split("/"):
        if match := HELD_OUT.fullmatch(part):
            group = "eval"
        elif match := TRAINING.fullmatch(part):
            group = "train"
        if not match:
            rest.append(part)
        elif match[2]:
            rest.append(match[2])
    return "/".join([group, *(rest or [name])])
