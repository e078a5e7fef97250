"""What building a recipe takes, and which of its stages are built already; runs nothing.

Parameters, tokens, FLOPs, memory by ZeRO stage, time, disk and cost, as JSON values (`plan_of`) and
as tables (`draw_plan`). The figures are `assets.estimate`'s, which each build freezes with its
artifact. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from assets.contract import Artifact
from assets.estimate import (
    ZERO_STAGES,
    estimate,
    has_whole_models,
    loss_text,
    planned,
    ppo_bytes,
    ppo_bytes_per_rank,
    readable,
    smallest_profile,
    training_flops,
    training_setting,
    whole_model_bytes,
)
from assets.graph import nodes
from assets.node import Node
from assets.recipe.profile import Profile
from assets.recipe.recipe import PretrainingSection, Recipe
from assets.recipe.sections import PPOSection
from assets.stages import base_model
from assets.stages.pretraining import (
    batches_of,
    check_shared_out,
    idle_share,
    micro_batch,
    sequences_each,
)
from assets.stages.zero_shot import members
from assets.store.remote import remote_of
from assets.store.store import SHORT, Store
from gpt_model.config import ModelConfig
from gpt_model.errors import Unreachable, UserError
from gpt_model.training.memory import matrix_parameters, memory_per_rank
from pipelines.lineage_views import changed_fields, flat
from pipelines.progress import duration, human

SNAPSHOT_BYTES = 4  # a parameter: float32
CHECKPOINT_BYTES = 12  # a parameter: weight and two moments, float32
CHECKPOINTS = 2  # that training keeps
IDLE_SHOWN = 0.005  # of the ranks' time: less is not shown
OFFLOADS = {"offload_optimizer", "offload_param"}
MISSING = (
    "Missing: tensor, sequence and pipeline parallelism. ZeRO is what shares a training out among "
    "ranks (docs/how-to/machines.md)."
)
LISTED = 3  # names that a reason lists; more are counted


def plan_of(recipe: Recipe, base: Path, profile: Profile, store: Store) -> dict[str, Any]:
    """The plan as JSON values; `base` is the recipe's folder. Raises UserError where a local source
    cannot be read or the profile has more processes than the recipe's batch has sequences.
    """
    damage: list[str] = []
    artifacts = readable(store, damage.append)
    stages, built = _stages(recipe, base, profile, store, artifacts, damage)
    model = model_of(recipe, built)
    seconds, size = (_total(stages, quantity) for quantity in ("seconds", "bytes"))
    threads = 1 if profile.device == "cuda" else profile.threads_each()
    hours = {end: value * profile.processes * threads / 3600 for end, value in seconds.items()}
    facts = {
        "recipe": recipe.name,
        "profile": profile.name,
        "dial": asdict(recipe.dial) if recipe.dial else None,
        "parameters": parameters_by_part(model) if model else None,
    }
    if model and recipe.pretraining:
        facts |= _training(recipe, recipe.pretraining, model, built)
    return facts | {
        **(memory_facts(recipe, model, profile) if model else {}),
        "damage": damage,
        "stages": stages,
        "seconds": seconds,
        "bytes": size,
        "cost": {
            "unit": "GPU hours" if profile.device == "cuda" else "core hours",
            **hours,
            **_price(seconds, profile),
        },
    }


def dry_run_of(
    recipe: Recipe, base: Path, profile: Profile, store: Store, chosen: Collection[str]
) -> dict[str, Any]:
    """What `run` would find, build and not get to, of the assets named in `chosen`, as JSON values.

    Also what these read that is not chosen: `not_built` and, with the reason, `outdated` ones.
    """
    damage: list[str] = []
    artifacts = readable(store, damage.append)
    rows, _ = _stages(recipe, base, profile, store, artifacts, damage)
    by_name = {row["asset"].partition("/")[2]: row for row in rows}
    refs = store.refs()
    read = {name for node in nodes(recipe) if node.name in chosen for name in node.upstream}
    beside = [by_name[name] for name in by_name if name in read.difference(chosen)]
    stages = [row for name, row in by_name.items() if name in chosen]
    return {
        "recipe": recipe.name,
        "profile": profile.name,
        "stages": stages,
        "seconds": _total(stages, "seconds"),
        "bytes": _total(stages, "bytes"),
        "not_built": [row["asset"] for row in beside if row["asset"] not in refs],
        "outdated": {
            row["asset"]: row["why"] or "its name leads to an artifact of other settings"
            for row in beside
            if row["asset"] in refs and refs[row["asset"]] != row["fingerprint"]
        },
        "damage": damage,
    }


def too_large(recipe: Recipe, profile: Profile, store: Store) -> list[str]:
    """What of the training does not fit the profile, as `plan` says it; of an imported model once
    it is here.
    """
    built = {}
    if recipe.imported:
        with suppress(UserError):
            built["imported"] = store.resolve(f"{recipe.name}/imported")
    model = model_of(recipe, built)
    return what_does_not_fit(memory_facts(recipe, model, profile), profile.name) if model else []


def draw_dry_run(facts: Mapping[str, Any]) -> Group:
    states = [row["state"] for row in facts["stages"]]
    counts = f"{states.count('found')} found, "
    if "remote" in states:
        counts += f"{states.count('remote')} in the remote, "
    counts += f"{states.count('build')} to build"
    if "build" in states:
        seconds, size = _range(facts["seconds"], duration), _range(facts["bytes"], _bytes)
        counts += f", in {seconds}, {size}, by profile {facts['profile']}"
    warnings = [f"[yellow]{escape(sentence)}" for sentence in facts["damage"]]
    return Group(_draw_stages(facts), "", f"{counts}. Nothing was run.", *warnings)


def _price(seconds: Mapping[str, float], profile: Profile) -> dict[str, dict[str, float]]:
    if profile.price_per_hour is None:
        return {}
    each = profile.price_per_hour * profile.processes / 3600
    return {"price": {end: value * each for end, value in seconds.items()}}


def model_of(recipe: Recipe, built: Mapping[str, Artifact]) -> ModelConfig | None:
    """The recipe's model, with its tokenizer's vocabulary; an imported one once it is here."""
    if recipe.imported is None:
        tokenizer = built.get("tokenizer")
        vocab_size = int(tokenizer.metrics.get("vocab_size", 0)) if tokenizer else 0
        return recipe.model_config_for(vocab_size or None)
    imported = built.get("imported")
    if imported is None or imported.not_run:
        return None
    return ModelConfig(**base_model.shape(imported), vocab_size=int(imported.metrics["vocab_size"]))


def _training(
    recipe: Recipe, section: PretrainingSection, model: ModelConfig, built: Mapping[str, Artifact]
) -> dict[str, Any]:
    """What pre-training takes: tokens, steps, FLOPs, disk."""
    settings = section.model_dump(mode="json")
    state = CHECKPOINT_BYTES * model.parameters()
    if section.muon:
        state -= 4 * matrix_parameters(model)  # one moment, not two
    return {
        "tokens": section.tokens,
        "batch_tokens": section.batch_tokens,
        "batch_ramp": settings["batch_ramp"],
        "steps": batches_of(settings).steps_within(section.tokens),
        "snapshots": section.snapshots,
        "snapshot_bytes": SNAPSHOT_BYTES * model.parameters() * max(0, section.snapshots - 1),
        "epochs": _epochs(recipe, section, built.get("tokens")),
        "flops": training_flops(model, section.tokens),
        "flops_per_token": model.flops_per_token(),
        "checkpoint_bytes": CHECKPOINTS * state,
    }


def memory_facts(recipe: Recipe, model: ModelConfig, profile: Profile) -> dict[str, Any]:
    """What pre-training, PPO and evaluation take of each rank's memory, as JSON values. Raises
    UserError where the profile has more processes than the recipe's batch has sequences.
    """
    available, facts = profile.memory_each(), dict[str, Any]()
    if recipe.pretraining:
        facts["memory_per_rank"] = _training_memory(recipe.pretraining, model, profile, available)
    if recipe.alignment and recipe.alignment.ppo:
        facts["ppo_memory"] = _ppo_memory(recipe.alignment.ppo, model, profile, available)
    stages = {node.stage.name for node in nodes(recipe)}
    stages = {stage for stage in stages if has_whole_models(stage, model, profile)}
    if size := whole_model_bytes(model, stages, profile.device):
        facts["evaluation_memory"] = {
            "bytes_per_rank": size,
            "bytes_per_host": size * profile.processes_each_host(),
            "available": available,
            "fits": available is None or size <= available,
        }
    return facts


def _ppo_memory(
    section: PPOSection, model: ModelConfig, profile: Profile, available: float | None
) -> dict[str, Any]:
    settings = section.model_dump(mode="json")

    def each(zero_stage: int, ranks: int) -> float:
        return ppo_bytes_per_rank(model, settings, profile, zero_stage, ranks)

    by_stage = {stage: each(stage, profile.processes) for stage in ZERO_STAGES}
    fits = available is None or by_stage[profile.zero_stage] <= available
    enough = None
    if not fits and available:
        # A rank samples an episode of each batch at least
        rank_numbers = range(1, section.batch + 1)
        enough = next((ranks for ranks in rank_numbers if each(3, ranks) <= available), None)
    return {
        "bytes": ppo_bytes(model, section.value == "shared"),
        "profile_stage": profile.zero_stage,
        "bytes_by_zero_stage": {str(stage): size for stage, size in by_stage.items()},
        "available": available,
        "fits": fits,
        "ranks": enough,  # with which it fits at ZeRO 3
    }


def _training_memory(
    section: PretrainingSection, model: ModelConfig, profile: Profile, available: float | None
) -> dict[str, Any]:
    settings = section.model_dump(mode="json")
    check_shared_out(settings, model.context, profile.name, profile.processes)
    sequences = -(-section.batch_tokens // model.context // profile.processes)
    each = micro_batch(sequences, sequences_each(profile, model.context))
    setting = training_setting(profile, section.precision, each, section.muon is not None)
    by_stage = {
        stage: memory_per_rank(model, replace(setting, zero_stage=stage)) for stage in ZERO_STAGES
    }
    fits = available is None or by_stage[profile.zero_stage] <= available
    batches = batches_of(settings)
    steps = batches.steps_within(section.tokens)
    return {
        "ranks": profile.processes,
        "micro_batch": each,
        "idle_share": idle_share(batches, steps, model.context, profile.processes),
        "profile_stage": profile.zero_stage,
        "bytes_by_zero_stage": {str(stage): size for stage, size in by_stage.items()},
        "available": available,
        "fits": fits,
        "host_bytes": _host_bytes(model, profile),
        "offloaded": bool(OFFLOADS & set(profile.deepspeed.get("zero_optimization", {}))),
        "smallest_profile": (
            None
            if fits or not available
            else smallest_profile(model, setting, section.batch_tokens // model.context, available)
        ),
    }


def _host_bytes(model: ModelConfig, profile: Profile) -> float:
    """What the ranks of a host take of its memory while they make the model for their GPUs: the
    whole model each, or at ZeRO 3 a parameter at a time.
    """
    if profile.device == "cpu":
        return 0.0
    largest = max(model.vocab_size * model.width, 4 * model.width**2)
    each = largest if profile.zero_stage == 3 else model.parameters()
    return 4.0 * each * profile.processes_each_host()


def what_does_not_fit(memory: Mapping[str, Any], profile: str) -> list[str]:
    """A sentence for each part of the training that is too large for the profile, with the smallest
    profile that would do. `memory`: of `memory_facts`.
    """
    sentences = []
    if (training := memory.get("memory_per_rank")) and not training["fits"]:
        stage = training["profile_stage"]
        needed = _bytes(training["bytes_by_zero_stage"][str(stage)])
        smallest = training["smallest_profile"].items()
        fields = ", ".join(f"{name}: {str(value).lower()}" for name, value in smallest)
        sentences.append(
            f"Pre-training takes {needed} a rank at ZeRO {stage}, and {profile} has "
            f"{_bytes(training['available'])}. The smallest profile that would do: {fields}."
        )
    if (ppo := memory.get("ppo_memory")) and not ppo["fits"]:
        stage = ppo["profile_stage"]
        remedy = (
            f"At ZeRO 3, {ppo['ranks']} of its ranks would do"
            if ppo["ranks"]
            else "No number of its ranks would do: take devices of more memory, or a smaller "
            "micro_batch"
        )
        sentences.append(
            f"PPO takes {_bytes(ppo['bytes_by_zero_stage'][str(stage)])} a rank at ZeRO {stage}, "
            f"and {profile} has {_bytes(ppo['available'])}. {remedy}."
        )
    if (evaluation := memory.get("evaluation_memory")) and not evaluation["fits"]:
        sentences.append(
            f"Evaluation takes {_bytes(evaluation['bytes_per_rank'])} a rank, whole models on "
            f"each, and {profile} has {_bytes(evaluation['available'])}: it needs ZeRO 3, fewer "
            "processes on a host, or devices of more memory."
        )
    return sentences


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


def _epochs(
    recipe: Recipe, section: PretrainingSection, tokens: Artifact | None
) -> dict[str, float] | None:
    """How often each source would be gone through; None before its tokens are counted."""
    sources = recipe.corpus.sources if recipe.corpus else []
    total = sum(source.weight for source in sources)
    epochs = {}
    for source in sources:
        count = tokens.metrics.get(f"training/{source.name}/tokens") if tokens else None
        if not count:
            return None
        epochs[source.name] = section.tokens * source.weight / total / count
    return epochs


def _stages(
    recipe: Recipe,
    base: Path,
    profile: Profile,
    store: Store,
    artifacts: Sequence[Artifact],
    damage: list[str],
) -> tuple[list[dict[str, Any]], dict[str, Artifact]]:
    """A row for each stage: is it built, or what does building it take; and the built artifacts.
    `damage` gets a sentence where the remote does not answer.
    """
    remote = remote_of(store.home)
    published, refs = {artifact.fingerprint: artifact for artifact in artifacts}, store.refs()
    rows: list[dict[str, Any]] = []
    built: dict[str, Artifact] = {}
    digests: dict[str, str] = {}  # of what is built, here or in the remote
    known: dict[str, Artifact] = {}  # built, or planned
    skipped: set[str] = set()  # of which nothing is run here
    for node in nodes(recipe):
        row: dict[str, Any] = {"asset": node.ref, "state": "build", "fingerprint": None}
        row |= {"why": "", "forecast": {}}
        row["ranks"] = profile.processes if node.stage.shared_out else 1
        rows.append(row)
        try:
            config = node.config(base)
        except Unreachable:  # the commit of a branch decides whether it is built, not what it takes
            config = node.settings(base)
            row["why"] = "the hub does not answer, so it is not known which commit it would be"
        if labels := _labels_of_local_rows(config):
            row["labels"] = labels
        waiting = [name for name in node.upstream if name not in digests]
        if waiting and not row["why"]:
            row["why"] = f"after {_listed(waiting, 'others')}"
        elif not row["why"]:
            of_inputs = {name: digests[node.asset(name)] for name in node.needs}
            fingerprint = store.fingerprint(node.stage.name, node.stage.version, config, of_inputs)
            row["fingerprint"] = fingerprint
            if artifact := published.get(fingerprint):
                built[node.name] = known[node.name] = artifact
                digests[node.name] = artifact.digest
                row["state"] = "found"
                if failed := store.failed_checks(artifact, blocking=True):
                    row |= {"state": "blocked", "why": f"its check {failed[0]!r} failed"}
                continue
            row["why"] = _why(node, config, published.get(refs.get(node.ref, "")))
            try:
                digest = remote.digest(fingerprint) if remote else None
            except UserError as error:
                damage.append(str(error))
                remote = digest = None
            if digest:
                digests[node.name] = digest
                row |= {"state": "remote", "why": ""}
        missing, entirely = _not_run(node, config, skipped)
        row["why"] = missing if entirely else "; ".join(filter(None, [missing, row["why"]]))
        inputs = {name: known[node.asset(name)] for name in node.needs}
        if entirely:
            skipped.add(node.name)
        answer = {} if entirely else estimate(node, config, inputs, profile, artifacts)
        if row["state"] == "build":
            row["forecast"] = answer
        known[node.name] = planned(node, config, answer, inputs)
    return rows, built


def _labels_of_local_rows(config: Mapping[str, Any]) -> list[str]:
    """The labels of a task on a person's own files; [] of anything else."""
    entry = config.get("source")
    if not isinstance(entry, Mapping) or not entry.get("source", {}).get("pinned"):
        return []
    return list(entry.get("labels") or ())


