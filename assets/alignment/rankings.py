"""What the two stages that learn from comparisons share: rankings as tokens, batches of them, and the words for what is in neither."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from assets.alignment.supervised import micro_tokens
from assets.contract import Artifact, Metrics, Progress
from gpt_model.errors import UserError

if TYPE_CHECKING:
    from gpt_model.alignment.batches import Batches
    from gpt_model.alignment.chat import Layout
    from gpt_model.alignment.pairwise import Scores
    from gpt_model.alignment.reading import Ranking
    from gpt_model.alignment.reward import Compared, Laid
    from gpt_model.experiments.intervals import Estimate

SPLITS = ("training", "held_out")
HELD_OUT = "held_out.jsonl"  # what was given to each response of the held-out rankings
EVALUATIONS = 5  # times that held-out rankings are measured on the way
ON_THE_WAY = 256  # of them


def laid_out(comparisons: Artifact, layout: Layout, context: int, progress: Progress) -> tuple[dict[str, Laid], dict[str, list[Ranking]]]:
    """Both splits as tokens, and the rankings these are of. Raises UserError where there is nothing to learn from."""
    from gpt_model.alignment.reading import read_comparisons
    from gpt_model.alignment.reward import lay_out

    laid, kept = {}, {}
    for split in SPLITS:
        rankings = read_comparisons(comparisons.path, split)
        laid[split] = lay_out(layout, rankings, context)
        kept[split] = [rankings[place] for place in laid[split].places]
        progress.log(laid[split].told(split))
    if not laid["training"].compared:
        raise UserError(
            f"{laid['training'].told('training')} There is nothing to learn from: give comparisons of which one response is better, and "
            f"which fit the context of {context} tokens.",
            field="comparisons",
        )
    return laid, kept


def counted(laid: Mapping[str, Laid]) -> Metrics:
    found: Metrics = {}
    for split, one in laid.items():
        found |= {f"{split}/rankings": len(one.compared), f"{split}/comparisons": one.pairs}
        found |= {f"{split}/without_pairs": one.without_pairs, f"{split}/too_long": one.too_long}
    return found


def batches_of(compared: Sequence[Compared], batch: int, section: Mapping[str, Any], context: int, progress: Progress) -> Batches:
    """`batch`: prompts an optimizer step."""
    from gpt_model.alignment.batches import Batches

    tokens = micro_tokens(progress, context)
    try:
        return Batches(
            [one.tokens for one in compared], batch, section["epochs"], section["seed"], progress.rank, progress.world_size, tokens
        )
    except ValueError:
        raise UserError(
            f"{min(batch, len(compared))} prompts a step cannot be shared out to the profile's {progress.world_size} processes: give "
            f"profiles/{progress.profile.name}.yaml fewer, make batch larger, or give more comparisons.",
            field="batch",
        ) from None


def on_the_way(held_out: Sequence[Any]) -> list[int]:
    """Which held-out rankings are measured on the way: all, or some at even distances, as sources stand one after another."""
    return (
        [len(held_out) * number // ON_THE_WAY for number in range(ON_THE_WAY)] if len(held_out) > ON_THE_WAY else list(range(len(held_out)))
    )


def evaluation_steps(steps: int) -> list[int]:
    """After which steps held-out rankings are measured; the last is the end."""
    return sorted({max(1, round(steps * number / EVALUATIONS)) for number in range(1, EVALUATIONS + 1)})


def measured(scores: Mapping[str, Scores], compared: Sequence[Compared]) -> Metrics:
    """Of one or two models ("": the one this is about): accuracy on rankings, by source too; of the first also log loss and calibration."""
    from gpt_model.alignment import pairwise

    if not compared:
        return {}
    pairs = [one.pairs for one in compared]
    found: Metrics = {}
    sources = sorted({one.source for one in compared})
    for source in ["", *(sources if len(sources) > 1 else ())]:
        places = [place for place, one in enumerate(compared) if not source or one.source == source]
        chosen = [[own[place] for place in places] for own in scores.values()]
        estimates, gained = pairwise.accuracies(chosen, [pairs[place] for place in places])
        for name, estimate in zip(scores, estimates, strict=True):
            found |= interval("/".join(part for part in (name, source, "accuracy") if part), estimate)
        if gained is not None and not source:
            found |= interval("gained", gained)
        found["/".join(part for part in (source, "comparisons") if part)] = sum(len(pairs[place]) for place in places)
    first = next(iter(scores.values()))
    _, error = pairwise.calibration(first, pairs)
    return found | {"log_loss": pairwise.log_loss(first, pairs), "calibration_error": error}


def interval(name: str, estimate: Estimate) -> Metrics:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
