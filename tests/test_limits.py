"""What is sent to MLflow fits its limits, and different things stay different."""

from __future__ import annotations

import json
from typing import Any

import pytest
from mlflow.entities import Metric, Param
from mlflow.utils import validation

from assets.tracking import limits

NAMES = [
    "loss",
    "held_out/plays/bpb",
    "held_out/notes [1].txt/bpb",
    "../my/suite.yaml/accuracy",
    "/a",
    "a//b",
    "a/",
    "",
    ".",
    "x" * 300,
    "ü/名前",
    "a\nb",
]


def test_a_valid_name_stays_as_it_is() -> None:
    assert limits.key("held_out/plays/bpb") == "held_out/plays/bpb"


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_one_that_mlflow_takes(name: str) -> None:
    validation._validate_metric(limits.key(name), 1.0, 0, 0)
    validation._validate_param(limits.key(name), "value")
    validation._validate_tag(limits.key(name), "value")
    validation._validate_logged_model_name(limits.model_name(name))
    validation._validate_model_name(limits.model_name(name))


def test_names_that_differ_are_sent_as_names_that_differ() -> None:
    names = [*NAMES, "a[1]", "a(1)", "x" * 301]
    assert len({limits.key(name) for name in names}) == len(names)


def test_a_long_value_is_cut_and_says_how_long_it_was() -> None:
    long, other = "a" * 9000, "a" * 9001
    cut = limits.shortened(long, limits.PARAMETER_CHARACTERS)
    assert len(cut) == validation.MAX_PARAM_VAL_LENGTH
    assert "(9,000 characters, sha256 " in cut
    assert cut != limits.shortened(other, limits.PARAMETER_CHARACTERS)
    assert limits.shortened("a\0\ud800b", 10) == "a\ufffd?b"


def corpus_of(files: int) -> dict[str, Any]:
    pinned = [{"path": f"notes/{n:05d}.txt", "sha256": "ab" * 32, "size": n} for n in range(files)]
    return {"sources": [{"name": "notes", "path": "notes/*.txt", "pinned": pinned}], "seed": 0}


def test_a_corpus_of_many_files_has_few_parameters_and_a_source_that_fits() -> None:
    flat = limits.parameters(corpus_of(3000))
    assert len(flat) == 4
    assert flat["sources.notes.pinned"].startswith("3,000 entries, sha256 ")
    source = limits.source(corpus_of(3000)["sources"][0])
    assert len(source) < validation.MAX_DATASET_SOURCE_SIZE
    assert json.loads(source)["path"] == "notes/*.txt"


def test_a_source_that_fits_is_whole() -> None:
    entry = corpus_of(3)["sources"][0]
    assert json.loads(limits.source(entry)) == entry


def test_entries_of_one_name_are_parameters_of_their_own() -> None:
    tasks = {"tasks": [{"name": "a", "n": 1}, {"name": "a", "n": 2}]}
    assert dict(limits.flatten(tasks)) == {
        "tasks.0.name": "a",
        "tasks.0.n": "1",
        "tasks.1.name": "a",
        "tasks.1.n": "2",
    }


def test_batches_fit_one_request_in_count_and_bytes() -> None:
    metrics = [Metric(f"m{n}", float(n), 0, n) for n in range(2500)]
    assert [len(batch) for batch in limits.batches(metrics, limits.METRICS_AT_ONCE)] == [
        1000,
        1000,
        500,
    ]
    wide = [Param(f"p{n}", "名" * limits.PARAMETER_CHARACTERS) for n in range(100)]
    sizes = [
        sum(len(json.dumps({"key": p.key, "value": p.value})) for p in batch)
        for batch in limits.batches(wide, limits.PARAMETERS_AT_ONCE)
    ]
    assert max(sizes) <= limits.REQUEST_BYTES < validation.MAX_BATCH_LOG_REQUEST_SIZE
    assert sum(len(batch) for batch in limits.batches(wide, limits.PARAMETERS_AT_ONCE)) == 100
