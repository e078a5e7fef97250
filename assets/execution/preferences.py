"""Runs the stage `preferences`: the models answer, are scored, and read held-out text. The figures
are `gpt_model.rlhf.model_comparison`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from assets.contract import Artifact, Built, Config, Inputs, Metrics, Progress, Verdict
from assets.execution import judge as judge_stage
from assets.execution.rankings import EVALUATED
from assets.execution.stored_models import StoredModels, join_to_evaluate
from assets.execution.tuning import HELD_OUT_TOKENS
from assets.stages import base_model
from assets.stages.alignment import WIDEST_RISE
from gpt_model.bag_of_words import BagOfWords
from gpt_model.data.shards import TokenData
from gpt_model.errors import UserError
from gpt_model.log_probabilities import continuation_log_probabilities
from gpt_model.rlhf import reward_model, win_rates
from gpt_model.rlhf.answers import Answer, PlainText, PromptEncoder, sample_answers
from gpt_model.rlhf.chat_template import ChatTemplate
from gpt_model.rlhf.dialogue import Dialogue
from gpt_model.rlhf.dpo import ranking_log_probabilities
from gpt_model.rlhf.model_comparison import (
    ALIGNED,
    BEST_OF,
    INSTRUCTED,
    JUDGE,
    JUDGES,
    MODELS,
    PRETRAINED,
    REFERENCE,
    REWARD_MODEL,
    Comparison,
    metrics_of,
    read_results,
)
from gpt_model.rlhf.ranking_agreement import accuracies
from gpt_model.rlhf.records import Prompt, evenly, read_comparisons
from gpt_model.rlhf.reward_model import encode_rankings
from gpt_model.rlhf.sft_selection import PromptSubset, prompt_subset
from gpt_model.statistics import ConfidenceInterval, Floats
from gpt_model.tokenizer import Tokenizer
from gpt_model.training import measure
from gpt_model.training.engine import Execution, evaluation_precision
from gpt_model.training.sharded import reading
from gpt_model.transformer import GPT

# How much higher the reward model's win rate may be than the judge's, interval and all.
WIDEST_GAP = 0.1


def run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Every rank runs it, and takes a share of each model's batches; rank 0 writes."""
    section, names = config["preferences"], [name for name in MODELS if name in inputs]
    folders = {name: base_model.require(inputs[name]).path / "model" for name in names}
    scorer = inputs.get("reward_model")
    stored = [*folders.values(), *([scorer.path / "model"] if scorer else [])]
    models = join_to_evaluate("preferences", stored, progress)
    reference = (
        REFERENCE if REFERENCE in inputs else next(name for name in names if name != PRETRAINED)
    )
    template = ChatTemplate(Tokenizer.load(folders[reference]))
    context = int(base_model.shape(inputs[reference])["context"])
    subset = prompt_subset(inputs["prompts"].path, section)
    prompts, too_long = _with_room(subset, template, context, section)
    progress.log(
        f"{len(prompts)} held-out prompts, {too_long} longer than what leaves room for an answer "
        "are left out"
    )
    comparison = Comparison(prompts)
    _answer_all(comparison, models, folders, reference, template, section, inputs, progress)
    if scorer:
        _score_by_reward_model(comparison, models, template, section, scorer)
    if progress.rank:
        return {}
    if "judge" in inputs and not judge_stage.not_run(inputs["judge"].path):
        _score_by_judge(comparison, BagOfWords.load(inputs["judge"].path))
    choice = {"chosen_apart": subset.apart, "chosen_left": subset.left}
    results = {
        "prompts": len(prompts),
        "left_out": too_long,
        "reference": reference,
        "best_of": section["best_of"],
        "judges": [judge for judge in JUDGES if judge in comparison.scores],
        **(choice if INSTRUCTED in inputs else {}),
        **comparison.results(reference, section["best_of"]),
    }
    comparison.write(output, results)
    return metrics_of(results)


def _with_room(
    subset: PromptSubset, template: ChatTemplate, context: int, section: Mapping[str, Any]
) -> tuple[list[Prompt], int]:
    """The prompts that leave room for an answer, and how many do not. Raises UserError where none
    does.
    """
    room = context - section["max_new_tokens"] - 1
    fitting = [
        prompt for prompt in subset.compared if len(template.encode_prompt(prompt.turns)) <= room
    ]
    if not fitting:
        raise UserError(
            f"None of {len(subset.compared)} held-out prompts leaves room for an answer: the "
            f"context is {context} tokens and an answer up to {section['max_new_tokens']}. Make "
            "max_new_tokens smaller, or give shorter prompts.",
            field="preferences.max_new_tokens",
        )
    return fitting, len(subset.compared) - len(fitting)


