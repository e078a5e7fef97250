"""What may be expected of a model of this size, in two sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from assets.contract import Artifact
from assets.store.store import Store

TOKENS_A_PARAMETER = 20  # Hoffmann et al. 2022: with fewer a model is as good as a smaller one
# (size below, what to expect). The families' own papers: GPT-1 has 117 million parameters, GPT-2
# 1.5 billion, InstructGPT 1.3 to 175 billion.
EXPECTATIONS = (
    (
        30e6,
        "Expect short sentences in the style of its training text; it knows next to no facts and "
        "cannot reason.",
    ),
    (
        500e6,
        "Expect fluent sentences that wander from the subject; most facts that it states are "
        "invented.",
    ),
    (
        3e9,
        "Expect coherent paragraphs and simple instructions followed; facts and sums are often "
        "wrong.",
    ),
    (20e9, "Expect most instructions followed and common facts; check numbers and reasoning."),
    (float("inf"), "Expect good answers to everyday questions; check what matters."),
)


def ability(store: Store, artifact: Artifact, parameters: int, context: int) -> str:
    """What the model is by its numbers, and what to expect of it."""
    trained = next(_pretrainings(store.lineage(artifact), store), None)
    metrics = trained.metrics if trained else {}
    tokens, bpb = metrics.get("tokens"), metrics.get("held_out/bpb")
    size = f"{_amount(parameters)} parameters"
    if tokens is not None:
        size += f", pretrained on {_amount(tokens)} tokens"
    if bpb is not None:
        size += f" to {bpb:.2f} bits per byte of held-out text"
    effective = parameters if tokens is None else min(parameters, tokens / TOKENS_A_PARAMETER)
    expectation = next(text for below, text in EXPECTATIONS if effective < below)
    return f"{size}; it reads the last {context:,} tokens of a talk. {expectation}"


def _pretrainings(node: Mapping[str, Any], store: Store) -> Iterator[Artifact]:
    """The artifacts below that read text from scratch, as far as the store still has them."""
    if node["stage"] == "pretrained" and not node["missing"]:
        if artifact := store.find(node["fingerprint"]):
            yield artifact
        return
    for below in node["inputs"]:
        yield from _pretrainings(below, store)


def _amount(count: float) -> str:
    """Two digits and a word: 5.2 million."""
    for unit, word in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if count >= unit:
            value = count / unit
            return f"{value:.1f} {word}" if value < 100 else f"{value:.0f} {word}"
    return f"{count:.0f}"
