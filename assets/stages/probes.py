"""The probes of `zero_shot_dynamics`: each of GPT-1's heuristics with its examples, its chance, and
where its scale ends.

How a model answers is gpt_model/experiments/heuristics.py's.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets.contract import Config, Inputs, Progress

if TYPE_CHECKING:
    from gpt_model.finetuning.examples import Example
    from gpt_model.tokenizer import Tokenizer
    from gpt_model.transformer import Decoder

# What each heuristic asks of its task: the form, and the number of labels (of multiple choice none:
# its classes are the options).
WANTED = {
    "sentiment": ("classification", 2),
    "acceptability": ("classification", 2),
    "pronouns": ("multiple_choice", 0),
    "questions": ("multiple_choice", 0),
}
TASKS = tuple(WANTED)
# Where a heuristic's scale ends: the best published score on the paper's own data set, by task and
# metric as gpt_model/published has them, and what chance is there. On other data it is as far from
# that data's chance to a perfect score as the best was on the paper's. Of pronoun resolution (DPRD)
# the paper's tables have no best score, so that scale ends at 1.
BEST = {
    "sentiment": ("SST-2", "accuracy", 0.5),
    "acceptability": ("CoLA", "matthews", 0.0),
    "questions": ("RACE", "accuracy", 0.25),
}
# Why data that is there may have nothing to ask in it.
NOTHING = {
    "acceptability": "there are fewer than two sentences, one to choose the threshold on and one to test",
    "pronouns": "no question holds one pronoun, or _, with text after it, and names two who may be meant",
}


@dataclass(frozen=True)
class Probe:
    """One heuristic with its examples: what is right, what a model answers, and where the scale
    begins and ends.
    """

    task: str
    what: str  # the data, in words
    chance: float
    best: float
    against: str  # where `best` is from
    labels: Sequence[int]
    answer: Callable[[Decoder], list[int]]
    matthews: bool = False


def probes_of(
    config: Config, inputs: Inputs, tokenizer: Tokenizer, progress: Progress
) -> tuple[list[Probe], dict[str, str]]:
    """The heuristics whose data is there, and why each other one's is not."""
    makers = {
        "sentiment": _sentiment,
        "acceptability": _acceptability,
        "pronouns": _pronouns,
        "questions": _questions,
    }
    probes, missing = [], {}
    for task in TASKS:
        told = config["tasks"][task] or {}
        if "not_run" not in told:
            examples = _examples(config, task, inputs, progress)
            probe = makers[task](config["tasks"][task], examples, tokenizer)
            if probe.labels:
                probes.append(probe)
                continue
        missing[task] = told.get("not_run") or f"{NOTHING[task]} ({len(examples)} looked at)"
        progress.log(f"{task}: not run here: {missing[task]}")
    return probes, missing


def _examples(config: Config, task: str, inputs: Inputs, progress: Progress) -> list[Example]:
    """At most `examples` of a task, by hash, from all its splits: nothing is trained on them."""
    from assets.store.home import downloads_folder
    from gpt_model.finetuning.entry import TaskEntry
    from gpt_model.finetuning.examples import read_examples

    told = config["tasks"][task]
    if told is None:
        return _made_sentences(inputs["corpus"].path, config["examples"], config["split_seed"])
    splits = read_examples(
        told["name"],
        TaskEntry.model_validate(told["entry"]),
        config["split_seed"],
        downloads_folder(),
        progress,
    ).splits
    every = [example for split in splits.values() for example in split]
    ranked = sorted(
        every, key=lambda one: hashlib.sha256(f"{config['split_seed']} {one.id}".encode()).digest()
    )
    return ranked[: config["examples"]]


def _sentiment(told: Mapping[str, Any], examples: list[Example], tokenizer: Tokenizer) -> Probe:
    from gpt_model.experiments.heuristics import sentiments

    texts = [example.segments[0] for example in examples]
    return _probe(
        "sentiment",
        told,
        0.5,
        [e.label for e in examples],
        lambda model: sentiments(model, tokenizer, texts),
    )


