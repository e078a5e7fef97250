"""Texts whose log-probability is divided by their own units (GPT-2, section 3.1 and table 3).

Columns: text (de-tokenized), and what the *original* has of words, bytes and characters. Where a
data set is one stream, its text is cut into passages long enough that little context is lost, and
several, so that an interval can be given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from gpt_model.errors import UserError
from gpt_model.evaluation.adapters.registry import Row, Rows, TaskContext, adapter
from gpt_model.evaluation.detokenizers import DETOKENIZERS, Detokenizer

_ARTICLE = re.compile(r" = [^=].*[^=] = ")  # WikiText's heading of the first level


@adapter("page", alone={})
def wikitext(rows: Rows, task_context: TaskContext) -> Iterator[Row]:
    """A row an article. Words are counted as lm_eval's wikitext counts them, so that the scores can
    be compared.
    """
    for page in _articles(str(row["page"]) for row in rows):
        yield _row(DETOKENIZERS["wikitext"].plain(page), page, len(re.split(r"\s+", page)))


@adapter("page", alone={})
def wikitext_as_lm_eval(rows: Rows, task_context: TaskContext) -> Iterator[Row]:
    """The same with lm_eval's de-tokenizer, which is not invertible and which its published scores
    are by.
    """
    # The orchestrator imports the adapters to check a suite, and never lm_eval.
    from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

    for page in _articles(str(row["page"]) for row in rows):
        yield _row(wikitext_detokenizer({"page": page}), page, len(re.split(r"\s+", page)))


def _articles(texts: Iterable[str]) -> Iterator[str]:
    """Texts of more than one line as they stand; single lines (the data set's own file) put
    together from heading to heading.
    """
    lines: list[str] = []
    for text in texts:
        if "\n" in text:
            yield text
            continue
        if _ARTICLE.fullmatch(text) and any(line.strip() for line in lines):
            yield "\n".join(lines)
            lines = []
        lines.append(text)
    if any(line.strip() for line in lines):
        yield "\n".join(lines)


@adapter("sentence", alone={})
def sentences(
    rows: Rows, task_context: TaskContext, *, detokenizer: str, characters: int = 0
) -> Iterator[Row]:
    """Sentences joined by line breaks to passages of at least `characters`; each on its own where
    that is 0.

    A sentence has its tokens and its end as words, as the published perplexities of such data sets
    count them.
    """
    spelling = _detokenizer(detokenizer)
    passage: list[str] = []
    for row in rows:
        passage.append(str(row["sentence"]).strip())
        if sum(map(len, passage)) >= characters:
            yield _passage(passage, spelling)
            passage = []
    if passage:
        yield _passage(passage, spelling)


def _passage(sentences: list[str], spelling: Detokenizer) -> Row:
    original = "\n".join(sentences)
    return _row(spelling.plain(original), original, len(original.split()) + len(sentences))


@adapter("text", alone={})
def stream(
    rows: Rows, task_context: TaskContext, *, last: int, characters: int = 65536
) -> Iterator[Row]:
    """One text, a line of it a row: its `last` bytes, cut into passages of `characters`. Nothing is
    de-tokenized.
    """
    tail: list[str] = []  # lines, of which the last ones are the text
    size = 0
    for number, row in enumerate(rows):
        line = ("\n" if number else "") + str(row["text"])
        tail.append(line)
        size += len(line)
        if size > 4 * last + (1 << 20) and len(tail) > 1:  # drop what is before the last bytes
            tail, size = ["".join(tail)[-2 * last :]], 2 * last
    text = "".join(tail).encode()[-last:].decode(errors="ignore")
    for start in range(0, len(text), characters):
        passage = text[start : start + characters]
        yield _row(passage, passage, len(passage.split()))


def _row(text: str, original: str, words: int) -> Row:
    return {
        "text": text,
        "words": words,
        "bytes": len(original.encode()),
        "characters": len(original),
    }


def _detokenizer(name: str) -> Detokenizer:
    if name not in DETOKENIZERS:
        raise UserError(
            f"There is no de-tokenizer {name!r}: there are {', '.join(DETOKENIZERS)}. "
            "Correct the suite's options."
        )
    return DETOKENIZERS[name]
