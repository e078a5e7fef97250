"""The stages of alignment: what identifies each, its checks, what a person reads.

The files of every stage that tunes a model:

    model/           a folder that `transformers` loads, with a chat tokenizer and its template
    shape.json       the whole ModelConfig
    training.json    what was done and its results, as far as they are the same on every run
"""

from __future__ import annotations

from assets.contract import Check, Stage, deferred

# What every stage that tunes a model writes and checks.
TRAINING_FILE = "training.json"

LOSS_IS_FINITE = Check(
    "loss_is_finite",
    True,
    "Every reported loss is a number.",
    deferred("assets.execution.tuning", "loss_is_finite"),
)
LOSS_FALLS = Check(
    "loss_falls",
    False,
    "Of demonstrations, the loss of the last third of training is below that of the first.",
    deferred("assets.execution.tuning", "loss_falls"),
)
MODEL_LOADS = Check(
    "model_loads",
    True,
    "model/ loads, its weights are numbers, and its tokenizer has the roles' markers.",
    deferred("assets.execution.tuning", "model_loads"),
)


# Supervised fine-tuning on demonstrations (Ouyang et al. 2022).
#
# `supervised` is InstructGPT's first step (section 3.5). It keeps every epoch's weights in
# epochs/<n>/, the last one in model/ too: validation loss is best after one epoch, but people
# prefer later ones, so the reward model chooses (`instructed`).
#
# `policy_init` is where PPO starts, and its reference (appendix C.3): two epochs of demonstrations.
# A tenth of the loss is the corpus's, and a tenth of every batch's sequences are windows of it.
ALIKE = Check(
    "laid_out_alike",
    False,
    "transformers' chat template gives the tokens that training saw.",
    deferred("assets.execution.sft", "alike_in_transformers"),
)

SUPERVISED = Stage(
    name="supervised",
    version="5",
    run=deferred("assets.execution.sft", "run_supervised"),
    description=(
        "The pre-trained model tuned on demonstrations (InstructGPT's first step), every epoch "
        "kept."
    ),
    kinds=("pytorch", "deepspeed"),
    checks=(
        LOSS_IS_FINITE,
        MODEL_LOADS,
        LOSS_FALLS,
        ALIKE,
        Check(
            "held_out_falls",
            False,
            "Held-out loss is lower after some epoch than after the first.",
            deferred("assets.execution.sft", "held_out_loss_falls"),
        ),
    ),
    show=deferred("assets.report.rlhf", "show_sft"),
    shared_out="tokens of the rows; each step's batch; held-out dialogues",
    pool="training",
    model=True,
)

POLICY_INIT = Stage(
    name="policy_init",
    version="5",
    run=deferred("assets.execution.sft", "run_policy_init"),
    description=(
        "Where PPO starts: the pre-trained model tuned on demonstrations with pre-training text "
        "mixed in."
    ),
    kinds=("pytorch", "deepspeed"),
    checks=(LOSS_IS_FINITE, MODEL_LOADS, LOSS_FALLS, ALIKE),
    show=deferred("assets.report.rlhf", "show_sft"),
    shared_out="tokens of the rows; each step's batch; held-out dialogues",
    pool="training",
    model=True,
)


# The stage `reward_model`: a reward for every answer, learnt from rankings (Ouyang et al. 2022,
# section 3.5).
#
#     model/, reward_head.safetensors, reward.json     as `gpt_model.rlhf.reward_model` has them
#     shape.json, training.json                        as above has them
#     held_out.jsonl      of each held-out ranking: pairs (better, worse), and the scores that the
#                         model, and the baseline where there is one, give its responses
HELD_OUT_FILE = "held_out.jsonl"
BAG_OF_WORDS = "bag_of_words"  # the baseline, in names of metrics
NO_WORDS = "the texts have no words in them"  # why there is none, where …/not_run is reported

