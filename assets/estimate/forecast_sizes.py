"""How much there is of what recipes read from the hub, which `forecast.py` cannot know before it is
read. No part of any artifact.

Sizes are those of the data sets' cards on the hub unless marked as not verified, which widens the
interval, as what is not here does more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from assets.contract import Artifact

UNKNOWN = 10.0  # the factor by which a size that nobody told may be off, either way
UNVERIFIED = 2.0  # and one that is marked so
BYTES_PER_TOKEN = 3.5  # English text under a byte-level BPE of a few thousand pieces
DEFAULT_TEXT = 5e6  # bytes of a source of unknown size
DEFAULT_EXAMPLES = 3000
DEFAULT_OPTIONS = 4  # of a multiple-choice question whose options are a list in a column
SHORT = 64  # tokens of an example without a passage


class Text(NamedTuple):
    bytes: float  # UTF-8
    rows: float
    verified: bool = True


# By data set and configuration, the training split.
TEXTS: dict[tuple[str, str | None], Text] = {
    ("bookcorpus/bookcorpus", None): Text(4.854e9, 74_004_228),
    ("Skylion007/openwebtext", None): Text(39.77e9, 8_013_769),
    ("wikimedia/wikipedia", "20231101.en"): Text(20.2e9, 6_407_814, False),
    ("HuggingFaceFW/fineweb", "sample-350BT"): Text(
        1.6e12, 5e8, False
    ),  # 350 billion tokens, as its name says, of 4.5 bytes
    ("HuggingFaceFW/fineweb-edu", "sample-10BT"): Text(
        4.5e10, 9.7e6, False
    ),  # 10 billion tokens, as its name says
}

# Training examples by data set and configuration, before the share for validation is taken out.
EXAMPLES: dict[tuple[str, str | None], int] = {
    ("nyu-mll/glue", "mnli"): 392_702,
    ("nyu-mll/glue", "qqp"): 363_846,
    ("nyu-mll/glue", "qnli"): 104_743,
    ("nyu-mll/glue", "sst2"): 67_349,
    ("nyu-mll/glue", "cola"): 8_551,
    ("nyu-mll/glue", "stsb"): 5_749,
    ("nyu-mll/glue", "mrpc"): 3_668,
    ("nyu-mll/glue", "rte"): 2_490,
    ("stanfordnlp/snli", "plain_text"): 550_152,
    ("allenai/scitail", "tsv_format"): 23_097,
    ("ehovy/race", "all"): 87_866,
}


class Amount(NamedTuple):
    """How much, and the factor by which that may be off: 1 where it is known."""

    much: float
    unsure: float = 1.0


def _on_hub(source: Mapping[str, Any]) -> bool:
    return bool(source.get("hub")) and not source.get(
        "pinned"
    )  # a folder laid out like one has its files' sizes


def text_of(source: Mapping[str, Any]) -> Amount:
    """Bytes of a corpus's source: what its files have, its data set's card says, or a guess.
    Packages do not say theirs beforehand.
    """
    stated = sum(
        float(file.get("bytes") or 0)
        for file in source.get("pinned") or ()
        if isinstance(file, Mapping)
    )
    if stated or not _on_hub(source):
        return Amount(stated or DEFAULT_TEXT)
    told = TEXTS.get((source["hub"], source.get("config")))
    if told is None:
        return Amount(DEFAULT_TEXT, UNKNOWN)
    group = source.get("group")
    documents = told.rows / (group if isinstance(group, int) else 1)
    return Amount(
        told.bytes * min(1.0, (source.get("limit") or documents) / documents),
        1.0 if told.verified else UNVERIFIED,
    )


def held_out_tokens(corpus: Artifact) -> dict[str, float]:
    """Held-out tokens of each source of a corpus that is built or planned, named as the tokens' own
    metrics.
    """
    size = {
        name.partition("/")[0]: value
        for name, value in corpus.metrics.items()
        if name.endswith("/held_out/bytes")
    }
    if not size:
        share = corpus.config.get("held_out", 0.0)
        size = {
            one["name"]: text_of(one).much * (one.get("held_out") or share)
            for one in corpus.config.get("sources", ())
        }
    return {f"held_out/{source}/tokens": much / BYTES_PER_TOKEN for source, much in size.items()}


def examples_of(config: Mapping[str, Any]) -> Amount:
    """Training examples of a task's section: as many as it asks for at most, and there are."""
    source, asked = config["source"]["source"], config.get("examples")
    told = EXAMPLES.get((source["hub"], source.get("subset"))) if _on_hub(source) else None
    if told is not None:
        own_split = source["splits"].get("validation")
        there = told * (1 if own_split else 1 - config["source"]["split"]["validation"])
        return Amount(min(there, asked or there))
    return Amount(asked or DEFAULT_EXAMPLES, UNKNOWN if _on_hub(source) and not asked else 1.0)


def tokens_of_example(entry: Mapping[str, Any], context: int) -> float:
    """Tokens a model reads of one example: of a similarity both orders, of a question each answer,
    after the passage if there is one.
    """
    length = context if "context" in entry["columns"] else min(context, SHORT)
    if entry["form"] == "multiple_choice":
        options = entry["columns"]["options"]
        return float(length * (len(options) if isinstance(options, list) else DEFAULT_OPTIONS))
    return float(length * (2 if entry["form"] == "similarity" else 1))
