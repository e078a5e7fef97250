"""Messages that know their parent, as OpenAssistant's files have them (Köpf et al. 2023): an
answer's dialogue is the path to it from the root, and the answers below one message are ranked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from gpt_model.data.formats import Row
from gpt_model.rlhf.dialogue import dialogue
from gpt_model.rlhf.readers.fields import Messages, parse_number, parse_role, value_of
from gpt_model.rlhf.readers.parsed import ParsedRow, UnusableRow, split_key
from gpt_model.rlhf.readers.preferences import ranked_row
from gpt_model.rlhf.readers.source import HumanSource, Purpose


class Tree:
    """All the messages of a source."""

    def __init__(self, source: HumanSource, rows: Sequence[Row]) -> None:
        self._source = source
        self._by_id = {self._field(row, "id"): row for row in rows}
        self._id_counts = Counter(self._field(row, "id") for row in rows)
        self._children: dict[str, list[Row]] = {}
        for row in rows:
            self._children.setdefault(self._field(row, "parent"), []).append(row)

    def _field(self, row: Row, part: str) -> Any:
        """Ids as text, "" where there is none, which a csv file writes as nothing; roles by our
        names.
        """
        value = value_of(self._source, row, part)
        if part in ("id", "parent"):
            return "" if value is None else str(value)
        return {"role": parse_role, "rank": parse_number}.get(part, lambda text: text)(value)

    def parse(self, row: Row, purpose: Purpose) -> ParsedRow:
        """What a message makes. Raises UnusableRow or NoDialogue where that is nothing."""
        if self._id_counts[id_ := self._field(row, "id")] > 1 or not id_:
            raise UnusableRow(
                "an id that is there twice" if id_ else "no id", f"message {id_!r}" if id_ else ""
            )
        role = self._field(row, "role")
        if role != (expected := "assistant" if purpose == "demonstrations" else "user"):
            raise UnusableRow(f"not the {expected}'s", f"it is the {role}'s")
        if purpose == "comparisons":
            return self._ranking(row)
        if purpose == "demonstrations":
            if self._field(row, "rank") not in (None, 0):
                raise UnusableRow("not the best answer", f"its rank is {self._field(row, 'rank')}")
            turns = dialogue(self._path(row))
        else:
            turns = dialogue(self._path(row), ends_with=("user",))
        return ParsedRow("", turns, split_key(turns))

    def _ranking(self, row: Row) -> ParsedRow:
        children = self._children.get(self._field(row, "id"), [])
        answers = [child for child in children if self._field(child, "role") == "assistant"]
        ranked = [answer for answer in answers if self._field(answer, "rank") is not None]
        if len(ranked) < 2:
            raise UnusableRow(
                "fewer than two answers with a rank",
                f"there are {len(ranked)}, of {len(answers)} answers",
            )
        return ranked_row(
            dialogue(self._path(row), ends_with=("user",)),
            [(self._field(answer, "text"), self._field(answer, "rank"), None) for answer in ranked],
        )

    def _path(self, row: Row) -> Messages:
        """The messages from the root to this one."""
        messages: Messages = []
        seen: set[Any] = set()
        current: Row | None = row
        while current is not None:
            id_, parent = self._field(current, "id"), self._field(current, "parent")
            if id_ in seen:
                raise UnusableRow("a message that is its own parent", f"message {id_!r}")
            seen.add(id_)
            role, content = self._field(current, "role"), self._field(current, "text")
            messages.append({"role": role, "content": content})
            if parent and parent not in self._by_id:
                raise UnusableRow(
                    "a parent that is not there", f"message {id_!r} has the parent {parent!r}"
                )
            current = self._by_id[parent] if parent else None
        return messages[::-1]
