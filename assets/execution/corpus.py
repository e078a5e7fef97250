"""Runs the corpus stage: documents of every source, divided into training and held out.

A source is `gpt_model.data.sources`', the side of a document `splits`', the files `documents`'.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from assets.contract import SCRATCH, Built, Config, Inputs, Metrics, Progress, Verdict
from assets.store.home import downloads_folder
from gpt_model.data import documents, splits
from gpt_model.data.compression_baseline import primed_bits_per_byte
from gpt_model.data.sources import Source, SourceReport, open_source
from gpt_model.data.unusual_text import UNUSUAL, unusual
from gpt_model.errors import CorruptFile, UserError, about
from gpt_model.evaluation.contamination import HELD_OUT_RUN, count_mostly_seen

OVERLAP_SAMPLE = 1000  # held-out documents a source
OVERLAP_LIMIT = 0.02


def run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Write `documents/` and `index.json` (see `gpt_model.data.documents`), one document in memory
    at a time.
    """
    if progress.rank:
        return {}
    shutil.rmtree(output / "documents", ignore_errors=True)
    sources = [Source.model_validate(source) for source in config["sources"]]
    share = {source.name: source.held_out or config["held_out"] for source in sources}
    index: dict[str, dict[str, Any]] = {}
    unusual_counts: Metrics = {}
    with Seen(output / SCRATCH) as seen:
        # The largest held-out share first: of a document that two sources have, the side is decided
        # where it is likelier held out.
        for done, source in enumerate(sorted(sources, key=lambda source: -share[source.name])):
            progress.advance(done, len(sources), "sources")
            with about(f"sources[{sources.index(source)}]"):
                index[source.name], counts = _write_source(
                    source, share[source.name], config["seed"], output, seen, progress
                )
                unusual_counts |= {f"{source.name}/{kind}": n for kind, n in counts.items()}
    progress.advance(len(sources), len(sources), "sources")
    documents.write_index(output, {source.name: index[source.name] for source in sources})
    return _metrics(index) | unusual_counts | _compressibility(output, list(index), progress)


def _compressibility(output: Path, sources: list[str], progress: Progress) -> Metrics:
    """What a model has to beat on each source's held-out text: `xz/<source>/bpb`."""
    bits_per_byte = {}
    for source in sources:
        progress.log(
            f"{source}: compressing the held-out text with xz -9e, which reads the training text "
            "first: a baseline"
        )
        training, held_out = (documents.read(output, source, split) for split in documents.SPLITS)
        bits_per_byte[f"xz/{source}/bpb"] = primed_bits_per_byte(training, held_out)
    return bits_per_byte


def _write_source(
    source: Source, share: float, seed: int, output: Path, seen: Seen, progress: Progress
) -> tuple[dict[str, Any], Counter[str]]:
    """The source's entry of the index, and how many of its rows and documents are unusual. Both are
    as ever where none is.
    """
    dropped = {"twice": 0, "on_the_other_side_elsewhere": 0}
    report, unusual_counts = SourceReport(), Counter[str]()
    # pinned local files are found by content, wherever this runs
    texts = open_source(source, downloads_folder(), Path.cwd(), progress, report)
    with (
        documents.Writer(output, source.name, "training") as training,
        documents.Writer(output, source.name, "held_out") as held_out,
    ):
        for number, text in enumerate(texts, start=1):
            unusual_counts.update(unusual(text))
            writer = held_out if splits.bucket(text, seed, source.together) < share else training
            if reason := seen.add(text, source.name, writer is held_out):
                dropped[reason] += 1
            else:
                writer.add(text)
            if number % 100_000 == 0:
                progress.log(f"{source.name}: {number:,} documents")
    for writer, name in ((training, "training"), (held_out, "held-out")):
        if not writer.documents:
            raise UserError(
                f"Source {source.name!r} has {training.documents + held_out.documents} documents, "
                f"and `held_out` {share:g} makes none of them a {name} document. Divide its texts "
                "more finely (such as `documents: paragraphs` in the source's entry), or change "
                "`held_out` or `seed`."
                + "".join(
                    f" Documents that hold {UNUSUAL[kind]}: {count}."
                    for kind, count in unusual_counts.items()
                )
            )
    progress.log(
        f"{source.name}: {training.documents:,} training and {held_out.documents:,} held-out "
        f"documents, {dropped['twice']:,} duplicates"
    )
    if report.left_out:
        progress.log(f"{source.name}: rows left out: {report.left_out.reasons()}")
    counts = Counter({f"documents_with/{kind}": n for kind, n in unusual_counts.items()})
    counts += Counter(blank_rows=report.blank, rows_left_out=report.left_out.total())
    entry = {
        "licence": source.licence,
        "weight": source.weight,
        "held_out_share": share,
        "dropped": dropped,
        "training": training.counts(),
        "held_out": held_out.counts(),
    }
    return (entry | {"left_out": report.left_out} if report.left_out else entry), counts


