"""What a text may hold that its owner seldom means: counted, and never changed."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gpt_model.tokenizer import END_OF_TEXT, LONG_WORD, UNKNOWN

# kind, as a metric's name has it -> what it is
UNUSUAL = {
    "nul": "NUL characters, as UTF-16 read for UTF-8 has: convert such a file",
    "end_of_text": f"{END_OF_TEXT} spelt out, which is text and no token: a separator of documents "
    f'goes with documents: {{separator: "{END_OF_TEXT}"}}',
    "unk": f"{UNKNOWN} spelt out, which is text and no token",
    "long_word": f"a word of {LONG_WORD:,} characters or more, as DNA is: tokenized in parts",
}
_SPELT = {"nul": "\0", "end_of_text": END_OF_TEXT, "unk": UNKNOWN}
_LONG_WORD = re.compile(rf"\S{{{LONG_WORD}}}")


def unusual(text: str) -> Iterator[str]:
    """The kinds that are in `text`."""
    yield from (kind for kind, spelling in _SPELT.items() if spelling in text)
    if len(text) >= LONG_WORD and _LONG_WORD.search(text):
        yield "long_word"
