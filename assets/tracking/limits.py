"""What MLflow takes: the lengths of its names and values, and the size of one request. No MLflow.

Whatever is longer is cut, with its length and a hash behind it, so that two different values stay
different. The whole stands in `lineage/artifact.json` of the run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

METRICS_AT_ONCE = 1000
PARAMETERS_AT_ONCE = 100  # and tags
DATASETS_AT_ONCE = 100
REQUEST_BYTES = 900_000  # of 1,000,000
KEY_CHARACTERS = 250
PARAMETER_CHARACTERS = 6000
TAG_CHARACTERS = 8000
DATASET_NAME_CHARACTERS = 500
DATASET_SOURCE_CHARACTERS = 60_000  # of 65,535
DIGEST_CHARACTERS = 36  # of a data set; the whole digest is in its source
DESCRIPTION_CHARACTERS = 5000  # of a model's version
FILE_NAME_CHARACTERS = 120
LISTED = 50  # entries of a list that are parameters each; a longer list is one parameter


def key(name: str) -> str:
    """A metric's, parameter's or tag's name as MLflow takes it: letters, digits and _-. :/, and a
    path that is its own shortest spelling. A hash tells changed names apart.
    """
    parts = re.sub(r"[^\w\-. :/]", "_", name).split("/")
    clean = "/".join("_" if part in ("", ".", "..") else part for part in parts)
    if clean == name and len(name) <= KEY_CHARACTERS:
        return name
    return f"{clean[: KEY_CHARACTERS - 9]}-{_hash(name)}"


def model_name(name: str) -> str:
    """A model's name, in which MLflow takes fewer characters."""
    return key(re.sub(r"[^\w\- ]", "-", name))


def file_name(name: str) -> str:
    """A file's name without its folder and ending."""
    clean = re.sub(r"[^A-Za-z0-9._-]+", "_", name)
    if len(clean) <= FILE_NAME_CHARACTERS:
        return clean
    return f"{clean[:FILE_NAME_CHARACTERS]}-{_hash(name)}"


def shortened(text: str, limit: int) -> str:
    """`text` of at most `limit` characters, none of which a database refuses."""
    text = text.replace("\0", "\ufffd").encode(errors="replace").decode()
    if len(text) <= limit:
        return text
    rest = f" … ({len(text):,} characters, sha256 {_hash(text)})"
    return text[: limit - len(rest)] + rest


def summary(entries: Sequence[Any]) -> str:
    """A list too long to show."""
    return f"{len(entries):,} entries, sha256 {_hash(json.dumps(entries, sort_keys=True))}"


def source(entry: Mapping[str, Any]) -> str:
    """`entry` as the JSON source of a data set; its longest values are summed up until it fits."""
    short = dict(entry)
    for name in sorted(short, key=lambda name: len(json.dumps(short[name])), reverse=True):
        if len(json.dumps(short)) <= DATASET_SOURCE_CHARACTERS:
            break
        value = short[name]
        if isinstance(value, list | tuple):
            short[name] = summary(value)
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            short[name] = shortened(text, 1000)
    return json.dumps(short)


def flatten(value: Any, values: bool = False, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as "a.b.c" and value; lists of plain values stay whole, long lists of
    mappings are summed up. As text unless `values`.
    """
    if isinstance(value, Mapping):
        for name, below in value.items():
            yield from flatten(below, values, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(value, list | tuple) and any(isinstance(entry, Mapping) for entry in value):
        if len(value) > LISTED:
            yield prefix, summary(value)
            return
        names = [entry.get("name") if isinstance(entry, Mapping) else None for entry in value]
        for number, (name, entry) in enumerate(zip(names, value, strict=True)):
            if name is None or names.count(name) > 1:
                name = number
            yield from flatten(entry, values, f"{prefix}.{name}")
    elif prefix:
        yield prefix, value if values else value if isinstance(value, str) else json.dumps(value)


def parameters(config: Mapping[str, Any]) -> dict[str, str]:
    """The configuration as MLflow's parameters."""
    return {key(name): shortened(value, PARAMETER_CHARACTERS) for name, value in flatten(config)}


def batches(values: Sequence[Any], count: int) -> Iterator[list[Any]]:
    """`values`, metrics, parameters or tags, in parts that MLflow takes in one request."""
    batch: list[Any] = []
    size = 0
    for value in values:
        length = len(json.dumps(vars(value), default=str))
        if batch and (len(batch) == count or size + length > REQUEST_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(value)
        size += length
    if batch:
        yield batch


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:8]
