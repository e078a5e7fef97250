"""Runs the stage `finetuned`: one task's examples, both arms fine-tuned, their scores and files,
and the checks.

Experiments that fine-tune use `prepare`, `settings_of` and `fine_tune_task` too. Input forms,
objective and metrics are `gpt_model.finetuning`'s.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from assets.contract import SCRATCH, Artifact, Built, Config, Inputs, Metrics, Progress, Verdict
from assets.execution.tuning import execution_of, joined
from assets.stages import base_model
from assets.stages.alignment import BAG_OF_WORDS, NO_WORDS
from assets.stages.finetuning import ARMS, CONSTANT
from assets.store.home import downloads_folder
from gpt_model import lora
from gpt_model.bag_of_words import task_logits
from gpt_model.data import documents
from gpt_model.data.splits import identity
from gpt_model.errors import Unavailable, about_all_of
from gpt_model.evaluation.results import cut_text
from gpt_model.finetuning import metrics
from gpt_model.finetuning.entry import SCORE_NAMES, SPLITS, SplitName, TaskEntry
from gpt_model.finetuning.examples import Example, Examples, groups_crossing, read_examples
from gpt_model.finetuning.heads import TaskModel, save
from gpt_model.finetuning.input_forms import EncodedExample, InputFormat, truncation_of
from gpt_model.finetuning.metrics import Scoring
from gpt_model.finetuning.objective import FineTuned, FineTuning, fine_tune
from gpt_model.finetuning.start import everything, nothing, start_decoder
from gpt_model.io import dump_json, read_json_lines, rounded, write_json_lines
from gpt_model.progress import Progress as TrainingProgress
from gpt_model.tokenizer import Tokenizer
from gpt_model.training.batching import ENCODED_ROWS, chunks
from gpt_model.training.engine import Execution
from gpt_model.training.sharded import for_evaluation, reading, without_memory
from gpt_model.training.shared_batches import results_of_items
from gpt_model.transformer import GPT, Decoder

SHOWN_EXAMPLES, SAMPLE_CHARACTERS = 8, 400
# Where the licence does not cover showing the text
RESTRICTED_SAMPLES, RESTRICTED_CHARACTERS = 3, 60


def run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Fine-tune both arms, one after the other; write the pre-trained one's model and both arms'
    answers. Every rank runs it, rank 0 writes.
    """
    if reason := inputs["pretrained"].not_run or config.get("not_run"):
        raise Unavailable(reason)
    pretrained, tokenizer = inputs["pretrained"], Tokenizer.load(inputs["tokenizer"].path)
    task = prepare(config, pretrained, tokenizer, progress)
    settings, execution = settings_of(config, pretrained), joined(progress)
    adapters = lora.LoRA(**config["lora"]) if "lora" in config else None
    models, results = {}, {}
    for number, arm in enumerate(ARMS):
        # Both arms are trained alike, but that fresh weights have nothing to adapt: they are
        # trained whole, or what transfer is compared with would hardly learn.
        transferred, adapted = (nothing, None) if arm == "random" else (everything, adapters)
        gpt = start_decoder(pretrained.path / "model", settings, execution, transferred, adapted)
        progress.log(f"{task.task}: fine-tuning from {arm} weights")
        arm_progress = PartProgress(progress, arm, number, len(ARMS))
        models[arm], results[arm] = fine_tune_task(
            gpt, task, settings, output / SCRATCH / arm, progress, arm_progress
        )
    adapter_metrics = lora.counted(without_memory(models["pretrained"])) if adapters else {}
    write_model(output, models["pretrained"], task.entry, tokenizer, execution, adapters)
    if progress.rank:
        return {}
    progress.log(f"{task.task}: a bag of words on the same rows")
    bag_of_words = bag_of_words_logits(task)
    write_outputs(output, config, task, results, bag_of_words)
    return {**metrics_of(task, results, bag_of_words), **adapter_metrics}


@dataclass(frozen=True)
class TaskData:
    """A task's examples, as read and as a decoder's inputs."""

    task: str
    entry: TaskEntry
    examples: Examples
    input_format: InputFormat
    encoded: Mapping[SplitName, Sequence[EncodedExample]]
    scoring: Scoring

    @property
    def classes(self) -> int:
        """Labels, or options of a question."""
        return len(self.entry.label_names()) or len(self.encoded["test"][0].rows)


