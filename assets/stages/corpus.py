"""The corpus stage: documents of every source, those held out divided off before anything else
reads them.
"""

from __future__ import annotations

from pathlib import Path

from assets.contract import Check, Config, Stage, Table, deferred
from assets.store.home import downloads_folder
from gpt_model.data.sources import Source
from gpt_model.errors import about

EXECUTION = "assets.execution.corpus"


def pin(config: Config, base: Path) -> Config:
    """The section with every local file's sha256 in it, so that text added to one makes another
    corpus.
    """
    sources = []
    for number, source in enumerate(config["sources"]):
        with about(f"sources[{number}]"):
            resolved = Source.model_validate(source).resolved(base, downloads_folder())
            sources.append(resolved.model_dump(mode="json"))
    return {**config, "sources": sources}


CORPUS = Stage(
    name="corpus",
    version="1",
    run=deferred(EXECUTION, "run"),
    description="Documents of every source, the held-out ones split off before anything else "
    "sees them.",
    kinds=("python", "jsonl"),
    table=Table(
        {"text": ("string", "one document; its folder and file name source and split")},
        rows=".+/(training|held_out)/documents",
    ),
    checks=(
        Check(
            "files_are_whole",
            True,
            "Every source has documents, and the files hold what the index says.",
            deferred(EXECUTION, "files_are_whole"),
        ),
        Check(
            "nothing_held_out_is_trained_on",
            True,
            "No held-out document of any source is a training document of any source.",
            deferred(EXECUTION, "nothing_held_out_is_trained_on"),
        ),
        Check(
            "held_out_is_new_text",
            False,
            "Held-out documents are not near-copies of training documents.",
            deferred(EXECUTION, "held_out_is_new_text"),
        ),
        Check(
            "nothing_unusual",
            False,
            "Every row is a text, and no document holds NUL characters, a special token spelt out "
            "or an endless word.",
            deferred(EXECUTION, "nothing_unusual"),
        ),
    ),
    show=deferred("assets.report.data", "show_corpus"),
    pin=pin,
)
