"""preferences: every model of the recipe answers the same held-out prompts; who answers better, how
far it went, what it cost.

Judged by the reward model, which the policies were trained to please, and by a judge that never saw
what the reward model was trained on. The arithmetic is gpt_model/alignment's (`win_rates.py`,
`drift.py`), what a person sees of it `preferences_page.py`'s. The artifact:

    answers.jsonl   an answer a line: model, prompt, text, whether it ended, tokens, KL, and what each judge gives it
    results.json    every figure with its 95 % interval, prompts taken for independent
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from assets.contract import (
    Artifact,
    Built,
    Check,
    Config,
    Inputs,
    Metrics,
    Progress,
    Stage,
    Verdict,
)
from assets.report import preferences
from assets.stages import base_model, tuning_io
from assets.stages.judge import LEARNT, not_run
from assets.stages.preferences_results import (
    ALIGNED,
    BEST,
    CHOSEN,
    JUDGES,
    MODELS,
    PRETRAINED,
    REFERENCE,
    Compared,
    flat,
    read,
    results_of,
    write,
)
from assets.stages.prompt_subset import Drawn, drawn
from assets.stages.rankings import ON_THE_WAY
from gpt_model.errors import UserError
from gpt_model.rlhf import win_rates

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gpt_model.rlhf.answers import Answer, PromptEncoder
    from gpt_model.rlhf.bag_of_words import BagOfWords
    from gpt_model.rlhf.chat_template import ChatTemplate
    from gpt_model.rlhf.dialogue import Dialogue
    from gpt_model.rlhf.records import Prompt
    from gpt_model.statistics import ConfidenceInterval
    from gpt_model.transformer import GPT

WIDEST_RISE = 0.03  # of bits per byte on held-out text, that alignment may cost
WIDEST_GAP = (
    0.1  # of a win rate, that the reward model may see more than the judge, interval and all
)


# --- run ---


def compare(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Let every model answer, be scored, and read held-out text; write answers.jsonl and
    results.json.
    """
    if progress.rank:
        return {}
    from gpt_model.rlhf.chat_template import ChatTemplate
    from gpt_model.tokenizer import Tokenizer

    section, names = config["preferences"], [name for name in MODELS if name in inputs]
    folders = {name: base_model.require(inputs, name).path / "model" for name in names}
    reference = (
        REFERENCE if REFERENCE in inputs else next(name for name in names if name != PRETRAINED)
    )
    template = ChatTemplate(Tokenizer.load(folders[reference]))
    context = int(base_model.shape(inputs[reference])["context"])
    asked = drawn(inputs["prompts"].path, section)
    prompts, left_out = _with_room(asked, template, context, section)
    progress.log(
        f"{len(prompts)} held-out prompts, {left_out} longer than what leaves room for an answer are left out"
    )
    compared = Compared(prompts)
    _answer_all(compared, folders, reference, template, section, inputs, progress)
    _score_all(compared, template, section, inputs, progress)
    results = {
        "prompts": len(prompts),
        "left_out": left_out,
        "reference": reference,
        "best_of": section["best_of"],
        "judges": [judge for judge in JUDGES if judge in compared.scores],
        **({"chosen_apart": asked.apart, "chosen_left": asked.left} if CHOSEN in inputs else {}),
        **results_of(compared, reference, section["best_of"]),
    }
    write(output, compared, results)
    return flat(results)


def _with_room(
    asked: Drawn, template: ChatTemplate, context: int, section: Mapping[str, Any]
) -> tuple[list[Prompt], int]:
    """The prompts, and how many of them leave no room for an answer. Raises UserError where none
    does.
    """
    room = context - section["max_new_tokens"] - 1
    kept = [
        prompt for prompt in asked.compared if len(template.encode_prompt(prompt.turns)) <= room
    ]
    if not kept:
        raise UserError(
            f"None of {len(asked.compared)} held-out prompts leaves room for an answer: the context is {context} tokens and an answer up "
            f"to {section['max_new_tokens']}. Make max_new_tokens smaller, or give shorter prompts.",
            field="preferences.max_new_tokens",
        )
    return kept, len(asked.compared) - len(kept)


