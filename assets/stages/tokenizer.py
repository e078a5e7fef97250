"""Stages `tokenizer` and `tokens`: a BPE from the corpus, of bytes as GPT-2's or of words as
GPT-1's, then the corpus as shards of its ids.

What a tokenizer is stands in gpt_model/tokenizer/, what shards are in gpt_model/data/shards.py.
Here: which documents the first learns from, what must hold before anything trains on either, and
what a person is shown.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from assets.contract import Built, Check, Config, Inputs, Metrics, Progress, Stage, Verdict
from assets.stages.base_model import require
from gpt_model.data import documents, splits
from gpt_model.data.shards import SourceTexts, TokenData, write
from gpt_model.tokenizer import END_OF_TEXT, Tokenizer

# Merges hardly change after a gigabyte. A larger corpus gives each source its weight's share of
# this budget, documents chosen by hash.
BUDGET = 1_000_000_000  # bytes
CHOICE_SEED = 50_257  # of that choice: any fixed number, but not one that a corpus splits by
ROUND_TRIP = 4_000_000  # characters of each source's held-out text that must come back
SAMPLED = 100  # documents of each source and split whose tokens are decoded and compared

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


# --- tokenizer ---


def train_tokenizer(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Learn a vocabulary from the corpus's training documents; `output` becomes a folder that
    `transformers` loads.
    """
    corpus = inputs["corpus"].path
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
    tokenizer.save(output)
    return {
        "vocab_size": tokenizer.vocab_size,
        "training_bytes": read,
        **_held_out_metrics(tokenizer, corpus),
    }


