"""Runs the stages `tokenizer` and `tokens`: which documents a tokenizer learns from, the corpus as
shards, and what must hold before anything trains on them. The tokenizers are
`gpt_model.tokenizer`, the shards' format is `gpt_model.data.shards`'.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from assets.contract import SCRATCH, Built, Config, Inputs, Metrics, Progress, Verdict
from assets.stages.base_model import require
from assets.store.home import downloads_folder
from gpt_model.data import documents, splits
from gpt_model.data.shards import SourceTexts, TokenData, join, write
from gpt_model.data.vocabularies import released_tokenizer
from gpt_model.io import fsync
from gpt_model.tokenizer import END_OF_TEXT, Tokenizer

# Merges hardly change after a gigabyte. A larger corpus gives each source its weight's share of
# this budget, documents chosen by hash.
BUDGET = 1_000_000_000  # bytes
CHOICE_SEED = 50_257  # of that choice: any fixed number, but not one that a corpus splits by
ROUND_TRIP = 4_000_000  # characters of each source's held-out text that must come back

NASTY = (
    "",
    " ",
    "   ",
    "\n",
    "\r\n\r",
    "\t \t\n  \n\n",
    " leading",
    "trailing  ",
    "two  spaces   three",
    "no .space , before !",
    "don't I'll we'Ve",
    "\x00\x01\x1f\x7f\x80\x9f",
    "\ufeffbyte order mark",
    "\ufffd\ufffe\uffff\U0010ffff",
    "e\u0301 é ﬁ ½ ²",
    "\u2028\u2029\u00a0\u3000\u200b\u200d",
    "👩‍👩‍👧‍👦🏳️‍🌈",
    "שלום עליכם",
    "مرحبا",
    "你好,世界",
    "नमस्ते",
    "ᚠᛇᚻ",
    "Ġ Ċ ĉ",
    "`|*_#<>&\\",
    END_OF_TEXT,
    f"a{END_OF_TEXT} b",
    "x" * 3000,
    "=" * 3000,
)


def train(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Learn a vocabulary from the corpus's training documents, or take a released one.
    `transformers` loads the output.
    """
    corpus = inputs["corpus"].path
    if "from" in config:
        tokenizer = released_tokenizer(config, downloads_folder(), output / SCRATCH, progress)
        read = 0
    else:
        tokenizer, read = _trained_tokenizer(config, corpus, progress)
    tokenizer.save(output)
    return {
        "vocab_size": tokenizer.vocab_size,
        "training_bytes": read,
        **_held_out_metrics(tokenizer, corpus),
    }


def _trained_tokenizer(config: Config, corpus: Path, progress: Progress) -> tuple[Tokenizer, int]:
    """The tokenizer, and how many bytes it is learnt from."""
    shares = training_shares(corpus)
    total = sum(
        share * documents.index(corpus)[source]["training"]["bytes"]
        for source, share in shares.items()
    )
    read = 0

    def texts() -> Iterator[str]:
        nonlocal read
        for text in training_texts(corpus, shares):
            read += len(text.encode())
            progress.advance(min(read, total), total, "bytes")
            yield text
        progress.log(
            f"tokenizer: {read:,} bytes read; learning {config['vocab_size']:,} tokens from them"
        )

    tokenizer = Tokenizer.train(texts(), vocab_size=config["vocab_size"], style=config["style"])
    return tokenizer, read


def training_shares(corpus: Path) -> dict[str, float]:
    """The share of each source's training documents that the tokenizer learns from: all of them,
    unless their bytes exceed `BUDGET` together.
    """
    sources = documents.index(corpus)
    if sum(source["training"]["bytes"] for source in sources.values()) <= BUDGET:
        return dict.fromkeys(sources, 1.0)
    weights = sum(source["weight"] for source in sources.values())
    return {
        name: min(1.0, BUDGET * source["weight"] / weights / max(source["training"]["bytes"], 1))
        for name, source in sources.items()
    }


def training_texts(corpus: Path, shares: dict[str, float]) -> Iterator[str]:
    """Each source's share of its training documents, chosen by their hash: always the same."""
    for source, share in shares.items():
        for text in documents.read(corpus, source, "training"):
            if share == 1.0 or splits.bucket(text, CHOICE_SEED) < share:
                yield text


def _first(texts: Iterable[str], characters: int) -> Iterator[str]:
    """The first documents that hold so many characters together; at least one."""
    for text in texts:
        yield text
        characters -= len(text)
        if characters <= 0:
            return