def prepare(
    config: Config, pretrained: Artifact, tokenizer: Tokenizer, progress: Progress
) -> TaskData:
    """The task of `config`, read, split and encoded for the pre-trained model's context.
    Collective.
    """
    execution = joined(progress)
    entry, shape = TaskEntry.model_validate(config["source"]), base_model.shape(pretrained)
    with about_all_of(""):
        examples = read_examples(
            config["task"],
            entry,
            config["split_seed"],
            downloads_folder(),
            progress,
            config["examples"],
            config["held_back"],
        )
    input_format = InputFormat(
        entry.form, tokenizer.vocab_size, shape["context"], truncation_of(shape["family"])
    )

    def encode(split: SplitName) -> list[EncodedExample]:
        rows = examples.splits[split]
        return results_of_items(
            lambda items: input_format.encode(tokenizer, [rows[item] for item in items]),
            chunks(len(rows), ENCODED_ROWS),
            execution,
        )

    encoded = {split: encode(split) for split in SPLITS}
    scoring = Scoring.of_task(entry)
    return TaskData(config["task"], entry, examples, input_format, encoded, scoring)


def settings_of(config: Config, pretrained: Artifact) -> FineTuning:
    """The recipe's section, in the precision that the model was pre-trained in."""
    return FineTuning(**config["finetuning"], precision=base_model.precision(pretrained))


def fine_tune_task(
    gpt: Decoder,
    task: TaskData,
    settings: FineTuning,
    folder: Path,
    progress: Progress,
    part_progress: TrainingProgress,
) -> tuple[TaskModel, FineTuned]:
    """`gpt`, which has the special tokens' rows, fine-tuned on `task`. A killed attempt goes on
    from what `folder` holds. Reports go to `part_progress`.
    """
    model = TaskModel(gpt, task.input_format, task.classes, settings.dropout, settings.seed)
    result = fine_tune(
        model,
        task.encoded,
        settings,
        task.scoring,
        execution_of(progress, fixed_shapes=False),
        folder=folder,
        progress=part_progress,
        rows=progress.profile.micro_batch,
    )
    return model, result


def bag_of_words_logits(task: TaskData) -> Sequence[Sequence[float]] | None:
    """What a bag of words of the task's training rows makes of its test rows [test, classes]; None
    where they have no words. The validation rows choose its strength, as they choose an epoch.
    """
    logits = task_logits(
        task.examples.splits,
        task.entry.form,
        task.classes,
        lambda logits: task.scoring.of(task.encoded["validation"], logits.tolist()),
    )
    return None if logits is None else logits.tolist()


class PartProgress:
    """The progress of one of several fine-tunings: its metrics under its name, and its share of the
    whole.
    """

    def __init__(self, progress: Progress, name: str, number: int, count: int) -> None:
        self._progress, self._name, self._number, self._count = progress, name, number, count

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        named = {f"{self._name}/{metric}": value for metric, value in values.items()}
        self._progress.metrics(step, named)

    def text(self, step: int, name: str, text: str) -> None:
        self._progress.text(step, f"{self._name}/{name}", text)

    def log(self, message: str) -> None:
        self._progress.log(f"{self._name}: {message}")

    def advance(self, done: float, total: float, unit: str) -> None:
        self._progress.advance(done + self._number * total, self._count * total, unit)


