"""A task's entry, and from it to labelled examples in their splits. What is done with them is
test_tasks.py's.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from assets.recipe.yaml_file import load_strict
from gpt_model.data.splits import bucket
from gpt_model.errors import UserError
from gpt_model.finetuning.entry import CATALOGUE, SPLITS, TaskEntry
from gpt_model.finetuning.examples import Examples, groups_crossing, read_examples
from gpt_model.progress import Silent

REVIEWS = [
    {
        "id": i,
        "text": f"film {i % 170} was {'fine' if i % 2 else 'dull'}",
        "label": "good" if i % 2 else "bad",
    }
    for i in range(200)
]
ENTRY: dict[str, Any] = {
    "licence": "made up",
    "source": {"file": "rows.jsonl"},
    "form": "classification",
    "columns": {"text": "text", "label": "label"},
    "labels": ["bad", "good"],
}


def local(
    folder: Path,
    rows: list[dict[str, Any]],
    seed: int = 0,
    limit: int | None = None,
    **changes: Any,
) -> Examples:
    """The examples of a task whose rows are in a local file, pinned as the pipeline pins it."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read(folder, seed, limit, **changes)


def read(folder: Path, seed: int = 0, limit: int | None = None, **changes: Any) -> Examples:
    entry = TaskEntry.model_validate({**ENTRY, **changes})
    entry = entry.model_copy(update={"source": entry.source.resolved(folder, folder / "downloads")})
    return read_examples("reviews", entry, seed, folder / "downloads", Silent(), limit)


# --- entries ---


@pytest.mark.parametrize("name", sorted(path.stem for path in CATALOGUE.glob("*.yaml")))
def test_every_task_of_the_catalogue_is_a_valid_pinned_entry(name: str) -> None:
    entry = load_strict(TaskEntry, name, [CATALOGUE], "task")
    source = entry.source
    assert (
        (source.package and len(source.sha256 or "") == 64)
        or (source.hub and source.revision and source.splits)
        or source.on_request
    )
    assert TaskEntry.model_validate(entry.model_dump(mode="json", exclude_none=True)) == entry


def test_the_catalogue_covers_all_four_forms() -> None:
    forms = {
        load_strict(TaskEntry, path.stem, [CATALOGUE], "task").form
        for path in CATALOGUE.glob("*.yaml")
    }
    assert forms == {"classification", "entailment", "similarity", "multiple_choice"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"columns": {"text": "text"}}, "lacks 'label'"),
        (
            {"columns": {"text": "text", "label": "label", "premise": "p"}},
            "has 'premise', which a classification task does not read",
        ),
        ({"labels": ["bad"]}, "at least two different names"),
        ({"labels": {"bad": {"equals": 0, "above": 1}, "good": {"equals": 1}}}, "exactly one of"),
        ({"source": {"file": "rows.txt"}}, "does not say how its rows are written"),
        (
            {"scores": ["pearson"]},
            "pearson is of ratings, so it needs a `scale`, or two `labels`, one with `above` and "
            "one with `below`",
        ),
        (
            {"metric": "f1", "labels": [], "scale": [0, 5]},
            "f1 is of labels, and this task has ratings",
        ),
        ({"labels": [], "scale": [0, 5]}, "give `metric: pearson`"),
        (
            {"labels": [], "scale": [5, 0], "metric": "pearson"},
            "runs from a lower number to a higher one",
        ),
        (
            {"source": {"file": "a.jsonl", "package": "x==1"}},
            "kind is missing: a source with package needs it",
        ),
        ({"split": {"validation": 0.5, "test": 0.5}}, "leave nothing to train on"),
        (
            {"form": "multiple_choice", "columns": {"question": "q", "options": "o", "label": "a"}},
            "its label is the right option",
        ),
        ({"split": {"grup": "text"}}, "Extra inputs are not permitted"),
    ],
)
def test_a_wrong_entry_is_refused_by_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        TaskEntry.model_validate({**ENTRY, **changes})


