"""PPO-ptx: advantages against a hand-computed example, the loss, what a run learns and what stops
it. Kills: test_ppo_resume.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_world import CopyEngine, actors_of
from safetensors.torch import load_file
from torch import Tensor
from training_ranks import RecordingProgress, make_inputs

from assets.contract import Artifact
from assets.execution.ppo import objective_of, settings_of
from assets.recipe.sections import PPOSection
from gpt_model.config import ModelConfig
from gpt_model.data.shards import TokenData
from gpt_model.errors import CorruptFile, UserError
from gpt_model.log_probabilities import loss_of_log_probabilities
from gpt_model.ops.varlen import PackedSequences
from gpt_model.rlhf import ema
from gpt_model.rlhf.advantages import compute_advantages, gae, next_kl_coefficient, whiten
from gpt_model.rlhf.episodes import Episodes, RolloutModels, completed, roll_out
from gpt_model.rlhf.ppo import ActorCritic, EpisodeMicroBatch, PPOObjective, clipped_value_loss
from gpt_model.rlhf.reward_model import RewardModel
from gpt_model.rlhf.rollout_engine import Chunk, DecoderEngine, SamplingParams, answers_of
from gpt_model.rlhf.rollouts import Limits, divergence
from gpt_model.training.batching import Idle
from gpt_model.training.engine import Execution, start
from gpt_model.training.loop import Hook, train
from gpt_model.training.measure import held_out
from gpt_model.training.schedules import warmup_constant
from gpt_model.transformer import GPT

VOCABULARY, END = 300, 7
SHAPE = ModelConfig(layers=2, width=32, heads=2, context=32, vocab_size=VOCABULARY, dropout=0.1)
LIKED = range(100)  # tokens that the reward model of these tests likes: a third of them
PROMPTS = [[20 + number, 40 + number, 60] for number in range(10)]
SECTION: dict[str, Any] = {
    "episodes": 192,
    "batch": 32,
    "minibatch": 16,
    "learning_rate": 1e-3,
    "value_learning_rate": 1e-3,
    "warmup_batches": 0,
    "ptx_weight": 0.0,
    "max_new_tokens": 6,
    "ema": 0.5,
    "kl": 0.02,
}


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """This process as the only rank, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "0",
        }.items():
            patch.setenv(name, value)
        start(Execution())
        yield
    torch.set_num_threads(threads)


class Likes(RewardModel):
    """Likes texts by the share of their tokens in LIKED after the prompt; `broken`: every how
    many-th text has no number.
    """

    broken = 0

    def rewards(self, rows: PackedSequences) -> Tensor:
        texts = [text[3:-1] for text in rows.tokens.split(list(rows.lengths))]
        result = torch.tensor([sum(int(token) in LIKED for token in text) / 6 for text in texts])
        return (
            torch.where(torch.arange(len(result)) % self.broken == 0, math.nan, result)
            if self.broken
            else result
        )


def actors(shared: bool = False, broken: int = 0, vocabulary: int = VOCABULARY) -> ActorCritic:
    shape = SHAPE.model_copy(update={"vocab_size": vocabulary})
    reward = Likes(GPT(shape, seed=2))
    reward.broken = broken
    return actors_of(GPT(shape, seed=1), reward, shared)


def objective(
    folder: Path, tokens: Path | None = None, **section: Any
) -> tuple[PPOObjective, dict[str, Any]]:
    given = PPOSection.model_validate({**SECTION, **section}).model_dump(mode="json")
    asking = SamplingParams(END, given["max_new_tokens"], given["temperature"])
    artifact = Artifact(tokens, "tokens", "", "", {}, {}) if tokens else None
    return objective_of(
        given, PROMPTS, asking, artifact, SHAPE.context, SHAPE.context, folder, Execution(), 16
    ), given