def _acceptability(
    told: Mapping[str, Any] | None, examples: list[Example], tokenizer: Tokenizer
) -> Probe:
    """The threshold is chosen on every second example, and the others are tested."""
    from gpt_model.experiments.heuristics import acceptability, threshold

    chosen_on, tested = examples[::2], examples[1::2]

    def answer(model: Decoder) -> list[int]:
        scores = acceptability(
            model, tokenizer, [example.segments[0] for example in (*chosen_on, *tested)]
        )
        at = threshold(scores[: len(chosen_on)], [example.label for example in chosen_on])
        return [int(score > at) for score in scores[len(chosen_on) :]]

    return _probe(
        "acceptability", told, 0.0, [example.label for example in tested], answer, matthews=True
    )


def _pronouns(told: Mapping[str, Any], examples: list[Example], tokenizer: Tokenizer) -> Probe:
    from gpt_model.experiments.heuristics import referents, resolution

    found = [sentence for example in examples if (sentence := resolution(example)) is not None]
    return _probe(
        "pronouns",
        told,
        0.5,
        [sentence.label for sentence in found],
        lambda model: referents(model, tokenizer, found),
    )


def _questions(told: Mapping[str, Any], examples: list[Example], tokenizer: Tokenizer) -> Probe:
    from gpt_model.experiments.heuristics import answers

    chance = sum(1 / len(example.options) for example in examples) / max(1, len(examples))
    return _probe(
        "questions",
        told,
        chance,
        [example.label for example in examples],
        lambda model: answers(model, tokenizer, examples),
    )


def _probe(
    task: str,
    told: Mapping[str, Any] | None,
    chance: float,
    labels: list[int],
    answer: Callable[[Decoder], list[int]],
    matthews: bool = False,
) -> Probe:
    from gpt_model.published import references

    best, against = 1.0, "a perfect score, as the paper's tables have none"
    if task in BEST:
        dataset, metric, its_chance = BEST[task]
        [known] = [
            one
            for one in references(task=dataset, metric=metric, generation="gpt1")
            if one.model == "best before"
        ]
        best = chance + (known.value / 100 - its_chance) / (1 - its_chance) * (1 - chance)
        against = f"{best:.3f}, as {known.printed} % are on {dataset} ({known.source})"
    what = (
        _data(told)
        if told
        else "held-out sentences, half with two neighbouring words swapped (not CoLA)"
    )
    return Probe(task, what, chance, best, against, labels, answer, matthews)


def _data(told: Mapping[str, Any]) -> str:
    """A task by name, and the files read in place of its own source."""
    source = told["entry"]["source"]
    files = (
        sorted({Path(one["path"]).name for one in source.get("pinned", ())})
        if "file" in source and "package" not in source
        else []
    )
    return f"{told['name']} ({', '.join(files)})" if files else str(told["name"])


def _made_sentences(corpus: Path, count: int, seed: int) -> list[Example]:
    """Held-out sentences of eight to thirty words; in every second one two different neighbouring
    words have changed places.
    """
    from gpt_model.data import documents
    from gpt_model.evaluation.held_out_text import sentences
    from gpt_model.finetuning.examples import Example

    found: list[str] = []
    for source in documents.index(corpus):
        own: list[str] = []
        for text in documents.read(corpus, source, "held_out"):
            own += [
                sentence
                for sentence in _plain(text, sentences(text))
                if 8 <= len(sentence.split()) <= 30
            ]
            if len(own) >= 20 * count:
                break
        found += own
    found = sorted(set(found), key=lambda text: hashlib.sha256(f"{seed} {text}".encode()).digest())[
        :count
    ]
    made = []
    for number, sentence in enumerate(found):
        text = (
            sentence if number % 4 < 2 else _swapped(sentence, random.Random(f"{seed} {sentence}"))
        )
        made.append(
            Example(
                id=str(number),
                group=sentence,
                segments=(text,),
                options=(),
                label=int(text == sentence),
            )
        )
    return made


def _plain(text: str, spans: Sequence[Any]) -> Iterator[str]:
    for start, end in spans:
        yield " ".join(text[start:end].split())


def _swapped(sentence: str, draw: random.Random) -> str:
    words = sentence.split()
    places = [i for i in range(1, len(words) - 2) if words[i].lower() != words[i + 1].lower()]
    if places:
        i = draw.choice(places)
        words[i], words[i + 1] = words[i + 1], words[i]
    return " ".join(words)