def _listed(names: Collection[str], rest: str) -> str:
    return ", ".join(names) if len(names) <= LISTED else f"{len(names)} {rest}"


def _not_run(node: Node, config: Mapping[str, Any], skipped: set[str]) -> tuple[str, bool]:
    """What of a stage is not run here and why, as a phrase; and whether that is all of it."""
    if reason := config.get("not_run"):
        return f"not run here: {reason}", True
    models = {node.asset(need) for need in node.needs if need in ("pretrained", "base")}
    if models & skipped:
        return f"not run here: {', '.join(sorted(models & skipped))} is not", True
    section = config.get("tasks") or {}
    if isinstance(section, Mapping):
        tasks = {name: task for name, task in section.items() if task}
    else:
        tasks = {task["task"]: task for task in section}
    for suite, contents in (config.get("suites") or {}).items():
        tasks |= {f"{suite}/{keys['task']}": keys["metadata"]["data"] for keys in members(contents)}
    missing = {name: task["not_run"] for name, task in tasks.items() if "not_run" in task}
    if not missing:
        return "", False
    reason = next(iter(missing.values()))
    if len(missing) == len(tasks):
        return f"not run here: {reason}", True
    return f"{_listed(missing, f'of {len(tasks)} tasks')} not run here: {reason}", False


