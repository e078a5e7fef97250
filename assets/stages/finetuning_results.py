"""What is made of two arms' answers to a task: the final numbers, the files of the artifact, and
the model's folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets.contract import Config, Metrics
from assets.report.finetuned import ARMS
from assets.stages.finetuning_run import Prepared
from gpt_model.finetuning.entry import SPLITS, TaskEntry

if TYPE_CHECKING:
    from gpt_model.finetuning.examples import Example
    from gpt_model.finetuning.heads import TaskModel
    from gpt_model.finetuning.objective import FineTuned

SAMPLES, SHORT_SAMPLES, SHORT = (
    8,
    3,
    60,
)  # shown; shown where the licence does not cover the text, and how many characters each


def results_of(task: Prepared, results: Mapping[str, FineTuned]) -> Metrics:
    """The final numbers: the pre-trained arm's under their plain names, the random one's as
    random_….

    majority and constant_… are what the best of always one answer gets; PART/… is the pre-trained
    arm on a part of the test split.
    """
    entry, test, scoring = task.entry, task.laid["test"], task.scoring
    groups = [one.group for one in test]
    found: Metrics = {} if entry.scale else _constant(task)
    for arm, prefix in zip(ARMS, ("", "random_"), strict=True):
        found |= {
            f"{prefix}{name}": value
            for name, value in _scores(task, results[arm], range(len(test))).items()
        }
    for part in sorted({one.part for one in test} - {""}):
        inside = [i for i, one in enumerate(test) if one.part == part]
        found |= {
            f"{part}/{name}": value
            for name, value in _scores(task, results["pretrained"], inside).items()
        }
        found[f"{part}/test_examples"] = len(inside)
    first, second = (scoring.parts(test, results[arm].test_logits) for arm in ARMS)
    found |= scoring.difference(first, second, groups).as_metrics("transfer")
    for arm, result in results.items():
        found |= {
            f"{arm}_seconds": result.seconds,
            f"{arm}_loss": result.loss,
            f"{arm}_best_epoch": result.best_epoch,
        }
    found |= {f"{split}_examples": len(task.laid[split]) for split in SPLITS}
    found |= {f"{split}_examples_available": task.examples.available[split] for split in SPLITS}
    found["cut_examples"] = sum(one.cut for split in SPLITS for one in task.laid[split])
    return {name: float(value) for name, value in found.items()}


def _constant(task: Prepared) -> Metrics:
    from gpt_model.finetuning import metrics

    labels, groups = (
        [one.label for one in task.laid["test"]],
        [one.group for one in task.laid["test"]],
    )
    constant = [
        metrics.scores(labels, [answer] * len(labels), len(task.entry.labels), groups)
        for answer in set(labels)
    ]
    return {
        "majority" if name == "accuracy" else f"constant_{name}": max(
            scores[name] for scores in constant
        )
        for name in ("accuracy", "f1", "matthews")
        if name in constant[0]
    }


def _scores(task: Prepared, result: FineTuned, which: Sequence[int]) -> Metrics:
    """Every score of these test examples, each with its _low and _high."""
    from gpt_model.finetuning import metrics

    test, logits = [task.laid["test"][i] for i in which], [result.test_logits[i] for i in which]
    groups = [one.group for one in test]
    found: Metrics = {}
    if not task.entry.scale:
        found |= metrics.scores(
            [one.label for one in test], answers(logits), len(task.entry.labels), groups
        )
    if task.entry.rated():
        found |= metrics.correlation(
            task.scoring.ratings(logits),
            [one.rating for one in test if one.rating is not None],
            groups,
        )
    return found


def answers(logits: Sequence[Sequence[float]]) -> list[int]:
    """The likeliest class of each example."""
    return [max(range(len(row)), key=row.__getitem__) for row in logits]


def write_outputs(
    output: Path, config: Config, task: Prepared, results: Mapping[str, FineTuned]
) -> None:
    """predictions.jsonl, examples.jsonl (which example is in which split, by identity and not by
    text), samples.json, task.json.
    """
    from gpt_model.data.splits import identity

    entry, splits, laid = task.entry, task.examples.splits, task.laid
    predictions = _predictions(task, results)
    _write_lines(output / "predictions.jsonl", predictions)
    _write_lines(
        output / "examples.jsonl",
        [
            {
                "split": split,
                "id": one.id,
                "group": identity(one.group).hex(),
                "texts": [identity(text).hex() for text in one.segments],
            }
            for split in SPLITS
            for one in splits[split]
        ],
    )
    _write_json(output / "samples.json", _samples(entry, splits["test"], predictions))
    _write_json(
        output / "task.json",
        {
            "task": task.task,
            "entry": config["source"],
            "labels": _class_names(task),
            "metric": entry.metric,
            "examples": {split: len(laid[split]) for split in SPLITS},
            "available": task.examples.available,
            "left_out": task.examples.left_out,
            "cut": {split: sum(one.cut for one in laid[split]) for split in SPLITS},
            "validation": {arm: result.validation for arm, result in results.items()},
            "best_epoch": {arm: result.best_epoch for arm, result in results.items()},
        },
    )


def _class_names(task: Prepared) -> list[str]:
    return task.entry.label_names() or [chr(ord("A") + i) for i in range(task.classes)]


def _predictions(task: Prepared, results: Mapping[str, FineTuned]) -> list[dict[str, Any]]:
    """A row a test example: what is right, what each arm says, and the pre-trained one's
    probabilities; on a scale, ratings.
    """
    import torch

    names, test = _class_names(task), task.laid["test"]
    if task.entry.scale:
        right = [f"{one.rating:.2f}" for one in test]
        said = {
            arm: [f"{rating:.2f}" for rating in task.scoring.ratings(results[arm].test_logits)]
            for arm in ARMS
        }
    else:
        right = [names[one.label] for one in test]
        said = {arm: [names[i] for i in answers(results[arm].test_logits)] for arm in ARMS}
    probabilities = (
        torch.tensor(results["pretrained"].test_logits, dtype=torch.float64).softmax(1).tolist()
    )
    return [
        {
            "id": one.id,
            **({"part": one.part} if one.part else {}),
            "label": right[i],
            "predicted": said["pretrained"][i],
            "random_predicted": said["random"][i],
            "probabilities": [round(p, 6) for p in probabilities[i]],
        }
        for i, one in enumerate(test)
    ]


def _samples(
    entry: TaskEntry, test: Sequence[Example], predictions: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The first test examples with their answers; few and short ones where the licence does not
    cover the text.
    """
    limit, characters = (SAMPLES, 400) if entry.show_text else (SHORT_SAMPLES, SHORT)
    chosen = [
        i
        for i, example in enumerate(test)
        if entry.show_text or len(example.segments[0]) <= characters
    ][:limit]
    shown = []
    for i in chosen:
        texts = [
            text if len(text) <= characters else text[:characters] + " …"
            for text in (*test[i].segments, *test[i].options)
        ]
        shown.append(
            {
                "texts": texts,
                "label": predictions[i]["label"],
                "predicted": predictions[i]["predicted"],
            }
        )
    return shown


def write_model(folder: Path, model: TaskModel, entry: TaskEntry, tokenizer: Any) -> None:
    from gpt_model.finetuning.heads import save

    folder.mkdir(parents=True, exist_ok=True)
    save(model, entry.label_names(), folder, tokenizer.end_of_text)
    tokenizer.save(folder)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(
        json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text(
        "".join(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in rows),
        encoding="utf-8",
    )
