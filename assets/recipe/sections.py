"""The recipe's `experiments` section, which says which of the papers' experiments are made and how
large, and its `alignment` section: InstructGPT's three steps (Ouyang et al. 2022), DPO, and how
models are compared.

A default of `alignment` is the paper's where the paper prints it (section 3.5 and appendix C, of
its 1.3B and 6B models). Otherwise it is that of its predecessor's released code
(openai/lm-human-preferences), or its source stands beside it.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from gpt_model.rlhf.readers.source import HumanSource, Purpose
from gpt_model.strict import (
    BatchRows,
    Betas,
    Bounds,
    Clip,
    Count,
    Dropout,
    Each,
    Epochs,
    HeldOut,
    Layers,
    LearningRate,
    Misfit,
    Models,
    Part,
    PositiveWeight,
    Precision,
    Seed,
    Strict,
    Temperature,
    Times,
    Tokens,
    TwoOrMore,
    Weight,
    WeightDecay,
    Whole,
)

Visible = Annotated[int, Bounds(1, 2**20, "no context is longer", unit="tokens")]
Transferred = Annotated[int, Bounds(0, 2_000, "no model has more layers", unit="layers")]


class VisibleContext(Strict):
    """Held-out bits per byte against the number of tokens a prediction sees."""

    contexts: Annotated[list[Visible], Field(min_length=2), Each] | None = Field(
        default=None, description="default: the powers of two up to the model's context, and that"
    )
    positions: TwoOrMore = Field(
        default=1000,
        description="held-out tokens of each source that are predicted, the same for every context",
    )
    seed: Seed = 0


class Depth(Strict):
    """Whole models of fewer and more layers, trained alike.

    The recipe's own depth is among them: its pre-trained model, or where `tokens` or more than one
    seed is given models of its own.
    """

    layers: Annotated[list[Layers], Field(min_length=1), Each] = Field(
        description="each a model of its own, or one a seed"
    )
    tokens: Tokens | None = Field(
        default=None, description="each is trained on; default: pretraining.tokens"
    )
    seeds: Models = Field(
        default=1, description="models of each depth; the first has pretraining.seed"
    )


class ZeroShotDynamics(Strict):
    """GPT-1, figure 2 right: what a model can do that was only pre-trained, against how long it
    was, for the Transformer and an LSTM.
    """

    lstm: bool = Field(
        default=True, description="an LSTM of the same width, trained alike, beside it"
    )
    sentiment: str = Field(
        default="sst2", description="a task of two labels, the second the positive one"
    )
    acceptability: str = Field(
        default="cola",
        description="a task of two labels, the second acceptable; held_out: own sentences, half "
        "with two words swapped",
    )
    pronouns: str = Field(
        default="pronouns",
        description="a multiple_choice task whose question holds a pronoun, or a _ where it stood",
    )
    questions: str = Field(default="race", description="a multiple_choice task")
    examples: Annotated[int, Bounds(20, 10**9, "fewer say nothing", unit="examples")] = Field(
        default=500, description="of each task, at most"
    )


class _Finetunings(Strict):
    """How large an experiment is that fine-tunes many times. What is not given is as the section
    `finetuning` has it.
    """

    seeds: Models = Field(default=3, description="models of each kind")
    epochs: Epochs | None = Field(default=None, description="default: finetuning.epochs")
    learning_rate: LearningRate | None = Field(
        default=None, description="default: finetuning.learning_rate"
    )
    examples: Count | None = Field(
        default=None, description="at most so many training examples of a task"
    )
    held_back: TwoOrMore | None = Field(
        default=None, description="at most so many validation and so many test examples"
    )


class LayersTransferred(_Finetunings):
    """GPT-1, figure 2 left: a task's score against how many of the pre-trained layers are kept."""

    task: str = Field(description="one of finetuning.tasks")
    layers: Annotated[list[Transferred], Field(min_length=2), Each] | None = Field(
        default=None, description="default: 0, 1, … all of them"
    )


class Ablations(_Finetunings):
    """GPT-1, table 5: without the auxiliary objective, without pre-training, and an LSTM in the
    Transformer's place.
    """

    tasks: Annotated[list[str], Field(min_length=1), Each] | None = Field(
        default=None, description="default: all of finetuning.tasks"
    )
    lstm: bool = Field(
        default=True, description="an LSTM of the same width, trained alike, as table 5's last row"
    )