REWARD_MODEL = Stage(
    name="reward_model",
    version="5",
    run=deferred("assets.execution.reward_model", "run"),
    description=(
        "A model that gives every answer a number, learnt from rankings, beside a bag of words "
        "learnt from the same."
    ),
    kinds=("deepspeed", "pytorch"),
    checks=(
        LOSS_IS_FINITE,
        Check(
            "demonstrations_mean_zero",
            True,
            "The mean reward of the demonstrations is 0.",
            deferred("assets.execution.reward_model", "demonstrations_mean_zero"),
        ),
        Check(
            "model_loads",
            True,
            "It loads, its weights are numbers, and its tokenizer has the roles' markers.",
            deferred("assets.execution.reward_model", "model_loads"),
        ),
        Check(
            "accuracy_above_half",
            False,
            "The interval of held-out accuracy lies above a half.",
            deferred("assets.execution.rankings", "accuracy_above_half"),
        ),
    ),
    show=deferred("assets.report.rlhf", "show_reward_model"),
    shared_out="tokens of the rows; each step's batch; rewards of held-out rankings",
    pool="training",
)


# The stage `judge`: a bag of words trained on comparisons that nothing else sees, to tell which of
# two answers is better.
#
# Policies are trained against the reward model and may exploit it; the judge is another model, of
# other people's comparisons.
#
#     bag_of_words.json   the judge (`gpt_model.bag_of_words`)
#     learnt.jsonl        the rankings of judge.jsonl it was trained on: {"row", "source", "id"}
#     judge.json          metrics; or {"not_run": why} alone, where there is no judge
JUDGE_FILE, TRAINED_ON = "judge.json", "learnt.jsonl"

JUDGE = Stage(
    name="judge",
    version="2",
    run=deferred("assets.execution.judge", "run"),
    description=(
        "An independent judge of answers: a bag of words, trained on comparisons that nothing else "
        "sees."
    ),
    kinds=("scikitlearn",),
    checks=(
        Check(
            "independent",
            True,
            "No response it was trained on is in the reward model's training or held-out part.",
            deferred("assets.execution.judge", "independent"),
        ),
        Check(
            "accuracy_above_half",
            False,
            "The interval of its accuracy on held-out comparisons lies above a half.",
            deferred("assets.execution.judge", "accuracy_above_half"),
        ),
    ),
    show=deferred("assets.report.rlhf", "show_judge"),
)


# `instructed`: the supervised epoch whose answers to held-out prompts the reward model scores
# highest (Ouyang et al. 2022, section 3.5). The paper's models overfit on validation loss after one
# epoch, and more epochs help all the same, so both are shown side by side.
#
# answers.jsonl    of every epoch and prompt the reward and the length, no text
EMPTY = 0.5  # share of empty answers from which on something is wrong

INSTRUCTED = Stage(
    name="instructed",
    version="3",
    run=deferred("assets.execution.sft_selection", "run"),
    description="The supervised epoch whose answers to held-out prompts have the best mean reward.",
    kinds=("pytorch",),
    checks=(
        MODEL_LOADS,
        Check(
            "best_is_kept",
            True,
            "model/ is the epoch with the best mean reward.",
            deferred("assets.execution.sft_selection", "best_is_kept"),
        ),
        Check(
            "answers_say_something",
            False,
            f"Fewer than {EMPTY:.0%} of the answers are empty.",
            deferred("assets.execution.sft_selection", "answers_say_something"),
        ),
    ),
    show=deferred("assets.report.rlhf", "show_sft_selection"),
    shared_out="each epoch's answers, and their rewards",
    pool="training",
    model=True,
)


# `aligned`: policy_init after PPO-ptx against the reward model, InstructGPT's third step (Ouyang et
# al. 2022, section 3.5). The asset `aligned_without_ptx` is the same without pre-training text.
# model/ is the moving average of the policy's weights.
WIDEST_RISE = 0.03  # of bits per byte on held-out text that PPO-ptx may cost