def _why(node: Node, config: Mapping[str, Any], artifact: Artifact | None) -> str:
    """How a stage whose inputs are all built differs from the artifact that has its name now."""
    if artifact is None:
        return "never built"
    if artifact.manifest["version"] != node.stage.version:
        return f"stage version {artifact.manifest['version']} → {node.stage.version}"
    if not (changed := changed_fields(flat(artifact.config), flat(config))):
        return "an input changed"
    return f"changed: {', '.join(changed[:LISTED])}{', …' if len(changed) > LISTED else ''}"


def _total(stages: Sequence[Mapping[str, Any]], quantity: str) -> dict[str, float]:
    """What building those of `stages` takes that are not built; `quantity`: seconds or bytes."""
    estimates = [stage["forecast"] for stage in stages if stage["state"] == "build"]
    return _sum([answer[quantity] for answer in estimates if answer])


def _sum(ranges: list[Mapping[str, float]]) -> dict[str, float]:
    """The sum of ranges, with an interval where every one has its own.

    Ends are added: estimates from the speed of one machine err together.
    """
    measured = ranges and all("low" in each for each in ranges)
    ends = ("low", "expected", "high") if measured else ("expected",)
    return {end: sum(each[end] for each in ranges) for end in ends}


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
        fields = ", ".join(f"{name} {value}" for name, value in dial["set"].items())
        rules = f"depth {dial['layers']} set {fields or 'nothing'}, from {dial['rules']}"
        table.add_row("[bold]dial", rules)
    counts = {name: human(count, 4) for name, count in facts["parameters"].items()}
    total = counts.pop("all")
    parts = ", ".join(f"{name} {count}" for name, count in counts.items())
    table.add_row("[bold]parameters", f"{total}: {parts}")
    if ppo := facts.get("ppo_memory"):
        models = f"{_bytes(ppo['bytes'])}: policy, value, reference, reward"
        by_stage = ", ".join(
            f"{_bytes(size)} at ZeRO {stage}" for stage, size in ppo["bytes_by_zero_stage"].items()
        )
        table.add_row("[bold]PPO's models", f"{models}; a rank {by_stage}")
    if "tokens" in facts:  # something is pre-trained
        _draw_training(table, facts)
    if evaluation := facts.get("evaluation_memory"):
        host = f"{_bytes(evaluation['bytes_per_host'])} on each host"
        each = f"{_bytes(evaluation['bytes_per_rank'])} a rank, {host}"
        table.add_row("[bold]evaluation", f"{each}: every rank has whole models")
    for sentence in what_does_not_fit(facts, facts["profile"]):
        table.add_row("[bold red]does not fit", sentence)
    trainings = (facts.get(part) for part in ("memory_per_rank", "ppo_memory"))
    if any(training and not training["fits"] for training in trainings):
        table.add_row("", MISSING)
    return table