class ExperimentsSection(Strict):
    """Each of them where its name is given."""

    layers_transferred: LayersTransferred | None = None
    ablations: Ablations | None = None
    visible_context: VisibleContext | None = None
    depth: Depth | None = None
    zero_shot_dynamics: ZeroShotDynamics | None = None


class _Sources(Strict):
    sources: list[HumanSource] = Field(min_length=1, description="where the records are")
    seed: Seed = Field(default=0, description="decides every split")

    _purpose: ClassVar[Purpose]

    @model_validator(mode="after")
    def _each_name_once(self) -> _Sources:
        names = [source.name for source in self.sources]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise Misfit(f"two sources are named {twice[0]!r}: give each its own name", "sources")
        for source in self.sources:
            source.check_serves(self._purpose)
        return self


class DemonstrationsSection(_Sources):
    """Dialogues whose assistant answers as it should."""

    _purpose = "demonstrations"

    held_out: HeldOut = Field(
        default=0.1, description="share of the dialogues that validation loss is measured on"
    )


class ComparisonsSection(_Sources):
    """Answers to a prompt, ranked by people."""

    _purpose = "comparisons"

    held_out: HeldOut = Field(
        default=0.1, description="share of the prompts that accuracy is measured on"
    )
    judge: Part = Field(
        default=0.0, description="share of the prompts that only an independent judge is trained on"
    )

    @model_validator(mode="after")
    def _something_is_left(self) -> ComparisonsSection:
        if self.held_out + self.judge >= 1:
            raise Misfit(
                f"held_out {self.held_out} and judge {self.judge} leave nothing to train on: "
                "make them smaller",
                "held_out",
            )
        return self


class PromptsSection(_Sources):
    """Prompts without an answer, which PPO answers. None is in demonstrations or comparisons."""

    _purpose = "prompts"

    held_out: HeldOut = Field(
        default=0.2, description="share of the prompts that models are chosen and compared on"
    )


class _Tuning(Strict):
    """The optimizer, alike in every step. Adam's 0.9 and 0.95 are from appendix C."""

    learning_rate: LearningRate
    final_learning_rate: Whole = Field(
        default=0.1, description="where the cosine ends, as a share of learning_rate"
    )
    warmup: Part = Field(default=0.0, description="share of the steps")
    weight_decay: WeightDecay = 0.0
    betas: Betas = (0.9, 0.95)
    gradient_clip: Clip = 1.0
    dropout: Dropout = Field(
        default=0.0, description="of residuals, attention weights and embeddings"
    )
    precision: Precision = "float32"
    seed: Seed = 1


class SupervisedSection(_Tuning):
    """Step 1 (appendix C.1): 16 epochs, cosine to 10 %, dropout 0.2. Every epoch is kept.

    The paper's dropout is of residuals alone. Here `dropout` covers attention weights and
    embeddings too, which regularises more.
    """

    learning_rate: LearningRate = 9.65e-6
    epochs: Epochs = 16
    batch: BatchRows = Field(
        default=32,
        description="dialogues an optimizer step, at most; batches differ by one at most",
    )
    dropout: Dropout = 0.2


class RewardModelSection(_Tuning):
    """Step 2 (appendix C.2): one epoch, 64 prompts a batch with all their comparisons, cosine to
    10 %.
    """

    learning_rate: LearningRate = 9e-6
    start: Literal["pretrained", "supervised"] = Field(
        default="supervised", description="supervised: its last epoch"
    )
    epochs: Epochs = 1
    batch: BatchRows = Field(default=64, description="prompts an optimizer step, at most")


class PolicyInitSection(_Tuning):
    """Where PPO starts (appendix C.3): two epochs of demonstrations with 10 % pre-training text."""

    learning_rate: LearningRate = Field(
        default=5e-6, description="5e-6, 1.04e-5, 2.45e-6 at 1.3B, 6B, 175B"
    )
    epochs: Epochs = 2
    batch: BatchRows = Field(default=32, description="sequences an optimizer step, at most")
    pretraining_share: Part = Field(
        default=0.1,
        description=(
            "share of the loss, and of a batch's sequences, that is text of the corpus; "
            "each sequence is as long as the context"
        ),
    )


