"""The published recipes cut to a size that builds here: a tiny shape, a few rows of our own in place
of each data set, and all their tasks, suites and experiments.

`write_hub` leaves every data set and model that a recipe, task or suite names in the hub's layout,
for `local_hub.serve`; `cut` writes a recipe that extends a published one.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from conftest import SUBJECTS, VERBS
from local_hub import Rows, write_classifier, write_dataset
from public_rows import rows_for
from task_rows import SETS
from test_imported import write_checkpoint

from assets.recipe.recipe import Recipe, load_recipe
from assets.recipe.yaml_file import load_strict
from gpt_model.evaluation.suites import SUITES, Dataset, SuiteTask, suite_tasks
from gpt_model.finetuning.entry import CATALOGUE, TaskEntry
from gpt_model.tokenizer import Tokenizer

PUBLISHED = ("gpt1", "gpt2-small", "gpt3-small", "instructgpt-1.3b")  # one of each family
IMPORTED = "imported"  # a recipe of our own, that evaluates a model of the hub
MODEL = "example/gpt2"
OWN_SUITE = "last-words"  # beside each recipe's suites
ROWS = 40  # of each split of a task
Splits = dict[str, dict[tuple[str, str], Rows]]  # data set -> (subset, split) -> rows

SIZES = """
corpus: {held_out: 0.2}
tokenizer: {vocab_size: 600}
model: {layers: 2, width: 32, heads: 2, context: 128}
pretraining: {tokens: 16_384, batch_tokens: 2048, warmup_tokens: 2048, evaluations: 1, samples: 1}
"""
OF_FAMILY = {
    "gpt1": """
tokenizer: {from: example/gpt1-vocabulary}
pretraining: {snapshots: 2}
finetuning: {epochs: 1, batch: 8}
experiments:
  zero_shot_dynamics: {examples: 20}
  visible_context: {positions: 20}
  depth: {layers: [1]}
""",
    "gpt2-small": "",
    "gpt3-small": """
model: {context: 256, band: 32}
pretraining: {decay_tokens: 12_288, batch_ramp: {from_tokens: 1024, over_tokens: 4096}}
""",
    "instructgpt-1.3b": """
model: {context: 256, band: 32}
pretraining: {decay_tokens: 12_288, batch_ramp: {from_tokens: 1024, over_tokens: 4096}}
alignment:
  supervised: {epochs: 2}
  ppo: {episodes: 8, batch: 8, minibatch: 8, ptx_examples: 1, max_new_tokens: 4, evaluations: 1}
  dpo: {epochs: 1, batch: 16}
  preferences: {prompts: 4, best_of: 2, max_new_tokens: 4, suites: [truthfulqa, toxicity, gpt3_squad]}