ALIGNED = Stage(
    name="aligned",
    version="5",
    run=deferred("assets.execution.ppo", "run"),
    description=(
        "policy_init after PPO against the reward model (InstructGPT's third step): the moving "
        "average of the policy's weights."
    ),
    kinds=("deepspeed", "pytorch"),
    checks=(
        LOSS_IS_FINITE,
        MODEL_LOADS,
        Check(
            "has_not_run_away",
            True,
            "After the last batch too the policy is within what stops a run.",
            deferred("assets.execution.ppo", "has_not_run_away"),
        ),
        Check(
            "rewards_are_numbers",
            False,
            "Every answer's reward is a number.",
            deferred("assets.execution.ppo", "rewards_are_numbers"),
        ),
        Check(
            "reward_rises",
            False,
            "The reward on held-out prompts rises, interval and all.",
            deferred("assets.execution.ppo", "reward_rises"),
        ),
        Check(
            "text_is_kept",
            False,
            "Held-out text takes at most 3 % more bits per byte than before.",
            deferred("assets.execution.ppo", "text_is_kept"),
        ),
    ),
    show=deferred("assets.report.rlhf", "show_ppo"),
    shared_out="rollouts; each step's batch; answers to held-out prompts; held-out text",
    pool="training",
    model=True,
)


# The stage `dpo`: policy_init tuned on comparisons without a reward model (Rafailov et al. 2023).
# policy_init is the reference too.
#
# Beside the files above, held_out.jsonl: of each held-out ranking the implicit rewards of
# its responses, β times what they have gained in log-probability.
DPO = Stage(
    name="dpo",
    version="5",
    run=deferred("assets.execution.dpo", "run"),
    description=(
        "policy_init tuned on comparisons directly (DPO), for comparison with the reward model and "
        "PPO."
    ),
    kinds=("deepspeed", "pytorch"),
    checks=(
        LOSS_IS_FINITE,
        MODEL_LOADS,
        Check(
            "accuracy_above_half",
            False,
            "The interval of the implicit reward's held-out accuracy lies above a half.",
            deferred("assets.execution.rankings", "accuracy_above_half"),
        ),
    ),
    show=deferred("assets.report.rlhf", "show_dpo"),
    shared_out="tokens of the rows; each step's batch; the reference's pass; held-out rankings",
    pool="training",
    model=True,
)


# `preferences`: every model of the recipe answers the same held-out prompts. It says which model
# answers better, how far it moved, and what it cost.
#
# Two judges score the answers: the reward model, which the policies were trained to please, and a
# judge that never saw its training data. `gpt_model.rlhf.model_comparison` has the files.
PREFERENCES = Stage(
    name="preferences",
    version="3",
    run=deferred("assets.execution.preferences", "run"),
    description=(
        "Every model answers the same held-out prompts: win rates by two judges, KL, held-out "
        "text, and how the texts drift."
    ),
    kinds=("pytorch",),
    checks=(
        Check(
            "judged_apart",
            True,
            "The judge learnt from no text that the reward model was shown.",
            deferred("assets.execution.preferences", "judged_apart"),
        ),
        Check(
            "aligned_wins",
            False,
            "The judge prefers aligned to policy_init, interval and all.",
            deferred("assets.execution.preferences", "aligned_wins"),
        ),
        Check(
            "text_kept",
            False,
            "Held-out text takes at most 3 % more bits per byte than policy_init needs.",
            deferred("assets.execution.preferences", "text_kept"),
        ),
        Check(
            "within_reference",
            False,
            "Distinct-2, repetition and length lie within policy_init's interval.",
            deferred("assets.execution.preferences", "within_reference"),
        ),
        Check(
            "reward_hacking",
            False,
            "The reward model sees not much more of a gain than the judge.",
            deferred("assets.execution.preferences", "reward_hacking"),
        ),
    ),
    show=deferred("assets.report.preferences", "show"),
    shared_out="each model's answers, their log-probabilities and rewards; held-out text",
    pool="training",
)
