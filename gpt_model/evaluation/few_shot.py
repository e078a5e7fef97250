"""GPT-3's zero-, one- and few-shot protocol (Brown et al. 2020, section 2.4 and appendix H):
demonstrations before each question.

A task's rows are rendered here, by lm_eval's own functions, and demonstrations put before them, so
that what lm_eval is given is a task of plain columns that scores the same in any of its backends.
Two scores of the paper's that lm_eval does not have are made from its log-probabilities afterwards:
by the answer's tokens (`acc_per_token`) and against an answer context (`acc_answer_norm`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
from pydantic import Field

from gpt_model.evaluation.results import Demonstrations
from gpt_model.strict import Strict

Row = dict[str, Any]
Keys = Mapping[str, Any]
Encode = Callable[[str], list[int]]

AddedMetric = Literal["acc_per_token", "acc_answer_norm"]


class Shots(Strict):
    """`metadata.shots` of a suite's task: how many demonstrations stand before a question, and how.
    Its data says where they come from.
    """

    numbers: list[int] = Field(
        min_length=1, description="demonstrations, one task each: 0, 1 and the paper's K"
    )
    separator: str = Field(default="\n\n", description="after each demonstration")
    header: str = Field(default="", description="before everything, whatever the number")
    doc_to_text: str | None = Field(
        default=None,
        description="the question where there are demonstrations, if it is put otherwise then",
    )
    answer_context: str | None = Field(
        default=None, description='"Answer:" or "A:", of acc_answer_norm'
    )


@dataclass(frozen=True)
class Prompt:
    """A row as lm_eval would put it to a model."""

    contexts: list[str]  # one, or where answers are told apart by their contexts one a choice
    answers: list[str]  # the choices; or what is right, where there are none
    labels: list[int]  # places of the right ones, of which a demonstration shows the first
    delimiter: str  # between the two
    listed: bool  # whether a row says what is right as a list, of which any will do

    @property
    def right(self) -> str:
        """The example with its right answer, as a demonstration shows it."""
        place = self.labels[0]
        return (
            self.contexts[place if len(self.contexts) > 1 else 0]
            + self.delimiter
            + self.answers[place]
        )

    @property
    def continuations(self) -> list[str]:
        return [self.delimiter + answer for answer in self.answers]


class Renderer:
    """Rows to prompts by a task's keys, as lm_eval 0.4.13's ConfigurableTask reads them."""

    def __init__(self, keys: Keys, columns: Sequence[str]) -> None:
        from lm_eval.api.task import ConfigurableTask, TaskConfig

        config = TaskConfig(**{key: value for key, value in keys.items() if key != "metadata"})
        self._task: Any = SimpleNamespace(
            prompt=None, config=config, _config=config, features=list(columns)
        )
        self._lm_eval: Any = ConfigurableTask
        self.kind = str(config.output_type)

    def prompt(self, row: Row) -> Prompt:
        text, target = (
            self._lm_eval.doc_to_text(self._task, row),
            self._lm_eval.doc_to_target(self._task, row),
        )
        delimiter = str(self._task.config.target_delimiter)
        if self.kind != "multiple_choice":  # lm_eval puts nothing before a log-likelihood's target
            answers = [str(one) for one in (target if isinstance(target, list) else [target])]
            return Prompt(
                [text],
                answers,
                [0],
                "" if self.kind == "loglikelihood" else delimiter,
                isinstance(target, list),
            )
        choices = list(self._lm_eval.doc_to_choice(self._task, row))
        if isinstance(text, int):
            return Prompt(choices, [str(target)] * len(choices), [text], delimiter, False)
        listed = isinstance(target, list)
        labels = [
            one if isinstance(one, int) else choices.index(one)
            for one in (target if listed else [target])
        ]
        return Prompt([text], choices, labels, delimiter, listed)


class _Shown:
    """The demonstrations there are, each rendered and counted when it is first drawn."""

    def __init__(
        self, renderer: Renderer, pool: Sequence[Row], count: Callable[[str], int]
    ) -> None:
        self._renderer, self._pool, self._count = renderer, pool, count
        self._texts: dict[int, str] = {}
        self._tokens: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._pool)

    def __getitem__(self, place: int) -> str:
        if place not in self._texts:
            self._texts[place] = self._renderer.prompt(self._pool[place]).right
        return self._texts[place]

    def tokens(self, place: int) -> int:
        if place not in self._tokens:
            self._tokens[place] = self._count(self[place])
        return self._tokens[place]


@dataclass(frozen=True)
class Rendered:
    """A task as lm_eval is given it: keys, and rows with plain columns."""

    keys: dict[str, Any]
    rows: list[Row]

    def demonstrations(self, requested: int) -> Demonstrations:
        counts = [row["shots"] for row in self.rows]
        return Demonstrations(requested, min(counts), round(sum(counts) / len(counts), 4))


@dataclass(frozen=True)
class FewShot:
    """A task's examples with demonstrations before them: as many whole ones as fit the model's
    context with any of the answers.
    """

    name: str
    keys: Keys
    shots: Shots
    encode: Encode
    context: int  # the model's, tokens
    seed: int

    def rendered(self, number: int, examples: Sequence[Row], pool: Sequence[Row]) -> Rendered:
        """`examples`, each after at most `number` others of `pool`, drawn for it; a row's "shots"
        says how many they are.

        A larger number's demonstrations begin with a smaller one's.
        """
        keys = dict(self.keys)
        if number and self.shots.doc_to_text:
            keys["doc_to_text"] = self.shots.doc_to_text
        renderer = Renderer(keys, list(examples[0]))
        shown = _Shown(
            renderer, pool if number else [], lambda text: self._tokens(self.shots.separator + text)
        )
        rows = []
        for example in examples:
            prompt = renderer.prompt(example)
            chosen = self._fitting(prompt, self._drawn(prompt, shown)[:number], shown)
            before = self.shots.header + "".join(
                shown[place] + self.shots.separator for place in chosen
            )
            own = (
                example if "process_results" in keys else {}
            )  # a scoring function may want any of its columns
            rows.append(
                {**own, **self._columns(renderer.kind, prompt, before), "shots": len(chosen)}
            )
        return Rendered({**keys, **_keys_of(renderer.kind, rows[0])}, rows)

    def answers_alone(self, examples: Sequence[Row]) -> Rendered:
        """The same answers after the answer context only: what `acc_answer_norm` divides by."""
        renderer = Renderer(self.keys, list(examples[0]))
        rows = [
            {"choices": prompt.answers, "label": _label(prompt)}
            for prompt in map(renderer.prompt, examples)
        ]
        keys = {
            **self.keys,
            "doc_to_text": self.shots.answer_context,
            "doc_to_choice": "choices",
            "doc_to_target": "label",
        }
        return Rendered(keys, rows)

    def _drawn(self, prompt: Prompt, shown: _Shown) -> list[int]:
        """Places in `shown`, at random but the same for the same example and seed; never the
        example itself.
        """
        dice = random.Random(f"{self.seed}\0{self.name}\0{prompt.right}")
        places = dice.sample(range(len(shown)), min(len(shown), max(self.shots.numbers) + 1))
        return [place for place in places if shown[place] != prompt.right]

    def _fitting(self, prompt: Prompt, places: list[int], shown: _Shown) -> list[int]:
        """The first of `places` whose demonstrations leave room for the question, its longest
        answer and what is to be generated.
        """
        new_tokens = int((self.keys.get("generation_kwargs") or {}).get("max_gen_toks", 0))
        endings = (
            prompt.contexts
            if new_tokens
            else [
                context + answer for context in prompt.contexts for answer in prompt.continuations
            ]
        )
        room = self.context - new_tokens
        left = (
            room
            - self._tokens(self.shots.header)
            - max(self._tokens(self.shots.separator + ending) for ending in endings)
        )
        chosen: list[int] = []
        for place in places:
            left -= shown.tokens(place)
            if left < 0:
                break
            chosen.append(place)
        while chosen:  # counted in pieces so far, and pieces may meet in another token
            before = self.shots.header + "".join(
                shown[place] + self.shots.separator for place in chosen
            )
            if max(self._tokens(before + ending) for ending in endings) <= room:
                break
            chosen.pop()
        return chosen

    def _tokens(self, text: str) -> int:
        return len(self.encode(text))

    def _columns(self, kind: str, prompt: Prompt, before: str) -> Row:
        if len(prompt.contexts) > 1:
            return {
                "contexts": [before + context for context in prompt.contexts],
                "label": _label(prompt),
                "target": prompt.answers[0],
            }
        question = {"demonstrations": before, "question": prompt.contexts[0]}
        if kind != "multiple_choice":
            return {**question, "target": prompt.answers if prompt.listed else prompt.answers[0]}
        tokens = [
            self._answer_tokens(prompt.contexts[0], answer) for answer in prompt.continuations
        ]
        return {**question, "choices": prompt.answers, "label": _label(prompt), "tokens": tokens}

    def _answer_tokens(self, context: str, answer: str) -> int:
        """As lm_eval counts: a context's last spaces are the answer's, and the whole is encoded
        before it is divided.
        """
        return self._tokens(context + answer) - self._tokens(context.rstrip())


def _label(prompt: Prompt) -> int | list[int]:
    return prompt.labels if prompt.listed else prompt.labels[0]


def _keys_of(kind: str, row: Row) -> dict[str, str]:
    """How lm_eval reads such a row."""
    if "contexts" in row:  # an integer as text: answers told apart by their contexts
        return {"doc_to_text": "label", "doc_to_choice": "contexts", "doc_to_target": "target"}
    text = {"doc_to_text": "{{demonstrations}}{{question}}"}
    if kind == "multiple_choice":
        return {**text, "doc_to_choice": "choices", "doc_to_target": "label"}
    return {**text, "doc_to_target": "target"}


def per_token(samples: Sequence[Mapping[str, Any]]) -> list[float]:
    """Whether the right answer has the highest log-probability a token, of each of lm_eval's
    samples (section 2.4).
    """
    return [
        _right(sample, np.array(_logprobs(sample)) / np.array(sample["doc"]["tokens"]))
        for sample in samples
    ]


def answer_normalised(
    samples: Sequence[Mapping[str, Any]], alone: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Whether it has the highest P(answer | context) / P(answer | answer context) (section 2.4).
    `alone`: of `answers_alone`, in order.
    """
    return [
        _right(sample, np.array(_logprobs(sample)) - np.array(_logprobs(other)))
        for sample, other in zip(samples, alone, strict=True)
    ]


def _logprobs(sample: Mapping[str, Any]) -> list[float]:
    return [float(response[0]) for response in sample["filtered_resps"]]


def _right(sample: Mapping[str, Any], scores: np.ndarray) -> float:
    label, best = sample["doc"]["label"], int(np.argmax(scores))
    return float(best in label if isinstance(label, list) else best == label)