def _draw_training(table: Table, facts: Mapping[str, Any]) -> None:
    tokens, batch = human(facts["tokens"]), human(facts["batch_tokens"])
    steps = f"{tokens} in {facts['steps']:,} steps of {batch}{_ramp(facts)}"
    table.add_row("[bold]tokens", steps)
    epochs = ", ".join(f"{name} {count:.2f}" for name, count in (facts["epochs"] or {}).items())
    table.add_row("[bold]epochs", epochs or "known once the corpus is tokenized")
    a_token = f"{facts['flops_per_token']:.3g} a token (6N + 12·L·d·T)"
    table.add_row("[bold]compute", f"{facts['flops']:.3g} FLOP of pre-training, {a_token}")
    memory = facts["memory_per_rank"]
    by_stage = ", ".join(
        f"{_bytes(size)} at ZeRO {stage}" for stage, size in memory["bytes_by_zero_stage"].items()
    )
    table.add_row("[bold]memory a rank", f"{by_stage}; beside what Python and torch take")
    if memory["host_bytes"]:
        note = f"{_bytes(memory['host_bytes'])} while its ranks build the model"
        if memory["offloaded"]:
            note += "; what `deepspeed` offloads to it is counted on the device above"
        table.add_row("[bold]memory a host", note)
    ranks = f"{memory['ranks']} rank{'s' if memory['ranks'] > 1 else ''}"
    sequences = "sequence" if memory["micro_batch"] == 1 else "sequences"
    ranks += f", {memory['micro_batch']} {sequences} each a forward pass"
    ranks += f", ZeRO {memory['profile_stage']}"
    if memory["idle_share"] > IDLE_SHOWN:
        ranks += f"; {memory['idle_share']:.0%} of their time without a sequence"
    table.add_row("[bold]profile", f"{facts['profile']}: {ranks}")