def trained(
    model: ActorCritic, folder: Path, tokens: Path | None = None, **section: Any
) -> tuple[PPOObjective, dict[int, dict[str, float]]]:
    """PPO on the real engine. What it said."""
    ppo, given = objective(folder, tokens, **section)
    progress = RecordingProgress("ppo")
    hooks = [
        Hook(
            ppo.rollouts.steps,
            lambda step, whole: ppo.rollouts.between(step, whole.rollout_models()),
        )
    ]  # type: ignore[operator]
    train(
        model,
        ppo,
        settings_of(given),
        Execution(),
        checkpoints=None,
        progress=progress,
        hooks=hooks,
    )
    return ppo, progress.record["metrics"]


def sampled(
    models: RolloutModels,
    prompts: Sequence[Sequence[int]],
    ids: Sequence[int],
    how: SamplingParams,
    seed: int,
) -> Episodes:
    """All of them as one chunk."""
    chunk = Chunk(Path(), ids, prompts, range(seed, seed + len(ids)))
    answers = answers_of(models.policy, models.value_head, chunk, how)
    return completed(models, [answers], how, "cpu")[0]


def episodes_of(
    rewards: list[float], log_ratios: list[list[float]], values: list[list[float]]
) -> Episodes:
    sizes = torch.tensor([len(entry) for entry in values])
    flat = torch.tensor([entry for each in log_ratios for entry in each])
    return Episodes(
        prompt_ids=torch.arange(len(sizes)),
        prompt_lengths=torch.ones_like(sizes),
        action_counts=sizes,
        ended=sizes > 0,
        rewards=torch.tensor(rewards),
        tokens=torch.zeros(int(sizes.sum()) + len(sizes), dtype=torch.long),
        log_probs=flat,
        reference_log_probs=torch.zeros_like(flat),
        entropy=torch.zeros_like(flat),
        values=torch.tensor([entry for each in values for entry in each]),
    )


# --- arithmetic ---


def test_advantages_are_those_computed_by_hand() -> None:
    """δ = (0.4 - 0.5, 0.2 - 0.4, 1 - 0.2) = (-0.1, -0.2, 0.8); with λ ½: 0.8, -0.2 + 0.4, -0.1 +
    0.1.
    """
    advantages, returns = gae(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.5, 0.4, 0.2]), 0.5)
    assert advantages.tolist() == pytest.approx([0.0, 0.2, 0.8], abs=1e-6)
    assert returns.tolist() == pytest.approx([0.5, 0.6, 1.0])


def test_the_penalty_is_paid_token_by_token_and_the_reward_at_the_last() -> None:
    """With λ 1 and values 0 an advantage is all that is gained from there on: penalties -0.1·(1,
    2), reward 3.
    """
    result = compute_advantages(episodes_of([3.0], [[1.0, 2.0]], [[0.0, 0.0]]), 0.1, 1.0)
    assert result.returns.tolist() == pytest.approx([2.7, 2.8])
    assert result.advantages.tolist() == pytest.approx([-1.0, 1.0], abs=1e-4)  # whitened


def test_an_answer_that_was_cut_is_paid_less() -> None:
    """Both have reward 3; the first was cut, and gains 1 less at each of its actions."""
    episodes = replace(
        episodes_of([3.0, 3.0], [[0.0, 0.0], [0.0]], [[0.0, 0.0], [0.0]]),
        ended=torch.tensor([False, True]),
    )
    assert compute_advantages(
        episodes, 0.1, 1.0, unfinished_penalty=1.0
    ).returns.tolist() == pytest.approx([2.0, 2.0, 3.0])


def test_advantages_are_whitened_over_the_batch_and_a_reward_that_is_no_number_is_left_out() -> (
    None
):
    result = compute_advantages(
        episodes_of([1.0, math.nan, -1.0], [[0.0], [0.0, 0.0], [0.0]], [[0.0], [0.0, 0.0], [0.0]]),
        0.1,
        0.95,
    )
    assert result.mask.tolist() == [True, False, False, True]
    assert result.advantages.tolist() == pytest.approx([1.0, 0.0, 0.0, -1.0])
    values = whiten(torch.tensor([2.0, 4.0, 100.0]), torch.tensor([True, True, False]))
    assert values[:2].tolist() == pytest.approx([-1.0, 1.0])