def _held_out_metrics(tokenizer: Tokenizer, corpus: Path) -> Metrics:
    """By source, on held-out text: bytes (of normalised text) a token, and the share of unknown
    tokens.
    """
    metrics, lengths = {}, tokenizer.byte_lengths()
    for source in documents.index(corpus):
        texts = list(_first(documents.read(corpus, source, "held_out"), ROUND_TRIP))
        ids = np.array(
            [index for encoded in tokenizer.encode_batch(texts) for index in encoded],
            dtype=np.int64,
        )
        if len(ids):
            metrics[f"held_out/{source}/bytes_per_token"] = int(lengths[ids].sum()) / len(ids)
            if tokenizer.unknown is not None:
                metrics[f"held_out/{source}/unknown_share"] = float(
                    (ids == tokenizer.unknown).mean()
                )
    return metrics


def round_trip(built: Built) -> Verdict:
    tokenizer, corpus = Tokenizer.load(built.output), built.inputs["corpus"].path
    changed, texts, characters = [], 0, 0
    held_out = {
        source: _first(documents.read(corpus, source, "held_out"), ROUND_TRIP)
        for source in documents.index(corpus)
    }
    for source, source_texts in {"nasty strings": NASTY, **held_out}.items():
        batch = list(source_texts)
        for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
            if not _round_trips(tokenizer, text, ids):
                changed.append(f"{source}: {text[:40]!r}")
            texts, characters = texts + 1, characters + len(text)
    expected = "the text they are normalised to" if tokenizer.normalises else "themselves"
    summary = (
        f"{texts - len(changed):,} of {texts:,} texts ({characters:,} characters) decode to "
        f"{expected}"
    )
    return Verdict(
        not changed,
        f"{summary}{'; not: ' + '; '.join(changed[:3]) if changed else '.'}",
        {"texts": texts, "changed": len(changed)},
    )


def _round_trips(tokenizer: Tokenizer, text: str, ids: list[int]) -> bool:
    # GPT-1's end-of-text is a newline, which a text may contain.
    ends = not tokenizer.normalises and tokenizer.end_of_text in ids
    return tokenizer.decode(ids) == tokenizer.normalise(text) and not ends


def vocabulary_size(built: Built) -> Verdict:
    tokenizer, expected = Tokenizer.load(built.output), built.config["vocab_size"]
    last = tokenizer.end_of_text == expected - 1
    ending = tokenizer.tokens()[tokenizer.end_of_text]
    summary = (
        f"{tokenizer.vocab_size:,} tokens, {expected:,} requested; the end-of-text token "
        f"{json.dumps(ending)} is {tokenizer.end_of_text:,}."
    )
    return Verdict(
        tokenizer.vocab_size == expected and last,
        summary,
        {"vocab_size": tokenizer.vocab_size, "end_of_text": tokenizer.end_of_text},
    )


POLL_SECONDS = 0.05
SAMPLED = 100  # documents of each source and split whose tokens are decoded and compared


