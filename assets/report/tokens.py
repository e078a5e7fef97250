"""What a person sees of a tokenized corpus."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from assets.contract import Built
from assets.report import plots
from assets.report.tables import Table, write_markdown
from gpt_model.data import documents
from gpt_model.data.shards import TokenData
from gpt_model.tokenizer import Tokenizer

BINS = 60


def show(built: Built, folder: Path) -> None:
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
