"""A task in each of its few-shot settings: the same examples after no, one and K demonstrations, as
tasks of their own.

How demonstrations are drawn and put is `few_shot.py`'s, where they come from `examples.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gpt_model.evaluation.contamination import Examples
from gpt_model.evaluation.examples import Material, TaskRows, demonstrations_of
from gpt_model.evaluation.few_shot import FewShot, Rendered, Renderer, answer_normalised, per_token
from gpt_model.evaluation.suites import Arithmetic, Scramble


def in_each_setting(found: TaskRows, material: Material) -> Iterator[TaskRows]:
    """`found` itself where its task has no `shots`; else a task a number of demonstrations, the
    smallest first.

    Raises NotRun, after the tasks that need none, where the demonstrations cannot be had here.
    """
    task, shots = found.task, found.task.metadata.shots
    if shots is None:
        yield found
        return
    few_shot = FewShot(
        f"{task.suite} {found.name}",
        task.keys,
        shots,
        material.encode,
        material.context,
        material.seed,
    )
    texts = texts_of(found)
    alone = None
    if "acc_answer_norm" in task.metadata.metrics:
        companion = _as(found, few_shot.answers_alone(found.rows), f"{found.name}_answers_alone")
        alone = companion.full_name
        yield replace(companion, scored=False)
    pool: list[dict[str, Any]] = []
    for number in sorted(shots.numbers):
        if number and not pool:
            pool = demonstrations_of(task, material)
        rendered = few_shot.rendered(number, found.rows, pool)
        demonstrations = rendered.demonstrations(number)
        yield replace(
            _as(found, rendered, f"{found.name}_{demonstrations.shots}"),
            demonstrations=demonstrations,
            texts=texts,
            alone=alone,
        )


def _as(found: TaskRows, rendered: Rendered, name: str) -> TaskRows:
    return replace(
        found,
        task=found.task.model_copy(update={"keys": rendered.keys}),
        name=name,
        rows=rendered.rows,
    )


def examples_of(tasks: Sequence[TaskRows]) -> dict[str, Examples]:
    """By the full name of each scored task, its examples as they may stand in the training text."""
    return {
        task.full_name: Examples(
            texts_of(task), isinstance(task.task.metadata.data, (Arithmetic, Scramble))
        )
        for task in tasks
        if task.scored
    }


def texts_of(found: TaskRows) -> list[str]:
    """Each example's own text, with its right answer: what may stand in the training text too."""
    if found.texts or not found.rows:
        return found.texts
    renderer = Renderer(found.task.keys, list(found.rows[0]))
    if renderer.kind == "loglikelihood_rolling":
        return [renderer.prompt(row).answers[0] for row in found.rows]
    return [renderer.prompt(row).right for row in found.rows]


def add_metrics(tasks: Sequence[TaskRows], results: Mapping[str, Any]) -> None:
    """Put each task's added metrics among lm_eval's results, as lm_eval has its own: of every
    sample, and their mean.
    """
    for found in tasks:
        samples = results["samples"][found.full_name]
        for metric in found.task.metadata.metrics if found.scored else ():
            alone = results["samples"][found.alone] if found.alone else []
            values = (
                per_token(samples)
                if metric == "acc_per_token"
                else answer_normalised(samples, alone)
            )
            for sample, value in zip(samples, values, strict=True):
                sample[metric] = value
            results["results"][found.full_name][f"{metric},none"] = sum(values) / len(values)