def _answer_all(
    comparison: Comparison,
    models: StoredModels,
    folders: Mapping[str, Path],
    reference: str,
    template: ChatTemplate,
    section: Mapping[str, Any],
    inputs: Inputs,
    progress: Progress,
) -> None:
    """One model after the other: held-out text, answers and their KL, and how far its own
    likelihood agrees with people's rankings. Collective.
    """
    execution = models.execution

    def within(name: str) -> AbstractContextManager[Any]:
        return evaluation_precision(execution, base_model.precision(inputs[name]))

    turns = [prompt.turns for prompt in comparison.prompts]
    reference_model = models.gpt(folders[reference])
    for number, (name, folder) in enumerate(folders.items()):
        progress.advance(number, len(folders), "models")
        model = reference_model if name == reference else models.gpt(folder)
        # It knows no role tokens: it continues plain text, and text with them means nothing
        encoder = PlainText(template.tokenizer) if name == PRETRAINED else template
        with within(name):
            if "tokens" in inputs:
                comparison.windows[name] = _read_held_out(model, inputs["tokens"], execution)
            answers = comparison.answers[name] = _answer(model, encoder, turns, section, execution)
            if name != PRETRAINED and "comparisons" in inputs:
                agreement = agreement_with_people(model, template, inputs["comparisons"], execution)
                if agreement is not None:
                    comparison.agreement[name] = agreement
        del model  # before the next one is read
        if name == reference:
            comparison.kl[name] = np.zeros(len(answers))
        elif name != PRETRAINED:
            temperature = section["temperature"]
            with within(reference):
                comparison.kl[name] = _kl(
                    answers, reference_model, template, turns, temperature, execution
                )
    if reference == REFERENCE and "reward_model" in inputs:
        with within(reference):
            comparison.answers[BEST_OF] = _answer(
                reference_model, template, turns, section, execution, copies=section["best_of"]
            )
    progress.advance(len(folders), len(folders), "models")


def _answer(
    model: GPT,
    encoder: PromptEncoder,
    turns: Sequence[Dialogue],
    section: Mapping[str, Any],
    execution: Execution,
    copies: int = 1,
) -> list[Answer]:
    return sample_answers(
        model,
        encoder,
        turns,
        max_new_tokens=section["max_new_tokens"],
        temperature=section["temperature"],
        seed=section["seed"] + (copies > 1),  # best of n samples answers of its own
        copies=copies,
        log_probabilities=copies == 1,
        execution=execution,
    )


def _kl(
    answers: Sequence[Answer],
    reference: GPT,
    template: ChatTemplate,
    turns: Sequence[Dialogue],
    temperature: float,
    execution: Execution,
) -> Floats:
    """Nats of each answer from the reference: [prompts]. The model's own log-probability was
    recorded while it sampled.
    """
    texts = [
        [*template.encode_prompt(prompt), *answer.tokens]
        for prompt, answer in zip(turns, answers, strict=True)
    ]
    lengths = [len(answer.tokens) for answer in answers]
    of_reference = continuation_log_probabilities(
        reference, texts, lengths, temperature, execution=execution
    )
    return np.array([answer.log_probability for answer in answers]) - np.array(of_reference)


def _read_held_out(model: GPT, tokens: Artifact, execution: Execution) -> Floats:
    """Windows of held-out text: [windows, (nats, tokens, bytes)]."""
    with reading(model):
        held_out = measure.held_out(model, TokenData(tokens.path), execution, HELD_OUT_TOKENS)
    windows = np.concatenate([source.windows for source in held_out.values()])
    return np.asarray(windows[windows[:, 2] > 0])


def agreement_with_people(
    model: GPT, template: ChatTemplate, comparisons: Artifact, execution: Execution
) -> ConfidenceInterval | None:
    """The share of held-out pairs whose better response has more log-probability a token by the
    model itself; None where no ranking can be read. Collective.
    """
    rankings = evenly(read_comparisons(comparisons.path, "held_out"), EVALUATED)
    encoded = encode_rankings(template, rankings, model.config.context).encoded
    if not encoded:
        return None
    scores = [
        [nats / length for nats, length in zip(responses, ranking.response_lengths, strict=True)]
        for responses, ranking in zip(
            ranking_log_probabilities(model, encoded, execution=execution), encoded, strict=True
        )
    ]
    [share], _ = accuracies([scores], [ranking.pairs for ranking in encoded])
    return share