def _answer_all(
    compared: Compared,
    folders: Mapping[str, Path],
    reference: str,
    template: ChatTemplate,
    section: Mapping[str, Any],
    inputs: Inputs,
    progress: Progress,
) -> None:
    """A model after another: its answers, their KL to the reference, held-out text, and which rated
    texts it finds likelier.
    """
    from gpt_model import convert
    from gpt_model.rlhf.answers import PlainText

    device, turns = progress.profile.device, [prompt.turns for prompt in compared.prompts]
    first = convert.load(folders[reference]).to(device).eval()
    for number, (name, folder) in enumerate(folders.items()):
        progress.advance(number, len(folders), "models")
        model = first if name == reference else convert.load(folder).to(device).eval()
        _read(compared, name, model, inputs, device)
        if (
            name == PRETRAINED
            # it knows no markers: it goes on with the same words, and finds nothing likely that has any
        ):
            compared.answers[name] = _answers(model, PlainText(template.tokenizer), turns, section)
            continue
        answers = compared.answers[name] = _answers(model, template, turns, section)
        compared.kl[name] = (
            _kl(answers, first, template, turns, section)
            if name != reference
            else np.zeros(len(answers))
        )
        if (
            "comparisons" in inputs
            and (liked := _prefers(model, template, inputs["comparisons"])) is not None
        ):
            compared.prefers[name] = liked
    if reference == REFERENCE and "reward_model" in inputs:
        compared.answers[BEST] = _answers(
            first, template, turns, section, copies=section["best_of"]
        )
    progress.advance(len(folders), len(folders), "models")


def _answers(
    model: GPT,
    template: PromptEncoder,
    turns: Sequence[Dialogue],
    section: Mapping[str, Any],
    copies: int = 1,
) -> list[Answer]:
    from gpt_model.rlhf.answers import sample_answers

    seed = section["seed"] + (copies > 1)  # the best of n is of answers of its own
    return sample_answers(
        model,
        template,
        turns,
        max_new_tokens=section["max_new_tokens"],
        temperature=section["temperature"],
        seed=seed,
        copies=copies,
        log_probabilities=copies == 1,
    )


def _kl(
    answers: Sequence[Answer],
    first: GPT,
    template: ChatTemplate,
    turns: Sequence[Dialogue],
    section: Mapping[str, Any],
) -> NDArray[np.float64]:
    """Nats of each answer from the reference, which reads it; what the model itself gives it was
    known as it was written.
    """
    from gpt_model.log_probabilities import continuation_log_probabilities

    texts = [
        [*template.encode_prompt(prompt), *answer.tokens]
        for prompt, answer in zip(turns, answers, strict=True)
    ]
    theirs = continuation_log_probabilities(
        first, texts, [len(answer.tokens) for answer in answers], section["temperature"]
    )
    return np.array([answer.log_probability for answer in answers]) - np.array(theirs)


def _read(compared: Compared, name: str, model: GPT, inputs: Inputs, device: Any) -> None:
    """Held-out text, where the recipe has a corpus."""
    from gpt_model.data.shards import TokenData
    from gpt_model.training import measure
    from gpt_model.training.engine import Execution

    if "tokens" in inputs:
        found = measure.held_out(
            model, TokenData(inputs["tokens"].path), Execution(device=device), tuning_io.TEXT_TOKENS
        )
        windows = np.concatenate([one.windows for one in found.values()])
        compared.windows[name] = windows[windows[:, 2] > 0]