def test_the_coefficient_follows_the_kl_by_at_most_a_fifth_of_the_error() -> None:
    assert next_kl_coefficient(
        0.1, kl=12.0, episodes=500, target=6.0, horizon=10_000
    ) == pytest.approx(0.1 * (1 + 0.2 * 0.05))
    assert next_kl_coefficient(
        0.1, kl=5.4, episodes=500, target=6.0, horizon=10_000
    ) == pytest.approx(0.1 * (1 - 0.1 * 0.05))


def test_the_rate_rises_from_a_tenth_over_the_first_batches_and_is_then_constant() -> None:
    rate = warmup_constant(1.0, warmup_batches=10, steps_per_batch=8)
    assert [rate(step) for step in (0, 7, 40, 80, 10_000)] == pytest.approx(
        [0.1, 0.1, 0.55, 1.0, 1.0]
    )


def test_the_worse_of_a_value_and_its_clipped_self_counts() -> None:
    loss = clipped_value_loss(
        torch.tensor([2.0, 0.1]), torch.tensor([0.0, 0.0]), torch.tensor([2.0, 1.0]), 0.2
    )
    assert loss.tolist() == pytest.approx([0.5 * 1.8**2, 0.5 * 0.9**2])


def test_a_loss_of_log_probabilities_has_the_gradient_of_full_logits() -> None:
    draw = torch.Generator().manual_seed(0)
    states, weight = (
        torch.randn(9, 8, generator=draw).requires_grad_(),
        torch.randn(30, 8, generator=draw).requires_grad_(),
    )
    targets, slopes = torch.randint(0, 30, (9,), generator=draw), torch.randn(9, generator=draw)

    def of(logs: Tensor) -> Tensor:
        return ((logs / 3).exp() * slopes).sum()

    loss, logs = loss_of_log_probabilities(states, weight, targets, of)
    gradients = torch.autograd.grad(loss, (states, weight))
    whole = (states @ weight.t()).log_softmax(1).gather(1, targets[:, None])[:, 0]
    assert torch.allclose(logs, whole, atol=1e-5) and loss.item() == pytest.approx(
        of(whole).item(), rel=1e-5
    )
    for result, expected in zip(
        gradients, torch.autograd.grad(of(whole), (states, weight)), strict=True
    ):
        assert torch.allclose(result, expected, atol=1e-5)


# --- episodes ---


def test_an_episode_has_what_each_model_says_of_each_token() -> None:
    model = actors().eval()
    with torch.no_grad():  # no longer the reference
        model.policy.wte.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
        model.policy.ln_f.weight[0], model.policy.ln_f.bias[0] = 0.0, 1.0  # type: ignore[index,operator]
        model.policy.wte.weight[END] = torch.eye(32)[0] * 7  # so that some end
    result = sampled(model.rollout_models(), PROMPTS, range(10), SamplingParams(END, 6, 0.7), 0)
    row = 0
    for number, text in enumerate(result.texts()):
        assert text[:3] == PROMPTS[number] and (text[-1] == END) == bool(result.ended[number])
        logits = [
            gpt(torch.tensor([text]))[0, 2:-1].detach() / 0.7
            for gpt in (model.policy, model.reference)
        ]
        logs = [
            entry.log_softmax(1).gather(1, torch.tensor(text[3:])[:, None])[:, 0]
            for entry in logits
        ]
        actions = slice(row, row := row + len(text) - 3)
        assert torch.allclose(result.log_probs[actions], logs[0], atol=1e-4) and torch.allclose(
            result.reference_log_probs[actions], logs[1], atol=1e-4
        )
        assert torch.allclose(
            result.entropy[actions],
            torch.distributions.Categorical(logits=logits[0]).entropy(),
            atol=1e-4,
        )
        whole = PackedSequences.of([text])
        assert torch.allclose(result.values[actions], model.critic.values(whole)[2:-1], atol=1e-4)  # type: ignore[operator]
        assert result.kl()[number].item() == pytest.approx(
            float((logs[0] - logs[1]).sum()), abs=1e-3
        )
    assert 0 < result.ended.sum() < 10 and row == len(result.log_probs)


