"""GPT-1's twelve sets: each entry of the catalogue on a few rows of its own columns, from a folder
in the hub's layout and from files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from task_rows import SETS

from assets.recipe.yaml_file import load_strict
from gpt_model.errors import UserError
from gpt_model.finetuning.entry import CATALOGUE, SPLITS, TaskEntry, TaskSource
from gpt_model.finetuning.examples import Examples, read_examples
from gpt_model.progress import Silent
from gpt_model.published import references

ROWS = 240


FORMS = {
    "sst2": "classification",
    "cola": "classification",
    "mrpc": "similarity",
    "qqp": "similarity",
    "stsb": "similarity",
    "race": "multiple_choice",
    "storycloze": "multiple_choice",
}
METRICS = {"cola": "matthews", "mrpc": "f1", "qqp": "f1", "stsb": "pearson"}
HUB = sorted(SETS.keys() - {"storycloze"})


def entry_of(name: str) -> TaskEntry:
    return load_strict(TaskEntry, name, [CATALOGUE], "task")


def rows_of(name: str, start: int) -> list[dict[str, Any]]:
    return [SETS[name](n) for n in range(start, start + ROWS)]


def read(entry: TaskEntry, folder: Path, source: Mapping[str, Any]) -> Examples:
    """`entry`'s examples from another place, tied to its bytes as the pipeline ties it."""
    local = TaskSource.model_validate(source).seen_from(folder, folder)
    there = local.resolved(folder, folder / "downloads")
    return read_examples(
        "it", entry.model_copy(update={"source": there}), 0, folder / "downloads", Silent()
    )


def as_on_the_hub(name: str, folder: Path) -> dict[str, Any]:
    """A copy of the set as the hub lays it out: parquet and a card that says which files are which
    split of which subset.
    """
    source = entry_of(name).source
    assert source.splits and source.hub
    subsets: dict[str, list[str]] = {}
    for start, split in enumerate(dict.fromkeys(source.splits.all())):
        subset, _, own = split.rpartition("/")
        subset = subset or source.subset or ""
        path = folder / "copy" / subset / f"{own}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows_of(name, 1000 * start)), path)
        subsets.setdefault(subset, []).append(f"  - split: {own}\n    path: {subset}/{own}-*\n")
    card = "".join(
        f"- config_name: {subset}\n  data_files:\n{''.join(splits)}"
        for subset, splits in subsets.items()
    )
    (folder / "copy" / "README.md").write_text(f"---\nconfigs:\n{card}---\n")
    return {**source.model_dump(exclude_none=True), "hub": "./copy"}


@pytest.mark.parametrize("name", HUB)
def test_a_set_is_read_from_the_hubs_layout_in_its_own_splits(name: str, tmp_path: Path) -> None:
    entry = entry_of(name)
    found = read(entry, tmp_path, as_on_the_hub(name, tmp_path))
    assert entry.form == FORMS.get(name, "entailment") and entry.metric == METRICS.get(
        name, "accuracy"
    )
    assert all(found.splits[split] for split in SPLITS)
    parts = list(entry.source.splits.tests()) if entry.source.splits else []
    labelled = ROWS * 3 // 4 if name == "snli" else ROWS
    assert len(found.splits["test"]) == labelled * len(parts) and {
        one.part for one in found.splits["test"]
    } == set(parts)
    assert (
        len(found.splits["training"])
        + (0 if entry.source.splits.validation else len(found.splits["validation"]))
        == labelled
    )  # type: ignore[union-attr]
    assert len({one.label for one in found.splits["training"]}) == (
        4 if name == "stsb" else len(entry.label_names()) or 4
    )
    again = read(entry, tmp_path, as_on_the_hub(name, tmp_path))
    assert again == found


