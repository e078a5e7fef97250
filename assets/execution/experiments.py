"""Runs the papers' experiments: reads the artifacts, has `gpt_model.experiments` compute, writes
experiment.json.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from assets.contract import SCRATCH, Artifact, Built, Config, Inputs, Metrics, Progress, Verdict
from assets.execution.finetuning import (
    PartProgress,
    bag_of_words_logits,
    fine_tune_task,
    prepare,
    settings_of,
)
from assets.execution.stored_models import join_to_evaluate
from assets.execution.tuning import execution_of
from assets.stages import base_model
from assets.stages.experiments import LSTM_ASSET, TASK_FORMS
from assets.store.home import downloads_folder
from gpt_model import convert
from gpt_model.config import ModelConfig
from gpt_model.data.shards import TokenData
from gpt_model.errors import Unavailable
from gpt_model.experiments.depth import Depths
from gpt_model.experiments.document import read_document, write_document
from gpt_model.experiments.finetuning_variants import Start, TaskScores, score_variants
from gpt_model.experiments.gpt1_figure2_left_layers_transferred import LayersTransferred
from gpt_model.experiments.gpt1_figure2_left_layers_transferred import variants as transfer_variants
from gpt_model.experiments.gpt1_figure2_right_zero_shot_dynamics import (
    LSTM,
    TRANSFORMER,
    ZeroShotDynamics,
    build_probes,
)
from gpt_model.experiments.gpt1_section1_visible_context import (
    VisibleContext,
    default_contexts,
    measure_source,
)
from gpt_model.experiments.gpt1_table5_ablations import NAMES, Ablations
from gpt_model.experiments.gpt1_table5_ablations import variants as ablation_variants
from gpt_model.finetuning.entry import SPLITS
from gpt_model.finetuning.objective import FineTuned, FineTuning
from gpt_model.statistics import ConfidenceInterval
from gpt_model.tokenizer import Tokenizer
from gpt_model.training.engine import ALONE, evaluation_precision
from gpt_model.training.measure import HeldOut, held_out
from gpt_model.training.sharded import reading
from gpt_model.training.shared_batches import SharedBatches
from gpt_model.training.snapshots import snapshots
from gpt_model.transformer import Decoder


# Fine-tunes one task in several variants, for the experiments that compare them.
def fine_tune_variants(
    config: Config,
    variants: Mapping[str, Start],
    pretrained: Artifact,
    tokenizer: Tokenizer,
    output: Path,
    progress: Progress,
    number: int = 0,
    count: int = 1,
) -> TaskScores:
    """The scores of the task of `config`, which is `number` of `count`. What is done is kept under
    `output`, so that a killed attempt repeats none of it.
    """
    task, seeds = prepare(config, pretrained, tokenizer, progress), config["seeds"]
    models = len(variants) * seeds

    def fine_tune(name: str, model: int, decoder: Decoder, settings: FineTuning) -> FineTuned:
        part = PartProgress(progress, name, number * models + model, count * models)
        folder = output / SCRATCH / name
        return fine_tune_task(decoder, task, settings, folder, progress, part)[1]

    sizes = ", ".join(
        f"{len(task.encoded[split]):,} of {task.examples.available[split]:,} {split}"
        for split in SPLITS
    )
    return score_variants(
        task.task,
        variants,
        settings_of(config, pretrained),
        seeds,
        task.encoded["test"],
        task.scoring,
        fine_tune,
        data=f"{task.task}: {sizes} examples",
        bag_of_words=None if progress.rank else bag_of_words_logits(task),
        bootstrap_seed=number,
        log=progress.log,
    )


# Runs the ablations stage (GPT-1, table 5).
def run_ablations(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Write experiment.json. Raises Unavailable where no task can be run."""
    pretrained = inputs["pretrained"]
    if pretrained.not_run:
        raise Unavailable(pretrained.not_run)
    tasks = [task for task in config["tasks"] if "not_run" not in task]
    missing = {task["task"]: task["not_run"] for task in config["tasks"] if "not_run" in task}
    if not tasks:
        raise Unavailable("; ".join(f"{task}: {reason}" for task, reason in missing.items()))
    lstm = inputs[LSTM_ASSET].path / "model" if LSTM_ASSET in inputs else None
    execution = execution_of(progress, fixed_shapes=False)
    starts = ablation_variants(pretrained.path / "model", lstm, execution)
    tokenizer = Tokenizer.load(inputs["tokenizer"].path)
    scores = [
        fine_tune_variants(
            task, starts, pretrained, tokenizer, output, progress, number, len(tasks)
        )
        for number, task in enumerate(tasks)
    ]
    if progress.rank:
        return {}
    unavailable = [f"{task}: not run here. {reason}." for task, reason in missing.items()]
    ablations = Ablations(scores, tasks[0]["seeds"], unavailable)
    write_document(output, ablations.document())
    return ablations.metrics()


