"""GPT-1's normalisation: text to lower-cased words, in the order of the released code
(finetune-transformer-lm, text_utils.py).

1. `ftfy.fix_text` mends encodings, quotes, line ends and HTML entities. 2. `standardise` maps
  dashes and dots to ASCII, sets runs of punctuation apart, and leaves one space between words and `
  \\n ` between lines. 3. spaCy's English tokenizer (its rules alone; no model) finds the words. 4.
  Each is lower-cased. What comes out is a text again: each word, and each newline, followed by one
  space.

spaCy does under 1 MB of text a second on a core, and Python runs one at a time: large batches go to
helper processes.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Sequence
from functools import cache
from threading import Lock, Thread
from typing import Any

from gpt_model.tokenizer.base import Piece

HELPED_FROM = 200_000  # characters: helpers take two seconds to start
IDLE = 60  # seconds after which a helper ends; it ends with this process, too
WATCH = 1.0  # seconds between two looks at whether that is still there

_CHARACTERS = str.maketrans({"—": "-", "–": "-", "―": "-", "…": "...", "´": "'"})
_RUN = re.compile(r"""(-+|~+|!+|"+|;+|\?+|\++|,+|\)+|\(+|\\+|/+|\*+|\[+|\]+|}+|{+|\|+|_+)""")
_LINE_END = re.compile(r"\s*\n\s*")
_SPACES = re.compile(r"[^\S\n]+")

_one_at_a_time = Lock()  # spaCy's memory zones do not nest


def standardise(text: str) -> str:
    """`text_standardize` of the released code."""
    text = _RUN.sub(r" \1 ", text.translate(_CHARACTERS))
    return _SPACES.sub(" ", _LINE_END.sub(" \n ", text)).strip()


def normalised(piece: Piece) -> str:
    """The words of `piece`, and a newline for each line's end within it, each followed by one
    space.
    """
    # Only text for GPT-1's tokenizer needs it, and spaCy below.
    import ftfy

    # ftfy leaves entities alone from the first line on that has a "<" in it; that line may be in an
    # earlier piece.
    text = standardise(ftfy.fix_text(piece.text, unescape_html=False if piece.markup else "auto"))
    spacy = english()
    with _one_at_a_time, spacy.memory_zone():  # or spaCy keeps every word it has seen
        words = [token.text for token in spacy.tokenizer(text)]
    return "".join("\n " if word.isspace() else f"{word.lower()} " for word in words)


def normalised_all(pieces: Sequence[Piece]) -> list[str]:
    """`normalised` of each, by as many processes as there are cores (RAYON_NUM_THREADS) where they
    are much text.
    """
    helpers = _threads()
    if helpers == 1 or len(pieces) == 1 or sum(len(piece.text) for piece in pieces) < HELPED_FROM:
        return [normalised(piece) for piece in pieces]
    # Only much text is shared out.
    from loky import get_reusable_executor

    # Not by multiprocessing's own pool: that would import the caller's main module again in each
    # helper.
    executor = get_reusable_executor(
        max_workers=helpers, timeout=IDLE, initializer=_help, initargs=(os.getpid(),)
    )
    return list(executor.map(normalised, pieces, chunksize=max(1, len(pieces) // (4 * helpers))))


def _threads() -> int:
    """As many as the Rust library would use."""
    if os.environ.get("TOKENIZERS_PARALLELISM", "true").lower() in (
        "false",
        "0",
        "off",
        "no",
        "n",
        "f",
        "",
    ):
        return 1
    usable = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return int(os.environ.get("RAYON_NUM_THREADS") or 0) or usable


@cache
def english() -> Any:
    # A second to import, and GPT-2's tokenizer is without it.
    from spacy.lang.en import English

    return English()


def _help(parent: int) -> None:
    """The start of each helper process."""
    # spaCy imports torch where it can: a second and 200 MB for nothing.
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """Where the process that is helped was killed, loky's workers would wait for ever."""
    while os.getppid() == parent:
        time.sleep(WATCH)
    os._exit(1)
