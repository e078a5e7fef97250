"""What Dagster, MLflow and the scorecard show of data: a corpus, a tokenizer, tokens, and what
people wrote and judged. Also how much of a text any page shows where its licence does not cover it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from assets.contract import Built
from assets.report import plots
from assets.report.tables import Table, code_block, write_markdown
from gpt_model.data import documents, splits
from gpt_model.data.shards import TokenData
from gpt_model.io import read_json_lines
from gpt_model.rlhf.records import excerpt
from gpt_model.tokenizer import Tokenizer

SAMPLE_CHARACTERS = 200  # the text is other people's


def show_corpus(built: Built, folder: Path) -> None:
    """sources.md (a table), sources.png (what there is against what is drawn), samples.md (a few
    lines a source).
    """
    index = documents.index(built.output)
    weights = sum(entry["weight"] for entry in index.values())
    rows, samples = [], []
    for source, entry in index.items():
        training, held_out = entry["training"], entry["held_out"]
        rows.append(
            {
                "source": source,
                "documents": training["documents"],
                "MB": training["bytes"] / 1e6,
                "share of training tokens": entry["weight"] / weights,
                "held-out documents": held_out["documents"],
                "held-out MB": held_out["bytes"] / 1e6,
                "dropped": sum(entry["dropped"].values()),
                "rows left out": _reasons(entry.get("left_out", {})) or None,
                "licence": entry["licence"],
            }
        )
        text = splits.normalised(next(documents.read(built.output, source, "training")))
        samples += [f"**{source}**", code_block(f"{text[:SAMPLE_CHARACTERS]}…")]
    formats = {"MB": ".2f", "held-out MB": ".2f", "share of training tokens": ".0%"}
    table = Table(rows, formats=formats).without_empty_columns()
    write_markdown(folder / "sources.md", table)
    write_markdown(folder / "samples.md", *samples)
    with plots.picture(folder / "sources.png", height=plots.rows_height(len(index))) as axes:
        plots.bars(
            axes,
            list(index),
            {"training": list(table.frame["MB"]), "held out": list(table.frame["held-out MB"])},
        )
        axes.set_xlabel("text, MB")


EXAMPLES = 24  # tokens of each kind


def show_tokenizer(built: Built, folder: Path) -> None:
    """vocabulary.md: the style, bytes a token on held-out text, the first merges and the longest
    tokens.
    """
    tokenizer = Tokenizer.load(built.output)
    lengths = tokenizer.byte_lengths().astype(np.int64)
    longest = np.argsort(-lengths, kind="stable")[:EXAMPLES].tolist()
    first = range(
        tokenizer.first_merge, min(tokenizer.first_merge + EXAMPLES, tokenizer.end_of_text)
    )
    sources = [name.split("/")[1] for name in built.metrics if name.endswith("/bytes_per_token")]
    rows = [
        {
            "source": source,
            "bytes a token, held-out text": built.metrics[f"held_out/{source}/bytes_per_token"],
            "unknown tokens": built.metrics.get(f"held_out/{source}/unknown_share"),
        }
        for source in sources
    ]
    formats = {"bytes a token, held-out text": ".3f", "unknown tokens": ".4%"}
    write_markdown(
        folder / "vocabulary.md",
        f"Style {tokenizer.style}, {tokenizer.vocab_size:,} tokens. {tokenizer.caveat}".rstrip(),
        Table(rows, formats=formats).without_empty_columns() if rows else "",
        _examples("The first merges, of the most frequent pairs", tokenizer, first),
        _examples("The longest tokens", tokenizer, longest),
    )


def _examples(title: str, tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    tokens = " ".join(json.dumps(tokenizer.decode([index]), ensure_ascii=False) for index in ids)
    return f"{title}:\n\n{code_block(tokens)}"


BINS = 60


def show_tokens(built: Built, folder: Path) -> None:
    """tokens.md (a table by source and split) and document_lengths.png (histograms by source)."""
    data = TokenData(built.output)
    rows = []
    for source in data.sources:
        for split in documents.SPLITS:
            tokens, size = len(data.tokens(source, split)), data.bytes(source, split)
            rows.append(
                {
                    "source": source,
                    "split": split,
                    "weight": data.weights[source],
                    "documents": data.documents(source, split),
                    "tokens": tokens,
                    "bytes": size,
                    "bytes a token": size / tokens if tokens else None,
                }
            )
    formats = {"weight": "g", "bytes a token": ".3f"}
    caveat = Tokenizer.load(built.inputs["tokenizer"].path).caveat
    write_markdown(folder / "tokens.md", Table(rows, note=caveat, formats=formats))
    plot_document_lengths(data, folder / "document_lengths.png")


def plot_document_lengths(data: TokenData, path: Path) -> None:
    lengths = {
        source: np.diff(data.tokens(source, "training").ends.astype(np.int64), prepend=0)
        for source in data.sources
    }
    longest = max((int(values.max()) for values in lengths.values() if len(values)), default=1)
    with plots.picture(path, height=3.5) as axes:
        samples = {f"{source} ({len(values):,})": values for source, values in lengths.items()}
        plots.histogram(axes, samples, np.geomspace(1, max(2, longest + 1), BINS))
        axes.set(xlabel="tokens a document, end-of-text included", ylabel="training documents")
        axes.legend(title="source (documents)")


SHOWN_ROWS = 3  # of each source
TURN_CHARACTERS = 400


def show_human_data(built: Built, folder: Path) -> None:
    """sources.md: what became of every source's rows; samples.md: a few of them."""
    reports = json.loads((built.output / "report.json").read_text(encoding="utf-8"))["sources"]
    rows = [
        {
            "source": name,
            "rows": str(report["rows"]),
            "kept": _retained(report),
            "left out": _reasons(report["left_out"]) or "none",
            "licence": report["licence"][:200],
        }
        for name, report in reports.items()
    ]
    write_markdown(folder / "sources.md", Table(rows))
    write_markdown(folder / "samples.md", *_samples(built, reports))


def _retained(report: Mapping[str, Any]) -> str:
    text = f"{report['kept']}"
    if report["shortened"]:
        text += f" ({report['shortened']} without a last turn that nobody answered)"
    if dropped := _reasons(report["dropped"]):
        text += f"; dropped of their answers: {dropped}"
    return text


def _reasons(counted: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{reason}: {entry['count']} (first: {entry['first'][:200]})"
        for reason, entry in counted.items()
    )


def _samples(built: Built, reports: Mapping[str, Any]) -> list[str]:
    counts = dict.fromkeys(reports, 0)
    samples = []
    for row in read_json_lines(built.output / "training.jsonl"):
        if counts[row["source"]] == SHOWN_ROWS:
            continue
        counts[row["source"]] += 1
        turns = [f"{message['role']}: {message['content']}" for message in row["messages"]]
        orders = zip(row.get("responses", ()), *row.get("further", ()), strict=True)
        for response, *further in orders:
            ranks = ["–" if rank is None else str(rank) for rank in (response["rank"], *further)]
            turns.append(f"rank {', '.join(ranks)}: {response['text']}")
        if not reports[row["source"]]["show_text"]:
            turns = [excerpt(text) for text in turns]
        text = "\n".join(text[:TURN_CHARACTERS] for text in turns)
        samples += [f"**{row['source']}**", code_block(text)]
    return samples