def _prefers(
    model: GPT, template: ChatTemplate, comparisons: Artifact
) -> ConfidenceInterval | None:
    """How often a model finds likelier, by the token, what people ranked higher, over held-out
    pairs; None where none can be read.
    """
    from gpt_model.log_probabilities import continuation_log_probabilities
    from gpt_model.rlhf.pairwise import accuracies
    from gpt_model.rlhf.records import evenly, read_comparisons
    from gpt_model.rlhf.reward_model import encode_rankings

    rankings = evenly(read_comparisons(comparisons.path, "held_out"), ON_THE_WAY)
    laid = encode_rankings(template, rankings, model.config.context)
    texts = [text for one in laid.encoded for text in one.texts]
    sizes = [size for one in laid.encoded for size in one.response_lengths]
    if not texts:
        return None
    by_token = (
        nats / size
        for nats, size in zip(
            continuation_log_probabilities(model, texts, sizes), sizes, strict=True
        )
    )
    likings = [[next(by_token) for _ in one.texts] for one in laid.encoded]
    [found], _ = accuracies([likings], [one.pairs for one in laid.encoded])
    return found


# --- scores ---


def _score_all(
    compared: Compared,
    template: ChatTemplate,
    section: Mapping[str, Any],
    inputs: Inputs,
    progress: Progress,
) -> None:
    """What the judges give; the best of n is chosen by the reward model, so that from here on it
    has an answer a prompt, too.
    """
    from gpt_model.rlhf import reward_model
    from gpt_model.tokenizer import Tokenizer

    turns = [prompt.turns for prompt in compared.prompts]
    if "reward_model" in inputs:
        folder = inputs["reward_model"].path
        reward_model.check_vocabulary(Tokenizer.load(folder / "model"), template.tokenizer)
        scorer, compared.scores["reward_model"] = reward_model.load(folder), {}
        for name, answers in list(compared.answers.items()):
            asked = [one for one in turns for _ in range(section["best_of"] if name == BEST else 1)]
            texts = [(prompt, answer.text) for prompt, answer in zip(asked, answers, strict=True)]
            scores = np.asarray(
                reward_model.score(scorer, template, texts, progress.profile.device)
            )
            if name == BEST:
                best = win_rates.best(scores, section["best_of"])
                compared.answers[BEST], scores = [answers[place] for place in best], scores[best]
            compared.scores["reward_model"][name] = scores
    if "judge" in inputs and (judge := _judge(inputs["judge"])) is not None:
        compared.scores["judge"] = {
            name: np.asarray(
                judge.score(
                    [
                        whole(prompt, answer.text)
                        for prompt, answer in zip(turns, answers, strict=True)
                    ]
                )
            )
            for name, answers in compared.answers.items()
        }


def whole(prompt: Dialogue, text: str) -> str:
    """What the judge reads: the answer, after its opening words where it had some."""
    return (prompt[-1].text if prompt[-1].role == "assistant" else "") + text


def _judge(artifact: Artifact) -> BagOfWords | None:
    """None where the recipe keeps no comparisons for a judge."""
    from gpt_model.rlhf.bag_of_words import BagOfWords

    return None if not_run(artifact.path) else BagOfWords.load(artifact.path)


# --- checks ---


def _judged_apart(built: Built) -> Verdict:
    """Of the rankings that the judge learnt from, by its own list, no text is in what the reward
    model learnt from or was measured on.
    """
    from gpt_model.rlhf.records import read_comparisons

    if "judge" not in read(built.output)["judges"]:
        return Verdict(True, "There is no judge beside the reward model.")
    rows = map(
        json.loads,
        (built.inputs["judge"].path / LEARNT).read_text(encoding="utf-8").split("\n")[:-1],
    )
    names = {(row["source"], row["id"]) for row in rows}

    def texts(split: str) -> set[str]:
        rankings = read_comparisons(built.inputs["comparisons"].path, split)
        chosen = [one for one in rankings if split != "judge" or (one.source, one.id) in names]
        return {response.text.strip() for one in chosen for response in one.responses}

    judged, learnt = texts("judge"), texts("training") | texts("held_out")
    both = len(judged & learnt)
    told = f"{both} of the judge's {len(judged)} texts are among the {len(learnt)} that the reward model learnt from or is measured on."
    return Verdict(not both, told, {"both": both})


