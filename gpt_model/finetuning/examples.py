"""From a task's entry to its examples: rows read, labels decided, splits made. No tokens, no torch.

A row's split follows from its group's text and a seed (`gpt_model.data.splits.bucket`, as a
document's does), so that neither an example nor a group crosses, and a passage that is held out of
a task's training is held out of pre-training too where the source's `held_out` share is at least
the task's validation and test shares together.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from gpt_model.data.formats import Row, format_from_ending
from gpt_model.data.local_files import read_once
from gpt_model.data.location import tables
from gpt_model.data.splits import bucket
from gpt_model.errors import UserError
from gpt_model.finetuning.entry import SEGMENTS, SPLITS, Rule, SplitName, Splits, TaskEntry
from gpt_model.progress import Progress, Silent

MOST_LABELS = 20  # that are inferred: a column of more values is no column of labels
SENTENCE_END = re.compile(r"(?<=[a-z)][.!?])\s+(?=[A-Z])")  # not behind an abbreviation like "U.S."
LEAST_WORDS = 6  # of a second sentence: "It was." follows on anything


@dataclass(frozen=True)
class Example:
    """One labelled example: the texts of its form's segments, for multiple choice the options, and
    the class that is right.
    """

    # row number in its file or split, with the label it was made for where a row gives several
    id: str
    group: str  # examples of one group are in one split
    segments: tuple[str, ...]
    options: tuple[str, ...]  # multiple choice only
    label: int
    rating: float | None = (
        # the label column's number, where there is a scale or two labels are its low and its high
        # end
        None
    )
    target: tuple[float, ...] = ()  # on a scale: how much of each class is right
    part: str = ""  # of the test split, where it has several


@dataclass(frozen=True)
class Examples:
    """A task's examples by split, and how many rows were left out, by reason."""

    splits: dict[SplitName, list[Example]]
    available: dict[SplitName, int]  # before subsets were taken
    left_out: dict[str, int]


def groups_crossing(groups: list[set[str]]) -> int:
    """How many groups are in more than one of the sets."""
    counts = Counter(group for members in groups for group in members)
    return sum(count > 1 for count in counts.values())


def read_examples(
    task: str,
    entry: TaskEntry,
    seed: int,
    downloads: Path,
    progress: Progress,
    limit: int | None = None,
    held_back: int | None = None,
) -> Examples:
    """Every example of `task`, split; at most `limit` for training and `held_back` for each of
    validation and test, seeded subsets.

    A larger limit's subset contains a smaller one's.

    Raises UserError naming file, row and column: a missing column, an unlabelled row, an unknown
    label, an empty split.
    """
    reader, given = _Reader(task, entry), entry.source.splits or entry.source.file
    read = _examples_reader(reader, entry, downloads, progress)
    if isinstance(given, Splits):
        splits = _split_as_given(read, reader, entry, given, seed)
    else:
        splits = _split_by_share(read(str(given)), entry, seed)
    if entry.pairs:
        splits = {name: _with_mixed_pairs(same, entry) for name, same in splits.items()}
    if entry.next_sentence:
        splits = {
            name: _with_wrong_sentences(right, entry.next_sentence.options, seed)
            for name, right in splits.items()
        }
    for name, examples in splits.items():
        if not examples:
            raise UserError(
                f"Task {task}: its {name} split is empty. Give it more rows, or change the shares "
                "under `split`."
            )
    available = {name: len(examples) for name, examples in splits.items()}
    random.Random(seed).shuffle(splits["training"])
    splits["training"] = splits["training"][:limit]
    for name in ("validation", "test"):
        chosen = random.Random(seed).sample(range(available[name]), available[name])[:held_back]
        splits[name] = [splits[name][index] for index in sorted(chosen)]
    return Examples(splits, available, dict(reader.left_out))


def checked(task: str, entry: TaskEntry, downloads: Path) -> TaskEntry:
    """`entry` with its labels, where they are inferred, after every row of its local files was
    read: once, as a note under `downloads` says of these bytes. Raises UserError as `read_examples`
    does. Data that is no local file is not read.
    """
    if not entry.source.local:
        return entry
    if entry.form != "multiple_choice" and not entry.label_names():
        entry = entry.model_copy(update={"labels": _inferred_labels(task, entry, downloads)})

    def read() -> None:
        examples_of = _examples_reader(_Reader(task, entry), entry, downloads, Silent())
        for name in entry.source.names():
            examples_of(name)

    read_once("tasks", entry.model_dump_json(), downloads, read)
    return entry