def pretraining_helps(built: Built) -> Verdict:
    return _verdict(built, "no_pretraining")


def transformer_helps(built: Built) -> Verdict:
    return _verdict(built, "lstm")


def _verdict(built: Built, variant: str) -> Verdict:
    """Whether the whole is better than `variant`, on average."""
    metrics = built.metrics
    if f"average/{variant}_loss" not in metrics:
        return Verdict(True, "Not run here.")
    ends = {end: metrics[f"average/{variant}_{end}"] for end in ("loss", "loss_low", "loss_high")}
    summary = (
        f"{NAMES[variant].capitalize()}: {ends['loss']:+.3f} "
        f"[{ends['loss_low']:+.3f}, {ends['loss_high']:+.3f}] lost on average."
    )
    return Verdict(ends["loss_low"] > 0, summary, ends)


# Runs the layers_transferred stage (GPT-1, figure 2 left).
def run_layers_transferred(
    config: Config, inputs: Inputs, output: Path, progress: Progress
) -> Metrics:
    """Write experiment.json. Raises Unavailable where the task's data or the model is."""
    [task], pretrained = config["tasks"], inputs["pretrained"]
    if reason := pretrained.not_run or task.get("not_run"):
        raise Unavailable(f"{task['task']}: {reason}")
    folder = pretrained.path / "model"
    of = convert.shape(folder).layers
    layers = config["layers"] or list(range(of + 1))
    tokenizer = Tokenizer.load(inputs["tokenizer"].path)
    starts = transfer_variants(folder, layers, of, execution_of(progress, fixed_shapes=False))
    scores = fine_tune_variants(task, starts, pretrained, tokenizer, output, progress)
    if progress.rank:
        return {}
    curve = LayersTransferred(scores, layers, task["seeds"])
    write_document(output, curve.document())
    return curve.metrics()


def layers_help(built: Built) -> Verdict:
    slope = {name: built.metrics[name] for name in ("slope", "slope_low", "slope_high")}
    summary = (
        f"A transferred layer is worth {slope['slope']:+.4f} "
        f"[{slope['slope_low']:+.4f}, {slope['slope_high']:+.4f}]."
    )
    return Verdict(slope["slope_low"] > 0, summary, slope)