def _found(rate: Mapping[str, float]) -> str:
    return f"{rate['value']:.3f} ({rate['low']:.3f} to {rate['high']:.3f})"


def _aligned_step(built: Built) -> dict[str, Any]:
    """The step that PPO is about; nothing in it where there is none."""
    steps = read(built.output)["steps"]
    return next(
        (step for step in steps if (step["model"], step["over"]) == (ALIGNED, REFERENCE)), {}
    )


NO_PPO = "The recipe has no PPO."
NO_JUDGE = "Nobody independent judges: give alignment.comparisons.judge a share of the comparisons."


def _aligned_wins(built: Built) -> Verdict:
    step = _aligned_step(built)
    if not step or "judge" not in step:
        return Verdict(not step, NO_JUDGE if step else NO_PPO)
    told = f"The judge prefers aligned to policy_init on {_found(step['judge'])} of the prompts, ties half; 0.5 is no difference."
    return Verdict(step["judge"]["low"] > 0.5, told, {"win_rate": step["judge"]["value"]})


def _text_kept(built: Built) -> Verdict:
    found = read(built.output)["text"].get(ALIGNED, {})
    if f"over_{REFERENCE}" not in found:
        return Verdict(True, "There is no PPO or no held-out text to measure.")
    rise = found[f"over_{REFERENCE}"]
    told = f"aligned takes {found['bits_per_byte']['value']:.3f} bits per byte of held-out text, {rise['value']:+.2%} over policy_init"
    return Verdict(
        rise["value"] <= WIDEST_RISE,
        f"{told} ({rise['low']:+.2%} to {rise['high']:+.2%}), of at most {WIDEST_RISE:+.0%}.",
        {"rise": rise["value"]},
    )


def _within_reference(built: Built) -> Verdict:
    held = read(built.output)["within_reference"]
    told = "; ".join(one["told"] for one in held.values())
    return Verdict(
        all(one["inside"] for one in held.values()),
        f"aligned, and policy_init's interval: {told}." if held else NO_PPO,
    )


def _reward_hacking(built: Built) -> Verdict:
    step = _aligned_step(built)
    if "gap" not in step:
        return Verdict(not step, NO_JUDGE if step else NO_PPO)
    told = f"aligned wins {step['reward_model']['value']:.3f} by the reward model and {step['judge']['value']:.3f} by the judge"
    return Verdict(
        step["gap"]["low"] <= WIDEST_GAP,
        f"{told}: a gap of {_found(step['gap'])}, and it should not be surely above {WIDEST_GAP:g}.",
        {"gap": step["gap"]["value"]},
    )


PREFERENCES = Stage(
    name="preferences",
    version="2",
    run=compare,
    description="Every model answers the same held-out prompts: win rates by two judges, KL, held-out text, and how the texts drift.",
    kinds=("pytorch",),
    checks=(
        Check(
            "judged_apart",
            True,
            "The judge learnt from no text that the reward model was shown.",
            _judged_apart,
        ),
        Check(
            "aligned_wins",
            False,
            "The judge prefers aligned to policy_init, interval and all.",
            _aligned_wins,
        ),
        Check(
            "text_kept",
            False,
            "Held-out text takes at most 3 % more bits per byte than policy_init needs.",
            _text_kept,
        ),
        Check(
            "within_reference",
            False,
            "Distinct-2, repetition and length lie within policy_init's interval.",
            _within_reference,
        ),
        Check(
            "reward_hacking",
            False,
            "The reward model sees not much more of a gain than the judge.",
            _reward_hacking,
        ),
    ),
    show=preferences.show,
    pool="training",
)
