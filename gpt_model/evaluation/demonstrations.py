"""How many demonstrations fit before a question: whole ones, as they go before the question loses
anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence


def fitting(
    demonstrations: Sequence[str],
    sizes: Iterable[int],
    endings: Sequence[str],
    room: int,
    count: Callable[[str], int],
    header: str = "",
) -> int:
    """How many of `demonstrations`, from the first, fit in `room` tokens between the header and
    each of `endings`, a question with an answer. `sizes`: their tokens; `count`: of a text.
    """
    left = room - count(header) - max(map(count, endings))
    number = 0
    for size in sizes:
        left -= size
        if left < 0:
            break
        number += 1
    # Counted in pieces so far, and two pieces may meet in another token.
    while number:
        before = header + "".join(demonstrations[:number])
        if max(count(before + ending) for ending in endings) <= room:
            break
        number -= 1
    return number