def training_shares(corpus: Path) -> dict[str, float]:
    """The share of each source's training documents that the tokenizer learns from: all, unless
    they are more than `BUDGET` together.
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
    """The training documents of each source, as many as its share says, chosen by their hash: the
    same ones each time.
    """
    for source, share in shares.items():
        for text in documents.read(corpus, source, "training"):
            if share == 1.0 or splits.bucket(text, CHOICE_SEED) < share:
                yield text


def _first(texts: Iterable[str], characters: int) -> Iterator[str]:
    """Documents from the beginning until there are so many characters; at least one."""
    for text in texts:
        yield text
        characters -= len(text)
        if characters <= 0:
            return


def _held_out_metrics(tokenizer: Tokenizer, corpus: Path) -> Metrics:
    """Of text the tokenizer has not seen, by source: bytes (of normalised text) a token, and the
    share of unknown tokens.
    """
    metrics, lengths = {}, tokenizer.byte_lengths()
    for source in documents.index(corpus):
        texts = list(_first(documents.read(corpus, source, "held_out"), ROUND_TRIP))
        ids = np.array(
            [index for each in tokenizer.encode_batch(texts) for index in each], dtype=np.int64
        )
        if len(ids):
            metrics[f"held_out/{source}/bytes_per_token"] = int(lengths[ids].sum()) / len(ids)
            if tokenizer.unknown is not None:
                metrics[f"held_out/{source}/unknown_share"] = float(
                    (ids == tokenizer.unknown).mean()
                )
    return metrics


def round_trips(built: Built) -> Verdict:
    tokenizer, corpus = Tokenizer.load(built.output), built.inputs["corpus"].path
    changed, texts, characters = [], 0, 0
    held_out = {
        source: _first(documents.read(corpus, source, "held_out"), ROUND_TRIP)
        for source in documents.index(corpus)
    }
    for source, each in {"nasty strings": NASTY, **held_out}.items():
        some = list(each)
        for text, ids in zip(some, tokenizer.encode_batch(some), strict=True):
            if not _comes_back(tokenizer, text, ids):
                changed.append(f"{source}: {text[:40]!r}")
            texts, characters = texts + 1, characters + len(text)
    came_back = "with the text they are normalised to" if tokenizer.normalises else "as they were"
    summary = f"{texts - len(changed):,} of {texts:,} texts ({characters:,} characters) came back {came_back}"
    return Verdict(
        not changed,
        f"{summary}{'; not: ' + '; '.join(changed[:3]) if changed else '.'}",
        {"texts": texts, "changed": len(changed)},
    )


def _comes_back(tokenizer: Tokenizer, text: str, ids: list[int]) -> bool:
    ends = (
        not tokenizer.normalises and tokenizer.end_of_text in ids
    )  # GPT-1's is a newline, which may stand in a text
    return tokenizer.decode(ids) == tokenizer.normalise(text) and not ends


def has_the_vocabulary_asked_for(built: Built) -> Verdict:
    tokenizer, wanted = Tokenizer.load(built.output), built.config["vocab_size"]
    last = tokenizer.end_of_text == wanted - 1
    ending = tokenizer.tokens()[tokenizer.end_of_text]
    summary = f"{tokenizer.vocab_size:,} tokens, {wanted:,} asked for; {json.dumps(ending)}, which ends documents, is {tokenizer.end_of_text:,}."
    return Verdict(
        tokenizer.vocab_size == wanted and last,
        summary,
        {"vocab_size": tokenizer.vocab_size, "end_of_text": tokenizer.end_of_text},
    )


def show_tokenizer(built: Built, folder: Path) -> None:
    """vocabulary.md: the style, bytes a token on held-out text, the first merges and the longest
    tokens.
    """
    tokenizer = Tokenizer.load(built.output)
    lengths = tokenizer.byte_lengths()
    longest = np.argsort(-lengths.astype(np.int64), kind="stable")[:24].tolist()
    first = range(tokenizer.first_merge, min(tokenizer.first_merge + 24, tokenizer.end_of_text))
    lines = [
        f"Style {tokenizer.style}, {tokenizer.vocab_size:,} tokens. {tokenizer.caveat}".rstrip(),
        "",
    ]
    lines += ["| source | bytes a token, held-out text |", "|---|---:|"]
    for name, value in built.metrics.items():
        if name.endswith("/bytes_per_token"):
            unknown = built.metrics.get(f"{name.removesuffix('/bytes_per_token')}/unknown_share")
            lines.append(
                f"| {name.split('/')[1]} | {value:.3f}{'' if unknown is None else f' ({unknown:.4%} unknown)'} |"
            )
    for title, ids in {
        "The first merges, of the most frequent pairs": first,
        "The longest tokens": longest,
    }.items():
        lines += [
            "",
            f"{title}:",
            "",
            "```",
            " ".join(json.dumps(tokenizer.decode([index]), ensure_ascii=False) for index in ids),
            "```",
        ]
    (folder / "vocabulary.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


TOKENIZER = Stage(
    name="tokenizer",
    version="1",
    run=train_tokenizer,
    description="BPE learnt from the corpus's training documents: byte-level as GPT-2's, or of normalised words as GPT-1's.",
    kinds=("python", "huggingface"),
    checks=(
        Check(
            "round_trip",
            True,
            "Held-out documents and nasty strings decode to themselves (gpt1: normalised).",
            round_trips,
        ),
        Check(
            "vocabulary_size",
            True,
            "The vocabulary is as large as the recipe says, end-of-text last.",
            has_the_vocabulary_asked_for,
        ),
    ),
    show=show_tokenizer,
)


# --- tokens ---


def write_tokens(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Tokenize both splits of each source into shards, with the corpus's mixture weights beside
    them. Bytes are of normalised text.
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


def decode_to_their_documents(built: Built) -> Verdict:
    tokenizer, corpus, data = (
        Tokenizer.load(built.inputs["tokenizer"].path),
        built.inputs["corpus"].path,
        TokenData(built.output),
    )
    compared, wrong = 0, []
    for name in data.sources:
        for split in documents.SPLITS:
            stride = max(1, data.documents(name, split) // SAMPLED)
            for number, text in islice(
                enumerate(documents.read(corpus, name, split)), 0, None, stride
            ):
                compared += 1
                if tokenizer.decode(
                    data.tokens(name, split).document(number).tolist()
                ) != tokenizer.normalise(text):
                    wrong.append(f"document {number} of {name}, {split}")
    theirs = "their normalised text" if tokenizer.normalises else "their text"
    summary = f"{compared - len(wrong):,} of {compared:,} sampled documents decode to {theirs}"
    return Verdict(
        not wrong,
        f"{summary}{'; not: ' + ', '.join(wrong[:3]) if wrong else '.'}",
        {"documents": compared, "wrong": len(wrong)},
    )


def _occurrences(data: TokenData, source: str, split: documents.Split) -> NDArray[np.int64]:
    """How often each id stands in a split, [vocabulary + 1]; the last counts ids outside the
    vocabulary.
    """
    counts = np.zeros(data.vocab_size + 1, dtype=np.int64)
    for part in data.tokens(source, split).parts():
        counts += np.bincount(
            np.minimum(part.astype(np.int64), data.vocab_size), minlength=len(counts)
        )
    return counts


def stay_in_the_vocabulary(built: Built) -> Verdict:
    data = TokenData(built.output)
    outside = sum(
        int(_occurrences(data, name, split)[-1])
        for name in data.sources
        for split in documents.SPLITS
    )
    return Verdict(
        not outside,
        f"{outside:,} ids are outside the vocabulary of {data.vocab_size:,}.",
        {"outside": outside},
    )


def account_for_the_corpus(built: Built) -> Verdict:
    """Counted from the tokens themselves: documents that end with end-of-text, and the bytes that
    all tokens stand for.

    The bytes are the corpus's, or those of its normalised text, which were counted when it was
    written.
    """
    data, index = TokenData(built.output), documents.index(built.inputs["corpus"].path)
    normalises = Tokenizer.load(built.inputs["tokenizer"].path).normalises
    wrong, total = [], 0
    for name, described in index.items():
        for split in documents.SPLITS:
            counts = _occurrences(data, name, split)
            ends = _ended(data, name, split) if normalises else int(counts[data.end_of_text])
            found = {
                "documents": ends,
                "bytes": int(counts[:-1] @ data.byte_lengths.astype(np.int64)),
            }
            expected = {
                "documents": described[split]["documents"],
                "bytes": described[split]["bytes"],
            }
            if normalises:
                expected["bytes"] = data.bytes(name, split)
            total += found["bytes"]
            wrong += [
                f"{name}, {split} has {count:,} {what} in tokens and {expected[what]:,} in the corpus"
                for what, count in found.items()
                if count != expected[what]
            ]
    summary = (
        "; ".join(wrong)
        if wrong
        else f"Every document of the corpus is in the tokens, {total:,} bytes of text."
    )
    return Verdict(not wrong, summary, {"bytes": total, "differences": len(wrong)})


def _ended(data: TokenData, source: str, split: documents.Split) -> int:
    """How many documents' ends have an end-of-text there: where that is a newline, too, counting it
    says nothing.
    """
    tokens, start, found = data.tokens(source, split), 0, 0
    for part in tokens.parts():
        first, last = np.searchsorted(tokens.ends, [start + 1, start + len(part) + 1])
        found += int(
            (part[tokens.ends[first:last].astype(np.int64) - 1 - start] == data.end_of_text).sum()
        )
        start += len(part)
    return found


def show_tokens(built: Built, folder: Path) -> None:
    """tokens.md (a table by source and split) and document_lengths.png (histograms by source)."""
    data = TokenData(built.output)
    lines = [
        "| source | split | weight | documents | tokens | bytes | bytes a token |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name in data.sources:
        for split in documents.SPLITS:
            tokens, size = len(data.tokens(name, split)), data.bytes(name, split)
            each = f"{size / tokens:.3f}" if tokens else "–"
            weight = f"{data.weights[name]:g}"
            lines.append(
                f"| {name} | {split} | {weight} | {data.documents(name, split):,} | {tokens:,} | {size:,} | {each} |"
            )
    if caveat := Tokenizer.load(built.inputs["tokenizer"].path).caveat:
        lines += ["", caveat]
    (folder / "tokens.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _plot_document_lengths(data, folder / "document_lengths.png")


def _plot_document_lengths(data: TokenData, path: Path) -> None:
    from matplotlib.figure import Figure

    lengths = {
        name: np.diff(data.tokens(name, "training").ends.astype(np.int64), prepend=0)
        for name in data.sources
    }
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    edges = np.geomspace(
        1, max([2, *(int(each.max()) + 1 for each in lengths.values() if len(each))]), 60
    )
    for name, each in lengths.items():
        axes.hist(
            each,
            bins=edges.tolist(),
            histtype="step",
            linewidth=1.5,
            label=f"{name} ({len(each):,})",
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="tokens a document, end-of-text included",
        ylabel="training documents",
    )
    axes.legend(title="source (documents)")
    figure.savefig(path, dpi=110)


TOKENS = Stage(
    name="tokens",
    version="1",
    run=write_tokens,
    description="The corpus as memory-mapped shards of token ids, documents delimited by end-of-text.",
    checks=(
        Check(
            "decodes_to_documents",
            True,
            "The tokens of sampled documents decode to their text (gpt1: normalised).",
            decode_to_their_documents,
        ),
        Check(
            "ids_in_vocabulary", True, "No id is outside the vocabulary.", stay_in_the_vocabulary
        ),
        Check(
            "documents_match",
            True,
            "Documents and bytes, counted from the tokens, are the corpus's (gpt1: normalised).",
            account_for_the_corpus,
        ),
    ),
    show=show_tokens,
)