# Runs the depth stage (GPT-1, figure 2 left, extended to layers trained).
def run_depth(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Write experiment.json: every model among the inputs ("pretrained" and "depth/…") measured on
    the same held-out windows, which the ranks share.
    """
    by_depth: dict[int, list[Artifact]] = {}
    for name, artifact in inputs.items():
        if name == "pretrained" or name.startswith("depth/"):
            by_depth.setdefault(int(artifact.config["model"]["layers"]), []).append(artifact)
    by_depth = dict(sorted(by_depth.items()))
    folders = [artifact.path / "model" for seeds in by_depth.values() for artifact in seeds]
    models, data = join_to_evaluate("depth", folders, progress), TokenData(inputs["tokens"].path)

    def measure(artifact: Artifact) -> dict[str, HeldOut]:
        model = models.gpt(artifact.path / "model")
        with evaluation_precision(models.execution, base_model.precision(artifact)), reading(model):
            return held_out(model, data, models.execution)

    results: dict[int, list[dict[str, HeldOut]]] = {layers: [] for layers in by_depth}
    measured = itertools.count(1)
    for layers, seeds in by_depth.items():
        for artifact in seeds:
            results[layers].append(measure(artifact))
            progress.advance(next(measured), len(folders), "models")
    if progress.rank:
        return {}
    vocab_size = int(inputs["tokenizer"].metrics["vocab_size"])
    shapes = {layers: seeds[0].config["model"] for layers, seeds in by_depth.items()}
    parameters = {
        layers: ModelConfig(**shape, vocab_size=vocab_size).parameters()
        for layers, shape in shapes.items()
    }
    first = next(iter(by_depth.values()))[0]
    depths = Depths(results, parameters, first.config["pretraining"]["tokens"])
    write_document(output, depths.document())
    return depths.metrics()


def deeper_is_better(built: Built) -> Verdict:
    """What the deepest model saves, of every source interval and all."""
    saved = {
        name.split("/")[0]: value
        for name, value in built.metrics.items()
        if name.endswith("/saved")
    }
    lows = [built.metrics[f"{source}/saved_low"] for source in saved]
    values = ", ".join(f"{source} {value:.3f}" for source, value in saved.items())
    return Verdict(
        bool(lows) and min(lows) > 0,
        f"Bits per byte saved by the deepest model over the shallowest: {values}.",
        saved,
    )


# Runs the visible_context stage (GPT-1, section 1).
def run_visible_context(
    config: Config, inputs: Inputs, output: Path, progress: Progress
) -> Metrics:
    """Write experiment.json: a curve a source. The ranks share the batches."""
    folder, data = inputs["pretrained"].path / "model", TokenData(inputs["tokens"].path)
    models = join_to_evaluate("visible_context", [folder], progress)
    execution, model = models.execution, models.gpt(folder)
    contexts = sorted(config["contexts"] or default_contexts(model.config.context))
    sources = []
    for number, name in enumerate(data.sources, 1):
        with evaluation_precision(execution, base_model.precision(inputs["pretrained"])):
            source = measure_source(
                model, data, name, contexts, config["positions"], config["seed"], execution
            )
        if source is None:
            progress.log(
                f"{name}: fewer than two held-out tokens have {contexts[-1]} before them; left out"
            )
            continue
        sources.append(source)
        progress.advance(number, len(data.sources), "sources")
    if progress.rank:
        return {}
    curves = VisibleContext(contexts, sources)
    write_document(output, curves.document())
    return curves.metrics()


def context_helps(built: Built) -> Verdict:
    """What the whole context saves, of every source interval and all."""
    gains = {
        name.removesuffix("_low"): low
        for name, low in built.metrics.items()
        if name.endswith("/gain_low")
    }
    values = ", ".join(
        f"{name.split('/')[0]} {built.metrics[name]:.3f} (at least {low:.3f})"
        for name, low in gains.items()
    )
    return Verdict(
        bool(gains) and min(gains.values()) > 0,
        f"Bits per byte saved by the whole context: {values or 'no source was measured'}.",
        {name: built.metrics[name] for name in gains},
    )


# Runs the zero_shot_dynamics stage (GPT-1, figure 2 right).
def run_zero_shot_dynamics(
    config: Config, inputs: Inputs, output: Path, progress: Progress
) -> Metrics:
    """Write experiment.json: each heuristic's score at each snapshot, for "pretrained" and, where
    there is one, the LSTM. The ranks share the snapshots, or where models are shared out the
    examples. Raises Unavailable where no heuristic has examples.
    """
    artifacts = {TRANSFORMER: inputs["pretrained"]}
    if LSTM_ASSET in inputs:
        artifacts[LSTM] = inputs[LSTM_ASSET]
    measured = [
        (network, tokens, folder)
        for network, artifact in artifacts.items()
        for tokens, folder in snapshots(artifact.path)
    ]
    folders = [folder for _, _, folder in measured]
    models = join_to_evaluate("zero_shot_dynamics", folders, progress)
    probes, missing = build_probes(
        config["tasks"],
        inputs["corpus"].path,
        Tokenizer.load(inputs["tokenizer"].path),
        config["examples"],
        config["split_seed"],
        downloads_folder(),
        progress,
    )
    if not probes:
        raise Unavailable("; ".join(f"{task}: {reason}" for task, reason in missing.items()))
    # The ranks share the snapshots; or of a model that is shared out each snapshot's examples
    whole, execution = models.whole, models.execution
    of_all, of_each = (execution, ALONE) if whole else (ALONE, execution)
    done = itertools.count(1)

    def score(snapshot: tuple[str, float, Path]) -> list[ConfidenceInterval]:
        network, _, folder = snapshot
        model, precision = models.decoder(folder), base_model.precision(artifacts[network])
        with evaluation_precision(execution, precision):
            return [probe.score(model, of_each) for probe in probes]

    scores = SharedBatches(partial(map, score), of_all).results(
        measured, lambda _: progress.advance(next(done), len(measured), "snapshots")
    )
    if progress.rank:
        return {}
    curves: dict[tuple[str, str], list[tuple[float, ConfidenceInterval]]] = {}
    for (network, tokens, _), of_snapshot in zip(measured, scores, strict=True):
        for probe, of_probe in zip(probes, of_snapshot, strict=True):
            curves.setdefault((network, probe.task), []).append((tokens, of_probe))
    dynamics = ZeroShotDynamics(probes, missing, curves)
    write_document(output, dynamics.document())
    return dynamics.metrics()


def something_is_learnt(built: Built) -> Verdict:
    """At least one heuristic of the Transformer ends with its whole interval above chance."""
    lows = {
        task: built.metrics[f"transformer/{task}_low"]
        for task in TASK_FORMS
        if f"transformer/{task}_low" in built.metrics
    }
    if not lows:
        return Verdict(True, "No heuristic of the Transformer could be run here.")
    document = read_document(built.output)
    chance = {str(row[0]): float(row[2]) for row in document.tables[0].rows}
    above = [task for task, low in lows.items() if low > chance[task]]
    return Verdict(
        bool(above),
        f"Above chance, interval and all: {', '.join(above) or 'none'} of {', '.join(lows)}.",
        {"above_chance": len(above)},
    )