# --- examples and splits ---


def test_no_example_and_no_group_crosses_the_splits(tmp_path: Path) -> None:
    result = local(tmp_path, REVIEWS, split={"group": "text", "validation": 0.2, "test": 0.3})
    assert sum(len(result.splits[split]) for split in SPLITS) == 200
    assert (
        groups_crossing([{example.group for example in result.splits[split]} for split in SPLITS])
        == 0
    )
    assert len({example.id for split in SPLITS for example in result.splits[split]}) == 200
    assert groups_crossing([{"a", "b"}, {"b"}, {"c", "a"}]) == 2


def test_evaluation_groups_are_those_a_corpus_of_the_same_seed_holds_out(tmp_path: Path) -> None:
    result = local(
        tmp_path, REVIEWS, seed=7, split={"group": "text", "validation": 0.1, "test": 0.2}
    )
    held_out = {row["text"] for row in REVIEWS if bucket(str(row["text"]), 7) < 0.1 + 0.2}
    assert {
        example.group for split in ("validation", "test") for example in result.splits[split]
    } == held_out


def test_passages_of_one_article_stay_together_where_a_source_keeps_them_together(
    tmp_path: Path,
) -> None:
    rows = [{**row, "text": f"Film {i // 4} -- part {i}"} for i, row in enumerate(REVIEWS)]
    result = local(
        tmp_path,
        rows,
        seed=2,
        split={"group": "text", "together": " -- ", "validation": 0.1, "test": 0.3},
    )
    for split in SPLITS:
        assert set(Counter(example.group for example in result.splits[split]).values()) == {4}
    held_out = {row["text"] for row in rows if bucket(row["text"], 2, " -- ") < 0.1 + 0.3}
    assert {
        example.segments[0] for split in ("validation", "test") for example in result.splits[split]
    } == held_out


def test_a_smaller_subset_is_part_of_a_larger_one_and_leaves_evaluation_alone(
    tmp_path: Path,
) -> None:
    whole, fifty, twenty = (local(tmp_path, REVIEWS, limit=limit) for limit in (None, 50, 20))
    assert (
        twenty.splits["training"] == fifty.splits["training"][:20] == whole.splits["training"][:20]
    )
    assert twenty.splits["test"] == whole.splits["test"] and len(twenty.splits["training"]) == 20
    assert (
        twenty.available
        == whole.available
        == {split: len(examples) for split, examples in whole.splits.items()}
    )


def test_every_file_format_gives_the_same_examples(tmp_path: Path) -> None:
    import pandas as pd

    expected = local(tmp_path, REVIEWS)
    table = pd.DataFrame(REVIEWS)
    table.to_csv(tmp_path / "rows.csv", index=False)
    table.to_csv(tmp_path / "rows.tsv", index=False, sep="\t")
    table.to_csv(tmp_path / "bare.txt", index=False, sep="\t", header=False)
    table.to_parquet(tmp_path / "rows.parquet")
    for changes in ({"source": {"file": f"rows.{ending}"}} for ending in ("csv", "tsv", "parquet")):
        assert read(tmp_path, **changes) == expected
    assert (
        read(tmp_path, source={"file": "bare.txt"}, format="tsv", header=["id", "text", "label"])
        == expected
    )


def test_a_file_may_be_named_in_any_way_but_must_be_tied_to_its_bytes(tmp_path: Path) -> None:
    expected = local(tmp_path, REVIEWS)
    for name in (
        "./rows.jsonl",
        "../" + tmp_path.name + "/rows.jsonl",
        str(tmp_path / "rows.jsonl"),
    ):
        assert read(tmp_path, source={"file": name}) == expected
    with pytest.raises(
        UserError, match=r"rows\.jsonl is a local file that is not tied to its bytes"
    ):
        read_examples(
            "reviews", TaskEntry.model_validate(ENTRY), 0, tmp_path / "downloads", Silent()
        )