def tokenize(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Tokenize both splits of each source into shards, with the corpus's mixture weights. Bytes are
    of normalised text.

    Several ranks tokenize equal parts of each split, which rank 0 joins: the bytes are those of one
    rank. A part that an attempt has completed is there for the next.
    """
    tokenizer = Tokenizer.load(require(inputs["tokenizer"]).path)
    started = time.monotonic()
    rank, ranks = progress.rank, progress.world_size
    texts = _texts_of_rank(inputs["corpus"].path, rank, ranks)
    if ranks == 1:
        write(output, texts, tokenizer, progress)
    else:
        parts = [output / SCRATCH / f"{number}-of-{ranks}" for number in range(ranks)]
        _write_part(parts[rank], texts, tokenizer, progress)
        if rank:
            return {}
        while not all(part.is_dir() for part in parts):  # a rank that fails ends all of them
            time.sleep(POLL_SECONDS)
        join(parts, output)
        for part in parts:
            shutil.rmtree(part)
    seconds = time.monotonic() - started
    metrics: Metrics = {}
    data = TokenData(output)
    for name in data.sources:
        for split in documents.SPLITS:
            tokens = len(data.tokens(name, split))
            metrics[f"{split}/{name}/tokens"] = tokens
            if tokens:
                metrics[f"{split}/{name}/bytes_per_token"] = data.bytes(name, split) / tokens
    total = sum(
        len(data.tokens(name, split)) for name in data.sources for split in documents.SPLITS
    )
    return metrics | {"tokens": total, "tokens_per_second": total / seconds}


def _texts_of_rank(corpus: Path, rank: int, ranks: int) -> dict[str, SourceTexts]:
    """A rank's part of every split of every source."""
    sources = {}
    for name, described in documents.index(corpus).items():
        sizes = {split: described[split]["bytes"] for split in documents.SPLITS}
        texts: dict[str, Iterable[str]] = {
            split: documents.part(documents.read(corpus, name, split), size, rank, ranks)
            for split, size in sizes.items()
        }
        sources[name] = SourceTexts(described["weight"], texts, sum(sizes.values()) // ranks)
    return sources


def _write_part(
    part: Path, texts: Mapping[str, SourceTexts], tokenizer: Tokenizer, progress: Progress
) -> None:
    """Write `part` if it is not there: whole, and on disk, once it has its name."""
    if part.is_dir():
        return
    unfinished = part.with_suffix(".unfinished")
    write(unfinished, texts, tokenizer, progress)
    for path in unfinished.rglob("*"):
        fsync(path)
    unfinished.replace(part)


def decodes_to_documents(built: Built) -> Verdict:
    tokenizer = Tokenizer.load(built.inputs["tokenizer"].path)
    corpus, data = built.inputs["corpus"].path, TokenData(built.output)
    compared, wrong = 0, []
    for name in data.sources:
        for split in documents.SPLITS:
            stride = max(1, data.documents(name, split) // SAMPLED)
            for number, text in islice(
                enumerate(documents.read(corpus, name, split)), 0, None, stride
            ):
                compared += 1
                ids = data.tokens(name, split).document(number).tolist()
                if tokenizer.decode(ids) != tokenizer.normalise(text):
                    wrong.append(f"document {number} of {name}, {split}")
    expected = "their normalised text" if tokenizer.normalises else "their text"
    summary = f"{compared - len(wrong):,} of {compared:,} sampled documents decode to {expected}"
    return Verdict(
        not wrong,
        f"{summary}{'; not: ' + ', '.join(wrong[:3]) if wrong else '.'}",
        {"documents": compared, "wrong": len(wrong)},
    )


def _token_counts(data: TokenData, source: str, split: documents.Split) -> NDArray[np.int64]:
    """How often each id occurs in a split, [vocabulary + 1]; the last counts ids outside it."""
    counts = np.zeros(data.vocab_size + 1, dtype=np.int64)
    for part in data.tokens(source, split).parts():
        counts += np.bincount(
            np.minimum(part.astype(np.int64), data.vocab_size), minlength=len(counts)
        )
    return counts


def ids_in_vocabulary(built: Built) -> Verdict:
    data = TokenData(built.output)
    outside = sum(
        int(_token_counts(data, name, split)[-1])
        for name in data.sources
        for split in documents.SPLITS
    )
    return Verdict(
        not outside,
        f"{outside:,} ids are outside the vocabulary of {data.vocab_size:,}.",
        {"outside": outside},
    )


def documents_match(built: Built) -> Verdict:
    """Counts documents by their end-of-text, and bytes by the tokens' own lengths: those of the
    corpus, or of its normalised text, which were counted when it was written.
    """
    data, index = TokenData(built.output), documents.index(built.inputs["corpus"].path)
    normalises = Tokenizer.load(built.inputs["tokenizer"].path).normalises
    wrong, total = [], 0
    for name, described in index.items():
        for split in documents.SPLITS:
            counts = _token_counts(data, name, split)
            ends = (
                _documents_ended(data, name, split) if normalises else int(counts[data.end_of_text])
            )
            size = int(counts[:-1] @ data.byte_lengths.astype(np.int64))
            counted = {"documents": ends, "bytes": size}
            expected = {unit: described[split][unit] for unit in counted}
            if normalises:
                expected["bytes"] = data.bytes(name, split)
            total += size
            wrong += [
                f"{name}, {split} has {count:,} {unit} in tokens and {expected[unit]:,} in the "
                "corpus"
                for unit, count in counted.items()
                if count != expected[unit]
            ]
    summary = (
        "; ".join(wrong)
        if wrong
        else f"Every document of the corpus is in the tokens, {total:,} bytes of text."
    )
    return Verdict(not wrong, summary, {"bytes": total, "differences": len(wrong)})


def _documents_ended(data: TokenData, source: str, split: documents.Split) -> int:
    """How many documents end with end-of-text. Counting the token would not tell where it is a
    newline, as GPT-1's is.
    """
    tokens, start, ended = data.tokens(source, split), 0, 0
    for part in tokens.parts():
        first, last = np.searchsorted(tokens.ends, [start + 1, start + len(part) + 1])
        last_tokens = part[tokens.ends[first:last].astype(np.int64) - 1 - start]
        ended += int((last_tokens == data.end_of_text).sum())
        start += len(part)
    return ended
