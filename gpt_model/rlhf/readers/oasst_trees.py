"""Messages that know their parent, as OpenAssistant's files have them (Köpf et al. 2023): an
answer's dialogue is the way to it from the root, and the answers below one message are ranked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from gpt_model.data.formats import Row
from gpt_model.rlhf.dialogue import dialogue
from gpt_model.rlhf.readers.candidate import Candidate, key_of
from gpt_model.rlhf.readers.fields import Messages, Unusable, figure, role_in, value_of
from gpt_model.rlhf.readers.preferences import ranked
from gpt_model.rlhf.readers.source import HumanSource, Purpose


class Tree:
    """All the messages of a source."""

    def __init__(self, source: HumanSource, rows: Sequence[Row]) -> None:
        self._source = source
        self._known = {self._of(row, "id"): row for row in rows}
        self._times = Counter(self._of(row, "id") for row in rows)
        self._below: dict[str, list[Row]] = {}
        for row in rows:
            self._below.setdefault(self._of(row, "parent"), []).append(row)

    def _of(self, row: Row, part: str) -> Any:
        """Ids as text, "" where there is none, which a csv file writes as nothing; roles by our
        names.
        """
        value = value_of(self._source, row, part)
        if part in ("id", "parent"):
            return "" if value is None else str(value)
        return {"role": role_in, "rank": figure}.get(part, lambda text: text)(value)

    def made(self, row: Row, purpose: Purpose) -> Candidate:
        """What a message makes. Raises Unusable or NoDialogue where that is nothing."""
        if self._times[own := self._of(row, "id")] > 1 or not own:
            raise Unusable(
                "an id that is there twice" if own else "no id", f"message {own!r}" if own else ""
            )
        role = self._of(row, "role")
        if role != (wanted := "assistant" if purpose == "demonstrations" else "user"):
            raise Unusable(f"not the {wanted}'s", f"it is the {role}'s")
        if purpose == "comparisons":
            return self._ranking(row)
        if purpose == "demonstrations":
            if self._of(row, "rank") not in (None, 0):
                raise Unusable("not the best answer", f"its rank is {self._of(row, 'rank')}")
            turns = dialogue(self._way(row))
        else:
            turns = dialogue(self._way(row), ends_with=("user",))
        return Candidate("", turns, key_of(turns))

    def _ranking(self, row: Row) -> Candidate:
        answers = [
            one
            for one in self._below.get(self._of(row, "id"), [])
            if self._of(one, "role") == "assistant"
        ]
        placed = [one for one in answers if self._of(one, "rank") is not None]
        if len(placed) < 2:
            raise Unusable(
                "fewer than two answers with a rank",
                f"there are {len(placed)}, of {len(answers)} answers",
            )
        return ranked(
            dialogue(self._way(row), ends_with=("user",)),
            [(self._of(one, "text"), self._of(one, "rank"), None) for one in placed],
        )

    def _way(self, row: Row) -> Messages:
        """The messages from the root to this one."""
        said: Messages = []
        seen: set[Any] = set()
        current: Row | None = row
        while current is not None:
            own, parent = self._of(current, "id"), self._of(current, "parent")
            if own in seen:
                raise Unusable("a message that is its own parent", f"message {own!r}")
            seen.add(own)
            said.append({"role": self._of(current, "role"), "content": self._of(current, "text")})
            if parent and parent not in self._known:
                raise Unusable(
                    "a parent that is not there", f"message {own!r} has the parent {parent!r}"
                )
            current = self._known[parent] if parent else None
        return said[::-1]
