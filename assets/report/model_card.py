"""What an exported model's folder says of it, as the Hugging Face hub reads it: README.md (the
card, with the hub's metadata) and LICENSE (under which licence each source is).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from pandas import DataFrame

from assets.contract import Artifact, Inputs
from assets.recipe.recipe import RECIPES
from assets.recipe.yaml_file import named_files
from assets.report.lineage_tree import is_complete, origin
from assets.report.score import Score, number
from assets.report.scores import collect
from assets.report.tables import Table, key_values, markdown
from assets.report.verdict import WIN_RATE
from assets.stages import stage_named
from assets.store.provenance import execution
from assets.store.store import Store

OTHER = "other"  # the hub's word for a licence that is none of its list
UNKNOWN = "unknown"
ZERO_SHOT, PREFERENCES = "zero_shot", "preferences"
METRICS = {"acc": "accuracy"}  # as lm_eval calls it, and the hub
LICENSE = "LICENSE"
PINS = ("sha256", "revision")  # of a source
# Those of the hub's list that weights and text often have:
# https://huggingface.co/docs/hub/repositories-licenses
HUB_LICENCES = frozenset(
    {
        *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "isc", "unlicense", "mpl-2.0"),
        *("gpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "openrail", "bigscience-openrail-m"),
        *("cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-4.0"),
        *("cc-by-nc-sa-4.0", "odc-by", "odbl", "pddl", "llama2", "llama3", "gemma"),
    }
)


@dataclass(frozen=True)
class Card:
    """What a card is written from. `lineage`: as `traced` has it. `name`: the artifact's. `task`:
    the pipeline of `transformers` that the folder is for. `address`: how that finds the folder.
    """

    artifact: Artifact
    lineage: Mapping[str, Any]
    name: str
    task: str
    address: str
    languages: Sequence[str] = ()

    @property
    def sources(self) -> list[dict[str, Any]]:
        """What its stages read from outside the store, the first ones first, each once."""
        sources = {
            (source["name"], origin(source), *map(source.get, (*PINS, "licence"))): source
            for source in _sources(self.lineage)
        }
        return list(sources.values())

    @property
    def weights(self) -> dict[str, Any] | None:
        """The source of the weights it started from, where those were imported."""
        return next((source for source in self.sources if source["name"] == "weights"), None)


def _sources(lineage: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for below in lineage["inputs"]:
        yield from _sources(below)
    yield from lineage.get("sources", ())


def model_card(store: Store, card: Card) -> str:
    """README.md."""
    artifact, provenance = card.artifact, card.artifact.manifest["provenance"]
    scores = [score for score in scores_of(store, artifact, card.name) if score.complete]
    facts = {
        "artifact": f"`{artifact.stage} {artifact.fingerprint}`",
        "digest": f"`{artifact.digest}`",
        "built": provenance["ended"],
        "code": _code(provenance),
        "execution": execution(provenance),
    }
    metrics = {
        name: f"{value:,.0f}" if float(value).is_integer() else number(value)
        for name, value in sorted(artifact.metrics.items())
    }
    gone = (
        ""
        if is_complete(card.lineage)
        else " A part of it is in no store any more, and so missing."
    )
    return markdown(
        f"---\n{_metadata(card, scores).to_yaml()}\n---",
        f"# {card.name}",
        _description(artifact),
        "## Use",
        "```python\nfrom transformers import pipeline\n\n"
        f'model = pipeline("{card.task}", model="{card.address}")\n```',
        *_head(artifact),
        "## Scores" if scores else "",
        _score_table(scores) if scores else "",
        "## Licence and data",
        _licence(card),
        _source_table(card.sources),
        "## Where it comes from",
        f"`lineage.json` has its whole lineage: each stage's section, inputs and checksums.{gone}",
        key_values(facts),
        "## Build it again",
        _reproduction(card.name, artifact),
        "## Metrics of its build",
        key_values(metrics),
    )


def _description(artifact: Artifact) -> str:
    description = stage_named(artifact.stage).description
    if artifact.stage != "finetuned":
        return description
    task = artifact.config["source"].get("description")
    return f"{description} The task: {artifact.config['task']}{f', {task}' if task else ''}."


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


def licence_notes(card: Card) -> str:
    """LICENSE: no licence itself, but the licences that whoever uses the model has to know."""
    notes = [
        f"- {source['name']}: {source['licence']}\n  from {origin(source)}"
        + "".join(f"\n  {pin} {source[pin]}" for pin in PINS if source.get(pin))
        for source in card.sources
    ]
    return "\n\n".join([f"Licences of {card.name}", _licence(card), "\n".join(notes)]) + "\n"


def _licence(card: Card) -> str:
    if card.weights:
        return (
            f"The weights it started from: {card.weights['licence']}. What it was trained on "
            "further has the licences below."
        )
    return (
        "Whoever trained the weights says under which licence they may be used. The text that they "
        "were made from has the licences below."
    )


def _metadata(card: Card, scores: Sequence[Score]) -> ModelCardData:
    """The hub's block at the head of the card."""
    weights, data = card.weights, [s for s in card.sources if s is not card.weights]
    licence = str(weights["licence"]).lower() if weights else "of-the-sources"
    known = licence in HUB_LICENCES
    slug = re.sub(r"[^a-z0-9.]+", "-", licence).strip("-") or UNKNOWN
    hub = [str(source["hub"]) for source in data if source.get("hub")]
    return ModelCardData(
        language=list(card.languages) or None,
        license=licence if known else OTHER,
        license_name=None if known else slug,
        license_link=None if known else LICENSE,
        library_name="transformers",
        pipeline_tag=card.task,
        base_model=str(weights["hub"]) if weights and weights.get("hub") else None,
        datasets=list(dict.fromkeys(hub)) or None,
        tags=["gpt-lineage", card.artifact.stage.replace("_", "-")],
        model_name=card.name if scores else None,
        eval_results=[_result(card.task, score) for score in scores] or None,
    )


