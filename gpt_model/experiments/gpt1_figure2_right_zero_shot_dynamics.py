"""GPT-1, figure 2 (right): what a decoder can do that was only pre-trained, at each snapshot of its
pre-training, for the Transformer and an LSTM of its width trained alike.

As in the figure each score is also put on a scale from chance (0) to the best published score of a
single model (1). Where other data stands in for the paper's, the scale is that of the paper's data
set, and the document says both. How a model answers is `gpt1_zero_shot_heuristics.py`'s.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from gpt_model.data import documents
from gpt_model.evaluation.held_out_text import sentences
from gpt_model.experiments import gpt1_zero_shot_heuristics as heuristics
from gpt_model.experiments.document import ONE_RUN, series
from gpt_model.finetuning import metrics
from gpt_model.finetuning.entry import TaskEntry
from gpt_model.finetuning.examples import Example, read_examples
from gpt_model.progress import Progress
from gpt_model.published import references
from gpt_model.statistics import ConfidenceInterval, wilson
from gpt_model.tokenizer import Tokenizer
from gpt_model.training.engine import Execution
from gpt_model.transformer import Decoder

TRANSFORMER, LSTM = "Transformer", "LSTM"
# Where a heuristic's scale ends: the best published score on the paper's own data set, by task and
# metric as gpt_model/published has them, and what chance is there. On other data it is as far from
# that data's chance to a perfect score as the best was on the paper's. Of pronoun resolution (DPRD)
# the paper's tables have no best score, so that scale ends at 1.
BEST = {
    "sentiment": ("SST-2", "accuracy", 0.5),
    "acceptability": ("CoLA", "matthews", 0.0),
    "questions": ("RACE", "accuracy", 0.25),
}
# Why a heuristic may have nothing to answer in data that is available.
NO_EXAMPLES = {
    "acceptability": "there are fewer than two sentences, one to choose the threshold on and one "
    "to test",
    "pronouns": "no question holds one pronoun, or _, with text after it, and names two who may be "
    "meant",
}
# A task by its heuristic: {"name": …, "entry": …}, with "not_run" where its data is unavailable;
# None for the corpus's held-out sentences.
Tasks = Mapping[str, Mapping[str, Any] | None]


@dataclass(frozen=True)
class Probe:
    """One heuristic with its examples: the right answers, how a model answers, and where the scale
    begins and ends.
    """

    task: str
    data: str  # which, in words
    chance: float
    best: float
    best_source: str
    labels: Sequence[int]
    answer: Callable[[Decoder, Execution], list[int]]
    matthews: bool = False

    def score(self, model: Decoder, execution: Execution) -> ConfidenceInterval:
        """The model's accuracy, or its Matthews correlation. Collective where there are several
        ranks.
        """
        answers = self.answer(model, execution)
        if self.matthews:
            groups = [str(number) for number in range(len(answers))]
            scores = metrics.scores(list(self.labels), list(answers), 2, groups)
            value, low, high = (scores[f"matthews{end}"] for end in ("", "_low", "_high"))
            return ConfidenceInterval(value, low, high)
        right = sum(a == b for a, b in zip(answers, self.labels, strict=True))
        return wilson(right, len(self.labels))

    def scaled(self, score: ConfidenceInterval) -> ConfidenceInterval:
        """From chance (0) to the best published score (1)."""

        def scale(value: float) -> float:
            return (value - self.chance) / (self.best - self.chance)

        return ConfidenceInterval(scale(score.value), scale(score.low), scale(score.high))


# The examples of each heuristic.


def build_probes(
    tasks: Tasks,
    corpus: Path,
    tokenizer: Tokenizer,
    examples: int,
    split_seed: int,
    downloads: Path,
    progress: Progress,
) -> tuple[list[Probe], dict[str, str]]:
    """The heuristics that have at most so many `examples` each, and why the others have none."""
    builders = {
        "sentiment": _sentiment,
        "acceptability": _acceptability,
        "pronouns": _pronouns,
        "questions": _questions,
    }
    probes, missing = [], {}
    for name, build_probe in builders.items():
        task = tasks[name]
        if task and "not_run" in task:
            missing[name] = str(task["not_run"])
        else:
            rows = (
                _read_examples(task, examples, split_seed, downloads, progress)
                if task
                else held_out_sentences(corpus, examples, split_seed)
            )
            probe = build_probe(task, rows, tokenizer)
            if probe.labels:
                probes.append(probe)
                continue
            missing[name] = f"{NO_EXAMPLES[name]} ({len(rows)} looked at)"
        progress.log(f"{name}: not run here: {missing[name]}")
    return probes, missing


def _read_examples(
    task: Mapping[str, Any], count: int, split_seed: int, downloads: Path, progress: Progress
) -> list[Example]:
    """At most `count` examples, by hash, from all splits: nothing is trained on them."""
    entry = TaskEntry.model_validate(task["entry"])
    splits = read_examples(task["name"], entry, split_seed, downloads, progress).splits
    examples = [example for split in splits.values() for example in split]
    examples.sort(
        key=lambda example: hashlib.sha256(f"{split_seed} {example.id}".encode()).digest()
    )
    return examples[:count]


def _sentiment(
    task: Mapping[str, Any] | None, examples: list[Example], tokenizer: Tokenizer
) -> Probe:
    texts, labels = _texts(examples), _labels(examples)
    return _probe(
        "sentiment",
        task,
        0.5,
        labels,
        lambda model, execution: heuristics.sentiments(model, tokenizer, texts, execution),
    )


def _acceptability(
    task: Mapping[str, Any] | None, examples: list[Example], tokenizer: Tokenizer
) -> Probe:
    """The threshold is chosen on every second example, and the others are tested."""
    validation, test = examples[::2], examples[1::2]

    def answer(model: Decoder, execution: Execution) -> list[int]:
        texts = _texts([*validation, *test])
        scores = heuristics.acceptability(model, tokenizer, texts, execution)
        threshold = heuristics.threshold(scores[: len(validation)], _labels(validation))
        return [int(score > threshold) for score in scores[len(validation) :]]

    return _probe("acceptability", task, 0.0, _labels(test), answer, matthews=True)


def _pronouns(
    task: Mapping[str, Any] | None, examples: list[Example], tokenizer: Tokenizer
) -> Probe:
    resolved = [
        sentence for example in examples if (sentence := heuristics.resolution(example)) is not None
    ]
    return _probe(
        "pronouns",
        task,
        0.5,
        [sentence.label for sentence in resolved],
        lambda model, execution: heuristics.referents(model, tokenizer, resolved, execution),
    )


def _questions(
    task: Mapping[str, Any] | None, examples: list[Example], tokenizer: Tokenizer
) -> Probe:
    chance = sum(1 / len(example.options) for example in examples) / max(1, len(examples))
    return _probe(
        "questions",
        task,
        chance,
        _labels(examples),
        lambda model, execution: heuristics.answers(model, tokenizer, examples, execution),
    )


def _texts(examples: Sequence[Example]) -> list[str]:
    return [example.segments[0] for example in examples]


def _labels(examples: Sequence[Example]) -> list[int]:
    return [example.label for example in examples]


def _probe(
    name: str,
    task: Mapping[str, Any] | None,
    chance: float,
    labels: list[int],
    answer: Callable[[Decoder, Execution], list[int]],
    matthews: bool = False,
) -> Probe:
    best, source = 1.0, "a perfect score, as the paper's tables have none"
    if name in BEST:
        dataset, metric, dataset_chance = BEST[name]
        [published] = [
            reference
            for reference in references(task=dataset, metric=metric, generation="gpt1")
            if reference.model == "best before"
        ]
        share = (published.value / 100 - dataset_chance) / (1 - dataset_chance)
        best = chance + share * (1 - chance)
        source = f"{best:.3f}, as {published.printed} % are on {dataset} ({published.source})"
    data = (
        _data(task)
        if task
        else "held-out sentences, half with two neighbouring words swapped (not CoLA)"
    )
    return Probe(name, data, chance, best, source, labels, answer, matthews)


def _data(task: Mapping[str, Any]) -> str:
    """A task by name, and the files read in place of its own source."""
    source = task["entry"]["source"]
    files = (
        sorted({Path(file["path"]).name for file in source.get("pinned", ())})
        if "file" in source and "package" not in source
        else []
    )
    return f"{task['name']} ({', '.join(files)})" if files else str(task["name"])


def held_out_sentences(corpus: Path, count: int, seed: int) -> list[Example]:
    """At most `count` held-out sentences of eight to thirty words; in every second one two
    different neighbouring words have changed positions (label 0).
    """
    candidates: list[str] = []
    for source in documents.index(corpus):
        of_source: list[str] = []
        for text in documents.read(corpus, source, "held_out"):
            of_source += [
                sentence
                for sentence in _one_line_each(text, sentences(text))
                if 8 <= len(sentence.split()) <= 30
            ]
            if len(of_source) >= 20 * count:
                break
        candidates += of_source
    ranked = sorted(
        set(candidates), key=lambda text: hashlib.sha256(f"{seed} {text}".encode()).digest()
    )
    examples = []
    for number, sentence in enumerate(ranked[:count]):
        draw = random.Random(f"{seed} {sentence}")
        text = sentence if number % 4 < 2 else _swapped(sentence, draw)
        examples.append(
            Example(
                id=str(number),
                group=sentence,
                segments=(text,),
                options=(),
                label=int(text == sentence),
            )
        )
    return examples


def _one_line_each(text: str, spans: Sequence[Any]) -> Iterator[str]:
    for start, end in spans:
        yield " ".join(text[start:end].split())


def _swapped(sentence: str, draw: random.Random) -> str:
    tokens = sentence.split()
    different = [first.lower() != second.lower() for first, second in pairwise(tokens)]
    candidates = [i for i in range(1, len(tokens) - 2) if different[i]]
    if candidates:
        i = draw.choice(candidates)
        tokens[i], tokens[i + 1] = tokens[i + 1], tokens[i]
    return " ".join(tokens)


# The curves.


@dataclass(frozen=True)
class ZeroShotDynamics:
    """Every heuristic's score at every snapshot of each network."""

    probes: Sequence[Probe]
    missing: Mapping[str, str]  # why a heuristic has no examples
    # (network, heuristic) -> tokens trained on, and the score then
    curves: Mapping[tuple[str, str], Sequence[tuple[float, ConfidenceInterval]]]

    def metrics(self) -> dict[str, float]:
        """Of the last snapshot: network/heuristic with its ends."""
        values = {f"{probe.task}/examples": float(len(probe.labels)) for probe in self.probes}
        for (network, task), points in self.curves.items():
            values |= points[-1][1].as_metrics(f"{network.lower()}/{task}")
        return values

    def document(self) -> dict[str, Any]:
        probes = {probe.task: probe for probe in self.probes}
        scales = {
            "caption": "Where each scale begins and ends.",
            "columns": ["heuristic", "data", "chance (0)", "best published (1)", "examples"],
            "rows": [
                [
                    probe.task,
                    probe.data,
                    round(probe.chance, 3),
                    probe.best_source,
                    len(probe.labels),
                ]
                for probe in self.probes
            ],
        }
        points = {
            "caption": "Accuracy, of acceptability Matthews' coefficient, at each snapshot; 95 % "
            "intervals over the examples, which are of all splits, as nothing is trained on them.",
            "columns": [
                "heuristic",
                "model",
                "tokens trained on",
                "score",
                "on the scale",
                "examples",
            ],
            "rows": [
                [
                    task,
                    network,
                    f"{tokens:,.0f}",
                    str(score),
                    str(probes[task].scaled(score)),
                    len(probes[task].labels),
                ]
                for (network, task), curve in self.curves.items()
                for tokens, score in curve
            ],
        }
        return {
            "title": "Zero-shot behaviour against pre-training",
            "source": "GPT-1, figure 2 (right)",
            "summary": [
                *(
                    f"{task}, {network}: {curve[-1][1]} at the end, "
                    f"chance {probes[task].chance:.3f}."
                    for (network, task), curve in self.curves.items()
                ),
                *(f"{task}: not run here. {reason}." for task, reason in self.missing.items()),
                ONE_RUN,
            ],
            "tables": [scales, points],
            "plots": [
                self._plot(network) for network in dict.fromkeys(name for name, _ in self.curves)
            ],
        }

    def _plot(self, network: str) -> dict[str, Any]:
        curves = []
        for probe in self.probes:
            points = self.curves[network, probe.task]
            scaled = [probe.scaled(score) for _, score in points]
            curves.append(series(probe.task, [tokens for tokens, _ in points], scaled))
        return {
            "title": f"zero-shot scores of the {network}",
            "x": "tokens trained on",
            "y": "0: chance, 1: best published",
            "log_x": True,
            "series": curves,
            "levels": [{"label": "chance", "y": 0.0}],
        }
