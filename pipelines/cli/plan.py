"""What building a recipe would take: size, tokens, FLOPs, memory by ZeRO stage, time, disk, cost,
and which stages are built already.

Runs nothing and imports no torch: arithmetic on the recipe (`gpt_model.config`,
`training.estimate`), the store's contents, and the same `assets.estimate.forecast` that each build
freezes into its manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from assets.contract import Artifact
from assets.estimate.forecast import forecast, planned
from assets.estimate.forecast_alignment import memory_of_ppo
from assets.estimate.forecast_work import training_flops
from assets.graph import nodes
from assets.node import Node
from assets.recipe.profile import Profile
from assets.recipe.recipe import PretrainingSection, Recipe
from assets.stages import base_model
from assets.stages.pretraining import batches_of, check_shared_out, micro_batch
from assets.stages.zero_shot import members
from assets.store.store import Store
from gpt_model.config import ModelConfig
from gpt_model.errors import Unreachable
from gpt_model.training.estimate import memory_per_rank
from pipelines.lineage_views import SHORT, failed_checks, flat
from pipelines.progress import duration, human

VALUE_BYTES = 4  # of a parameter in a snapshot: float32
STATE_BYTES = 12  # of a parameter in a checkpoint: weight and two moments, float32
CHECKPOINTS = 2  # kept


def plan(recipe: Recipe, base: Path, profile: Profile, store: Store) -> dict[str, Any]:
    """The plan as JSON values; `base` is the recipe's folder. Raises UserError where a local source
    cannot be read or the profile cannot share out the recipe's batch.
    """
    stages, artifacts = _stages(recipe, base, profile, store)
    model = _model(recipe, artifacts)
    to_build = [stage for stage in stages if stage["state"] == "build"]
    ppo = (
        recipe.alignment.ppo.model_dump(mode="json")
        if recipe.alignment and recipe.alignment.ppo
        else None
    )
    seconds = _sum([stage["forecast"].get("seconds") for stage in to_build])
    cores = (
        profile.processes
        if profile.device == "cuda"
        else profile.processes * profile.threads_each()
    )
    return {
        "recipe": recipe.name,
        "profile": profile.name,
        "dial": asdict(recipe.dial) if recipe.dial else None,
        "parameters": parameters_by_part(model) if model else None,
        **(
            _training(recipe, recipe.pretraining, model, artifacts, profile)
            if model and recipe.pretraining
            else {}
        ),
        **({"ppo_memory": memory_of_ppo(model, ppo, profile.processes)} if model and ppo else {}),
        "stages": stages,
        "seconds": seconds,
        "bytes": _sum([stage["forecast"].get("bytes") for stage in to_build]),
        "cost": {
            "unit": "GPU hours" if profile.device == "cuda" else "core hours",
            **{k: v * cores / 3600 for k, v in seconds.items()},
        },
    }


def _model(recipe: Recipe, artifacts: Mapping[str, Artifact]) -> ModelConfig | None:
    """The recipe's model, with the vocabulary its tokenizer has; an imported one once it is here."""
    if recipe.imported is None:
        tokenizer = artifacts.get("tokenizer")
        return recipe.model_config_for(
            (int(tokenizer.metrics.get("vocab_size", 0)) if tokenizer else 0) or None
        )
    imported = artifacts.get("imported")
    if imported is None or base_model.not_run(imported):
        return None
    return ModelConfig(**base_model.shape(imported), vocab_size=int(imported.metrics["vocab_size"]))


def _training(
    recipe: Recipe,
    section: PretrainingSection,
    model: ModelConfig,
    artifacts: Mapping[str, Artifact],
    profile: Profile,
) -> dict[str, Any]:
    """What training it takes: tokens, steps, FLOPs, memory."""
    told = section.model_dump(mode="json")
    check_shared_out(told, model.context, profile.name, profile.processes)
    return {
        "tokens": section.tokens,
        "batch_tokens": section.batch_tokens,
        "batch_ramp": told["batch_ramp"],
        "steps": batches_of(told).within(section.tokens),
        "snapshots": section.snapshots,
        "snapshot_bytes": VALUE_BYTES * model.parameters() * max(0, section.snapshots - 1),
        "epochs": _epochs(recipe, section, artifacts.get("tokens")),
        "flops": training_flops(model, section.tokens),
        "flops_per_token": model.flops_per_token(),
        "memory_per_rank": _memory(model, section.batch_tokens, profile),
        "checkpoint_bytes": CHECKPOINTS * STATE_BYTES * model.parameters(),
    }