def test_an_answer_that_says_nothing_is_its_end_alone_and_is_counted(tmp_path: Path) -> None:
    model = actors()
    for gpt in (model.policy, model.reference):
        with torch.no_grad():
            gpt.wte.weight.zero_()
            gpt.wte.weight[END] = 50 * gpt.ln_f.weight.sign()
            gpt.ln_f.weight.fill_(1e-6)  # type: ignore[union-attr]
            gpt.ln_f.bias.fill_(1.0)  # type: ignore[union-attr]
    ppo, _ = objective(tmp_path)
    reported = ppo.rollouts.between(0, model.eval().rollout_models())
    assert (
        reported["empty"] == 32
        and reported["length"] == 1
        and reported["ended"] == 1
        and reported["empty_so_far"] == 32
    )


@pytest.mark.parametrize("size", [2, 64])
@pytest.mark.parametrize("ranks", [1, 4])
def test_what_is_drawn_depends_on_neither_chunks_nor_ranks(
    tmp_path: Path, size: int, ranks: int
) -> None:
    models = actors().eval().rollout_models()
    order, how = [entry % 10 for entry in range(32)], SamplingParams(END, 6, 1.0)
    alone = sampled(models, [PROMPTS[entry] for entry in order], order, how, 5)
    for rank in reversed(range(ranks)):  # the first one finds the others' chunks
        paths = roll_out(
            DecoderEngine(),
            models,
            PROMPTS,
            order,
            how,
            5,
            tmp_path,
            size,
            Execution(rank=rank, world_size=ranks),
        )
    result = Episodes.load(paths)
    assert result.texts() == alone.texts() and len({tuple(text) for text in result.texts()}) > 25


@pytest.mark.parametrize("shared", [False, True], ids=["value model", "shared trunk"])
def test_what_an_engine_leaves_out_is_computed(tmp_path: Path, shared: bool) -> None:
    models = actors(shared).eval().rollout_models()
    if shared:
        torch.nn.init.normal_(models.critic.weight)  # type: ignore[union-attr,arg-type]
    how, order = SamplingParams(END, 6, 0.7), [entry % 10 for entry in range(32)]
    whole, completed_later = (
        Episodes.load(
            roll_out(engine, models, PROMPTS, order, how, 5, tmp_path / name, 7, Execution())
        )
        for name, engine in (("whole", DecoderEngine()), ("tokens", CopyEngine()))
    )
    files = sorted((tmp_path / "tokens").glob("answers-*"))
    assert len(files) == 5 and all("log_probs" not in load_file(file) for file in files)
    assert whole.texts() == completed_later.texts()
    for name, values in whole.tensors().items():
        assert torch.allclose(completed_later.tensors()[name], values, atol=1e-5), name
    assert whole.log_probs.std() > 1e-3 and whole.values.std() > 1e-3


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_all_ratios_are_one_in_the_first_minibatch(tmp_path: Path, precision: torch.dtype) -> None:
    """And the policy is where the reference is, to the rounding of the decoder's own products:
    logits of a head ten times as large as a fresh one's, which bfloat16 tells apart by a sixteenth.
    """
    near = 1e-4 if precision == torch.float32 else 0.02
    for shared in (False, True):
        model = actors(shared)
        with torch.no_grad():
            for gpt in (model.policy, model.reference):
                gpt.wte.weight.mul_(20)
        ppo, _ = objective(tmp_path / str(shared))
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            reported = ppo.rollouts.between(0, model.eval().rollout_models())
            assert abs(reported["kl"]) < near
            model.train()
            for part in ppo.micro_batches(0):
                assert isinstance(part, EpisodeMicroBatch)
                _, metrics = ppo.loss(model, part)
                assert metrics["clip_fraction"][0] == 0 and abs(float(metrics["moved"][0])) < near
                assert float(metrics["policy_loss"][0]) == pytest.approx(
                    -float(part.advantages.sum()), abs=10 * near
                )