def metrics_of(
    task: TaskData, results: Mapping[str, FineTuned], bag_of_words: Sequence[Sequence[float]] | None
) -> Metrics:
    """The final metrics: the pre-trained arm's under their plain names, the random one's as
    random_…, the bag of words' as bag_of_words/…

    majority and constant_… are the best that always one answer gets; PART/… is the pre-trained arm
    on a part of the test split, bag_of_words/PART/… the bag of words on it.
    """
    test, scoring = task.encoded["test"], task.scoring
    groups = [example.group for example in test]
    values: Metrics = {} if task.entry.scale else _constant_scores(task)
    logits = {
        "": results["pretrained"].test_logits,
        "random_": results["random"].test_logits,
        **({f"{BAG_OF_WORDS}/": bag_of_words} if bag_of_words else {}),
    }
    if not bag_of_words:
        values[f"{BAG_OF_WORDS}/not_run"] = 1.0
    for prefix, of_model in logits.items():
        scores = _scores(task, of_model, range(len(test)))
        values |= {f"{prefix}{name}": value for name, value in scores.items()}
    for part in sorted({example.part for example in test} - {""}):
        indices = [index for index, example in enumerate(test) if example.part == part]
        for prefix, of_model in logits.items():
            if prefix != "random_":
                scores = _scores(task, of_model, indices)
                values |= {f"{prefix}{part}/{name}": value for name, value in scores.items()}
        values[f"{part}/test_examples"] = len(indices)
    first, second = (scoring.parts(test, results[arm].test_logits) for arm in ARMS)
    values |= scoring.difference(first, second, groups).as_metrics("transfer")
    for arm, result in results.items():
        values |= {
            f"{arm}_seconds": result.seconds,
            f"{arm}_loss": result.loss,
            f"{arm}_best_epoch": result.best_epoch,
        }
    values |= {f"{split}_examples": len(task.encoded[split]) for split in SPLITS}
    values |= {f"{split}_examples_available": task.examples.available[split] for split in SPLITS}
    values["cut_examples"] = sum(_cut_examples(task, split) for split in SPLITS)
    values["test_cut_examples"] = _cut_examples(task, "test")
    values["test_cut_tokens"] = max(example.cut for example in test)
    return {name: float(value) for name, value in values.items()}


def _cut_examples(task: TaskData, split: SplitName) -> int:
    """Examples of a split that were cut to the context."""
    return sum(example.cut > 0 for example in task.encoded[split])


def _constant_scores(task: TaskData) -> Metrics:
    """The best score of always one answer, of each metric."""
    test = task.encoded["test"]
    labels, groups = [example.label for example in test], [example.group for example in test]
    constant = [
        metrics.scores(labels, [answer] * len(labels), len(task.entry.labels), groups)
        for answer in set(labels)
    ]
    return {
        CONSTANT[name]: max(scores[name] for scores in constant)
        for name in CONSTANT
        if name in constant[0]
    }


def _scores(
    task: TaskData, test_logits: Sequence[Sequence[float]], indices: Sequence[int]
) -> Metrics:
    """Every score of these test examples, each with its _low and _high."""
    test = [task.encoded["test"][index] for index in indices]
    logits = [test_logits[index] for index in indices]
    groups = [example.group for example in test]
    values: Metrics = {}
    if not task.entry.scale:
        labels = [example.label for example in test]
        values |= metrics.scores(labels, answers(logits), len(task.entry.labels), groups)
    if task.entry.rated():
        ratings = [example.rating for example in test if example.rating is not None]
        values |= metrics.correlation(task.scoring.ratings(logits), ratings, groups)
    return values


def answers(logits: Sequence[Sequence[float]]) -> list[int]:
    """The likeliest class of each example."""
    return [max(range(len(row)), key=row.__getitem__) for row in logits]


def write_outputs(
    output: Path,
    config: Config,
    task: TaskData,
    results: Mapping[str, FineTuned],
    bag_of_words: Sequence[Sequence[float]] | None,
) -> None:
    """predictions.jsonl, examples.jsonl (which example is in which split, by identity and not by
    text), samples.json, task.json.
    """
    splits = task.examples.splits
    predictions = _predictions(task, results, bag_of_words)
    write_json_lines(output / "predictions.jsonl", predictions, sort_keys=True)
    examples = [
        {
            "split": split,
            "id": example.id,
            "group": identity(example.group).hex(),
            "texts": [identity(text).hex() for text in example.segments],
        }
        for split in SPLITS
        for example in splits[split]
    ]
    write_json_lines(output / "examples.jsonl", examples, sort_keys=True)
    facts = {
        "task": task.task,
        "entry": config["source"],
        "labels": _class_names(task),
        "metric": task.entry.metric,
        "examples": {split: len(task.encoded[split]) for split in SPLITS},
        "available": task.examples.available,
        "left_out": task.examples.left_out,
        "cut": {split: _cut_examples(task, split) for split in SPLITS},
        "validation": {arm: result.validation for arm, result in results.items()},
        "best_epoch": {arm: result.best_epoch for arm, result in results.items()},
    }
    samples = _samples(task.entry, splits["test"], predictions)
    for name, value in {"samples.json": samples, "task.json": facts}.items():
        dump_json(output / name, value, sort_keys=True, indent=1, ensure_ascii=False)