Nats = Annotated[
    float, Bounds(0, 10**6, "an answer has some nats a token", above=True, unit="nats")
]


class AdaptiveKL(Strict):
    """Steers the KL coefficient (Ziegler et al. 2019, section 2.2; its code's values for books)."""

    target: Nats = Field(default=6.0, description="nats an episode")
    horizon: Count = Field(default=10_000, description="episodes")


class Divergence(Strict):
    """Stops a run that diverges, with the reason."""

    kl: Nats = Field(default=50.0, description="mean nats an episode from the reference")
    length: Annotated[float, Bounds(1, 10**6, "a factor of growth", above=True)] = Field(
        default=3.0,
        description=(
            "factor that the mean length may grow or shrink by from the start, and that the "
            "share of answers that end may shrink by"
        ),
    )
    reward: PositiveWeight = Field(
        default=20.0,
        description="how far the mean may move, in standard deviations of the first rewards",
    )


class PPOSection(Strict):
    """Step 3 (appendices C.4 and E). The paper prints no GAE λ, value clip or value weight: these
    are its predecessor's.
    """

    episodes: Count = Field(default=256_000, description="prompts that are answered, all together")
    batch: BatchRows = Field(default=512, description="episodes sampled with the same policy")
    minibatch: BatchRows = Field(default=64, description="episodes an optimizer step")
    inner_epochs: Epochs = Field(default=1, description="times that a batch is trained on")
    learning_rate: LearningRate = Field(
        description=(
            "not published: the paper tried 2.55e-6 to 2.55e-5, and without pre-training "
            "text PPO diverged above 8.05e-6"
        )
    )
    warmup_batches: Annotated[int, Bounds(0, 10**9, "no run has more batches", unit="batches")] = (
        Field(default=10, description="the rate rises from a tenth over these, then is constant")
    )
    value_learning_rate: LearningRate = Field(default=9e-6, description="the critic's")
    value: Literal["reward_model", "shared"] = Field(
        default="reward_model",
        description=(
            "the critic: a model that starts as the reward model; shared: a head on the "
            "policy's trunk, half the memory"
        ),
    )
    value_weight: PositiveWeight = Field(
        default=0.1,
        description="of the value loss beside the policy's; both share the gradient clip",
    )
    kl: Weight = Field(
        default=0.02, description="β, of the penalty on every token's log-ratio to the reference"
    )
    adaptive_kl: AdaptiveKL | None = None
    unfinished: Weight = Field(
        default=0.0,
        description=(
            "taken off the reward of an answer that reached max_new_tokens (TRL's "
            "missing_eos_penalty; not in the paper)"
        ),
    )
    clip: Clip = Field(
        default=0.2, description="ε: how far the ratio to the sampling policy may be from 1"
    )
    value_clip: Clip = Field(
        default=0.2, description="how far a value may move from the one at sampling"
    )
    gae: Whole = Field(default=0.95, description="λ; there is no discount")
    ptx_weight: Weight = Field(
        default=27.8, description="γ, of the pre-training loss; 0 is PPO without it"
    )
    ptx_examples: Annotated[
        int, Bounds(0, 10**6, "each takes the time of an answer", unit="sequences")
    ] = Field(default=8, description="sequences of pre-training text an episode")
    ema: Part = Field(
        default=0.992,
        description="decay of the weights' moving average, batch by batch, which is the result",
    )
    max_new_tokens: Visible = Field(default=1024, description="an answer is cut there")
    temperature: Temperature = 1.0
    weight_decay: WeightDecay = 0.0
    betas: Betas = (0.9, 0.95)
    gradient_clip: Clip = 1.0
    precision: Precision = "float32"
    seed: Seed = 1
    evaluations: Times = Field(
        default=5, description="how often the same held-out prompts are answered"
    )
    stop: Divergence = Divergence()

    @model_validator(mode="after")
    def _batches_fit(self) -> PPOSection:
        if self.batch % self.minibatch:
            raise Misfit(
                f"batch {self.batch} is not a whole number of minibatches of {self.minibatch} "
                "episodes",
                "minibatch",
            )
        if self.batch > self.episodes:
            raise Misfit(
                f"batch {self.batch} is more than episodes {self.episodes}: make it smaller",
                "batch",
            )
        if self.episodes % self.batch:
            below = self.episodes // self.batch * self.batch
            raise Misfit(
                f"{self.episodes} episodes are not a whole number of batches of {self.batch}: "
                f"{below} or {below + self.batch} are",
                "episodes",
            )
        if self.ptx_weight and not self.ptx_examples:
            raise Misfit(
                "0 sequences of pre-training text leave nothing for ptx_weight "
                f"{self.ptx_weight:g} to weigh: give 1 or more, or set ptx_weight to 0, which is "
                "PPO without it",
                "ptx_examples",
            )
        return self