@pytest.mark.parametrize("name", sorted(SETS))
def test_local_files_of_the_same_columns_give_the_same_texts_and_labels(
    name: str, tmp_path: Path
) -> None:
    entry = entry_of(name)
    for split, start in {"training": 0, "test": 1000}.items():
        (tmp_path / f"{split}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows_of(name, start))
        )
    found = read(entry, tmp_path, {"file": {"training": "training.jsonl", "test": "test.jsonl"}})
    texts = {
        "sst2": "film 1000 was fine",
        "cola": "The fox 1000 runned .",
        "race": "Fable 500 tells of a 500. Who is it in 1000? It is _ .",
        "storycloze": " ".join(f"Story 1000 goes on to {i}." for i in range(1, 5)),
    }
    first, swapped = (
        found.splits["test"][0],
        name == "qnli",
    )  # its premise is the sentence, which stands second
    expected = ("Bridge 1000 was crossed.", "The fox crossed bridge 1000.")
    assert first.segments == (
        (texts[name],) if name in texts else expected if swapped else expected[::-1]
    )
    alone = read(entry, tmp_path, {"file": "training.jsonl"})
    assert sum(map(len, alone.splits.values())) == (
        ROWS * 3 // 4 if name == "snli" else ROWS
    ) and all(alone.splits.values())


def test_what_a_label_means_is_the_data_sets_own(tmp_path: Path) -> None:
    def labels(name: str) -> list[Any]:
        (tmp_path / "rows.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows_of(name, 0))
        )
        found = read(entry_of(name), tmp_path, {"file": "rows.jsonl"})
        by_row = {int(one.id) - 1: one for split in SPLITS for one in found.splits[split]}
        names = entry_of(name).label_names()
        return [
            names[by_row[n].label] if names else by_row[n].options[by_row[n].label]
            for n in range(4)
            if n in by_row
        ]

    assert (
        labels("mnli")[:3] == labels("snli")[:3] == ["entailment", "neutral", "contradiction"]
        and len(labels("snli")) == 3
    )
    assert labels("qnli")[:2] == labels("rte")[:2] == ["entailment", "not_entailment"] and labels(
        "scitail"
    )[:2] == ["entails", "neutral"]
    assert labels("sst2")[:2] == ["negative", "positive"] and labels("mrpc")[:2] == labels("qqp")[
        :2
    ] == ["different", "same"]
    assert labels("race")[:2] == ["a fox 0", "a crow 1"] and labels("storycloze")[:2] == [
        "It ends well 0.",
        "It ends badly 1.",
    ]


def test_a_rating_is_shared_out_to_the_two_whole_numbers_beside_it_as_in_the_released_code(
    tmp_path: Path,
) -> None:
    import numpy as np

    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows_of("stsb", 0))
    )
    found = read(entry_of("stsb"), tmp_path, {"file": "rows.jsonl"})
    seen = {one.rating: one.target for split in SPLITS for one in found.splits[split]}
    assert set(seen) == {0.0, 5.0, 3.8, 2.25}
    for rating, target in seen.items():
        released = np.zeros(6)
        for i in range(6):  # utils.py, stsb_label_encoding
            if i == np.floor(rating) + 1:
                released[i] = rating - np.floor(rating)
            if i == np.floor(rating):
                released[i] = np.floor(rating) - rating + 1
        assert target == pytest.approx(released)
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"sentence1": "a", "sentence2": "b", "label": 5.5}) + "\n"
    )
    with pytest.raises(UserError, match=r"rating 5.5 in column 'label' is not between 0 and 5"):
        read(entry_of("stsb"), tmp_path, {"file": "rows.jsonl"})


def test_every_set_has_its_row_in_the_papers_tables() -> None:
    for name in SETS:
        published = entry_of(name).published
        assert published and published.metric == entry_of(name).metric
        for task in list(published.parts.values()) or [published.task]:
            assert [
                one.value
                for one in references(task=task, metric=published.metric, generation="gpt1")
                if one.model == "gpt1"
            ], task


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({}, "exactly one of file, hub and on_request; found none"),
        ({"file": "a.csv", "hub": "b/c"}, "found file and hub"),
        (
            {"hub": "b/c", "splits": {"training": "train", "test": "test"}},
            "revision is missing: a source with hub needs it",
        ),
        ({"hub": "./copy"}, "splits is missing: a source with hub needs it"),
        (
            {"file": "a.csv", "subset": "c"},
            "subset goes with hub, and this source has file: leave subset out",
        ),
        (
            {"package": "a==1", "kind": "wheel", "sha256": "0" * 64, "hub": "b/c"},
            "package goes with file, and this source has hub",
        ),
    ],
)
def test_a_source_in_two_places_or_none_is_refused_in_words(
    source: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        TaskSource.model_validate(source)