""",
}
IMPORTING = """
name: imported_cut
imported: {{hub: {model}, licence: made up}}
evaluation: {{suites: [{suite}], examples: {{{name}: 2}}}}
"""


def cut(name: str, folder: Path) -> Path:
    """A recipe that extends the published one `name`, with a tiny shape and a few rows of each of
    its tasks and suites; and in `folder` the files of those that are had on request only. IMPORTED
    is written whole.
    """
    if name == IMPORTED:
        path = folder / f"{name}-cut.yaml"
        path.write_text(IMPORTING.format(model=MODEL, suite=_own_suite(folder), name=OWN_SUITE))
        return path
    recipe = load_recipe(name)
    sections = _merged(yaml.safe_load(SIZES), yaml.safe_load(OF_FAMILY[name]) or {})
    if recipe.finetuning:
        tasks = recipe.finetuning.tasks
        sections["finetuning"] |= {
            "examples": dict.fromkeys(tasks, ROWS // 2),
            "held_back": dict.fromkeys(tasks, ROWS // 4),
            "files": {task: files for task in tasks if (files := _task_files(task, folder))},
        }
    if recipe.evaluation:
        suites = [*recipe.evaluation.suites, _own_suite(folder)]
        limits = dict.fromkeys([*recipe.evaluation.suites, OWN_SUITE], 2)
        files = {
            name: file
            for suite in recipe.evaluation.suites
            for task in tasks_of(suite)
            for name, file in _suite_files(task, folder)
        }
        sections["evaluation"] = {"suites": suites, "examples": limits, "files": files}
    path = folder / f"{name}-cut.yaml"
    path.write_text(yaml.safe_dump({"extends": name, "name": f"{recipe.name}_cut", **sections}))
    return path


def _own_suite(folder: Path) -> str:
    """The path, as seen from `folder`, of a suite of our own on rows that lie beside it."""
    (own := folder / "own").mkdir()
    [task] = (task for task in tasks_of("gpt2_lambada") if task.name == "last_word")
    assert isinstance(task.metadata.data, Dataset)
    _write(own / "rows.jsonl", rows_for(task.metadata.data))
    contents = yaml.safe_load((SUITES / "gpt2_lambada.yaml").read_text())["task"][0]
    contents["metadata"]["data"]["source"] = {"path": "rows.jsonl"}
    questions = {"doc_to_text": "context", "doc_to_target": "target"}
    (own / f"{OWN_SUITE}.yaml").write_text(yaml.safe_dump({**contents, **questions}))
    return f"own/{OWN_SUITE}.yaml"


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    return {**base, **{key: {**base.get(key, {}), **section} for key, section in over.items()}}


def tasks_of(suite: str) -> list[SuiteTask]:
    return suite_tasks(suite, yaml.safe_load((SUITES / f"{suite}.yaml").read_text()))


def entry_of(task: str) -> TaskEntry:
    return load_strict(TaskEntry, task, [CATALOGUE], "task")


def _task_files(task: str, folder: Path) -> dict[str, Any]:
    """A task's files, two of them tests, where its authors give it on request."""
    if entry_of(task).source.on_request is None:
        return {}
    names = [f"{task}.{split}.jsonl" for split in ("training", "spring", "winter")]
    for number, name in enumerate(names):
        _write(folder / name, task_rows(task, number))
    return {"training": names[0], "test": {"spring": names[1], "winter": names[2]}}


def _suite_files(task: SuiteTask, folder: Path) -> Iterator[tuple[str, str]]:
    """The recipe's `evaluation.files` of a suite's task, where its authors give it on request."""
    data, name = task.metadata.data, f"{task.suite}/{task.name}"
    if not isinstance(data, Dataset) or data.source.on_request is None:
        return
    parts = ["", "/demonstrations"] if data.demonstrations else [""]
    for part, rows in zip(parts, _parts(data), strict=False):
        file = f"{name}{part}.jsonl".replace("/", ".")
        _write(folder / file, rows)
        yield f"{name}{part}", file


