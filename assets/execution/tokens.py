"""Tokenizes the corpus into shards and judges them. `gpt_model.data.shards` has their format."""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from assets.contract import Built, Config, Inputs, Metrics, Progress, Verdict
from assets.stages.base_model import require
from gpt_model.data import documents
from gpt_model.data.shards import SourceTexts, TokenData, write
from gpt_model.tokenizer import Tokenizer

SAMPLED = 100  # documents of each source and split whose tokens are decoded and compared


def tokenize(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Tokenize both splits of each source into shards, with the corpus's mixture weights. Bytes are
    of normalised text.
    """
    corpus = inputs["corpus"].path
    tokenizer = Tokenizer.load(require(inputs, "tokenizer").path)
    started = time.monotonic()
    sources = {
        name: SourceTexts(
            weight=described["weight"],
            documents={split: documents.read(corpus, name, split) for split in documents.SPLITS},
            bytes=sum(described[split]["bytes"] for split in documents.SPLITS),
        )
        for name, described in documents.index(corpus).items()
    }
    write(output, sources, tokenizer, progress)
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
