"""A bag of words on a task: what it can know of each form, and what it is beside."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from assets.report.scores import _task_baselines
from gpt_model.bag_of_words import Floats, task_logits
from gpt_model.finetuning.entry import SPLITS, Form, SplitName
from gpt_model.finetuning.examples import Example, rating_target

SIZES = dict(zip(SPLITS, (300, 60, 100), strict=True))
ANIMALS = ["cat", "dog", "fox", "hen", "owl"]


def splits(make: Callable[[random.Random], Example]) -> dict[SplitName, list[Example]]:
    generator = random.Random(3)
    return {name: [make(generator) for _ in range(size)] for name, size in SIZES.items()}


def right(form: Form, examples: dict[SplitName, list[Example]], classes: int) -> float:
    """The share of test rows that it answers rightly."""
    labels = np.array([example.label for example in examples["validation"]])

    def accuracy(logits: Floats) -> float:
        return float(np.mean(logits.argmax(1) == labels))

    logits = task_logits(examples, form, classes, accuracy)
    assert logits is not None and logits.shape == (100, classes)
    return float(np.mean(logits.argmax(1) == [example.label for example in examples["test"]]))


def review(generator: random.Random) -> Example:
    label = generator.randrange(2)
    text = f"film {generator.randrange(50)} was {('dull', 'fine')[label]}"
    return Example("1", text, (text,), (), label)


def pair(generator: random.Random) -> Example:
    """Alike where both name one animal, whatever the order."""
    first, second = generator.choices(ANIMALS, k=2)
    if generator.random() < 0.3:
        second = first
    label = int(first == second)
    return Example("1", "", (f"the {first} ran", f"a {second} slept"), (), label)


def question(generator: random.Random) -> Example:
    """Right is the option that has the question's animal in it."""
    options = generator.sample(ANIMALS, 3)
    label = generator.randrange(3)
    requested = f"what of the {options[label]}"
    return Example("1", "", (requested,), tuple(f"the {name} slept" for name in options), label)


def test_it_learns_what_words_decide_in_every_form() -> None:
    assert right("classification", splits(review), 2) == 1.0
    assert right("similarity", splits(pair), 2) > 0.95
    assert right("entailment", splits(pair), 2) > 0.95
    assert right("multiple_choice", splits(question), 3) > 0.95


def test_the_order_of_a_similarity_means_nothing() -> None:
    def logits(examples: dict[SplitName, list[Example]]) -> Floats:
        result = task_logits(examples, "similarity", 2, lambda values: 0.0)
        assert result is not None
        return result

    examples = splits(pair)
    swapped = [replace(item, segments=item.segments[::-1]) for item in examples["test"]]
    assert np.allclose(logits(examples), logits({**examples, "test": swapped}))


def test_ratings_between_two_classes_are_shared_out_and_a_text_without_words_is_not_run() -> None:
    def rated(generator: random.Random) -> Example:
        word, rating = generator.choice([("dull", 0.4), ("fair", 2.6), ("fine", 4.8)])
        return Example("1", "", (word,), (), round(rating), rating, rating_target(rating, 0, 5))

    examples = splits(rated)
    logits = task_logits(examples, "classification", 6, lambda values: 0.0)
    assert logits is not None
    expected = np.exp(logits) @ np.arange(6)
    ratings = [example.rating for example in examples["test"]]
    assert np.corrcoef(expected, np.array(ratings, dtype=float))[0, 1] > 0.98
    for split in SPLITS:
        examples[split] = [replace(example, segments=("!",)) for example in examples[split]]
    assert task_logits(examples, "classification", 6, lambda values: 0.0) is None


def test_one_label_in_training_is_the_answer_to_all() -> None:
    examples = splits(review)
    examples["training"] = [replace(item, label=1) for item in examples["training"]]
    logits = task_logits(examples, "classification", 3, lambda values: 0.0)
    assert logits is not None and logits[0].tolist() == [-np.inf, 0.0, -np.inf]


def test_it_stands_beside_the_score_and_is_what_must_be_beaten() -> None:
    metrics = {"random_accuracy": 0.5, "majority": 0.55, "bag_of_words/accuracy": 0.735}
    text = "majority 0.550, bag of words 0.735, random 0.500"
    assert _task_baselines(metrics, "accuracy") == (text, 0.735)
    del metrics["bag_of_words/accuracy"]  # a build of before there was one
    text = "majority 0.550, random 0.500"
    assert _task_baselines(metrics, "accuracy") == (text, 0.55)
