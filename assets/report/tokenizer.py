"""What a person sees of a tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from assets.contract import Built
from assets.report.tables import Table, code_block, write_markdown
from gpt_model.tokenizer import Tokenizer

EXAMPLES = 24  # tokens of each kind


def show(built: Built, folder: Path) -> None:
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