def test_a_minibatch_is_a_mean_over_its_actions_however_it_is_cut(tmp_path: Path) -> None:
    model = actors()
    ppo, _ = objective(tmp_path)
    ppo.rollouts.between(0, model.eval().rollout_models())
    shares = {}
    for ranks in (1, 4, 40):
        entry = PPOObjective(ppo.rollouts, 16, 1.0, ppo.losses, None, Execution(), 1, SHAPE.context)
        parts = []
        for rank in range(ranks):
            entry.execution = Execution(rank=rank, world_size=ranks)
            parts += entry.micro_batches(1)
        computed = [part for part in parts if not isinstance(part, Idle)]
        assert len(parts) - len(computed) == max(0, ranks - 16)
        shares[ranks] = sum(float(part.weights.sum()) for part in computed) / len(parts)
    assert shares == pytest.approx(dict.fromkeys(shares, 1))


def test_every_episode_is_in_one_minibatch_of_an_inner_epoch_and_every_prompt_is_answered_as_often(
    tmp_path: Path,
) -> None:
    ppo, _ = objective(tmp_path, inner_epochs=2, episodes=320)
    assert ppo.rollouts.config.steps_per_batch == 4
    model = actors().eval()
    for step in (0, 4):
        ppo.rollouts.between(step, model.rollout_models())
    first, second = (
        sorted(item for step in steps for item in ppo._items(step)) for steps in ((4, 5), (6, 7))
    )
    assert first == second == list(range(32)) and ppo._items(4) != ppo._items(6)
    order = [prompt for batch in range(10) for prompt in ppo.rollouts.config.prompt_ids(batch)]
    assert [order.count(prompt) for prompt in range(10)] == [32] * 10


# --- runs ---


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True], ids=["value model", "shared trunk"])
def test_ppo_raises_the_reward_and_leaves_the_reference_and_the_reward_model_alone(
    tmp_path: Path, shared: bool
) -> None:
    model = actors(shared)
    frozen = {
        name: p.clone()
        for name, p in model.named_parameters()
        if name.startswith(("reference.", "reward."))
    }
    ppo, reported = trained(
        model, tmp_path, episodes=960, batch=64, minibatch=32, learning_rate=3e-3
    )
    rewards = [values["reward"] for _, values in sorted(reported.items()) if "reward" in values]
    assert rewards[-1] > rewards[0] + 0.2, rewards
    assert (
        reported[28]["kl"] > 0.05 > abs(reported[0]["kl"])
        and max(values.get("clip_fraction", 0) for values in reported.values()) > 0
    )
    assert reported[28]["value_error"] < reported[2]["value_error"] * 2
    assert all(
        torch.equal(dict(model.named_parameters())[name], before) for name, before in frozen.items()
    )
    files = sorted(path.name for path in ppo.rollouts.folder.iterdir())
    assert [name.split("-")[1][:6] for name in files if name.startswith("batch")] == [
        "000013",
        "000014",
    ]


def test_what_is_kept_is_the_moving_average(tmp_path: Path) -> None:
    model = actors()
    begin = {name: p.clone() for name, p in model.policy.named_parameters()}
    ppo, _ = trained(model, tmp_path, episodes=32)  # one batch, decay a half
    average = GPT(model.policy.config, seed=9)
    ema.load_into(average, ppo.rollouts.folder, 1)
    for name, parameter in average.named_parameters():
        assert torch.allclose(
            parameter, (begin[name] + dict(model.policy.named_parameters())[name]) / 2, atol=1e-6
        )