def _inferred_labels(task: str, entry: TaskEntry, downloads: Path) -> list[str]:
    """The different values of the label column, in order. Raises UserError where there is no such
    column, or it has too many to be the names of labels.
    """
    column, values = str(entry.columns["label"]), set[str]()
    for name in entry.source.names():
        known = set[str]()
        for row in _local_rows(entry, name, downloads):
            known |= row.keys()
            values.add(str(row.get(column, "")).strip())
            if len(values) > MOST_LABELS + 1:
                break
        else:
            if known:
                _check_columns(task, entry, name, known)
    names = sorted(values - {"", "None", str(entry.no_label)})
    if not 2 <= len(names) <= MOST_LABELS:
        some = f": {', '.join(map(repr, names[:3]))}" if names else ""
        count = f"more than {MOST_LABELS}" if len(names) > MOST_LABELS else str(len(names))
        raise UserError(
            f"Column {column!r} of {entry.source.names()[0]} has {count} different "
            f"value{'s' * (len(names) != 1)}{some}. Labels are inferred where it has 2 to "
            f"{MOST_LABELS}: name yours under `labels` in the task's file, or give a `scale`.",
            field="labels",
        )
    return names


def _check_columns(task: str, entry: TaskEntry, file: str, known: Collection[str]) -> None:
    """Raises UserError where a column that the task reads is not among those that are `known` of
    the file.
    """
    needed = entry.columns_read()
    if not (missing := [column for column in needed if column not in known]):
        return
    names = ", ".join(sorted(known))
    advice = "Correct `columns` in the task's file."
    if entry.header is None and format_from_ending(file) in ("csv", "tsv"):
        if len(known) == 1 and any(mark in names for mark in ";|\t"):
            advice = (
                "Its fields do not stand between commas, as those of a .csv do, or tabs, as those "
                "of a .tsv do: save it again so."
            )
        else:
            advice += (
                " If these are a row's values, the file has no header: write one as its first line "
                f"({', '.join(needed)} among its names), or give the columns' names as `header` in "
                "the task's file."
            )
    raise UserError(
        f"{file} has no column {missing[0]!r}, which task {task} reads. Its columns are {names}. "
        f"{advice}"
    )


def _local_rows(entry: TaskEntry, name: str, downloads: Path) -> Iterator[Row]:
    location = replace(entry.source.location(name), format=entry.format, header=entry.header)
    for _, table in tables(location, [], Path(), downloads, Silent()):
        yield from table


def _split_by_share(
    examples: list[Example], entry: TaskEntry, seed: int
) -> dict[SplitName, list[Example]]:
    splits: dict[SplitName, list[Example]] = {name: [] for name in SPLITS}
    for example in examples:
        position, split = bucket(example.group, seed), entry.split
        if position < split.test:
            splits["test"].append(example)
        elif position < split.test + split.validation:
            splits["validation"].append(example)
        else:
            splits["training"].append(example)
    return splits


def _with_mixed_pairs(same: list[Example], entry: TaskEntry) -> list[Example]:
    """The pairs of one group, and for each its first segment with the second one of the next pair
    of another group: every text stands once under each label. No text leaves its split.
    """
    label = entry.label_names().index(entry.pair_label("two_groups"))
    mixed = []
    for i, example in enumerate(same):
        following = (same[(i + step) % len(same)] for step in range(1, len(same)))
        other = next((each for each in following if each.group != example.group), None)
        if other is not None:
            segments = (example.segments[0], other.segments[1])
            id_ = f"{example.id.partition('+')[0]}+{other.id.rpartition('+')[2]}"
            mixed.append(replace(example, id=id_, segments=segments, label=label))
    return [*same, *mixed]