def _class_names(task: TaskData) -> list[str]:
    return task.entry.label_names() or [chr(ord("A") + index) for index in range(task.classes)]


def _predictions(
    task: TaskData, results: Mapping[str, FineTuned], bag_of_words: Sequence[Sequence[float]] | None
) -> list[dict[str, Any]]:
    """A row a test example: the label, each arm's and the bag of words' answer, and the pre-trained
    arm's probabilities; on a scale, ratings, people's as they gave them.
    """
    names, test = _class_names(task), task.encoded["test"]
    logits: dict[str, Sequence[Sequence[float]]] = {arm: results[arm].test_logits for arm in ARMS}
    if bag_of_words:
        logits[BAG_OF_WORDS] = bag_of_words
    labels: list[Any]
    predicted: dict[str, list[Any]]
    if task.entry.scale:
        labels = [example.rating for example in test]
        predicted = {
            model: [rounded(rating) for rating in task.scoring.ratings(given)]
            for model, given in logits.items()
        }
    else:
        labels = [names[example.label] for example in test]
        predicted = {
            model: [names[answer] for answer in answers(given)] for model, given in logits.items()
        }
    probabilities = torch.tensor(logits["pretrained"], dtype=torch.float64).softmax(1).tolist()
    return [
        {
            "id": example.id,
            **({"part": example.part} if example.part else {}),
            "label": labels[index],
            **({} if test[index].rating is None else {"rating": test[index].rating}),
            "predicted": predicted["pretrained"][index],
            "random_predicted": predicted["random"][index],
            **(
                {f"{BAG_OF_WORDS}_predicted": predicted[BAG_OF_WORDS][index]}
                if bag_of_words
                else {}
            ),
            "probabilities": [round(share, 6) for share in probabilities[index]],
        }
        for index, example in enumerate(test)
    ]


