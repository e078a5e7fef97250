"""DPO pairs a second against TRL's DPO trainer: the same model, texts, pairs and batch, on the same
cores.

    python benchmarks/alignment_dpo.py [--steps 8] [--json FILE]

Model, texts and batch are alignment_reward.py's. Both sides ask the reference for its
log-probabilities before training begins (TRL's `precompute_ref_log_probs`), and that time is
counted on neither side: what is compared is the steps.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.alignment_reward import (  # noqa: E402  # noqa: E402
    BATCH,
    compare,
    compared_in,
    pairs_in,
    timed,
    train_ours,
    trl_options,
)
from benchmarks.bars import verdict  # noqa: E402
from benchmarks.peers import Settings, micro_batches  # noqa: E402

BETA = 0.1


def run_ours(folder: Path, steps: int) -> dict[str, float]:
    from gpt_model import convert
    from gpt_model.rlhf.dpo import DPOObjective, ranking_log_probabilities
    from gpt_model.training.batching import EpochBatches

    model, compared = convert.load(folder / "model"), compared_in(folder)
    before = ranking_log_probabilities(model.eval(), compared)
    objective = DPOObjective(
        compared, before, BETA, EpochBatches([item.tokens for item in compared], BATCH, 1, seed=1)
    )
    return train_ours(model, objective, steps)


def run_trl(folder: Path, steps: int, settings: Settings) -> dict[str, float]:
    import datasets
    import transformers
    import trl

    class OfTokens(trl.DPOTrainer):  # type: ignore[misc]
        """It takes texts; here they are tokens already, the same as ours."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.pad_token = tokenizer.eos_token
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype="float32")
    rows = datasets.Dataset.from_list(
        [{f"{name}_ids": tokens for name, tokens in pair.items()} for pair in pairs_in(folder)]
    )
    options = trl_options(folder, steps, settings)
    args = trl.DPOConfig(**options, beta=BETA, precompute_ref_log_probs=True)
    return timed(
        OfTokens(model=model, args=args, train_dataset=rows, processing_class=tokenizer), steps
    )


def main() -> int:
    tries = [
        {**settings, "padding_free": free}
        for free in (False, True)
        for settings in micro_batches(BATCH)
    ]
    if status := compare(__file__, __doc__, "DPO pairs", {"ours": run_ours, "trl": run_trl}, tries):
        return status
    return verdict()


if __name__ == "__main__":
    sys.exit(main())