class Seen:
    """The side of each document, whitespace apart: on disk, so that memory does not grow with the
    corpus.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch

    def __enter__(self) -> Seen:
        self._scratch.mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(dir=self._scratch)
        self._database = sqlite3.connect(Path(self._folder.name) / "seen.db", isolation_level=None)
        self._database.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -65536; "
            "BEGIN;"
            "CREATE TABLE seen (document BLOB, source TEXT, held_out INTEGER, PRIMARY KEY "
            "(document, source)) WITHOUT ROWID;"
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()
        self._folder.cleanup()

    def add(
        self, text: str, source: str, held_out: bool
    ) -> Literal["twice", "on_the_other_side_elsewhere"] | None:
        """Record the side of a document. Or return why it must be dropped: its source has it
        already, or another has it on the other side.
        """
        document = splits.identity(text)
        sides = dict(
            self._database.execute(
                "SELECT source, held_out FROM seen WHERE document = ?", (document,)
            )
        )
        if source in sides:
            return "twice"
        if any(bool(other) != held_out for other in sides.values()):
            return "on_the_other_side_elsewhere"
        self._database.execute("INSERT INTO seen VALUES (?, ?, ?)", (document, source, held_out))
        return None


def _metrics(index: Mapping[str, Mapping[str, Any]]) -> Metrics:
    return {
        f"{source}/{split}/{unit}": float(entry[split][unit])
        for source, entry in index.items()
        for split in documents.SPLITS
        for unit in ("documents", "bytes")
    }


def files_are_whole(built: Built) -> Verdict:
    """Every file is read and counted again, against the index."""
    wrong = []
    index = documents.index(built.output)
    for source, entry in index.items():
        for split in documents.SPLITS:
            try:
                counts = documents.count(documents.read(built.output, source, split))
            except CorruptFile as error:
                wrong.append(str(error))
                continue
            if counts != entry[split] or not counts["documents"]:
                wrong.append(
                    f"{source}/{split} holds {counts['documents']} documents, its index says "
                    f"{entry[split]['documents']}"
                )
    total = sum(entry[split]["documents"] for entry in index.values() for split in documents.SPLITS)
    sources = f"{len(index)} source{'s' * (len(index) != 1)}"
    summary = "; ".join(wrong) or f"{total:,} documents of {sources}; the index agrees"
    return Verdict(not wrong, summary, {"documents": total})


def nothing_held_out_is_trained_on(built: Built) -> Verdict:
    """The held-out documents of all sources against the training documents of each."""
    sources = list(documents.index(built.output))
    held_out = {
        splits.identity(text)
        for source in sources
        for text in documents.read(built.output, source, "held_out")
    }
    leaked = {
        source: sum(
            splits.identity(text) in held_out
            for text in documents.read(built.output, source, "training")
        )
        for source in sources
    }
    total = sum(leaked.values())
    return Verdict(
        total == 0,
        f"{total} training documents equal one of the {len(held_out):,} held-out documents, "
        "whitespace apart",
        {**leaked, "held_out_documents": len(held_out)},
    )


def held_out_is_new_text(built: Built) -> Verdict:
    """The share of each source's held-out documents that are mostly in its training text."""
    shares: dict[str, float | int | str] = {}
    for source in documents.index(built.output):
        sample = list(islice(documents.read(built.output, source, "held_out"), OVERLAP_SAMPLE))
        seen = count_mostly_seen(sample, documents.read(built.output, source, "training"))
        shares[source] = seen / len(sample)
    worst = max(shares, key=lambda source: shares[source])
    return Verdict(
        float(shares[worst]) <= OVERLAP_LIMIT,
        f"Of {worst}'s held-out documents {shares[worst]:.1%} consist mostly of "
        f"{HELD_OUT_RUN}-word runs that its training text has too; up to {OVERLAP_LIMIT:.0%} is "
        "usual. The more do, the better a model looks.",
        shares,
    )


def nothing_unusual(built: Built) -> Verdict:
    """What `run` counted of rows that are left out and of documents that may not be as meant."""
    counts = {
        name: count
        for name, count in built.metrics.items()
        if name.endswith("/rows_left_out") or "/documents_with/" in name
    }
    sentences = []
    for name, count in counts.items():
        source, _, kind = name.partition("/")
        holding = UNUSUAL.get(kind.removeprefix("documents_with/"))
        what = f"documents of {source} hold {holding}" if holding else f"rows of {source} left out"
        sentences.append(f"{count:,.0f} {what}")
    return Verdict(
        not counts,
        "; ".join(sentences) or "No row is left out, and no document is unusual.",
        counts,
    )