def _samples(
    entry: TaskEntry, test: Sequence[Example], predictions: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The first test examples with their answers; few and short ones where the licence does not
    cover showing the text.
    """
    if entry.show_text:
        limit, characters = SHOWN_EXAMPLES, SAMPLE_CHARACTERS
    else:
        limit, characters = RESTRICTED_SAMPLES, RESTRICTED_CHARACTERS
    indices = [
        index
        for index, example in enumerate(test)
        if entry.show_text or len(example.segments[0]) <= characters
    ]
    return [
        {
            "texts": [
                text if len(text) <= characters else text[:characters] + " …"
                for text in (*test[index].segments, *test[index].options)
            ],
            "label": predictions[index]["label"],
            "predicted": predictions[index]["predicted"],
        }
        for index in indices[:limit]
    ]


def write_model(
    output: Path,
    model: TaskModel,
    entry: TaskEntry,
    tokenizer: Tokenizer,
    execution: Execution,
    adapters: lora.LoRA | None,
) -> None:
    """model/, and adapters/ where it was trained by them. Rank 0 writes. Collective."""
    read = for_evaluation(model, execution.device)
    with reading(read):
        if execution.rank == 0:
            assert isinstance(read.gpt, GPT)
            if adapters:
                lora.save(read.gpt, adapters, output / "adapters")
            folder = output / "model"
            folder.mkdir(parents=True, exist_ok=True)
            save(read, entry.label_names(), folder, tokenizer.end_of_text)
            tokenizer.save(folder)


def splits_do_not_cross(built: Built) -> Verdict:
    rows = read_json_lines(built.output / "examples.jsonl")
    groups = [{row["group"] for row in rows if row["split"] == split} for split in SPLITS]
    crossing = groups_crossing(groups)
    sizes = ", ".join(
        f"{len(members)} in {split}" for split, members in zip(SPLITS, groups, strict=True)
    )
    return Verdict(
        crossing == 0,
        f"{crossing} groups are in more than one split ({sizes}).",
        {"crossing": crossing},
    )


def not_trained_on(built: Built) -> Verdict:
    """No text or group of a validation or test example is a training document of the corpus."""
    if "corpus" not in built.inputs:
        return Verdict(
            True,
            "What the imported model was trained on is not known here, so nothing of the task can "
            "be looked for in it.",
        )
    evaluated = {
        text
        for row in read_json_lines(built.output / "examples.jsonl")
        if row["split"] != "training"
        for text in (row["group"], *row["texts"])
    }
    corpus = built.inputs["corpus"].path
    seen = {
        source: sum(
            identity(document).hex() in evaluated
            for document in documents.read(corpus, source, "training")
        )
        for source in documents.index(corpus)
    }
    if not (total := sum(seen.values())):
        return Verdict(
            True,
            f"None of {len(evaluated)} evaluation texts is a training document.",
            {"trained_on": 0},
        )
    split = TaskEntry.model_validate(built.config["source"]).split
    worst = max(seen, key=seen.__getitem__)
    together = (
        f", and give it `together: {json.dumps(split.together)}` as the task's split has."
        if split.together
        else "."
    )
    return Verdict(
        False,
        f"{total} evaluation texts are training documents, {seen[worst]} of them of source "
        f"{worst!r}: raise its `held_out` to at least {split.validation + split.test:g}, the "
        f"task's validation and test shares added{together}",
        {"trained_on": total},
    )


def losses_are_finite(built: Built) -> Verdict:
    losses = {
        name: [value for _, value in points]
        for name, points in built.series.items()
        if name.endswith("/loss")
    }
    bad = sum(not math.isfinite(value) for values in losses.values() for value in values)
    last = ", ".join(f"{name} {values[-1]:.3f}" for name, values in sorted(losses.items()))
    finite = not bad and all(math.isfinite(built.metrics[f"{arm}_loss"]) for arm in ARMS)
    return Verdict(
        finite,
        f"{bad} of {sum(map(len, losses.values()))} losses are not finite; the last are {last}.",
        {"not_finite": bad},
    )


def examples_are_whole(built: Built) -> Verdict:
    """No test example lost a part of its text to the model's context."""
    values = built.metrics
    counts = (int(values[f"test_{name}"]) for name in ("cut_examples", "examples", "cut_tokens"))
    cut = cut_text(*counts)
    return Verdict(
        not cut,
        f"Test examples longer than the model's context: {cut}."
        if cut
        else "Every test example fits the model's context.",
        {"cut": values["test_cut_examples"]},
    )


def beats_majority(built: Built) -> Verdict:
    # Constant ratings correlate with nothing.
    name = CONSTANT.get(built.config["source"]["metric"])
    return _beats(built, "constant", built.metrics[name] if name else 0.0, "always one answer")


def beats_bag_of_words(built: Built) -> Verdict:
    score = built.metrics.get(f"{BAG_OF_WORDS}/{built.config['source']['metric']}")
    if score is None:
        return Verdict(True, f"A bag of words is not run: {NO_WORDS}.")
    described = "a bag of words that was trained on the same rows"
    return _beats(built, BAG_OF_WORDS, score, described)


def _beats(built: Built, baseline: str, baseline_score: float, described: str) -> Verdict:
    """Whether the task's metric is better than a baseline's, interval and all."""
    metric = built.config["source"]["metric"]
    score, low, high = (built.metrics[f"{metric}{end}"] for end in ("", "_low", "_high"))
    return Verdict(
        low > baseline_score,
        f"{SCORE_NAMES[metric].capitalize()} {score:.3f} [{low:.3f}, {high:.3f}] against "
        f"{baseline_score:.3f} for {described}.",
        {metric: score, f"{metric}_low": low, baseline: baseline_score},
    )


def transfer_beats_random(built: Built) -> Verdict:
    values, metric = built.metrics, built.config["source"]["metric"]
    transfer, low, high = (values[f"transfer{end}"] for end in ("", "_low", "_high"))
    return Verdict(
        low > 0,
        f"Pre-training is worth {transfer:+.3f} [{low:+.3f}, {high:+.3f}] in "
        f"{SCORE_NAMES[metric]}.",
        {"transfer": transfer, "transfer_low": low, "transfer_high": high},
    )
