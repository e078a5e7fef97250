"""finetuned/<task>: the pre-trained model fine-tuned on one task as GPT-1 was, beside the same
network from random weights.

The stage, its section of the recipe and its checks; how a task is prepared and trained on is
`finetuning_run.py`'s, what is made of the answers `finetuning_results.py`'s. Layouts, objective and
metrics are `gpt_model.finetuning`; a task is a YAML file, one of its catalogue's or the user's own.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from assets.contract import (
    NOT_RUN,
    SCRATCH,
    Built,
    Check,
    Config,
    Inputs,
    Metrics,
    Progress,
    Stage,
    Verdict,
    write_not_run,
)
from assets.recipe.recipe import Recipe
from assets.recipe.task_entries import entry_named, is_file, task_name, with_files
from assets.report.finetuned import ARMS, CONSTANT, json_lines, show
from assets.stages.finetuning_results import results_of, write_model, write_outputs
from assets.stages.finetuning_run import Part, fine_tuned, how_to, pin_task, prepare
from gpt_model.errors import UserError
from gpt_model.finetuning.entry import CATALOGUE, SCORE_NAMES, SPLITS, TaskEntry

# --- the recipe's section ---


def task_names(recipe: Recipe) -> list[str]:
    """The recipe's tasks by name; a task that is a file is named after it. Raises UserError for an
    unknown or repeated one.
    """
    given = recipe.finetuning.tasks if recipe.finetuning else []
    names = [task_name(task) for task in given]
    known = sorted(path.stem for path in CATALOGUE.glob("*.yaml"))
    for number, (task, name) in enumerate(zip(given, names, strict=True)):
        field = f"finetuning.tasks[{number}]"
        if not is_file(task) and task not in known:
            near = difflib.get_close_matches(task, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(
                f"{task!r} is not a task.{hint} There are {', '.join(known)}, or the path of a task's YAML file.",
                field=field,
            )
        if name in names[:number]:
            raise UserError(
                f"Two tasks are named {name!r}. Leave one out, or rename its file.", field=field
            )
    for limits in ("examples", "held_back", "files"):
        for stray in sorted(getattr(recipe.finetuning, limits, {}).keys() - set(names)):
            told = f"{stray!r} is not among this recipe's tasks: {', '.join(names)}. Correct the name, or take the line out."
            raise UserError(told, field=f"finetuning.{limits}.{stray}")
    return names


def finetuning_config(recipe: Recipe, task: str, base: Path) -> dict[str, Any]:
    """What identifies finetuned/`task`: the task's entry, whole, and how it is fine-tuned. `base`:
    the recipe's folder.
    """
    section = recipe.finetuning
    assert section is not None  # or there would be no task
    number = [task_name(one) for one in section.tasks].index(task)
    entry = with_files(
        entry_named(section.tasks[number], base, f"finetuning.tasks[{number}]"), task, section.files
    )
    return {
        "task": task,
        "finetuning": section.model_dump(
            mode="json", exclude={"tasks", "examples", "held_back", "files"}
        ),
        "examples": section.examples.get(task),
        "held_back": section.held_back.get(task),
        "split_seed": recipe.split_seed,
        **({"lora": recipe.lora.model_dump(mode="json")} if recipe.lora else {}),
        "source": entry.model_dump(mode="json", exclude_none=True),
    }


# --- the stage ---


def _run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Fine-tune both arms, one after the other, and write the pre-trained one's model and what both
    answered.
    """
    from gpt_model import GPT, convert, lora
    from gpt_model.finetuning.heads import with_specials
    from gpt_model.finetuning.input_forms import SPECIALS
    from gpt_model.tokenizer import Tokenizer

    if reason := inputs["pretrained"].not_run or config.get("not_run"):
        if progress.rank == 0:
            write_not_run(output, reason)
        progress.log(f"Not run here: {reason}.")
        return {"not_run": 1.0}
    tokenizer = Tokenizer.load(inputs["tokenizer"].path)
    task, how = (
        prepare(config, inputs["pretrained"], tokenizer, progress),
        how_to(config, inputs["pretrained"]),
    )
    adapting = lora.LoRA(**config["lora"]) if "lora" in config else None
    arms = {}
    for number, arm in enumerate(ARMS):
        # The pre-trained decoder, or the same network with fresh weights. Everything else is the
        # same for both, except that there is nothing in fresh weights to adapt: they are trained
        # whole, or what transfer is measured against would hardly learn.
        gpt = with_specials(
            convert.load(inputs["pretrained"].path / "model"), how.dropout, how.seed
        )
        if arm == "random":
            gpt = GPT(gpt.config, how.seed)
        elif adapting:
            lora.adapt(gpt, adapting, how.seed, new_rows=len(SPECIALS))
        progress.log(f"{task.task}: fine-tuning from {arm} weights")
        arms[arm] = fine_tuned(
            gpt, task, how, output / SCRATCH / arm, progress, Part(progress, arm, number, len(ARMS))
        )
    if progress.rank:
        return {}
    results = {arm: result for arm, (_, result) in arms.items()}
    model = arms["pretrained"][0]
    assert isinstance(model.gpt, GPT)
    counted = (
        lora.keep_and_merge(model, model.gpt, adapting, output / "adapters") if adapting else {}
    )
    write_outputs(output, config, task, results)
    write_model(output / "model", model, task.entry, tokenizer)
    return {**results_of(task, results), **counted}