def _ramp(facts: Mapping[str, Any]) -> str:
    if not (ramp := facts["batch_ramp"]):
        return ""
    first, end = human(ramp["from_tokens"]), human(ramp["over_tokens"])
    return f", from {first} over the first {end} tokens"


def _draw_stages(facts: Mapping[str, Any]) -> Table:
    several = any(row["ranks"] > 1 for row in facts["stages"])
    ranks = ["ranks"] if several else []
    table = Table("stage", "", *ranks, "time", "size", "why", box=None, pad_edge=False)
    states = {"found": "[green]found", "build": "[yellow]build", "blocked": "[red]blocked"}
    states["remote"] = "[green]in the remote"
    for row in facts["stages"]:
        seconds, size = row["forecast"].get("seconds"), row["forecast"].get("bytes")
        table.add_row(
            escape(row["asset"]),
            states[row["state"]],
            *([str(row["ranks"]) if row["state"] == "build" else ""] if several else []),
            _range(seconds, duration) if seconds else "",
            _range(size, _bytes) if size else "",
            escape(row["why"] or row["fingerprint"][:SHORT]),
        )
    return table


def _draw_bases(facts: Mapping[str, Any]) -> list[str]:
    """What the estimates rest on, each sentence once with the stages it is about; and what of the
    store they could not read.
    """
    estimates = {
        row["asset"].partition("/")[2]: row["forecast"]
        for row in facts["stages"]
        if row["forecast"]
    }
    stages_by_basis: dict[str, list[str]] = {}
    for name, answer in estimates.items():
        stages_by_basis.setdefault(answer["basis"], []).append(name)
    lines = [
        f"Labels of {row['asset'].rpartition('/')[2]}: {', '.join(row['labels'])}."
        for row in facts["stages"]
        if "labels" in row
    ]
    for basis, names in stages_by_basis.items():
        of = f" of {', '.join(names)}" if len(names) < len(estimates) else ""
        lines.append(f"Time{of}: {basis}")
    if basis := estimates.get("pretrained", {}).get("loss_basis"):
        lines.insert(0, f"Loss: {basis}")
    warnings = [f"[yellow]{escape(sentence)}" for sentence in facts["damage"]]
    return ["", *(f"[dim]{escape(line)}" for line in lines), *warnings]