def _score_by_reward_model(
    comparison: Comparison,
    models: StoredModels,
    template: ChatTemplate,
    section: Mapping[str, Any],
    artifact: Artifact,
) -> None:
    """Also chooses the best of n, so that from here on it has one answer a prompt. Collective."""
    reward_model.check_vocabulary(Tokenizer.load(artifact.path / "model"), template.tokenizer)
    execution, n = models.execution, section["best_of"]
    scorer = models.reward_model(artifact.path)
    scores: dict[str, Floats] = {}
    for name, answers in list(comparison.answers.items()):
        copies = n if name == BEST_OF else 1
        prompts = [prompt.turns for prompt in comparison.prompts for _ in range(copies)]
        texts = [(turns, answer.text) for turns, answer in zip(prompts, answers, strict=True)]
        with evaluation_precision(execution, base_model.precision(artifact)):
            scores[name] = np.asarray(reward_model.score(scorer, template, texts, execution))
        if name == BEST_OF:
            best = win_rates.best(scores[name], n)
            comparison.answers[BEST_OF] = [answers[index] for index in best]
            scores[name] = scores[name][best]
    comparison.scores[REWARD_MODEL] = scores


def _score_by_judge(comparison: Comparison, judge: BagOfWords) -> None:
    comparison.scores[JUDGE] = {
        name: np.asarray(
            judge.score(
                [
                    whole_answer(prompt.turns, answer.text)
                    for prompt, answer in zip(comparison.prompts, answers, strict=True)
                ]
            )
        )
        for name, answers in comparison.answers.items()
    }


def whole_answer(prompt: Dialogue, text: str) -> str:
    """What the judge reads: the answer, after its opening words where it has some."""
    return (prompt[-1].text if prompt[-1].role == "assistant" else "") + text


def judged_apart(built: Built) -> Verdict:
    """Whether no text that the judge was trained on, by its own list, is one that the reward model
    was trained or measured on.
    """
    if JUDGE not in read_results(built.output)["judges"]:
        return Verdict(True, "There is no judge beside the reward model.")
    comparisons = built.inputs["comparisons"].path
    texts = judge_stage.texts_of(judge_stage.trained_on(built.inputs["judge"].path, comparisons))
    reward_texts = judge_stage.texts_of(
        ranking
        for split in ("training", "held_out")
        for ranking in read_comparisons(comparisons, split)
    )
    both = len(texts & reward_texts)
    summary = (
        f"{both} of the judge's {len(texts)} texts are among the {len(reward_texts)} that the "
        "reward model learnt from or is measured on."
    )
    return Verdict(not both, summary, {"both": both})


def _estimate(estimate: Mapping[str, float]) -> str:
    return f"{estimate['value']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"


def _aligned_step(built: Built) -> dict[str, Any]:
    """The win rates of aligned over its reference; empty where the recipe has no PPO."""
    for step in read_results(built.output)["steps"]:
        if (step["model"], step["over"]) == (ALIGNED, REFERENCE):
            return dict(step)
    return {}


NO_PPO = "The recipe has no PPO."
NO_JUDGE = "Nobody independent judges: give alignment.comparisons.judge a share of the comparisons."


def aligned_wins(built: Built) -> Verdict:
    step = _aligned_step(built)
    if not step or JUDGE not in step:
        return Verdict(not step, NO_JUDGE if step else NO_PPO)
    rate = step[JUDGE]
    summary = (
        f"The judge prefers aligned to policy_init on {_estimate(rate)} of the prompts, ties half; "
        "0.5 is no difference."
    )
    return Verdict(rate["low"] > 0.5, summary, {"win_rate": rate["value"]})


def text_kept(built: Built) -> Verdict:
    text = read_results(built.output)["text"].get(ALIGNED, {})
    rise = text.get(f"over_{REFERENCE}")
    if rise is None:
        return Verdict(True, "There is no PPO or no held-out text to measure.")
    summary = (
        f"aligned takes {text['bits_per_byte']['value']:.3f} bits per byte of held-out text, "
        f"{rise['value']:+.2%} over policy_init ({rise['low']:+.2%} to {rise['high']:+.2%}), of at "
        f"most {WIDEST_RISE:+.0%}."
    )
    return Verdict(rise["value"] <= WIDEST_RISE, summary, {"rise": rise["value"]})


def within_reference(built: Built) -> Verdict:
    measures = read_results(built.output)["within_reference"].values()
    details = "; ".join(measure["told"] for measure in measures)
    summary = f"aligned, and policy_init's interval: {details}." if measures else NO_PPO
    return Verdict(all(measure["inside"] for measure in measures), summary)


def reward_hacking(built: Built) -> Verdict:
    step = _aligned_step(built)
    if "gap" not in step:
        return Verdict(not step, NO_JUDGE if step else NO_PPO)
    gap = step["gap"]
    summary = (
        f"aligned wins {step[REWARD_MODEL]['value']:.3f} by the reward model and "
        f"{step[JUDGE]['value']:.3f} by the judge: a gap of {_estimate(gap)}, and it should not be "
        f"surely above {WIDEST_GAP:g}."
    )
    return Verdict(gap["low"] <= WIDEST_GAP, summary, {"gap": gap["value"]})
