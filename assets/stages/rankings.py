"""What the two stages that learn from comparisons share: rankings as tokens, and the words for what
is in neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from assets.contract import Artifact, Metrics, Progress
from gpt_model.errors import UserError

if TYPE_CHECKING:
    from gpt_model.rlhf.chat_template import ChatTemplate
    from gpt_model.rlhf.pairwise import Scores
    from gpt_model.rlhf.reward_model import EncodedRanking, EncodedRankings

SPLITS = ("training", "held_out")
HELD_OUT = "held_out.jsonl"  # what was given to each response of the held-out rankings
BAG_OF_WORDS = "bag_of_words"  # the reward model's baseline, in names of metrics
# why there is no baseline, where the metric …/not_run is there
NO_WORDS = "the responses have no words in them"
EVALUATIONS = 5  # times that held-out rankings are measured on the way
ON_THE_WAY = 256  # of them at most


def laid_out(
    comparisons: Artifact, template: ChatTemplate, context: int, progress: Progress
) -> dict[str, EncodedRankings]:
    """Both splits as tokens. Raises UserError where there is nothing to learn from."""
    from gpt_model.rlhf.records import read_comparisons
    from gpt_model.rlhf.reward_model import encode_rankings

    laid = {}
    for split in SPLITS:
        laid[split] = encode_rankings(template, read_comparisons(comparisons.path, split), context)
        progress.log(laid[split].summary(split))
    if not laid["training"].encoded:
        raise UserError(
            f"{laid['training'].summary('training')} There is nothing to learn from: give comparisons of which one response is better, and "
            f"which fit the context of {context} tokens.",
            field="comparisons",
        )
    return laid


def counted(laid: Mapping[str, EncodedRankings]) -> Metrics:
    found: Metrics = {}
    for split, one in laid.items():
        found |= {f"{split}/rankings": len(one.encoded), f"{split}/comparisons": one.pairs}
        found |= {
            f"{split}/without_pairs": one.without_pairs,
            f"{split}/too_long": len(one.too_long),
            f"{split}/lost": one.lost,
        }
    return found


def measured(scores: Mapping[str, Scores], compared: Sequence[EncodedRanking]) -> Metrics:
    """Of one or two models ("": the one this is about): accuracy on rankings, by source too; of the
    first also log loss and calibration.
    """
    from gpt_model.rlhf import pairwise

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
            found |= estimate.as_metrics(
                "/".join(part for part in (name, source, "accuracy") if part)
            )
        if gained is not None and not source:
            found |= gained.as_metrics("gained")
        found["/".join(part for part in (source, "comparisons") if part)] = sum(
            len(pairs[place]) for place in places
        )
    first = next(iter(scores.values()))
    _, error = pairwise.calibration(first, pairs)
    return found | {"log_loss": pairwise.log_loss(first, pairs), "calibration_error": error}