def _draw_totals(facts: Mapping[str, Any]) -> Table | str:
    if not any(row["state"] == "build" for row in facts["stages"]):
        return "Nothing to build: everything is found."
    table = Table.grid(padding=(0, 2))
    for row in facts["stages"]:  # the recipe's model, not that of an experiment
        if row["asset"].endswith("/pretrained") and "loss_basis" in row["forecast"]:
            table.add_row("[bold]held-out loss", loss_text(row["forecast"]))
    table.add_row("[bold]time", _range(facts["seconds"], duration))
    disk = _range(facts["bytes"], _bytes)
    if facts.get("snapshot_bytes"):
        snapshots = facts["snapshots"] - 1
        disk += f"; {_bytes(facts['snapshot_bytes'])} of it {snapshots} snapshots"
    if "checkpoint_bytes" in facts:
        disk += f", and {_bytes(facts['checkpoint_bytes'])} of checkpoints on the way"
    table.add_row("[bold]disk", disk)
    cost = facts["cost"]
    text = f"{_range(cost, lambda value: f'{value:.3g}')} {cost['unit']}"
    if price := cost.get("price"):
        text += f", {_range(price, lambda value: f'{value:,.2f}')} at the profile's price"
    table.add_row("[bold]cost", text)
    return table


def _bytes(size: float) -> str:
    return f"{human(size)}B"


def _range(numbers: Mapping[str, float], spell: Callable[[float], str]) -> str:
    """The expected number, and the interval where there is one."""
    expected = spell(numbers["expected"])
    if "low" not in numbers:
        return expected
    return f"{expected} ({spell(numbers['low'])} to {spell(numbers['high'])})"
