"""What the stages `reward_model` and `dpo` share: rankings as tokens, and the metrics of held-out
ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from assets.contract import Artifact, Built, Metrics, Progress, Verdict
from assets.stages.alignment import BAG_OF_WORDS, HELD_OUT_FILE, NO_WORDS
from gpt_model.errors import UserError
from gpt_model.io import write_json_lines
from gpt_model.rlhf import ranking_agreement
from gpt_model.rlhf.chat_template import ChatTemplate
from gpt_model.rlhf.ranking_agreement import Scores
from gpt_model.rlhf.records import read_comparisons
from gpt_model.rlhf.reward_model import EncodedRanking, EncodedRankings, encode_rankings
from gpt_model.training.engine import Execution

SPLITS = ("training", "held_out")
EVALUATIONS = 5  # times that held-out rankings are measured during training
EVALUATED = 256  # of them at most


def encode(
    comparisons: Artifact,
    template: ChatTemplate,
    context: int,
    execution: Execution,
    progress: Progress,
) -> dict[str, EncodedRankings]:
    """Both splits as tokens. Raises UserError where there is nothing to train on. Collective."""
    splits = {}
    for split in SPLITS:
        rankings = read_comparisons(comparisons.path, split)
        splits[split] = encode_rankings(template, rankings, context, execution)
        progress.log(splits[split].summary(split))
    if not splits["training"].encoded:
        raise UserError(
            f"{splits['training'].summary('training')} There is nothing to learn from: give "
            "comparisons of which one response is better, and which fit the context of "
            f"{context} tokens.",
            field="comparisons",
        )
    return splits


def counts(splits: Mapping[str, EncodedRankings]) -> Metrics:
    metrics: Metrics = {}
    for split, rankings in splits.items():
        metrics |= {
            f"{split}/rankings": len(rankings.encoded),
            f"{split}/comparisons": rankings.pairs,
            f"{split}/without_pairs": rankings.without_pairs,
            f"{split}/too_long": len(rankings.too_long),
            f"{split}/lost": rankings.lost,
        }
    return metrics


def evaluation_metrics(scores: Scores, rankings: Sequence[EncodedRanking]) -> dict[str, float]:
    """Accuracy and log loss of a model during training."""
    pairs = [ranking.pairs for ranking in rankings]
    (accuracy,), _ = ranking_agreement.accuracies([scores], pairs)
    return {
        "held_out/accuracy": accuracy.value,
        "held_out/log_loss": ranking_agreement.log_loss(scores, pairs),
    }


def held_out_metrics(scores: Mapping[str, Scores], rankings: Sequence[EncodedRanking]) -> Metrics:
    """Accuracy over all rankings and by source, of one model (named "") or of it and a baseline;
    log loss and calibration error of the model.
    """
    if not rankings:
        return {}
    pairs = [ranking.pairs for ranking in rankings]
    metrics: Metrics = {}
    sources = sorted({ranking.source for ranking in rankings})
    for source in ["", *(sources if len(sources) > 1 else ())]:
        indices = [
            index
            for index, ranking in enumerate(rankings)
            if not source or ranking.source == source
        ]
        selected = [[by_ranking[index] for index in indices] for by_ranking in scores.values()]
        estimates, gained = ranking_agreement.accuracies(
            selected, [pairs[index] for index in indices]
        )
        for model, estimate in zip(scores, estimates, strict=True):
            metrics |= estimate.as_metrics(_name(model, source, "accuracy"))
        if gained is not None and not source:
            metrics |= gained.as_metrics("gained")
        metrics[_name(source, "comparisons")] = sum(len(pairs[index]) for index in indices)
    model_scores = next(iter(scores.values()))
    _, error = ranking_agreement.calibration(model_scores, pairs)
    metrics["log_loss"] = ranking_agreement.log_loss(model_scores, pairs)
    metrics["calibration_error"] = error
    return metrics


def _name(*parts: str) -> str:
    return "/".join(filter(None, parts))


def write_held_out(
    output: Path,
    rankings: Sequence[EncodedRanking],
    columns: Mapping[str, Sequence[Sequence[float | None]]],
) -> None:
    """held_out.jsonl: ids and numbers, no text, as a source's licence may not cover it. A column
    has a number for each response of each ranking.
    """
    rows = [
        {
            "source": ranking.source,
            "id": ranking.id,
            "pairs": ranking.pairs,
            **{name: values[index] for name, values in columns.items()},
        }
        for index, ranking in enumerate(rankings)
    ]
    write_json_lines(output / HELD_OUT_FILE, rows)


def accuracy_above_half(built: Built) -> Verdict:
    m = built.metrics
    if "accuracy" not in m:
        return Verdict(
            False,
            "No held-out ranking has a better and a worse response: give more comparisons, or a "
            "larger held_out.",
        )
    summary = (
        f"{_estimate(m, 'accuracy')} of {int(m['comparisons'])} held-out comparisons are right"
    )
    if f"{BAG_OF_WORDS}/accuracy" in m:
        summary += f"; a bag of words has {_estimate(m, f'{BAG_OF_WORDS}/accuracy')}"
    if f"{BAG_OF_WORDS}/not_run" in m:
        summary += f"; a bag of words is not run: {NO_WORDS}"
    values = {name: m[name] for name in ("accuracy", "accuracy_low")}
    return Verdict(m["accuracy_low"] > 0.5, f"{summary}.", values)


def _estimate(metrics: Metrics, name: str) -> str:
    return f"{metrics[name]:.3f} [{metrics[f'{name}_low']:.3f}, {metrics[f'{name}_high']:.3f}]"