def test_versions_of_a_row_make_one_example_a_label_in_one_split(tmp_path: Path) -> None:
    rows = [
        {"said": f"statement {i}", "yes": f"it says {i}", "no": f"it says {i + 1}"}
        for i in range(60)
    ]
    result = local(
        tmp_path,
        rows,
        form="similarity",
        columns={"first": "said"},
        versions={"same": "yes", "different": "no"},
        labels=["different", "same"],
        split={"group": "said", "validation": 0.2, "test": 0.3},
    )
    for split in SPLITS:
        assert Counter(example.label for example in result.splits[split]) == {
            0: len(result.splits[split]) / 2,
            1: len(result.splits[split]) / 2,
        }
    example = next(e for split in SPLITS for e in result.splits[split] if e.id == "1/same")
    assert (example.segments, example.label) == (("statement 0", "it says 0"), 1)
    assert groups_crossing([{e.group for e in result.splits[split]} for split in SPLITS]) == 0


def test_rows_of_a_group_make_pairs_and_as_many_of_two_groups_in_one_split(tmp_path: Path) -> None:
    texts = ["what is it", "what is it", "who made it", "where is it"]  # the second is a copy
    rows = [
        {"asked": f"{text} {group}", "article": f"article {group} -- part {n}"}
        for group in range(80)
        for n, text in enumerate(texts)
    ]
    result = local(
        tmp_path,
        rows,
        form="similarity",
        columns={"first": "asked", "second": "asked"},
        pairs={"same": "one_group", "different": "two_groups"},
        labels=["different", "same"],
        split={"group": "article", "together": " -- ", "validation": 0.2, "test": 0.3},
    )
    examples = {split: result.splits[split] for split in SPLITS}
    for made in examples.values():
        same, different = ([e for e in made if e.label == label] for label in (1, 0))
        assert len(same) == len(different) > 10
        assert all(e.segments[0].split()[-1] == e.segments[1].split()[-1] for e in same)
        assert all(e.segments[0].split()[-1] != e.segments[1].split()[-1] for e in different)
        # each text stands once under each label, so that no text alone tells it
        for position in (0, 1):
            assert {e.segments[position] for e in same} == {e.segments[position] for e in different}
    pair = next(e for made in examples.values() for e in made if e.id == "1+3")
    assert (pair.segments, pair.group) == (("what is it 0", "who made it 0"), "article 0")
    words = [{text for e in made for text in e.segments} for made in examples.values()]
    assert not words[0] & words[1] and not words[0] & words[2] and not words[1] & words[2]


@pytest.mark.parametrize(
    ("changed", "mistake"),
    [
        ({"form": "classification", "columns": {"text": "a"}}, "has one"),
        ({"split": {}}, "needs `split.group`"),
        ({"pairs": {"same": "one_group", "different": "one_group"}}, "one for one_group"),
        ({"pairs": {"same": "one_group", "other": "two_groups"}}, "the two names in `labels`"),
        ({"columns": {"first": "a", "second": "a", "label": "b"}}, "does not read"),
    ],
)
def test_pairs_that_cannot_be_made_are_refused(changed: dict[str, Any], mistake: str) -> None:
    entry = {
        "licence": "none",
        "source": {"file": "rows.jsonl"},
        "form": "similarity",
        "columns": {"first": "a", "second": "a"},
        "pairs": {"same": "one_group", "different": "two_groups"},
        "labels": ["different", "same"],
        "split": {"group": "g"},
    }
    TaskEntry.model_validate(entry)
    with pytest.raises(ValidationError, match=re.escape(mistake)):
        TaskEntry.model_validate(entry | changed)