def _with_wrong_sentences(right: list[Example], options: int, seed: int) -> list[Example]:
    """Each example, whose only option is right, with as many options as asked for: the next ones of
    other groups. So every sentence is as often wrong as right, but for the number of options, and
    none leaves its split. The seed decides where the right one stands.
    """
    complete = []
    for i, example in enumerate(right):
        following = (right[(i + step) % len(right)] for step in range(1, len(right)))
        texts = (each.options[0] for each in following if each.group != example.group)
        wrong = list(islice((text for text in texts if text not in example.options), options - 1))
        if len(wrong) == options - 1:
            label = int(bucket(example.id, seed) * options)
            sentences = (*wrong[:label], *example.options, *wrong[label:])
            complete.append(replace(example, options=sentences, label=label))
    return complete


def _split_as_given(
    read: Callable[[str], list[Example]],
    reader: _Reader,
    entry: TaskEntry,
    given: Splits,
    seed: int,
) -> dict[SplitName, list[Example]]:
    """The splits as whoever made the task has them; a training row whose group is held back
    elsewhere is left out, and counted.
    """
    test = [
        replace(example, part=part)
        for part, name in given.tests().items()
        for example in read(name)
    ]
    training = read(given.training)
    held = {example.group for example in test}
    if given.validation is not None:
        validation = [example for example in read(given.validation) if example.group not in held]
    else:
        validation = [
            e
            for e in training
            if e.group not in held and bucket(e.group, seed) < entry.split.validation
        ]
    held |= {example.group for example in validation}
    remaining = [example for example in training if example.group not in held]
    if given.validation is not None and len(remaining) < len(training):
        reader.left_out["also in validation or test"] += len(training) - len(remaining)
    return {"training": remaining, "validation": validation, "test": test}


def _examples_reader(
    reader: _Reader, entry: TaskEntry, downloads: Path, progress: Progress
) -> Callable[[str], list[Example]]:
    """A function that reads the examples of a file, or of a split on the hub, by its name."""
    source = entry.source
    if source.on_request:
        raise UserError(
            f"Task {reader.task}'s authors give its data on request ({source.on_request}): "
            "name your files of it.",
            field="source",
        )

    def examples_of(name: str) -> list[Example]:
        location = source.location(name)
        if source.hub is None:
            label, columns = name, list[str]()
            id_prefix = f"{Path(name).name}:" if isinstance(source.file, Splits) else ""
            location = replace(location, format=entry.format, header=entry.header)
        else:
            label, columns = f"{source.hub} ({name})", entry.columns_read()
            id_prefix = f"{name}:"
        rows = (
            row
            for _, table in tables(location, columns, Path(), downloads, progress)
            for row in table
        )
        return list(reader.examples(label, enumerate(rows, 1), id_prefix))

    return examples_of


