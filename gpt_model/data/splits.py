"""Which side of a split a text falls on: a function of the text and a seed alone.

Corpus and tasks split by the same function with the same seed, so a passage that a task holds back
for its evaluation is held out of the corpus too, wherever it is met and in whatever order, as long
as the corpus's share is at least the task's.
"""

from __future__ import annotations

import hashlib


def normalised(text: str) -> str:
    """`text` with every run of whitespace made one space and none at the ends: what makes two
    documents the same one.
    """
    return " ".join(text.split())


def identity(text: str) -> bytes:
    """16 bytes that stand for a document, whitespace apart."""
    return hashlib.sha256(normalised(text).encode()).digest()[:16]


def bucket(text: str, seed: int, before: str | None = None) -> float:
    """A number in [0, 1), even over texts: `text` is held out where it is below the held-out share.

    With `before`, only what stands before the first such mark counts, so that excerpts under one
    title ("Title -- …") stay on one side. sha256 over seed, a zero byte and the normalised text;
    its first 53 bits, which a float holds exactly.
    """
    key = text.partition(before)[0] if before else text
    digest = hashlib.sha256(f"{seed}\0{normalised(key)}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) * 2.0**-53
