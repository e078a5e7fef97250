"""Rows that are left out of what is read, counted by reason."""

from __future__ import annotations

from typing import Any

DETAIL_CHARACTERS = 200  # of what is reported of a row that is left out


class LeftOut(dict[str, dict[str, Any]]):
    """Reason -> how many rows, and of the first which it is and no more than a person reads."""

    def add(self, reason: str, row_id: str, detail: str = "", count: int = 1) -> None:
        detail = detail.encode(errors="backslashreplace").decode()
        if len(detail) > DETAIL_CHARACTERS:
            detail = f"{detail[: DETAIL_CHARACTERS - 1]}…"
        first = f"{row_id}: {detail}" if detail else row_id
        self.setdefault(reason, {"count": 0, "first": first})["count"] += count

    def total(self) -> int:
        return sum(entry["count"] for entry in self.values())

    def reasons(self) -> str:
        return "; ".join(
            f"{reason}: {entry['count']}, the first {entry['first']}"
            for reason, entry in self.items()
        )
