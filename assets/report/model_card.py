"""The README.md of an exported model, as the Hugging Face hub reads it: what it is, what it was
made from, and under which licences.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pandas import DataFrame

from assets.contract import Artifact
from assets.report.lineage_tree import origin, traced
from assets.report.tables import Table, key_values, markdown, number
from assets.stages import stage_named
from assets.store.store import Store

OTHER = "other"  # the hub's word for a licence that is none of its list


def model_card(store: Store, artifact: Artifact, name: str, task: str) -> str:
    """Markdown. `task`: the pipeline of `transformers` that the folder is for."""
    lineage = traced(store, artifact)
    sources = {str(source): source for source in _sources(lineage)}.values()
    weights = [source["licence"] for source in sources if source["name"] == "weights"]
    provenance = artifact.manifest["provenance"]
    front = {
        "library_name": "transformers",
        "pipeline_tag": task,
        "license": weights[0] if weights and weights[0] != "unknown" else OTHER,
        **({} if weights else {"license_name": "of-the-sources"}),
        "tags": ["gpt-lineage"],
    }
    licence = (
        f"The weights it started from: {weights[0]}."
        if weights
        else "Whoever trained the weights says under which licence they may be used. The text that "
        "they were made from has the licences below."
    )
    rows = [
        {"name": source["name"], "from": f"`{origin(source)}`", "licence": source["licence"]}
        for source in sources
    ]
    facts = {
        "artifact": f"`{artifact.stage} {artifact.fingerprint}`",
        "digest": f"`{artifact.digest}`",
        "built": f"{provenance['ended']}, code {provenance['git']['commit'] or 'not from a clone'}",
        "profile": provenance["profile"]["name"],
    }
    metrics = {name: number(value) for name, value in sorted(artifact.metrics.items())}
    return markdown(
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {name}",
        stage_named(artifact.stage).description,
        key_values(facts),
        *_head(artifact),
        "## Licence",
        licence,
        Table(DataFrame(rows, columns=["name", "from", "licence"])),
        "## Metrics of its build",
        key_values(metrics),
    )


# What a head reads of the decoder, by the form of its task.
HEAD_READS = {
    "similarity": "the sum of that state over both orders of the two texts",
    "multiple_choice": "that state of each option, and the highest number is the answer",
}


def _head(artifact: Artifact) -> Iterator[str]:
    """How the head of a fine-tuned model is used, where no pipeline of `transformers` does."""
    form = artifact.config["source"]["form"] if artifact.stage == "finetuned" else None
    if form not in HEAD_READS:
        return
    yield "## The task's head"
    yield (
        f"`transformers` has no class for a task of the form {form}: it loads the decoder alone, "
        "which was fine-tuned for its head and not to write. The head is `head.safetensors`, and "
        "`task_layout.json` has the labels and `vocab_size`: Start, Delim and Extract are the next "
        "three ids. The head multiplies the decoder's last hidden state at Extract by "
        f"`weight` and adds `bias`; it reads {HEAD_READS[form]}. "
        "`gpt_model.finetuning.heads.load(FOLDER)` is decoder and head."
    )


def _sources(lineage: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What its stages read from outside the store, the first ones first."""
    for below in lineage["inputs"]:
        yield from _sources(below)
    yield from lineage.get("sources", ())