def test_the_average_goes_on_to_the_bit_under_another_number_of_ranks(tmp_path: Path) -> None:
    start, first, second = (GPT(SHAPE, seed=seed) for seed in (1, 2, 3))

    def advance(batch: int, policy: GPT, ranks: int) -> None:
        for rank in reversed(range(ranks)):
            ema.advance(tmp_path, batch, policy, start, 0.7, Execution(rank=rank, world_size=ranks))

    advance(1, first, 3)
    advance(1, first, 2)  # a run that was killed goes on with fewer
    advance(2, second, 1)
    average = GPT(SHAPE, seed=9)
    ema.load_into(average, tmp_path, 2)
    for name, result in average.named_parameters():
        a, b, c = (model.weight(name) for model in (start, first, second))
        assert torch.equal(result, (a * 0.7 + b * (1 - 0.7)) * 0.7 + c * (1 - 0.7)), name
    files = sorted(path.name for path in ema.folder_of(tmp_path, 1).iterdir())
    assert files == ["00000-of-00002.safetensors", "00001-of-00002.safetensors"]
    (ema.folder_of(tmp_path, 1) / files[0]).unlink()
    with pytest.raises(CorruptFile, match="has 1 files of the moving average"):
        ema.load_into(average, tmp_path, 1)


@pytest.mark.slow
def test_pre_training_text_is_forgotten_without_ptx_and_kept_with_it(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path)
    data = TokenData(inputs / "tokens")
    settings = {
        "episodes": 512,
        "batch": 64,
        "minibatch": 32,
        "learning_rate": 3e-3,
        "ptx_examples": 1,
        "stop": {"kl": 1e3},
    }

    def bits(model: ActorCritic) -> float:
        return sum(entry.bpb for entry in held_out(model.policy.eval(), data, Execution()).values())

    begun = actors(vocabulary=data.vocab_size + 3)
    trained(
        begun, tmp_path / "begun", inputs / "tokens", **{**settings, "ptx_weight": 100.0}
    )  # hardly more than pre-training
    result = {}
    for weight in (0.0, 27.8):
        model = actors_of(begun.policy, begun.reward)
        _, reported = trained(
            model, tmp_path / str(weight), inputs / "tokens", **{**settings, "ptx_weight": weight}
        )
        result[weight] = bits(model) / bits(begun)
        assert ("ptx_loss" in reported[16]) == (weight > 0)
    assert result[0.0] > 1.03 > result[27.8], result


def test_an_adaptive_coefficient_moves(tmp_path: Path) -> None:
    _, reported = trained(actors(), tmp_path, adaptive_kl={"target": 6.0, "horizon": 64})
    coefficients = [
        values["kl_coefficient"]
        for _, values in sorted(reported.items())
        if "kl_coefficient" in values
    ]
    assert (
        coefficients[0] == 0.02
        and coefficients[1] == pytest.approx(0.02 * 0.9)
        and coefficients[2] < coefficients[1]
    )


def test_rewards_that_are_no_numbers_are_left_out_and_counted(tmp_path: Path) -> None:
    model = actors(broken=4)
    _, reported = trained(model, tmp_path, episodes=64)
    assert (
        reported[0]["not_a_number"] == 8
        and reported[2]["not_a_number_so_far"] == 16
        and math.isfinite(reported[4]["loss"])
    )
    assert all(bool(p.isfinite().all()) for p in model.policy.parameters())
    with pytest.raises(
        UserError, match=r"before batch 1 of 6: the reward of 32 of 32 answers is not a number"
    ):
        trained(actors(broken=1), tmp_path / "broken")


@pytest.mark.parametrize("shared", [False, True], ids=["value model", "shared trunk"])
def test_a_token_that_the_reward_model_has_no_number_for_costs_its_episodes_alone(
    tmp_path: Path, shared: bool
) -> None:
    """The value model is the reward model's copy, and has no number for them either."""
    reward = RewardModel(GPT(SHAPE, seed=2))
    with torch.no_grad():
        reward.gpt.wte.weight[200:210] = math.nan
    model = actors_of(GPT(SHAPE, seed=1), reward, shared)
    ppo, reported = trained(
        model, tmp_path, episodes=64, max_new_tokens=6, value_learning_rate=1e-4
    )
    broken = ppo.rollouts.batch(0).episodes.rewards.isnan()
    assert 0 < broken.sum() == reported[0]["not_a_number"] < 16
    met = [item for step in (0, 1) for item in ppo._items(step)]
    assert sorted(met) == (~broken).nonzero()[:, 0].tolist()
    assert all(bool(p.isfinite().all()) for p in model.policy.parameters()) and math.isfinite(
        reported[4]["loss"]
    )