def parameters_by_part(model: ModelConfig) -> dict[str, int]:
    """Trainable parameters; the head is the token embedding, counted once."""
    d, layers = model.width, model.layers
    return {
        "token embedding": model.vocab_size * d,
        "position embedding": model.context * d,
        "attention": layers * (4 * d * d + (4 * d if model.attention_bias else d)),
        "feed-forward": layers * (8 * d * d + 5 * d),
        "layer norms": layers * 4 * d + (0 if model.family == "gpt1" else 2 * d),
        "all": model.parameters(),
    }


def _memory(model: ModelConfig, batch_tokens: int, profile: Profile) -> dict[str, Any]:
    """Bytes a rank by ZeRO stage, at the micro-batch that training would take."""
    each = micro_batch(batch_tokens // model.context // profile.processes, model.context, profile)
    stages = {
        str(stage): memory_per_rank(
            model,
            stage,
            profile.processes,
            each,
            activation_checkpointing=profile.activation_checkpointing,
        ).total
        for stage in range(4)
    }
    return {
        "ranks": profile.processes,
        "micro_batch": each,
        "profile_stage": profile.zero_stage,
        "bytes_by_zero_stage": stages,
    }


def _epochs(
    recipe: Recipe, section: PretrainingSection, tokens: Artifact | None
) -> dict[str, float] | None:
    """How often each source would be gone through; None before its tokens are counted."""
    sources = recipe.corpus.sources if recipe.corpus else []
    counts = (
        {s.name: tokens.metrics.get(f"training/{s.name}/tokens") for s in sources} if tokens else {}
    )
    total = sum(source.weight for source in sources)
    epochs = {}
    for source in sources:
        if not (count := counts.get(source.name)):
            return None
        epochs[source.name] = section.tokens * source.weight / total / count
    return epochs


def _stages(
    recipe: Recipe, base: Path, profile: Profile, store: Store
) -> tuple[list[dict[str, Any]], dict[str, Artifact]]:
    """A row a stage: would it be found or built; and the artifacts that are there, by stage."""
    rows: list[dict[str, Any]] = []
    there: dict[str, Artifact] = {}
    known: dict[str, Artifact] = {}  # there, or planned
    skipped: set[str] = set()  # of which nothing is run here
    for node in nodes(recipe):
        row: dict[str, Any] = {
            "asset": node.ref,
            "state": "build",
            "fingerprint": None,
            "why": "",
            "forecast": {},
        }
        rows.append(row)
        try:
            config = node.config(base)
        # whether it is there is known once a branch is tied to a commit; what it takes is known now
        except Unreachable:
            config, row["why"] = (
                node.settings(base),
                "the hub does not answer, so it is not known which commit it would be",
            )
        if row["why"]:
            pass
        elif waiting := [name for name in node.upstream if name not in there]:
            row["why"] = (
                f"after {', '.join(waiting)}"
                if len(waiting) < 4
                else f"after {len(waiting)} others"
            )
        else:
            digests = {name: there[node.asset(name)].digest for name in node.needs}
            row["fingerprint"] = store.fingerprint(
                node.stage.name, node.stage.version, config, digests
            )
            if artifact := store.find(row["fingerprint"]):
                there[node.name] = known[node.name] = artifact
                failed = failed_checks(store, artifact, blocking=True)
                row["state"], row["why"] = (
                    ("blocked", f"its check {failed[0]!r} failed") if failed else ("found", "")
                )
                continue
            row["why"] = _why(node, config, store)
        missing, all_of_it = _not_run(node, config, skipped)
        row["why"] = missing if all_of_it else "; ".join(filter(None, [missing, row["why"]]))
        inputs = {name: known[node.asset(name)] for name in node.needs}
        if all_of_it:
            skipped.add(node.name)
        else:
            row["forecast"] = forecast(node, config, inputs, profile, store)
        known[node.name] = planned(node, config, row["forecast"], inputs)
    return rows, there


def _not_run(node: Node, config: Mapping[str, Any], skipped: set[str]) -> tuple[str, bool]:
    """What of a stage is not run here, and why, in words; and whether that is all of it."""
    if reason := config.get("not_run"):
        return f"not run here: {reason}", True
    if models := skipped & {
        node.asset(need) for need in node.needs if need in ("pretrained", "base")
    }:
        return f"not run here: {', '.join(sorted(models))} is not", True
    told = config.get("tasks") or {}
    tasks = (
        {name: one for name, one in told.items() if one}
        if isinstance(told, Mapping)
        else {one["task"]: one for one in told}
    )
    for suite, contents in (config.get("suites") or {}).items():
        tasks |= {f"{suite}/{keys['task']}": keys["metadata"]["data"] for keys in members(contents)}
    missing = {name: one["not_run"] for name, one in tasks.items() if "not_run" in one}
    if not missing:
        return "", False
    reason = next(iter(missing.values()))
    if len(missing) == len(tasks):
        return f"not run here: {reason}", True
    names = ", ".join(missing) if len(missing) < 4 else f"{len(missing)} of {len(tasks)} tasks"
    return f"{names} not run here: {reason}", False


def _why(node: Node, config: Mapping[str, Any], store: Store) -> str:
    """What of a stage whose inputs are all there differs from the artifact its name stands for now."""
    now = store.get_ref(node.recipe, node.name)
    artifact = store.find(now) if now else None
    if artifact is None:
        return "never built"
    if artifact.manifest["version"] != node.stage.version:
        return f"stage version {artifact.manifest['version']} → {node.stage.version}"
    old, new = flat(artifact.config), flat(config)
    changed = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
    return (
        f"changed: {', '.join(changed[:3])}{', …' if len(changed) > 3 else ''}"
        if changed
        else "an input changed"
    )


def _sum(told: list[Mapping[str, float] | None]) -> dict[str, float]:
    """The sum of intervals: ends added, as forecasts from one machine's speed err together."""
    return {end: sum(one[end] for one in told if one) for end in ("low", "expected", "high")}


def draw_plan(facts: Mapping[str, Any]) -> Group:
    return Group(
        _draw_model(facts), "", _draw_stages(facts), "", _draw_totals(facts), *_draw_bases(facts)
    )


def _draw_model(facts: Mapping[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    if facts["parameters"] is None:
        table.add_row("[bold]model", "imported: its size is known once it is here")
        return table
    if dial := facts["dial"]:
        told = ", ".join(f"{name} {value}" for name, value in dial["set"].items())
        table.add_row(
            "[bold]dial", f"depth {dial['layers']} set {told or 'nothing'}, from {dial['rules']}"
        )
    parts = ", ".join(
        f"{name} {human(count, 4)}" for name, count in facts["parameters"].items() if name != "all"
    )
    table.add_row("[bold]parameters", f"{human(facts['parameters']['all'], 4)}: {parts}")
    if ppo := facts.get("ppo_memory"):
        shared = f"{_bytes(ppo['bytes_per_rank_shared_out'])} a rank where all is shared out"
        table.add_row(
            "[bold]PPO's models",
            f"{_bytes(ppo['bytes'])}: policy, value, reference, reward; {shared}",
        )
    if "tokens" not in facts:  # nothing is pre-trained
        return table
    table.add_row(
        "[bold]tokens",
        f"{human(facts['tokens'])} in {facts['steps']:,} steps of {human(facts['batch_tokens'])}{_ramp(facts)}",
    )
    epochs = facts["epochs"]
    table.add_row(
        "[bold]epochs",
        ", ".join(f"{n} {e:.2f}" for n, e in epochs.items())
        if epochs
        else "known once the corpus is tokenized",
    )
    table.add_row(
        "[bold]compute",
        f"{facts['flops']:.3g} FLOP of pre-training, {facts['flops_per_token']:.3g} a token (6N + 12·L·d·T)",
    )
    memory = facts["memory_per_rank"]
    by_stage = ", ".join(
        f"{_bytes(size)} at ZeRO {stage}" for stage, size in memory["bytes_by_zero_stage"].items()
    )
    table.add_row("[bold]memory a rank", f"{by_stage}; beside what Python and torch take")
    ranks = f"{memory['ranks']} rank{'s' if memory['ranks'] > 1 else ''}, {memory['micro_batch']} sequences each a forward pass"
    table.add_row("[bold]profile", f"{facts['profile']}: {ranks}, ZeRO {memory['profile_stage']}")
    return table


def _ramp(facts: Mapping[str, Any]) -> str:
    ramp = facts["batch_ramp"]
    return (
        f", from {human(ramp['from_tokens'])} over the first {human(ramp['over_tokens'])} tokens"
        if ramp
        else ""
    )


def _draw_stages(facts: Mapping[str, Any]) -> Table:
    table = Table("stage", "", "time", "size", "why", box=None, pad_edge=False)
    for row in facts["stages"]:
        state = {"found": "[green]found", "build": "[yellow]build", "blocked": "[red]blocked"}[
            row["state"]
        ]
        told, note = row["forecast"], row["why"] or row["fingerprint"][:SHORT]
        table.add_row(
            escape(row["asset"]),
            state,
            _span(told.get("seconds"), duration),
            _span(told.get("bytes"), _bytes),
            escape(note),
        )
    return table


def _draw_bases(facts: Mapping[str, Any]) -> list[str]:
    """What the forecasts rest on, each sentence once with the stages it is about."""
    told = [
        (row["asset"].partition("/")[2], row["forecast"])
        for row in facts["stages"]
        if row["forecast"]
    ]
    lines = [
        f"Loss: {foretold['loss_basis']}"
        for name, foretold in told
        if name == "pretrained" and "loss_basis" in foretold
    ]
    for basis in dict.fromkeys(foretold["basis"] for _, foretold in told):
        names = [name for name, foretold in told if foretold["basis"] == basis]
        lines.append(
            f"Time of {', '.join(names)}: {basis}" if len(names) < len(told) else f"Time: {basis}"
        )
    return ["", *(f"[dim]{escape(line)}" for line in lines)]


def _draw_totals(facts: Mapping[str, Any]) -> Table | str:
    if not any(row["state"] == "build" for row in facts["stages"]):
        return "Nothing to build: everything is found."
    table = Table.grid(padding=(0, 2))
    own = [
        row["forecast"] for row in facts["stages"] if row["asset"].endswith("/pretrained")
    ]  # not that of an experiment's model
    if loss := next((foretold["loss"] for foretold in own if "loss" in foretold), None):
        table.add_row("[bold]held-out loss", f"{_span(loss, lambda v: f'{v:.2f}')} bits per byte")
    table.add_row("[bold]time", _span(facts["seconds"], duration))
    checkpoints = (
        f", and {_bytes(facts['checkpoint_bytes'])} of checkpoints on the way"
        if "checkpoint_bytes" in facts
        else ""
    )
    kept = (
        f"; {_bytes(facts['snapshot_bytes'])} of it {facts['snapshots'] - 1} snapshots"
        if facts.get("snapshot_bytes")
        else ""
    )
    table.add_row("[bold]disk", f"{_span(facts['bytes'], _bytes)}{kept}{checkpoints}")
    cost = facts["cost"]
    table.add_row("[bold]cost", f"{_span(cost, lambda v: f'{v:.3g}')} {cost['unit']}")
    return table


def _bytes(size: float) -> str:
    return f"{human(size)}B"


def _span(told: Mapping[str, float] | None, spell: Any) -> str:
    return (
        f"{spell(told['expected'])} ({spell(told['low'])} to {spell(told['high'])})" if told else ""
    )
