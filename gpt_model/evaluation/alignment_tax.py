"""The alignment tax: what tuning on preferences costs on other tasks (Ouyang et al. 2022, section
4.2 and appendix E).

Scores of each model before and after are set side by side. The paper's finding, that PPO regresses
on public tasks and PPO-ptx recovers, is tested here and is true, false or undecided. Held-out text
of the corpus that PPO-ptx is trained on is tested apart: it is no such task. The computing only;
the scorecard draws it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from gpt_model.evaluation.results import ScoreRow
from gpt_model.evaluation.suites import ON_ANOTHER_SCALE

TEXT = "held-out text, bits per byte"
SAME_TEXT = "held_out"  # the suite that measures the same text again
BETTER, WORSE, UNDECIDED = "better", "worse", "undecided"
TRUE, FALSE = "true", "false"
LEVEL = 0.05  # of all suites' scores together

Interval = Mapping[str, float]  # {"value", "low", "high"}
ScoreKey = tuple[str, str, str]  # suite, task, metric


@dataclass(frozen=True)
class Arms:
    """The models' names. `ppo_ptx` is None where the recipe mixes no pre-training text in."""

    reference: str  # where PPO starts
    ppo: str
    ppo_ptx: str | None


@dataclass(frozen=True)
class TaxedScore:
    """A score of each model: {"value", "low", "high"} and, of suites, its standard "error".

    The verdicts are "better", "worse" or "undecided", and "" where an arm is missing.
    """

    name: str
    scores: Mapping[str, Interval]
    lower_is_better: bool
    regression: str = ""  # PPO against its reference
    recovery: str = ""  # PPO-ptx against PPO


@dataclass(frozen=True)
class Finding:
    """PPO regresses, PPO-ptx recovers: each true, false or undecided. `regressed`: the scores in
    which PPO is significantly worse than its reference.
    """

    regresses: str
    recovers: str
    regressed: tuple[str, ...] = ()
    recovered: tuple[str, ...] = ()

    @property
    def holds(self) -> str:
        if FALSE in (self.regresses, self.recovers):
            return FALSE
        return TRUE if (self.regresses, self.recovers) == (TRUE, TRUE) else UNDECIDED


@dataclass(frozen=True)
class Findings:
    """The finding on tasks, where the paper has it, and on held-out text of the very corpus that
    PPO-ptx is trained on.
    """

    tasks: Finding | None
    text: Finding | None

    @property
    def holds(self) -> str:
        """Whether the paper's finding does: text has no say in it."""
        return self.tasks.holds if self.tasks else UNDECIDED


def verdict(interval: Interval | None, even: float = 0.5) -> str:
    """Whether the whole interval lies above `even` (better) or below (worse)."""
    if interval is None:
        return ""
    return BETTER if interval["low"] > even else WORSE if interval["high"] < even else UNDECIDED


def scores_by_key(rows: Sequence[ScoreRow]) -> dict[ScoreKey, ScoreRow]:
    """The scores of a suite that have an interval."""
    return {
        (row.suite, row.task, row.metric): row
        for row in rows
        if row.low is not None and row.metric not in ON_ANOTHER_SCALE
    }


def alignment_tax(
    text: Mapping[str, Mapping[str, Interval]],
    before: Sequence[ScoreRow],
    after: Mapping[str, Sequence[ScoreRow]],
    models: Sequence[str],
    base: str,
    arms: Arms,
) -> list[TaxedScore]:
    """Held-out text, window by window, then every zero-shot score that a model has.

    `text`: of each model {"bits_per_byte", "over_<model>"}. `before`: the result rows of the model
    `base`; `after`: those of each tuned model. `models`: their order in the table.
    """
    taxed = list(_of_text(text, models, arms))
    suites = list(_of_suites(before, after, models, base))
    # Bonferroni: of many scores one is significantly worse by chance.
    z = NormalDist().inv_cdf(1 - LEVEL / 2 / max(1, len(suites)))
    for score in suites:
        regression = _against(score, arms.ppo, arms.reference, z)
        recovery = _against(score, arms.ppo_ptx, arms.ppo, z)
        taxed.append(
            TaxedScore(score.name, score.scores, score.lower_is_better, regression, recovery)
        )
    return taxed


def _of_text(
    text: Mapping[str, Mapping[str, Interval]], models: Sequence[str], arms: Arms
) -> Iterator[TaxedScore]:
    if not text:
        return

    def against(model: str | None, other: str) -> str:
        rise = text.get(model or "", {}).get(f"over_{other}")
        more_bits = verdict(rise, 0.0)
        return {BETTER: WORSE, WORSE: BETTER}.get(more_bits, more_bits)

    scores = {name: text[name]["bits_per_byte"] for name in models if name in text}
    regression, recovery = against(arms.ppo, arms.reference), against(arms.ppo_ptx, arms.ppo)
    yield TaxedScore(TEXT, scores, True, regression, recovery)


def _of_suites(
    before: Sequence[ScoreRow],
    after: Mapping[str, Sequence[ScoreRow]],
    models: Sequence[str],
    base: str,
) -> Iterator[TaxedScore]:
    """Scores of tasks, without those of the text that the first row measures already."""
    rows = {
        name: scores_by_key(before if name == base else after[name])
        for name in models
        if name == base or name in after
    }
    keys = [key for name in rows if name != base for key in rows[name] if key[0] != SAME_TEXT]
    for key in dict.fromkeys(keys):
        measured = {name: by_key[key] for name, by_key in rows.items() if key in by_key}
        scores = {name: _interval(row) for name, row in measured.items()}
        yield TaxedScore(" ".join(key), scores, next(iter(measured.values())).lower_is_better)


def _interval(row: ScoreRow) -> Interval:
    assert row.low is not None and row.high is not None  # `scores_by_key` leaves the others out
    return {"value": row.value, "low": row.low, "high": row.high, "error": row.error}


def _against(score: TaxedScore, model: str | None, other: str, z: float) -> str:
    """Two scores on the same examples, taken for independent, which overstates the difference's
    error.
    """
    if model is None or model not in score.scores or other not in score.scores:
        return ""
    ours, theirs = score.scores[model], score.scores[other]
    gain = (ours["value"] - theirs["value"]) * (-1 if score.lower_is_better else 1)
    error = math.hypot(ours["error"], theirs["error"])
    return UNDECIDED if abs(gain) <= z * error else BETTER if gain > 0 else WORSE


def finding(scores: Sequence[TaxedScore]) -> Finding | None:
    """None where no score has both verdicts' arms.

    PPO regresses where it is significantly worse than its reference in any score; it does not where
    it is better in all. PPO-ptx recovers where it is better than PPO in a score that regressed, and
    worse in none that did.
    """
    if not any(score.regression for score in scores) or not any(score.recovery for score in scores):
        return None
    regressed = [score for score in scores if score.regression == WORSE]
    if not regressed:
        never = all(score.regression == BETTER for score in scores)
        return Finding(FALSE if never else UNDECIDED, UNDECIDED)
    recovered = [score for score in regressed if score.recovery == BETTER]
    lost = any(score.recovery == WORSE for score in regressed)
    return Finding(
        TRUE,
        FALSE if lost else TRUE if recovered else UNDECIDED,
        tuple(score.name for score in regressed),
        tuple(score.name for score in recovered),
    )


def findings(taxed: Sequence[TaxedScore]) -> Findings | None:
    """None where the recipe has not PPO with and without pre-training text both."""
    tasks, text = (
        finding([score for score in taxed if (score.name == TEXT) == of_text])
        for of_text in (False, True)
    )
    return Findings(tasks, text) if tasks or text else None