def _write(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_hub(folder: Path) -> None:
    """Every data set and model of the hub that a published recipe, task or suite names."""
    sets: Splits = {}
    for name in PUBLISHED:
        _add_texts(sets, load_recipe(name))
    for path in sorted(CATALOGUE.glob("*.yaml")):
        _add_task(sets, path.stem)
    for task in (task for path in sorted(SUITES.glob("*.yaml")) for task in tasks_of(path.stem)):
        _add_suite_task(sets, task)
        if (classifier := task.metadata.classifier) and classifier.hub:
            write_classifier(folder / "models" / classifier.hub)
    _write_vocabulary(folder / "models" / "example" / "gpt1-vocabulary")
    write_checkpoint(folder / "models" / MODEL)
    for name, splits in sets.items():
        write_dataset(folder / "datasets" / name, splits)


def _write_vocabulary(folder: Path) -> None:
    """A vocabulary of 600 in the files of GPT-1's release."""
    draw = random.Random(0)
    trained = Tokenizer.train((sentence(draw) for _ in range(4000)), vocab_size=600, style="gpt1")
    trained.save(folder)
    (folder / "vocab.json").rename(folder / "encoder_bpe_40000.json")
    (folder / "merges.txt").rename(folder / "vocab_40000.bpe")
    for path in folder.iterdir():
        if "40000" not in path.name:
            path.unlink()


def _add_texts(sets: Splits, recipe: Recipe) -> None:
    """The corpus's sources, and what people wrote and judged."""
    documents = [[sentence(draw) for _ in range(30)] for draw in map(random.Random, range(60))]
    for source in recipe.corpus.sources if recipe.corpus else ():
        whole = [" ".join(lines) for lines in documents]
        texts = [line for lines in documents for line in lines] if source.group else whole
        rows = [{"text": text} for text in texts]
        _add(sets, source.hub, source.config, source.split or "train", rows)
    if alignment := recipe.alignment:
        for section in (alignment.demonstrations, alignment.comparisons, alignment.prompts):
            for human in section.sources if section else ():
                split = human.split or "train"
                _add(sets, human.hub, human.config, split, HUMAN_ROWS[human.name])


def _add_task(sets: Splits, task: str) -> None:
    source = entry_of(task).source
    for number, name in enumerate(source.names() if source.hub else ()):
        subset, _, split = name.rpartition("/")
        _add(sets, source.hub, subset or source.subset, split, task_rows(task, number))


def _add_suite_task(sets: Splits, task: SuiteTask) -> None:
    if isinstance(data := task.metadata.data, Dataset):
        for source, rows in zip((data.source, data.demonstrations), _parts(data), strict=True):
            if source and source.hub:
                _add(sets, source.hub, source.config, source.split, rows)


def _add(sets: Splits, name: str | None, subset: str | None, split: str, rows: Rows) -> None:
    """Rows that several read have the columns of all of them."""
    splits = sets.setdefault(str(name), {})
    others = splits.get((subset or "default", split)) or [{}]
    count = max(len(rows), len(others))
    splits[subset or "default", split] = [
        {**others[n % len(others)], **rows[n % len(rows)]} for n in range(count)
    ]


def _parts(data: Dataset) -> list[Rows]:
    """The rows that are asked, and those that demonstrate."""
    rows = rows_for(data)
    half = len(rows) // 2 if data.demonstrations else len(rows)
    return [rows[:half], rows[half:]]


def task_rows(task: str, number: int) -> Rows:
    """Of one of the task's splits."""
    return [SETS[task](1000 * number + n) for n in range(ROWS)]


SYLLABLES = [first + last for first in "bdfghklmnprstvw" for last in ("a", "e", "i", "on", "ur")]
WORDS = ["".join(random.Random(n).choices(SYLLABLES, k=1 + n % 3)) for n in range(500)]


def sentence(draw: random.Random) -> str:
    """Made-up words, the first ones common."""
    words = [WORDS[int(500 * draw.random() ** 2)] for _ in range(draw.randint(6, 12))]
    return f"{' '.join(words).capitalize()}."


def _trees(count: int) -> Iterator[dict[str, Any]]:
    for n in range(count):
        question = {"role": "prompter", "parent_id": None, "rank": None}
        answer = {"role": "assistant", "parent_id": f"{n}", "rank": 0}
        yield {"message_id": f"{n}", "text": f"What does {SUBJECTS[n % 8]} do at {n}?", **question}
        yield {"message_id": f"{n}-a", "text": f"{VERBS[n % 8]} {SUBJECTS[n % 7]}", **answer}


def _pairs(count: int) -> Iterator[dict[str, Any]]:
    draw = random.Random(0)
    for n in range(count):
        spoken = f"\n\nHuman: Who {VERBS[n % 8]} {SUBJECTS[n % 7]} at {n}?\n\nAssistant: "
        better, worse = draw.sample(SUBJECTS, 2)
        yield {"chosen": f"{spoken}{better} does.", "rejected": f"{spoken}{worse} did."}


HUMAN_ROWS: dict[str, Rows] = {
    "oasst1": list(_trees(60)),
    "dolly": [
        {"instruction": f"Name {n}.", "context": "", "response": SUBJECTS[n % 8]} for n in range(40)
    ],
    "hh_rlhf": list(_pairs(80)),
    "summaries": [
        {
            "info": {"post": f"In {n}, {SUBJECTS[n % 8]} {VERBS[n % 7]} {SUBJECTS[n % 5]}."},
            "summaries": [{"text": f"{SUBJECTS[n % 8]} {n}"}, {"text": f"{VERBS[n % 7]} {n}"}],
            "choice": n % 2,
        }
        for n in range(40)
    ],
}
