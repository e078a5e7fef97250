"""Stage `policy_init`: where PPO starts, and what it is held to (Ouyang et al. 2022, appendix C.3):
demonstrations with pre-training text.

Two epochs of demonstrations; a tenth of the loss is the corpus's, and of every batch's sequences a
tenth are windows of it. It is not `supervised`: that one is tuned for many epochs and without them.
What is trained is `gpt_model.rlhf.sft`, what is written `tuned.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from assets.contract import Artifact, Config, Inputs, Metrics, Progress, Stage
from assets.stages import tuning_io
from assets.stages.supervised import (
    LAID_OUT,
    batches_of,
    dialogues,
    facts_of,
    metrics_of,
    show,
    tune,
)
from gpt_model.errors import about, about_all_of


def windows_of(
    tokens: Artifact, context: int, each: int, seed: int
) -> Callable[[int, int], Sequence[Sequence[int]]]:
    """Windows of the corpus's training text, `each` a step, as long as the context: a pure function
    of the step.
    """
    import numpy as np

    from gpt_model.data.sampler import Sampler
    from gpt_model.data.shards import TokenData
    from gpt_model.training.optimizer import BatchSchedule

    sampler = Sampler(
        TokenData(tokens.path), context - 1, BatchSchedule(each * (context - 1)), seed
    )

    def windows(step: int, count: int) -> Sequence[Sequence[int]]:
        inputs, targets, _ = sampler.batch(step)
        found: list[list[int]] = np.concatenate([inputs, targets[:, -1:]], axis=1)[:count].tolist()
        return found

    return windows


def _run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    from gpt_model.rlhf.sft import SFTObjective

    section = config["policy_init"]
    gpt, template = tuning_io.begin(
        inputs["pretrained"], inputs["tokenizer"].path, section["dropout"], section["seed"]
    )
    shape = gpt.config
    data = dialogues(inputs["demonstrations"].path, template, shape.context, progress)
    sizes = [len(one.tokens) for one in data.training]
    share = section["pretraining_share"]
    # of a batch's sequences, text of the corpus among them: `batch` of both together
    mixed = max(1, round(section["batch"] * share)) if share else 0
    with about("policy_init"):
        batches = batches_of(
            sizes, max(1, section["batch"] - mixed), section, progress, shape.context
        )
    with about_all_of(
        ".corpus"
    ):  # an imported model has no section that its context could be changed in
        windows = (
            windows_of(inputs["tokens"], shape.context, mixed, section["seed"]) if mixed else None
        )
    objective = SFTObjective(data.training, batches, shape.flops_per_token(), mixed, windows, share)
    outcome, losses = tune(gpt, template, data, objective, section, output, progress, keeping=False)
    metrics = metrics_of(outcome, data, sizes) | {
        "held_out_loss": losses[-1],
        "pretraining_sequences_a_batch": float(mixed),
    }
    if progress.rank == 0:
        facts = {
            **facts_of(data, sizes, outcome.steps),
            "mixed": mixed,
            "held_out_loss": round(losses[-1], 6),
        }
        tuning_io.write(output, gpt, template.tokenizer, facts)
    return metrics


POLICY_INIT = Stage(
    name="policy_init",
    version="2",
    run=_run,
    description="Where PPO starts: the pre-trained model tuned on demonstrations with pre-training text mixed in.",
    kinds=("pytorch", "deepspeed"),
    checks=(tuning_io.LOSS_IS_FINITE, tuning_io.MODEL_LOADS, tuning_io.LOSS_FALLS, LAID_OUT),
    show=show,
    ranks="profile",
    pool="training",
    model=True,
)