def _result(task: str, score: Score) -> EvalResult:
    """A score as the hub's model-index has it, its interval among the metric's arguments."""
    data, metric = _data_and_metric(score)
    details = {
        "confidence_interval_95": [score.low, score.high],
        "examples": score.examples,
        "baseline": score.baseline or None,
        "artifact": score.fingerprint,
    }
    return EvalResult(
        task_type=task,
        dataset_type=re.sub(r"[^\w.-]+", "-", data),
        dataset_name=data,
        dataset_split=score.split,
        metric_type=METRICS.get(metric, re.sub(r"\W+", "_", metric)),
        metric_name=score.name,
        metric_value=score.value,
        metric_args={key: value for key, value in details.items() if value is not None},
    )


def _data_and_metric(score: Score) -> tuple[str, str]:
    """ "boolq accuracy" of a suite; "bits per byte, plays" and "transfer" of the model's build."""
    if score.asset.rpartition("/")[2] == ZERO_SHOT:
        data, _, metric = score.name.rpartition(" ")
        return data, metric
    metric, _, part = score.name.partition(", ")
    return part or score.asset.rpartition("/")[2], metric


def scores_of(store: Store, artifact: Artifact, name: str) -> list[Score]:
    """The scores of a model: of its build, of the suites that were run on it, and its win rates
    over other models, each once.
    """
    recipe, _, stage = name.partition("/")
    stage = stage or artifact.stage
    runs = {artifact.fingerprint: (stage, artifact)}
    roles: dict[str, str] = {}  # comparison of models -> which of them this one is
    for other in store.artifacts():
        used = {entry["fingerprint"]: entry["name"] for entry in other.manifest["inputs"]}
        if artifact.fingerprint not in used or other.not_run:
            continue
        if other.stage == ZERO_SHOT:
            runs[other.fingerprint] = (ZERO_SHOT, other)
        elif other.stage == PREFERENCES:
            runs[other.fingerprint] = (PREFERENCES, other)
            roles[other.fingerprint] = used[artifact.fingerprint].replace("_", " ")
    scores = {
        (score.name, score.sample()): score
        for fingerprint, (role, run) in runs.items()
        for score in _collected(recipe, {**_above(store, run), role: run})
        if score.fingerprint == fingerprint
        and not score.on_another_scale
        and (fingerprint not in roles or roles[fingerprint] in _compared(score))
    }
    return list(scores.values())


def _compared(score: Score) -> list[str]:
    """The two models of a win rate."""
    return score.name.removesuffix(WIN_RATE).split(" over ")


def _collected(recipe: str, inputs: Inputs) -> list[Score]:
    """The scores of the inputs; none where what they stand beside is not in the store any more."""
    try:
        return collect(recipe, inputs)[0]
    except KeyError:  # of an input, or of a metric that an earlier version did not measure
        return []


def _above(store: Store, artifact: Artifact) -> dict[str, Artifact]:
    """Everything that the artifact was made from and is in the store, by the names its stages have
    for it, the nearest first.
    """
    inputs: dict[str, Artifact] = {}
    for entry in artifact.manifest["inputs"]:
        if (upstream := store.find(entry["fingerprint"])) is not None:
            inputs = {entry["name"]: upstream} | _above(store, upstream) | inputs
    return inputs


def _score_table(scores: Sequence[Score]) -> Table:
    rows = [
        {
            "score": f"{score.name} ↓" if score.lower_is_better else score.name,
            "value": number(score.value),
            "95 % interval": score.interval(),
            "beside": score.baseline,
            "verdict": score.verdict,
            "on": score.sample(),
        }
        for score in scores
    ]
    judged = any(score.name.endswith(WIN_RATE) for score in scores)
    note = "A win rate is by a judge that no model was trained to please. " if judged else ""
    note += "↓: lower is better. Verdict: against the best that stands beside it, interval and all."
    return Table(rows, note=note)


def _source_table(sources: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        {"name": source["name"], "from": f"`{origin(source)}`", "licence": source["licence"]}
        for source in sources
    ]
    return Table(DataFrame(rows, columns=["name", "from", "licence"]))


def _code(provenance: Mapping[str, Any]) -> str:
    """Which code built it: "gpt-lineage 0.1.0, commit 3f2a…"."""
    version = provenance["packages"].get("gpt-lineage")
    parts = [f"gpt-lineage {version}" if version else "", provenance["git"]["commit"] or ""]
    if provenance["git"]["dirty"]:
        parts.append("with changes")
    return ", ".join(filter(None, parts)) or "not recorded"


def _reproduction(name: str, artifact: Artifact) -> str:
    provenance = artifact.manifest["provenance"]
    recipe = name.partition("/")[0]
    file = next(
        (stem for stem in named_files([RECIPES]) if stem.replace("-", "_") == recipe),
        f"{recipe}.yaml",
    )
    return (
        f"With the file of the recipe `{recipe}`, here `{file}`, and the code named above:\n\n"
        f"```sh\ngpt-lineage run {file} --profile {provenance['profile']['name']}\n"
        f"gpt-lineage show {name}\n```\n\n"
        "The same recipe and sources give the fingerprint above on any machine. They give the "
        "digest above on an equal number of ranks and threads: another number adds numbers in "
        "another order."
    )
