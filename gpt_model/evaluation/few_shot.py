"""GPT-3's zero-, one- and few-shot protocol (Brown et al. 2020, section 2.4 and appendix H):
demonstrations before each question.

lm_eval's own functions render a task's rows here, and demonstrations are put before them. So
lm_eval is given a task of plain columns that scores the same in any of its backends. Two scores of
the paper's that lm_eval does not have are computed from its log-probabilities afterwards: by the
answer's tokens (`acc_per_token`) and against an answer context (`acc_answer_norm`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from lm_eval.api.task import ConfigurableTask, TaskConfig
from lm_eval.models.utils import normalize_gen_kwargs

from gpt_model.evaluation.adapters.registry import Row
from gpt_model.evaluation.demonstrations import fitting
from gpt_model.evaluation.results import Demonstrations
from gpt_model.evaluation.suites import Shots

Keys = Mapping[str, Any]  # lm_eval's keys of a task
Encode = Callable[[str], list[int]]

MAX_NEW_TOKENS = 256  # lm_eval's default where a task does not say
# lm_eval's names of the limit in generation_kwargs
LIMIT_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


def generation_limit(settings: Mapping[str, Any], context_length: int) -> tuple[int, int]:
    """(new tokens that a task's generation_kwargs ask for, those it gets). A limit that leaves the
    question no room in the context is lowered to half of it.
    """
    stated = normalize_gen_kwargs(dict(settings), MAX_NEW_TOKENS)["max_gen_toks"]
    return stated, stated if stated < context_length else max(1, context_length // 2)


def new_tokens(keys: Keys, context_length: int) -> int:
    """How many tokens of the context a task may generate; none of a task that scores answers."""
    if keys["output_type"] != "generate_until":
        return 0
    return generation_limit(keys.get("generation_kwargs") or {}, context_length)[1]


@dataclass(frozen=True)
class Prompt:
    """A row as lm_eval would put it to a model."""

    contexts: list[str]  # one; or one a choice, where a choice is its context
    answers: list[str]  # the choices; or the right answers, where there are none
    labels: list[int]  # indices of the right answers, of which a demonstration shows the first
    delimiter: str  # between context and answer
    listed: bool  # whether a row has its right answers as a list, of which any will do

    @property
    def right(self) -> str:
        """The example with its right answer, as a demonstration shows it."""
        label = self.labels[0]
        context = self.contexts[label if len(self.contexts) > 1 else 0]
        return context + self.delimiter + self.answers[label]

    @property
    def continuations(self) -> list[str]:
        return [self.delimiter + answer for answer in self.answers]


class Renderer:
    """Rows to prompts by a task's keys, as lm_eval 0.4.13's ConfigurableTask reads them."""

    def __init__(self, keys: Keys, columns: Sequence[str]) -> None:
        config = TaskConfig(**{key: value for key, value in keys.items() if key != "metadata"})
        self._task: Any = SimpleNamespace(
            prompt=None, config=config, _config=config, features=list(columns)
        )
        self.kind = str(config.output_type)

    def answers(self, row: Row) -> list[str]:
        """What is scored after a context, without its delimiter; nothing of what is generated."""
        if self.kind not in ("multiple_choice", "loglikelihood"):
            return []
        answered = row.get(str(self._task.config.doc_to_text))
        if self.kind == "multiple_choice" and not isinstance(answered, int):
            return list(ConfigurableTask.doc_to_choice(self._task, row))
        target = ConfigurableTask.doc_to_target(self._task, row)
        return [str(answer) for answer in (target if isinstance(target, list) else [target])]

    def surroundings(self, row: Row) -> str:
        """What lm_eval puts before the demonstrations and after the question."""
        config = self._task.config
        fields = (config.description, config.gen_prefix)
        resolve = ConfigurableTask.resolve_field
        return " ".join(str(resolve(row, field)) for field in fields if field)

    def check(self, row: Row) -> None:
        """Raises ValueError, or what a template raises, where the row makes no question."""
        prompt = self.prompt(row)
        options = max(len(prompt.contexts), len(prompt.answers))
        if outside := [label for label in prompt.labels if not 0 <= label < options]:
            raise ValueError(f"the right answer is number {outside[0]} of {options}, from 0")
        if not prompt.labels:
            raise ValueError("it has no right answer")

    def prompt(self, row: Row) -> Prompt:
        text = ConfigurableTask.doc_to_text(self._task, row)
        target = ConfigurableTask.doc_to_target(self._task, row)
        delimiter = str(self._task.config.target_delimiter)
        listed = isinstance(target, list)
        targets = target if listed else [target]
        if self.kind != "multiple_choice":
            if self.kind == "loglikelihood":
                delimiter = ""  # lm_eval puts nothing before a log-likelihood's target
            return Prompt([text], [str(answer) for answer in targets], [0], delimiter, listed)
        choices = list(ConfigurableTask.doc_to_choice(self._task, row))
        if isinstance(text, int):
            return Prompt(choices, [str(target)] * len(choices), [text], delimiter, False)
        labels = [
            answer if isinstance(answer, int) else choices.index(answer) for answer in targets
        ]
        return Prompt([text], choices, labels, delimiter, listed)


class _Pool:
    """The rows that demonstrations are drawn from, each rendered and counted when first drawn."""

    def __init__(
        self, renderer: Renderer, rows: Sequence[Row], count: Callable[[str], int]
    ) -> None:
        self._renderer, self._rows, self._count = renderer, rows, count
        self._texts: dict[int, str] = {}
        self._tokens: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> str:
        if index not in self._texts:
            self._texts[index] = self._renderer.prompt(self._rows[index]).right
        return self._texts[index]

    def tokens(self, index: int) -> int:
        if index not in self._tokens:
            self._tokens[index] = self._count(self[index])
        return self._tokens[index]


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
    context_length: int  # the model's, tokens
    seed: int

    def rendered(self, number: int, examples: Sequence[Row], pool: Sequence[Row]) -> Rendered:
        """`examples`, each after at most `number` rows of `pool`, drawn for it. Their count is the
        row's "shots".

        A larger number's demonstrations begin with a smaller one's.
        """
        keys = dict(self.keys)
        if number and self.shots.doc_to_text:
            keys["doc_to_text"] = self.shots.doc_to_text
        renderer = Renderer(keys, list(examples[0]))
        demonstrations = _Pool(
            renderer, pool if number else [], lambda text: self._tokens(self.shots.separator + text)
        )
        rows = []
        for example in examples:
            prompt = renderer.prompt(example)
            drawn = self._drawn(prompt, demonstrations)[:number]
            room = self._room(renderer, example)
            chosen = self._fitting(prompt, drawn, demonstrations, room)
            columns = self._columns(renderer.kind, prompt, self._before(chosen, demonstrations))
            # A scoring function may read any of the example's columns.
            other_columns = example if "process_results" in keys else {}
            rows.append({**other_columns, **columns, "shots": len(chosen)})
        return Rendered({**keys, **_keys_of(renderer.kind, rows[0])}, rows)

    def unconditional_answers(self, examples: Sequence[Row]) -> Rendered:
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

    def _drawn(self, prompt: Prompt, pool: _Pool) -> list[int]:
        """Indices into `pool`, at random but the same for the same example and seed; never the
        example itself.
        """
        random_state = random.Random(f"{self.seed}\0{self.name}\0{prompt.right}")
        size = min(len(pool), max(self.shots.numbers) + 1)
        indices = random_state.sample(range(len(pool)), size)
        return [index for index in indices if pool[index] != prompt.right]

    def _before(self, chosen: Sequence[int], pool: _Pool) -> str:
        """The header and the chosen demonstrations."""
        shown = "".join(pool[index] + self.shots.separator for index in chosen)
        return self.shots.header + shown

    def _room(self, renderer: Renderer, example: Row) -> int:
        """Tokens of the context that are left for demonstrations, question and longest answer."""
        room = self.context_length - new_tokens(self.keys, self.context_length)
        return room - self._tokens(renderer.surroundings(example))

    def _fitting(self, prompt: Prompt, drawn: Sequence[int], pool: _Pool, room: int) -> list[int]:
        """The first of `drawn` whose demonstrations leave `room` for the question and its longest
        answer. They go, whole, before the question loses anything.
        """
        endings = (
            prompt.contexts
            if self.keys["output_type"] == "generate_until"
            else [
                context + answer for context in prompt.contexts for answer in prompt.continuations
            ]
        )
        texts = [pool[index] + self.shots.separator for index in drawn]
        sizes = map(pool.tokens, drawn)
        header = self.shots.header
        return list(drawn[: fitting(texts, sizes, endings, room, self._tokens, header)])

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