def test_minibatches_of_one_are_none_of_them_empty(tmp_path: Path) -> None:
    _, reported = trained(actors(broken=16), tmp_path, episodes=16, batch=16, minibatch=1)
    assert reported[0]["not_a_number"] == 1 and math.isfinite(reported[16]["loss"])


def test_of_more_ranks_than_episodes_with_a_reward_some_have_none(tmp_path: Path) -> None:
    model = actors(broken=2)
    ppo, _ = objective(tmp_path, minibatch=4)
    ppo.rollouts.between(0, model.eval().rollout_models())
    ppo.execution = replace(Execution(), world_size=4)
    for step in range(8):
        parts = ppo._parts(step)
        assert len(parts) == 4 and parts[2:] == [[], []]
        assert sorted(parts[0] + parts[1]) == sorted(ppo._items(step))


def test_a_policy_that_runs_away_stops_the_run_and_says_why(tmp_path: Path) -> None:
    """What is known of the batch that it was stopped for is told before."""
    ppo, given = objective(tmp_path, episodes=640, learning_rate=1e-2, kl=0.0, stop={"kl": 0.3})
    progress = RecordingProgress("ppo")
    hooks = [
        Hook(
            ppo.rollouts.steps,
            lambda step, whole: ppo.rollouts.between(step, whole.rollout_models()),
        )
    ]  # type: ignore[operator]
    reported = (
        r"before batch \d+ of 20: the policy is \d+\.\d nats an answer from the reference, "
        r"and stop.kl is 0.3"
    )
    with pytest.raises(UserError, match=reported):
        train(
            actors(),
            ppo,
            settings_of(given),
            Execution(),
            checkpoints=None,
            progress=progress,
            hooks=hooks,
        )
    kl = [
        values["kl"] for _, values in sorted(progress.record["metrics"].items()) if "kl" in values
    ]
    assert kl[-1] > 0.3 >= max(kl[:-1])


def test_each_blow_up_has_its_sentence() -> None:
    first, limits = (
        {"reward": 0.0, "reward_std": 1.0, "length": 10.0, "ended": 0.9},
        Limits(50, 3, 20),
    )
    well = {"reward": 1.0, "kl": 5.0, "length": 12.0, "not_a_number": 0.0, "ended": 0.4}
    assert divergence(well, first, limits, 8) is None
    assert "31.0 tokens long, 10.0 at the start, and stop.length allows 3" in str(
        divergence({**well, "length": 31.0}, first, limits, 8)
    )
    assert "3.0 tokens long" in str(divergence({**well, "length": 3.0}, first, limits, 8))
    assert "20% of the answers end before max_new_tokens, 90% at the start" in str(
        divergence({**well, "ended": 0.2}, first, limits, 8)
    )
    assert (
        divergence({**well, "ended": 0.0}, {**first, "ended": 0.1}, limits, 8) is None
    )  # few ever ended
    assert "21.0 of its standard deviations" in str(
        divergence({**well, "reward": -21.0}, first, limits, 8)
    )
    assert "nan nats" in str(divergence({**well, "kl": math.nan}, first, limits, 8))


def test_the_value_model_has_its_own_learning_rate(tmp_path: Path) -> None:
    """With a rate of next to nothing it stays where it is, while the policy moves."""
    model = actors()
    before = {name: p.clone() for name, p in model.named_parameters()}
    trained(model, tmp_path, episodes=32, value_learning_rate=1e-12)
    moved = {
        name: float((p - before[name]).detach().abs().max()) for name, p in model.named_parameters()
    }
    assert max(moved[name] for name in moved if name.startswith("critic.")) < 1e-9
    assert max(moved[name] for name in moved if name.startswith("policy.")) > 1e-4