def test_which_sentence_follows_is_asked_once_of_each_article(tmp_path: Path) -> None:
    def passage(article: int, part: int) -> str:
        second = f"The city {article} lies by a river that bears one name."
        return f"City {article} -- Part {part} of {article} is here. {second} It is old."

    rows = [{"passage": passage(n, part)} for n in range(90) for part in (1, 2)]
    rows += [{"passage": "City 90 -- Of U.S. Steel we know nothing. It is."}]  # too short
    result = local(
        tmp_path,
        rows,
        form="multiple_choice",
        columns={"text": "passage"},
        labels=[],
        next_sentence={"options": 3, "words": 7},
        split={"group": "passage", "together": " -- ", "validation": 0.2, "test": 0.3},
    )
    examples = {split: result.splits[split] for split in SPLITS}
    assert sum(map(len, examples.values())) == 90
    assert result.left_out == {"shorter than two sentences": 1}
    for made in examples.values():
        for example in made:
            number = example.group.split()[-1]
            assert example.segments == (f"Part 1 of {number} is here.",)
            right = f"The city {number} lies by a river"  # cut to seven words
            assert example.options[example.label] == right and len(set(example.options)) == 3
        options = Counter(option for example in made for option in example.options)
        assert set(options.values()) == {3}  # no option alone says whether it is right
        assert {example.label for example in made} == {0, 1, 2}


@pytest.mark.parametrize(
    ("changed", "mistake"),
    [
        ({"form": "similarity"}, "needs the form multiple_choice"),
        ({"columns": {"text": "a", "label": "b"}}, "does not read"),
        ({"next_sentence": {"options": 1}}, "lettered A to Z"),
    ],
)
def test_next_sentences_that_cannot_be_made_are_refused(
    changed: dict[str, Any], mistake: str
) -> None:
    entry = {
        "licence": "none",
        "source": {"file": "rows.jsonl"},
        "form": "multiple_choice",
        "columns": {"text": "a"},
        "next_sentence": {"options": 2},
    }
    TaskEntry.model_validate(entry)
    with pytest.raises(ValidationError, match=re.escape(mistake)):
        TaskEntry.model_validate(entry | changed)


def test_rows_between_thresholds_and_dropped_unlabelled_rows_are_counted(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": [-2, 0.2, 2, None][i % 4]} for i in range(200)]
    result = local(
        tmp_path, rows, labels={"bad": {"below": -0.5}, "good": {"above": 0.5}}, unlabelled="drop"
    )
    assert result.left_out == {"between the labels' thresholds": 50, "unlabelled": 50}
    assert sum(len(result.splits[split]) for split in SPLITS) == 100
    assert {(e.label, e.rating) for split in SPLITS for e in result.splits[split]} == {
        (0, -2.0),
        (1, 2.0),
    }  # the rating stays with it
    assert {e.rating for e in local(tmp_path, REVIEWS).splits["training"]} == {None}


def test_a_training_row_whose_group_is_in_the_test_file_is_left_out_and_counted(
    tmp_path: Path,
) -> None:
    for name, rows in {"train": REVIEWS[:150], "test": REVIEWS[140:]}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "val.jsonl").write_text(json.dumps({"text": "unseen", "label": "bad"}) + "\n")
    result = read(
        tmp_path,
        source={
            "file": {"training": "train.jsonl", "validation": "val.jsonl", "test": "test.jsonl"}
        },
    )
    assert len(result.splits["test"]) == 60 and [e.id for e in result.splits["validation"]] == [
        "val.jsonl:1"
    ]
    assert len(result.splits["training"]) + result.left_out["also in validation or test"] == 150
    assert (
        groups_crossing([{example.group for example in result.splits[split]} for split in SPLITS])
        == 0
    )