class DPOSection(_Tuning):
    """Comparisons without a reward model (Rafailov et al. 2023): β 0.1, and the released code's
    learning rate and batch.
    """

    learning_rate: LearningRate = 5e-7
    epochs: Epochs = 1
    batch: BatchRows = Field(default=64, description="pairs an optimizer step")
    beta: PositiveWeight = Field(default=0.1, description="β, of the log-ratio to the reference")


class PreferencesSection(Strict):
    """How the models are compared."""

    prompts: Count = Field(default=500, description="held-out prompts that every model answers")
    best_of: BatchRows = Field(
        default=16,
        description="answers of policy_init, whose best by the reward model is compared too",
    )
    max_new_tokens: Visible = Field(default=256, description="an answer is cut there")
    temperature: Temperature = 1.0
    seed: Seed = 1
    suites: Annotated[list[str], Each] = Field(
        default=[], description="zero-shot suites of the alignment tax; default: the recipe's own"
    )


def _is_default(value: bool) -> bool:
    """Of a field added later, which so changes no fingerprint made before."""
    return value


class AlignmentSection(Strict):
    """From a model that continues text to one that answers. A step runs where it has a section, or
    is not null, and its data is there.
    """

    demonstrations: DemonstrationsSection | None = None
    supervised: SupervisedSection | None = SupervisedSection()
    comparisons: ComparisonsSection | None = None
    reward_model: RewardModelSection | None = RewardModelSection()
    prompts: PromptsSection | None = None
    instructed: bool = Field(
        default=True,
        description="also the supervised epoch whose answers the reward model prefers",
        exclude_if=_is_default,
    )
    policy_init: PolicyInitSection | None = PolicyInitSection()
    ppo: PPOSection | None = None
    without_ptx: bool = Field(default=True, description="also PPO with γ 0")
    dpo: DPOSection | None = None
    preferences: PreferencesSection | None = PreferencesSection()
    zero_shot_after: bool = Field(
        default=True,
        description="also the recipe's suites on each tuned model: the alignment tax",
        exclude_if=_is_default,
    )

    @model_validator(mode="after")
    def _each_has_what_it_needs(self) -> AlignmentSection:
        if self.supervised and not self.demonstrations:
            raise Misfit(
                "the supervised model is tuned on demonstrations: add them, or set supervised to "
                "null",
                "demonstrations",
            )
        if self.ppo and not (self.comparisons and self.prompts and self.reward_model):
            raise Misfit(
                "it takes a reward model and prompts: add comparisons and prompts, or leave ppo "
                "out",
                "ppo",
            )
        if self.dpo and not self.comparisons:
            raise Misfit("it takes comparisons: add them, or leave dpo out", "dpo")
        if (self.ppo or self.dpo) and not (self.policy_init and self.demonstrations):
            raise Misfit(
                "it is where PPO and DPO start, and is tuned on demonstrations: give both, or "
                "leave ppo and dpo out",
                "policy_init",
            )
        if self.comparisons and self.reward_model:
            self._check_reward_model(self.reward_model)
        return self

    def _check_reward_model(self, section: RewardModelSection) -> None:
        if not self.demonstrations:
            raise Misfit(
                "its mean reward of demonstrations is made 0: add them, or set reward_model to "
                "null",
                "reward_model",
            )
        if section.start == "supervised" and not self.supervised:
            raise Misfit(
                "it starts from the supervised model, and there is none: set it to pretrained",
                "reward_model.start",
            )