class _Reader:
    """Rows to examples, counting what is left out. Every complaint names file, row (from 1, header
    not counted) and column.
    """

    def __init__(self, task: str, entry: TaskEntry) -> None:
        self.task, self.entry = task, entry
        self.left_out: Counter[str] = Counter()
        self.options: int | None = None  # of the first row; every row has as many
        self.rules = (
            {name: Rule(equals=name) for name in entry.labels}
            if isinstance(entry.labels, list)
            else entry.labels
        )

    def examples(
        self, file: str, numbered: Iterable[tuple[int, Row]], prefix: str = ""
    ) -> Iterator[Example]:
        rows = list(numbered)
        if not rows:
            raise UserError(f"{file} has no rows. Task {self.task} needs some.")
        known = set().union(*(row for _, row in rows))
        _check_columns(self.task, self.entry, file, known)
        earlier: dict[str, tuple[str, Row]] = {}  # `pairs`: a group's row that waits for its second
        groups: set[str] = set()  # `next_sentence`: those that have given their text
        for number, row in rows:
            where, id_ = f"{file}, row {number}", f"{prefix}{number}"
            try:
                if self.entry.pairs:
                    made = self._pair(where, id_, row, earlier)
                elif self.entry.next_sentence:
                    made = self._next_sentence(where, id_, row, groups)
                else:
                    made = list(self._of_row(where, id_, row))
            except UserError:
                if self.entry.malformed == "refuse":
                    raise
                self.left_out["malformed"] += 1
                continue
            yield from made

    def _pair(
        self, where: str, id_: str, row: Row, earlier: dict[str, tuple[str, Row]]
    ) -> list[Example]:
        """The pair of `row` and the row of its group in `earlier`, if there is one."""
        entry = self.entry
        group = self._group(where, row, ())
        if group not in earlier:
            earlier[group] = (id_, row)
            return []
        first_id, first_row = earlier[group]
        first, second = SEGMENTS[entry.form]
        segments = (self._text(where, first_row, first), self._text(where, row, second))
        if segments[0] == segments[1]:  # a copy: the next row may be a second text
            return []
        del earlier[group]
        label = entry.label_names().index(entry.pair_label("one_group"))
        return [Example(f"{first_id}+{id_}", group, segments, (), label)]

    def _next_sentence(self, where: str, id_: str, row: Row, groups: set[str]) -> list[Example]:
        """The first two sentences of the row's text, the second as the only option yet."""
        assert self.entry.next_sentence
        text, mark = self._text(where, row, "text"), self.entry.split.together
        group = self._group(where, row, (text,))
        if group in groups:
            return []
        if mark and mark in text:
            text = text.partition(mark)[2]
        sentences = [sentence.split() for sentence in SENTENCE_END.split(text.strip())]
        if len(sentences) < 2 or len(sentences[1]) < LEAST_WORDS:
            self.left_out["shorter than two sentences"] += 1
            return []
        groups.add(group)
        most = self.entry.next_sentence.words
        first, second = (" ".join(sentence[:most]) for sentence in sentences[:2])
        return [Example(id_, group, (first,), (second,), 0)]

    def _group(self, where: str, row: Row, segments: tuple[str, ...]) -> str:
        """What keeps a row's examples in one split: the column's text, else the example's own."""
        entry = self.entry
        group = (
            self._cell(where, row, entry.split.group)
            if entry.split.group
            # A pair that stands swapped elsewhere is the same pair.
            else "\n".join(sorted(segments) if entry.form == "similarity" else segments)
        )
        return group.partition(entry.split.together)[0] if entry.split.together else group

    def _of_row(self, where: str, id_: str, row: Row) -> Iterator[Example]:
        entry = self.entry
        made: list[tuple[str, tuple[str, ...], tuple[str, ...], int | None]]
        if entry.form == "multiple_choice":
            question = " ".join(
                self._text(where, row, key)
                for key in ("context", "question")
                if key in entry.columns
            )  # [z; q]
            options = self._options(where, row)
            label = self._right_option(where, row, options)
            made = [(id_, (question,), options, label)]
        elif entry.versions:
            fixed = tuple(self._text(where, row, name) for name in SEGMENTS[entry.form][:-1])
            names = entry.label_names()
            made = [
                (f"{id_}/{n}", (*fixed, self._cell(where, row, entry.versions[n])), (), i)
                for i, n in enumerate(names)
            ]
        else:
            texts = tuple(self._text(where, row, name) for name in SEGMENTS[entry.form])
            made = [(id_, texts, (), self._label(where, row))]
        for example_id, segments, options, label in made:
            if label is None:
                continue
            group = self._group(where, row, segments)
            rating = self._rating(where, row)
            target = (
                rating_target(rating, *entry.scale) if entry.scale and rating is not None else ()
            )
            yield Example(example_id, group, segments, options, label, rating, target)

    def _text(self, where: str, row: Row, name: str) -> str:
        """The text of a segment, its columns joined by a space where there are several."""
        columns = self.entry.columns[name]
        return " ".join(
            self._cell(where, row, column)
            for column in ([columns] if isinstance(columns, str) else columns)
        )

    def _cell(self, where: str, row: Row, column: str) -> str:
        value = row.get(column)
        if value is None or not (text := str(value).strip()):
            raise UserError(
                f"{where}: column {column!r} is empty, and task {self.task} reads it. Fill it or "
                "take the row out."
            )
        return text

    def _unlabelled(self, where: str, column: str) -> None:
        if self.entry.unlabelled == "refuse":
            raise UserError(
                f"{where}: column {column!r} has no label. Label the row or take it out, or set "
                "`unlabelled: drop` in the task's file."
            )
        self.left_out["unlabelled"] += 1

    def _label(self, where: str, row: Row) -> int | None:
        column = str(self.entry.columns["label"])
        value = row.get(column)
        if self._is_none(value):
            self._unlabelled(where, column)
            return None
        if self.entry.scale:
            return self._on_the_scale(where, column, value)
        thresholds = False
        for i, rule in enumerate(self.rules.values()):
            if rule.equals is not None:
                if str(value).strip() == str(rule.equals):
                    return i
                continue
            thresholds = True
            number = self._number(where, column, value)
            if (rule.above is not None and number > rule.above) or (
                rule.below is not None and number < rule.below
            ):
                return i
        if not thresholds:
            raise UserError(
                f"{where}: label {str(value)!r} in column {column!r} is unknown. Task {self.task} "
                f"knows {', '.join(self.rules)}."
            )
        self.left_out["between the labels' thresholds"] += 1
        return None

    def _is_none(self, value: Any) -> bool:
        if value is None or value != value:  # unequal to itself: NaN, as parquet has it
            return True
        return str(value).strip() == "" or (
            self.entry.no_label is not None and str(value).strip() == str(self.entry.no_label)
        )

    def _on_the_scale(self, where: str, column: str, value: Any) -> int:
        """The class of the nearest whole rating."""
        assert self.entry.scale
        (low, high), number = self.entry.scale, self._number(where, column, value)
        if not low <= number <= high:
            raise UserError(
                f"{where}: rating {value!r} in column {column!r} is not between {low} and {high}, "
                f"task {self.task}'s `scale`."
            )
        return int(number - low + 0.5)

    def _rating(self, where: str, row: Row) -> float | None:
        column = str(self.entry.columns.get("label"))
        return self._number(where, column, row[column]) if self.entry.rated() else None

    def _number(self, where: str, column: str, value: Any) -> float:
        try:
            return float(value)
        except ValueError:
            raise UserError(
                f"{where}: {value!r} in column {column!r} is not a number, and task {self.task} "
                "compares it with one."
            ) from None

    def _options(self, where: str, row: Row) -> tuple[str, ...]:
        """From a column for each option, a list, or one text with a lettered line for each ("A.
        x\\nB. y").
        """
        column = self.entry.columns["options"]
        if isinstance(column, list):
            options = [self._cell(where, row, name) for name in column]
        elif isinstance(row.get(column), list):
            options = [str(option).strip() for option in row[column]]
        else:
            options = [
                part.strip()
                for part in re.split(r"(?:^|\n)[A-Z]\.\s", self._cell(where, row, column))[1:]
            ]
        if len(options) < 2 or not all(options):
            raise UserError(
                f"{where}: expected at least two options in {column!r}, as a list or as lines "
                f'"A. …", found {row.get(str(column))!r}.'
            )
        self.options = self.options or len(options)
        if len(options) != self.options:
            raise UserError(
                f"{where}: {len(options)} options, and the rows before it have {self.options}. A "
                "task has the same number in every row."
            )
        return tuple(options)

    def _right_option(self, where: str, row: Row, options: tuple[str, ...]) -> int | None:
        """The label of multiple choice: the option's own text (its letter before it or not), else
        its letter, or its number.
        """
        column, first = str(self.entry.columns["label"]), self.entry.first_option
        value = row.get(column)
        if self._is_none(value):
            self._unlabelled(where, column)
            return None
        answer = str(value).strip()
        bare = re.sub(r"^[A-Z]\.\s+", "", answer)
        by_text = [i for i, option in enumerate(options) if option in (answer, bare)]
        by_number = [
            i for i in range(len(options)) if answer in (chr(ord("A") + i), str(first + i))
        ]
        if matches := by_text or by_number:
            return matches[0]
        raise UserError(
            f"{where}: {answer!r} in column {column!r} is none of the {len(options)} options, by "
            f"text, letter or number from {first}."
        )


def rating_target(rating: float, lowest: int, highest: int) -> tuple[float, ...]:
    """The share of each class, one for each whole number of the scale: `rating_target(3.8, 0, 5)`
    is 0.2 of the 3's and 0.8 of the 4's.

    STS-B's encoding in GPT-1's released code (utils.py, after Tai et al. 2015, section 4.2); back:
    `metrics.Scoring.ratings`.
    """
    floor = math.floor(rating)
    shares = {floor: floor + 1 - rating, floor + 1: rating - floor}
    return tuple(shares.get(number, 0.0) for number in range(lowest, highest + 1))