def test_a_pair_that_stands_swapped_in_another_split_is_the_same_pair(tmp_path: Path) -> None:
    pairs = [{"a": f"one {i}", "b": f"two {i}", "label": "good"} for i in range(60)]
    swapped = [{**pair, "a": pair["b"], "b": pair["a"]} for pair in pairs]
    changes: dict[str, Any] = {
        "form": "similarity",
        "columns": {"first": "a", "second": "b", "label": "label"},
    }
    # by share: both orders of a pair are in one split
    mixed = local(tmp_path, [*pairs, *swapped], **changes)
    sides = [{frozenset(example.segments) for example in mixed.splits[split]} for split in SPLITS]
    assert sum(map(len, sides)) == 60 and all(len(mixed.splits[split]) for split in SPLITS)
    # as given: a training row that is a test row swapped is left out
    for name, rows in {"train": pairs, "test": swapped[:7], "val": swapped[7:10]}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"training": "train.jsonl", "validation": "val.jsonl", "test": "test.jsonl"}
    result = read(tmp_path, source={"file": files}, **changes)
    assert len(result.splits["training"]) == 50
    assert result.left_out == {"also in validation or test": 10}
    # of premise and hypothesis the order means something
    ordered = {**changes, "form": "entailment", "columns": {"premise": "a", "hypothesis": "b"}}
    ordered["columns"] |= {"label": "label"}
    assert len(read(tmp_path, source={"file": files}, **ordered).splits["training"]) == 60


@pytest.mark.parametrize(
    ("answer", "label"),
    [("B. by  foot", 1), ("by  foot", 1), ("B", 1), (1, 1), ("0", 0), ("A. a bus", 0)],
)
def test_an_answer_is_known_by_text_letter_or_number(
    tmp_path: Path, answer: Any, label: int
) -> None:
    rows = [{"q": f"how {i}?", "o": "A. a bus\nB.  by  foot", "a": answer} for i in range(60)]
    result = local(
        tmp_path,
        rows,
        form="multiple_choice",
        columns={"question": "q", "options": "o", "label": "a"},
        labels=[],
    )
    assert {(e.options, e.label) for split in SPLITS for e in result.splits[split]} == {
        (("a bus", "by  foot"), label)
    }


def test_an_option_that_is_a_number_is_known_by_its_text(tmp_path: Path) -> None:
    rows = [{"q": f"how many {i}?", "o": ["1", "0", "2"], "a": "0"} for i in range(60)]
    result = local(
        tmp_path,
        rows,
        form="multiple_choice",
        columns={"question": "q", "options": "o", "label": "a"},
        labels=[],
    )
    assert {e.label for split in SPLITS for e in result.splits[split]} == {1}


@pytest.mark.parametrize(
    ("row", "changes", "said"),
    [
        (
            {"text": "x", "label": "bad"},
            {"columns": {"text": "words", "label": "label"}},
            r"no column 'words'.*columns are id, label, text",
        ),
        ({"text": "x", "label": None}, {}, r"rows.jsonl, row 201: column 'label' has no label"),
        ({"text": "x"}, {}, r"row 201: column 'label' has no label"),
        (
            {"text": "x", "label": "fair"},
            {},
            r"row 201: label 'fair' in column 'label' is unknown. Task reviews knows bad, good",
        ),
        ({"text": "", "label": "bad"}, {}, r"row 201: column 'text' is empty"),
        (
            {"text": "x", "label": "bad"},
            {"split": {"validation": 1e-9, "test": 0.2}},
            r"its validation split is empty",
        ),
        (
            {"text": "x", "label": "bad"},
            {"labels": {"bad": {"below": 0}, "good": {"above": 0}}},
            r"'bad' in column 'label' is not a number",
        ),
    ],
)
def test_a_bad_row_is_one_sentence_with_file_row_and_column(
    tmp_path: Path, row: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        local(tmp_path, [*REVIEWS, row], **changes)


def test_questions_with_different_numbers_of_options_are_refused(tmp_path: Path) -> None:
    rows = [{"q": "q", "o": ["a", "b"], "a": 0}, {"q": "q", "o": ["a", "b", "c"], "a": 0}]
    with pytest.raises(UserError, match="row 2: 3 options, and the rows before it have 2"):
        local(
            tmp_path,
            rows,
            form="multiple_choice",
            columns={"question": "q", "options": "o", "label": "a"},
            labels=[],
        )
