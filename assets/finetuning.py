"""finetuned/<task>: the pre-trained model fine-tuned on one task as GPT-1 was, beside the same network from random weights.

The stage, its section of the recipe, its checks, and what the UI shows of it. Layouts, objective and metrics are `gpt_model.tasks`;
a task is a YAML file, one of its catalogue's or the user's own.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets.contract import SCRATCH, Artifact, Built, Check, Config, Inputs, Metrics, Progress, Stage, Verdict
from assets.finetuning_page import ARMS, json_lines, show
from assets.pretraining import execution_of
from assets.recipe import Recipe
from assets.yaml_file import load_strict
from gpt_model.errors import UserError, about_all_of
from gpt_model.tasks.entry import CATALOGUE, SPLITS, SplitName, TaskEntry, pinned, seen_from

if TYPE_CHECKING:
    from gpt_model.tasks.examples import Example, Examples
    from gpt_model.tasks.finetune import FineTuned
    from gpt_model.tasks.layouts import Laid
    from gpt_model.tasks.model import TaskModel

SAMPLES, SHORT_SAMPLES, SHORT = 8, 3, 60  # shown; shown where the licence does not cover the text, and how many characters each


# -- the recipe's section -----------------------------------------------------------------------------------------------------------------


def task_names(recipe: Recipe) -> list[str]:
    """The recipe's tasks by name; a task that is a file is named after it. Raises UserError for an unknown or repeated one."""
    given = recipe.finetuning.tasks if recipe.finetuning else []
    names = [_name(task) for task in given]
    known = sorted(path.stem for path in CATALOGUE.glob("*.yaml"))
    for number, (task, name) in enumerate(zip(given, names, strict=True)):
        field = f"finetuning.tasks[{number}]"
        if not _is_file(task) and task not in known:
            near = difflib.get_close_matches(task, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(f"{task!r} is not a task.{hint} There are {', '.join(known)}, or the path of a task's YAML file.", field=field)
        if name in names[:number]:
            raise UserError(f"Two tasks are named {name!r}. Leave one out, or rename its file.", field=field)
    for limits in ("examples", "held_back"):
        for stray in sorted(getattr(recipe.finetuning, limits, {}).keys() - set(names)):
            told = f"{stray!r} is not among this recipe's tasks: {', '.join(names)}. Correct the name, or take the line out."
            raise UserError(told, field=f"finetuning.{limits}.{stray}")
    return names


def _is_file(task: str) -> bool:
    return task.endswith((".yaml", ".yml")) or "/" in task


def _name(task: str) -> str:
    return Path(task).stem if _is_file(task) else task


def finetuning_config(recipe: Recipe, task: str, base: Path) -> dict[str, Any]:
    """What identifies finetuned/`task`: the task's entry, whole, and how it is fine-tuned. `base`: the recipe's folder."""
    section = recipe.finetuning
    assert section is not None  # or there would be no task
    number = [_name(one) for one in section.tasks].index(task)
    given = section.tasks[number]
    path = base / Path(given).expanduser() if _is_file(given) else CATALOGUE / f"{given}.yaml"
    with about_all_of(f"finetuning.tasks[{number}]"):
        entry = load_strict(TaskEntry, str(path), CATALOGUE, "task")
    # Local files as seen from the recipe's folder: so moving a whole project changes nothing.
    entry = entry.model_copy(update={"source": seen_from(entry.source, path.parent, base)})
    return {
        "task": task,
        "finetuning": section.model_dump(mode="json", exclude={"tasks", "examples", "held_back"}),
        "examples": section.examples.get(task),
        "held_back": section.held_back.get(task),
        "split_seed": recipe.corpus.seed,
        "source": entry.model_dump(mode="json", exclude_none=True),
    }


def _pin(config: Config, base: Path) -> Config:
    """Local task files tied to their bytes."""
    from gpt_model.data.sources import downloads_folder

    entry = TaskEntry.model_validate(config["source"])
    with about_all_of(""):
        entry = entry.model_copy(update={"source": pinned(entry.source, base, downloads_folder())})
    return {**config, "source": entry.model_dump(mode="json", exclude_none=True)}


# -- the stage ----------------------------------------------------------------------------------------------------------------------------


def _run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Fine-tune both arms, one after the other, and write the pre-trained one's model and what both answered."""
    from gpt_model.data.sources import downloads_folder
    from gpt_model.tasks.examples import read_examples
    from gpt_model.tasks.layouts import Layout
    from gpt_model.tokenizer import Tokenizer

    entry = TaskEntry.model_validate(config["source"])
    with about_all_of(""):
        examples = read_examples(
            config["task"], entry, config["split_seed"], downloads_folder(), progress, config["examples"], config["held_back"]
        )
    tokenizer = Tokenizer.load(inputs["tokenizer"].path)
    layout = Layout(entry.form, tokenizer.vocab_size, inputs["pretrained"].config["model"]["context"])
    laid = {split: layout.lay(tokenizer, examples.splits[split]) for split in SPLITS}
    arms = {arm: _fine_tuned(arm, config, inputs["pretrained"], entry, layout, laid, output, progress) for arm in ARMS}
    model, results = arms["pretrained"][0], {arm: result for arm, (_, result) in arms.items()}
    if progress.rank:
        return {}
    _write_outputs(output, config, entry, examples, laid, results)
    _write_model(output / "model", model, entry, tokenizer)
    return _metrics(entry, examples, laid, results)


def _fine_tuned(
    arm: str, config: Config, pretrained: Artifact, entry: TaskEntry, layout: Any, laid: Mapping[SplitName, Sequence[Laid]],
    output: Path, progress: Progress,
) -> tuple[TaskModel, FineTuned]:  # fmt: skip
    """One arm: the pre-trained decoder, or the same network with fresh weights. Everything else is the same for both."""
    from gpt_model import GPT, convert
    from gpt_model.tasks.finetune import FineTuning, fine_tune
    from gpt_model.tasks.model import TaskModel, with_specials

    how = FineTuning(**config["finetuning"], precision=pretrained.config["pretraining"]["precision"])
    gpt = with_specials(convert.load(pretrained.path / "model"), how.dropout, how.seed)
    if arm == "random":
        gpt = GPT(gpt.config, how.seed)
    classes = len(entry.labels) or len(laid["test"][0].rows)
    model = TaskModel(gpt, layout, classes, how.dropout, how.seed)
    execution = replace(execution_of(progress.profile, progress), compile=False)  # shapes change with every batch
    progress.log(f"{config['task']}: fine-tuning from {arm} weights")
    said = _Arm(progress, arm)
    result = fine_tune(model, laid, how, execution, folder=output / SCRATCH / arm, progress=said, micro_rows=progress.profile.micro_batch)
    return model, result


class _Arm:
    """What one arm says, its numbers' names under its own."""

    def __init__(self, progress: Progress, arm: str) -> None:
        self._progress, self._arm = progress, arm

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._progress.metrics(step, {f"{self._arm}/{name}": value for name, value in values.items()})

    def text(self, step: int, name: str, text: str) -> None:
        self._progress.text(step, f"{self._arm}/{name}", text)

    def log(self, message: str) -> None:
        self._progress.log(f"{self._arm}: {message}")

    def advance(self, done: float, total: float, unit: str) -> None:
        self._progress.advance(done + ARMS.index(self._arm) * total, len(ARMS) * total, unit)


def _metrics(entry: TaskEntry, examples: Examples, laid: Mapping[SplitName, Sequence[Laid]], results: Mapping[str, FineTuned]) -> Metrics:
    """The final numbers: the pre-trained arm's under their plain names, the random one's as random_….

    majority and constant_… are what the best of always one answer gets.
    """
    from gpt_model.tasks import metrics

    labels, groups = [one.label for one in laid["test"]], [one.group for one in laid["test"]]
    answers = {arm: _answers(result) for arm, result in results.items()}
    constant = [metrics.scores(labels, [answer] * len(labels), len(entry.labels), groups) for answer in set(labels)]
    found = {
        "majority" if name == "accuracy" else f"constant_{name}": max(scores[name] for scores in constant)
        for name in ("accuracy", "f1", "matthews") if name in constant[0]
    }  # fmt: skip
    ratings = [one.rating for one in examples.splits["test"] if one.rating is not None]
    for arm, prefix in zip(ARMS, ("", "random_"), strict=True):
        scores = metrics.scores(labels, answers[arm], len(entry.labels), groups)
        if (high_end := entry.high_end()) is not None:
            scores |= metrics.correlation([row[high_end] for row in _probabilities(results[arm])], ratings, groups)
        found |= {f"{prefix}{name}": value for name, value in scores.items()}
    right = {arm: [a == b for a, b in zip(answer, labels, strict=True)] for arm, answer in answers.items()}
    transfer, low, high = metrics.paired_difference(right["pretrained"], right["random"], groups)
    found |= {"transfer": transfer, "transfer_low": low, "transfer_high": high}
    for arm, result in results.items():
        found |= {f"{arm}_seconds": result.seconds, f"{arm}_loss": result.loss, f"{arm}_best_epoch": result.best_epoch}
    found |= {f"{split}_examples": len(laid[split]) for split in SPLITS}
    found |= {f"{split}_examples_available": examples.available[split] for split in SPLITS}
    found["cut_examples"] = sum(one.cut for split in SPLITS for one in laid[split])
    return {name: float(value) for name, value in found.items()}


def _answers(result: FineTuned) -> list[int]:
    return [max(range(len(row)), key=row.__getitem__) for row in result.test_logits]


def _probabilities(result: FineTuned) -> list[list[float]]:
    """Of each class, for each test example."""
    import torch

    found: list[list[float]] = torch.tensor(result.test_logits, dtype=torch.float64).softmax(1).tolist()
    return found


def _class_names(entry: TaskEntry, classes: int) -> list[str]:
    return entry.label_names() or [chr(ord("A") + i) for i in range(classes)]


def _write_outputs(
    output: Path,
    config: Config,
    entry: TaskEntry,
    examples: Examples,
    laid: Mapping[SplitName, Sequence[Laid]],
    results: Mapping[str, FineTuned],
) -> None:
    """predictions.jsonl, examples.jsonl (which example is in which split, by identity and not by text), samples.json, task.json."""
    from gpt_model.data.splits import identity

    names = _class_names(entry, len(results["pretrained"].test_logits[0]))
    answers = {arm: [names[i] for i in _answers(result)] for arm, result in results.items()}
    probabilities = _probabilities(results["pretrained"])
    predictions = [
        {
            "id": one.id, "label": names[one.label], "predicted": answers["pretrained"][i], "random_predicted": answers["random"][i],
            "probabilities": [round(p, 6) for p in probabilities[i]],
        }
        for i, one in enumerate(laid["test"])
    ]  # fmt: skip
    _write_lines(output / "predictions.jsonl", predictions)
    _write_lines(output / "examples.jsonl", [
        {"split": split, "id": one.id, "group": identity(one.group).hex(), "texts": [identity(text).hex() for text in one.segments]}
        for split in SPLITS for one in examples.splits[split]
    ])  # fmt: skip
    _write_json(output / "samples.json", _samples(entry, examples.splits["test"], predictions))
    _write_json(output / "task.json", {
        "task": config["task"], "entry": config["source"], "labels": names,
        "examples": {split: len(laid[split]) for split in SPLITS}, "available": examples.available,
        "left_out": examples.left_out, "cut": {split: sum(one.cut for one in laid[split]) for split in SPLITS},
        "validation_accuracy": {arm: result.validation for arm, result in results.items()},
        "best_epoch": {arm: result.best_epoch for arm, result in results.items()},
    })  # fmt: skip


def _samples(entry: TaskEntry, test: Sequence[Example], predictions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The first test examples with their answers; few and short ones where the licence does not cover the text."""
    limit, characters = (SAMPLES, 400) if entry.show_text else (SHORT_SAMPLES, SHORT)
    chosen = [i for i, example in enumerate(test) if entry.show_text or len(example.segments[0]) <= characters][:limit]
    shown = []
    for i in chosen:
        texts = [text if len(text) <= characters else text[:characters] + " …" for text in (*test[i].segments, *test[i].options)]
        shown.append({"texts": texts, "label": predictions[i]["label"], "predicted": predictions[i]["predicted"]})
    return shown


def _write_model(folder: Path, model: TaskModel, entry: TaskEntry, tokenizer: Any) -> None:
    from gpt_model.tasks.model import save

    folder.mkdir(parents=True, exist_ok=True)
    save(model, entry.label_names(), folder, tokenizer.end_of_text)
    tokenizer.save(folder)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


# -- its checks ---------------------------------------------------------------------------------------------------------------------------


def _splits_do_not_cross(built: Built) -> Verdict:
    from gpt_model.tasks.examples import groups_crossing

    rows = json_lines(built.output / "examples.jsonl")
    groups = [{row["group"] for row in rows if row["split"] == split} for split in SPLITS]
    crossing = groups_crossing(groups)
    sizes = ", ".join(f"{len(one)} in {split}" for split, one in zip(SPLITS, groups, strict=True))
    return Verdict(crossing == 0, f"{crossing} groups are in more than one split ({sizes}).", {"crossing": crossing})


def _not_trained_on(built: Built) -> Verdict:
    """No text or group of a validation or test example is a whole document that the corpus gave to pre-training."""
    from gpt_model.data import documents
    from gpt_model.data.splits import identity

    evaluated = {
        text for row in json_lines(built.output / "examples.jsonl") if row["split"] != "training" for text in (row["group"], *row["texts"])
    }
    corpus = built.inputs["corpus"].path
    seen = {
        source: sum(identity(d).hex() in evaluated for d in documents.read(corpus, source, "training"))
        for source in documents.index(corpus)
    }
    if not (total := sum(seen.values())):
        return Verdict(True, f"None of {len(evaluated)} evaluation texts is a training document.", {"trained_on": 0})
    split = TaskEntry.model_validate(built.config["source"]).split
    worst = max(seen, key=seen.__getitem__)
    return Verdict(
        False,
        f"{total} evaluation texts are training documents, {seen[worst]} of them of source {worst!r}: raise its `held_out` to at least "
        f"{split.validation + split.test:g}, the task's validation and test shares added"
        + (f", and give it `together: {json.dumps(split.together)}` as the task's split has." if split.together else "."),
        {"trained_on": total},
    )


def _loss_is_finite(built: Built) -> Verdict:
    import math

    losses = {name: [value for _, value in points] for name, points in built.series.items() if name.endswith("/loss")}
    bad = sum(not math.isfinite(value) for values in losses.values() for value in values)
    last = ", ".join(f"{name} {values[-1]:.3f}" for name, values in sorted(losses.items()))
    finite = not bad and all(math.isfinite(built.metrics[f"{arm}_loss"]) for arm in ARMS)
    return Verdict(finite, f"{bad} of {sum(map(len, losses.values()))} losses are not finite; the last are {last}.", {"not_finite": bad})


def _beats_majority(built: Built) -> Verdict:
    m = built.metrics
    interval = f"[{m['accuracy_low']:.3f}, {m['accuracy_high']:.3f}]"
    said = f"Accuracy {m['accuracy']:.3f} {interval} against {m['majority']:.3f} for the commonest answer."
    return Verdict(m["accuracy_low"] > m["majority"], said, {name: m[name] for name in ("accuracy", "accuracy_low", "majority")})


def _transfer_beats_random(built: Built) -> Verdict:
    m = built.metrics
    said = f"Pre-training is worth {m['transfer']:+.3f} [{m['transfer_low']:+.3f}, {m['transfer_high']:+.3f}] in accuracy."
    return Verdict(m["transfer_low"] > 0, said, {name: m[name] for name in ("transfer", "transfer_low", "transfer_high")})


FINETUNED = Stage(
    name="finetuned",
    version="2",
    run=_run,
    description="The pre-trained model fine-tuned on one task as GPT-1 was, beside the same network fine-tuned from random weights.",
    kinds=("pytorch", "deepspeed"),
    checks=(
        Check("splits_do_not_cross", True, "No group of examples is in two of training, validation and test.", _splits_do_not_cross),
        Check("not_trained_on", True, "No evaluation text of the task is a document that pre-training saw.", _not_trained_on),
        Check("loss_is_finite", True, "Every loss of both arms is a finite number.", _loss_is_finite),
        Check("beats_majority", False, "The accuracy's interval lies above always giving the commonest answer.", _beats_majority),
        Check(
            "transfer_beats_random", False, "The accuracy gained over random weights is above 0, interval and all.", _transfer_beats_random
        ),
    ),
    show=show,
    pin=_pin,
    ranks="profile",
    pool="training",
    model=True,
)