# --- its checks ---


def _splits_do_not_cross(built: Built) -> Verdict:
    from gpt_model.finetuning.examples import groups_crossing

    rows = json_lines(built.output / "examples.jsonl")
    groups = [{row["group"] for row in rows if row["split"] == split} for split in SPLITS]
    crossing = groups_crossing(groups)
    sizes = ", ".join(f"{len(one)} in {split}" for split, one in zip(SPLITS, groups, strict=True))
    return Verdict(
        crossing == 0,
        f"{crossing} groups are in more than one split ({sizes}).",
        {"crossing": crossing},
    )


def _not_trained_on(built: Built) -> Verdict:
    """No text or group of a validation or test example is a whole document that the corpus gave to
    pre-training.
    """
    from gpt_model.data import documents
    from gpt_model.data.splits import identity

    evaluated = {
        text
        for row in json_lines(built.output / "examples.jsonl")
        if row["split"] != "training"
        for text in (row["group"], *row["texts"])
    }
    if "corpus" not in built.inputs:
        return Verdict(
            True,
            "What the imported model was trained on is not known here, so nothing of the task can be looked for in it.",
        )
    corpus = built.inputs["corpus"].path
    seen = {
        source: sum(
            identity(d).hex() in evaluated for d in documents.read(corpus, source, "training")
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
    return Verdict(
        False,
        f"{total} evaluation texts are training documents, {seen[worst]} of them of source {worst!r}: raise its `held_out` to at least "
        f"{split.validation + split.test:g}, the task's validation and test shares added"
        + (
            f", and give it `together: {json.dumps(split.together)}` as the task's split has."
            if split.together
            else "."
        ),
        {"trained_on": total},
    )


def _loss_is_finite(built: Built) -> Verdict:
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


def _beats_majority(built: Built) -> Verdict:
    m, metric = built.metrics, built.config["source"]["metric"]
    interval = f"[{m[f'{metric}_low']:.3f}, {m[f'{metric}_high']:.3f}]"
    constant = (
        m[CONSTANT[metric]] if metric in CONSTANT else 0.0
    )  # what is the same for all correlates with nothing
    said = f"{SCORE_NAMES[metric].capitalize()} {m[metric]:.3f} {interval} against {constant:.3f} for always one answer."
    return Verdict(
        m[f"{metric}_low"] > constant,
        said,
        {metric: m[metric], f"{metric}_low": m[f"{metric}_low"], "constant": constant},
    )


def _transfer_beats_random(built: Built) -> Verdict:
    m, name = built.metrics, SCORE_NAMES[built.config["source"]["metric"]]
    said = f"Pre-training is worth {m['transfer']:+.3f} [{m['transfer_low']:+.3f}, {m['transfer_high']:+.3f}] in {name}."
    return Verdict(
        m["transfer_low"] > 0,
        said,
        {key: m[key] for key in ("transfer", "transfer_low", "transfer_high")},
    )


def _check(
    name: str, blocking: bool, description: str, verdict: Callable[[Built], Verdict]
) -> Check:
    """A check of what was fine-tuned; of a task that is not run here there is nothing to check."""

    def of(built: Built) -> Verdict:
        if (path := built.output / NOT_RUN).is_file():
            return Verdict(
                True, f"Not run here: {json.loads(path.read_text(encoding='utf-8'))['not_run']}."
            )
        return verdict(built)

    return Check(name, blocking, description, of)


FINETUNED = Stage(
    name="finetuned",
    version="5",
    run=_run,
    description="The pre-trained model fine-tuned on one task as GPT-1 was, beside the same network fine-tuned from random weights.",
    kinds=("pytorch", "deepspeed"),
    checks=(
        _check(
            "splits_do_not_cross",
            True,
            "No group of examples is in two of training, validation and test.",
            _splits_do_not_cross,
        ),
        _check(
            "not_trained_on",
            True,
            "No evaluation text of the task is a document that pre-training saw.",
            _not_trained_on,
        ),
        _check(
            "loss_is_finite", True, "Every loss of both arms is a finite number.", _loss_is_finite
        ),
        _check(
            "beats_majority",
            False,
            "The score's interval lies above always giving the same answer.",
            _beats_majority,
        ),
        _check(
            "transfer_beats_random",
            False,
            "What is gained over random weights is above 0, interval and all.",
            _transfer_beats_random,
        ),
    ),
    show=show,
    pin=pin_task,
    ranks="profile",
    pool="training",
    model=True,
)
