"""Memory of models that are shared out from the start, at ZeRO 3 on four ranks over gloo: a GPT of
1 GB of weights, built, brought into the engine, measured on held-out text, sampled and saved; and
PPO's four models (`--ppo`), of which a batch is sampled, the moving average advanced, and the
policy measured and saved.

    python benchmarks/sharded_memory.py [--ppo] [--ranks 4] [--layers 16] [--width 1024]

The highest peak of a rank's resident memory is set beside its share: of the weights as they are
built; from then on of weights, and of those that are trained also gradients and two moments. What a
process takes that has only imported everything is left out. Ranks have the worker's environment
with its allocator's settings, which keep what is freed but where shares are built and read
(`gpt_model.training.allocator`). Training is left out: a step takes whole layers and their
gradients on top, as DeepSpeed's `stage3_max_live_parameters` and buckets say.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from assets.launch.launcher import free_port, worker_environment  # noqa: E402
from benchmarks.bars import at_most, verdict  # noqa: E402

if TYPE_CHECKING:
    from gpt_model.training.engine import Execution

SHARE, MORE = 1.3, 200e6  # a rank's peak over its imports is at most SHARE x its share + MORE
KINDS = 4  # in the engine: weights, gradients, two moments
VOCABULARY, CONTEXT = 50_257, 128
MILESTONES = ("built", "in the engine", "measured", "sampled", "saved")
PPO_MILESTONES = ("built", "in the engine", "sampled", "averaged", "measured and saved")
PROMPTS, NEW_TOKENS = 16, 16  # of a batch; of an answer


def rank_main(job: dict[str, Any]) -> None:
    """One rank: the peaks so far, at each milestone, into OUTPUT/rank-N.json."""
    from gpt_model.io import peak_resident_bytes
    from gpt_model.training.engine import Execution, start

    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    # Gradients are exchanged by so many elements at a time, as on GPUs
    buckets = {"zero_optimization": {"reduce_bucket_size": 25_000_000}}
    execution = Execution(zero_stage=3, rank=rank, world_size=ranks, deepspeed=buckets)
    start(execution)
    stages = (ppo if job["ppo"] else pretraining)(job, execution)
    before = peak_resident_bytes()
    peaks = [peak_resident_bytes() - before for _ in stages]
    output = Path(job["output"])
    (output / f"rank-{rank}.json").write_text(json.dumps(peaks))
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may hang the interpreter's teardown


def pretraining(job: dict[str, Any], execution: Execution) -> Iterator[None]:
    """Goes on to one of MILESTONES at a time."""
    from training_ranks import RecordingProgress

    from assets.execution.pretraining import _write_samples
    from gpt_model import convert
    from gpt_model.config import ModelConfig
    from gpt_model.data.shards import TokenData
    from gpt_model.tokenizer import Tokenizer
    from gpt_model.training import measure
    from gpt_model.training.engine import Engine
    from gpt_model.training.optimizer import TrainingSettings
    from gpt_model.training.sharded_build import build_sharded

    inputs, output = Path(job["output"]) / "inputs", Path(job["output"])
    settings = TrainingSettings(steps=1, learning_rate=lambda step: 1e-4)
    data, tokenizer = TokenData(inputs / "tokens"), Tokenizer.load(inputs / "tokenizer")
    progress = RecordingProgress("memory", execution.rank, execution.world_size)
    sample = _write_samples(data, tokenizer, {"samples": 2, "seed": 1}, progress)

    class Objective:
        def loss(self, model: Any, micro_batch: Any) -> Any:
            return model(*micro_batch), {}

    model = build_sharded(ModelConfig(**job["shape"]), settings, execution, settings.seed)
    yield
    engine = Engine(model, Objective(), settings, execution)
    yield
    with engine.evaluating("together") as view:
        measure.held_out(view, data, execution, 2048)  # type: ignore[arg-type]
    yield
    with engine.evaluating("first") as view:
        if view is not None:
            sample(1, view)
    yield
    with engine.evaluating("first") as view:
        if view is not None:
            convert.save(view, output / "model")  # type: ignore[arg-type]
    engine.close()
    yield


def ppo(job: dict[str, Any], execution: Execution) -> Iterator[None]:
    """Goes on to one of PPO_MILESTONES at a time."""
    from assets.execution.ppo import Finish, actors_of
    from assets.recipe.sections import PPOSection
    from gpt_model import convert
    from gpt_model.rlhf.rollout_engine import SamplingParams
    from gpt_model.rlhf.rollouts import Limits, RolloutConfig, Rollouts
    from gpt_model.training.engine import Engine
    from gpt_model.training.optimizer import TrainingSettings

    output = Path(job["output"])
    settings = TrainingSettings(steps=1, learning_rate=lambda step: 1e-4)
    prompts = [list(range(number, number + 32)) for number in range(PROMPTS)]
    config = RolloutConfig(
        prompts=prompts,
        sampling=SamplingParams(VOCABULARY - 1, NEW_TOKENS, 1.0),
        batch_size=PROMPTS,
        batches=1,
        steps_per_batch=1,
        kl_coefficient=0.02,
        unfinished_penalty=0.0,
        kl_target=None,
        gae_lambda=1.0,
        ema_decay=0.9,
        seed=1,
        limits=Limits(kl=1e9, length=1e9, reward=1e9),
    )
    rollouts = Rollouts(output / "rollouts", None, config, execution)

    class Objective:
        def loss(self, model: Any, micro_batch: Any) -> Any:
            return model.policy(*micro_batch), {}

    def save(policy: Any) -> None:
        convert.save(policy, output / "model")

    section = PPOSection(learning_rate=1e-4).model_dump(mode="json")
    model = actors_of(output / "policy" / "model", output / "reward", section, execution)
    yield
    engine = Engine(model, Objective(), settings, execution)
    yield
    view: Any
    with engine.evaluating("by part") as view:
        for step in (0, 1):
            rollouts.between(step, view.rollout_models())
            yield
        Finish(rollouts, prompts, None, output / "held_out", save)(view)
    engine.close()
    yield


def make_ppo_models(folder: Path, shape: dict[str, Any]) -> None:
    """A policy and a reward model, whole, in this process."""
    from gpt_model import convert
    from gpt_model.config import ModelConfig
    from gpt_model.rlhf import reward_model
    from gpt_model.tokenizer import Tokenizer
    from gpt_model.transformer import GPT

    gpt, tokenizer = GPT(ModelConfig(**shape)), Tokenizer.load(folder / "inputs" / "tokenizer")
    convert.save(gpt, folder / "policy" / "model", tokenizer.end_of_text)
    reward_model.save(reward_model.RewardModel(gpt), tokenizer, folder / "reward")


def measured(job: dict[str, Any], ranks: int) -> list[list[float]]:
    """What each rank wrote."""
    common = worker_environment("cpu", ranks, 1) | {"MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "--rank", json.dumps(job)],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(ranks)
    ]
    for process in processes:
        if process.wait():
            sys.exit("a rank has failed")
    files = [Path(job["output"]) / f"rank-{rank}.json" for rank in range(ranks)]
    return [json.loads(file.read_text()) for file in files]


def main() -> int:
    """Print the highest rank's peak at each milestone, and the bar."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ppo", action="store_true")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        rank_main(json.loads(options.rank))
    # These import torch, which ranks do for themselves
    from training_ranks import make_inputs

    from gpt_model.config import ModelConfig

    size = {"layers": options.layers, "width": options.width, "heads": options.width // 64}
    shape = {**size, "context": CONTEXT, "vocab_size": VOCABULARY}
    job = {"shape": shape, "ppo": options.ppo}
    with tempfile.TemporaryDirectory() as folder:
        make_inputs(Path(folder) / "inputs")
        if options.ppo:
            make_ppo_models(Path(folder), shape)
        results = measured(job | {"output": folder}, options.ranks)
    models = 4 if options.ppo else 1
    trained = 2 if options.ppo else 1  # with gradients and moments
    share = 4 * ModelConfig(**shape).parameters() / options.ranks
    print(f"{options.ranks} ranks, each with {models * share / 1e6:.0f} MB of the weights")
    names = PPO_MILESTONES if options.ppo else MILESTONES
    for milestone, peaks in zip(names, zip(*results, strict=True), strict=True):
        shares = models + (0 if milestone == "built" else (KINDS - 1) * trained)
        most = (SHARE * shares * share + MORE) / 1e6
        bar = at_most(f"peak until {milestone}", max(peaks) / 1e6, most, "MB")
        print(f"peak until it was {milestone}: {max(peaks) / 1e6:.0f} MB {bar}")
    return verdict()


if __name__ == "__main__":
    sys.exit(main())
