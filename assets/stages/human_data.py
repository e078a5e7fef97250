"""Stages `demonstrations`, `comparisons` and `prompts`: what people wrote and judged, read once,
split, and kept with what was left out.

    training.jsonl, held_out.jsonl (comparisons: judge.jsonl)     `gpt_model.rlhf.records` says what a line is
    report.json                     of each source: rows, kept and left out by reason, and answers dropped of rows that are kept

What the forms of their rows mean is `gpt_model.rlhf.readers`.
Every stage of the section reads these.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from assets.contract import Built, Check, Config, Inputs, Metrics, Progress, Stage, Verdict
from assets.recipe.task_entries import entry_named, tied
from assets.store.home import downloads_folder, store_home
from gpt_model.data.splits import normalised
from gpt_model.errors import Unreachable, about, about_all_of
from gpt_model.rlhf import records, splits, votes
from gpt_model.rlhf.readers import record_readers
from gpt_model.rlhf.readers.candidate import Candidate, Report
from gpt_model.rlhf.readers.source import HumanSource, Purpose
from gpt_model.rlhf.splits import Said

ENOUGH = 20
SPLITS: dict[Purpose, tuple[str, ...]] = {
    "demonstrations": ("training", "held_out"),
    "comparisons": ("training", "held_out", "judge"),
    "prompts": ("training", "held_out"),
}
SHORT = 60  # characters of a sample whose text the licence does not cover


def _pin(config: Config, base: Path) -> Config:
    """The section with local files tied to their bytes, branches to their commits, and tasks
    written out.
    """
    sources = []
    for number, given in enumerate(config["sources"]):
        with about(f"sources[{number}]"):
            source = HumanSource.model_validate(given)
            if source.task:
                written = entry_named(source.task, base, "task").model_dump(
                    mode="json", exclude_none=True
                )
                with about_all_of("task"):
                    entry, reason = tied(written, base, downloads_folder())
                    if reason:
                        raise Unreachable(
                            f"The task {source.task!r} cannot be read here: {reason}. Leave the source out."
                        )
                sources.append({**source.model_dump(mode="json"), "entry": entry})
            elif source.votes:
                pinned = source.model_copy(update={"pinned": votes.pin(store_home())})
                sources.append(pinned.model_dump(mode="json"))
            else:
                sources.append(source.resolved(base, downloads_folder()).model_dump(mode="json"))
    return {**config, "sources": sources}


def _read(
    config: Config, purpose: Purpose, progress: Progress
) -> list[tuple[HumanSource, list[Candidate], Report]]:
    found = []
    for number, given in enumerate(config["sources"]):
        progress.advance(number, len(config["sources"]), "sources")
        with about(f"sources[{number}]"):
            source = HumanSource.model_validate(given)
            chosen, report = record_readers.candidates(
                source,
                purpose,
                downloads_folder(),
                store_home(),
                progress,
                config.get("split_seed", config["seed"]),
            )
            found.append((source, chosen, report))
    return found


Part = tuple[
    HumanSource, dict[str, list[Any]], Report
]  # a source, what it has in each split, and what became of its rows


def _write(output: Path, parts: Sequence[Part], purpose: Purpose) -> Metrics:
    """The splits and the report; a source's `kept` is what stands in the files, in rows of the
    source.
    """
    told, metrics = {}, Metrics()
    for split in SPLITS[purpose]:
        together = [one for _, made, _ in parts for one in made[split]]
        records.write(together, output / f"{split}.jsonl")
        metrics[split] = float(len(together))
    for source, made, report in parts:
        report.kept = sum(_rows_of(one, source) for split in made.values() for one in split)
        if not (report.kept or source.votes):
            raise record_readers.nothing_left(source, purpose, report)
        told[source.name] = {
            **asdict(report),
            "licence": source.licence,
            "show_text": source.show_text,
        }
        metrics |= {
            f"{source.name}/kept": float(report.kept),
            f"{source.name}/left_out": float(report.total()),
        }
    (output / "report.json").write_text(
        json.dumps({"sources": told}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return metrics


def _rows_of(one: Any, source: HumanSource) -> int:
    """How many rows of the source it is of."""
    if not isinstance(one, records.Ranking):
        return 1
    return len(one.responses) if source.form == "rated" else len(one.orders())


def _demonstrations(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    if progress.rank:
        return {}
    shares = {"held_out": config["held_out"]}
    parts = [
        (source, splits.demonstrations(source.name, found, shares, config["seed"]), report)
        for source, found, report in _read(config, "demonstrations", progress)
    ]
    return _write(output, parts, "demonstrations")


def _comparisons(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    if progress.rank:
        return {}
    shares, known = {"held_out": config["held_out"], "judge": config["judge"]}, set[str]()
    parts = [
        (
            source,
            splits.rankings(
                source.name, found, shares, config["seed"], source.ranked, known, report
            ),
            report,
        )
        for source, found, report in _read(config, "comparisons", progress)
    ]
    metrics = _write(output, parts, "comparisons")
    training = [one for _, made, _ in parts for one in made["training"]]
    pairs, ties = sum(len(one.pairs()) for one in training), sum(one.ties() for one in training)
    return metrics | {"training_pairs": float(pairs), "training_ties": float(ties)}


def _prompts(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    if progress.rank:
        return {}
    said, known = _said(inputs), set[str]()
    shares = {"held_out": config["held_out"]}
    parts = [
        (
            source,
            splits.prompts(source.name, found, shares, config["seed"], said, known, report),
            report,
        )
        for source, found, report in _read(config, "prompts", progress)
    ]
    return _write(output, parts, "prompts")


def _said(inputs: Inputs) -> Said:
    """All that demonstrations and comparisons say."""
    found = Said()
    for split in SPLITS["demonstrations"]:
        for shown in records.read_demonstrations(inputs["demonstrations"].path, split):
            found.add(shown.turns)
    for split in SPLITS["comparisons"] if "comparisons" in inputs else ():
        for ranked in records.read_comparisons(inputs["comparisons"].path, split):
            found.add(ranked.prompt, [one.text for one in ranked.responses])
    return found


# --- checks ---


def _nothing_lost(built: Built) -> Verdict:
    told = json.loads((built.output / "report.json").read_text(encoding="utf-8"))["sources"]
    left = {
        name: sum(one["count"] for one in report["left_out"].values())
        for name, report in told.items()
    }
    lost = {name: report["rows"] - report["kept"] - left[name] for name, report in told.items()}
    rows, kept = (
        sum(report["rows"] for report in told.values()),
        sum(report["kept"] for report in told.values()),
    )
    worst = "; ".join(f"{count} of {name}" for name, count in lost.items() if count)
    summary = (
        f"Of {rows} rows {kept} are kept and {sum(left.values())} left out, each with its reason"
        + (f"; lost: {worst}." if worst else ".")
    )
    return Verdict(not worst, summary, {"rows": rows, "kept": kept, "left_out": sum(left.values())})


def _splits_do_not_cross(built: Built) -> Verdict:
    form = {source["name"]: source.get("form") for source in built.config["sources"]}
    known: dict[str, set[str]] = {}
    for path in sorted(built.output.glob("*.jsonl")):
        rows = map(json.loads, path.read_text(encoding="utf-8").split("\n")[:-1])
        known[path.stem] = {
            normalised(one) for row in rows for one in _told_apart(row, form[row["source"]])
        }
    names = list(known)
    crossing = sum(
        len(known[a] & known[b]) for place, a in enumerate(names) for b in names[place + 1 :]
    )
    sizes = ", ".join(f"{len(known[name])} in {name}" for name in names)
    return Verdict(
        crossing == 0, f"{crossing} are in more than one split ({sizes}).", {"crossing": crossing}
    )


def _told_apart(row: Mapping[str, Any], form: str | None) -> list[str]:
    """What of a row may be in one split only: what the user says first, or, where that is always
    the same, the texts.
    """
    said = row["messages"]
    if form == "rated":
        return [one["text"] for one in row["responses"]]
    if form == "text":
        return [said[-1]["content"] + row.get("rest", "")]
    return [next(one["content"] for one in said if one["role"] == "user")]


def _enough(built: Built) -> Verdict:
    found = built.metrics["training"]
    return Verdict(found >= ENOUGH, f"There are {found:.0f} to train on.", {"training": found})


def _disjoint(built: Built) -> Verdict:
    said = _said(built.inputs)
    prompts = [
        one for split in SPLITS["prompts"] for one in records.read_prompts(built.output, split)
    ]
    shared = sum(said.has(one.turns, one.rest) for one in prompts)
    return Verdict(
        shared == 0,
        f"{shared} of {len(prompts)} prompts are in demonstrations or comparisons.",
        {"shared": shared},
    )


# --- what is shown ---


def show(built: Built, folder: Path) -> None:
    """sources.md: what became of every source's rows; samples.md: a few of them."""
    told = json.loads((built.output / "report.json").read_text(encoding="utf-8"))["sources"]
    lines = ["| source | rows | kept | left out | licence |", "|---|---|---|---|---|"]
    for name, one in told.items():
        left = _reasons(one["left_out"])
        kept = f"{one['kept']}" + (
            f" ({one['shortened']} without a last turn that nobody answered)"
            if one["shortened"]
            else ""
        )
        kept += (
            f"; dropped of their answers: {dropped}"
            if (dropped := _reasons(one["dropped"]))
            else ""
        )
        lines.append(
            f"| {name} | {one['rows']} | {kept} | {left or 'none'} | {_cell(one['licence'])} |"
        )
    (folder / "sources.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "samples.md").write_text("\n".join(_samples(built, told)), encoding="utf-8")


def hidden(folder: Path) -> set[str]:
    """Sources of demonstrations, comparisons or prompts, read from their artifact, whose licence
    does not cover their text.
    """
    if not (path := folder / "report.json").is_file():
        return set()
    sources = json.loads(path.read_text(encoding="utf-8"))["sources"]
    return {name for name, one in sources.items() if not one.get("show_text", True)}


def shortened(text: str) -> str:
    """As much of such a text as a page may show."""
    return text[:SHORT] + ("…" if len(text) > SHORT else "")


def _reasons(counted: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{reason}: {found['count']} (first: {_cell(found['first'])})"
        for reason, found in counted.items()
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")[:200]


def _samples(built: Built, told: dict[str, Any]) -> list[str]:
    shown: dict[str, int] = {}
    found = []
    for line in (
        (built.output / "training.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    ):  # splitlines ends one at \u2028 too
        row = json.loads(line)
        if shown.setdefault(row["source"], 0) >= 3:
            continue
        shown[row["source"]] += 1
        said = [f"{one['role']}: {one['content']}" for one in row["messages"]]
        for one, *ranks in zip(row.get("responses", ()), *row.get("further", ()), strict=True):
            said.append(
                f"rank {', '.join('–' if rank is None else str(rank) for rank in (one['rank'], *ranks))}: {one['text']}"
            )
        if not told[row["source"]]["show_text"]:
            said = [shortened(text) for text in said]
        text = "\n".join(text[:400] for text in said)
        fence = "````" if "```" in text else "```"
        found.append(f"**{row['source']}**\n\n{fence}text\n{text}\n{fence}\n")
    return found


NOTHING_LOST = Check(
    "nothing_lost",
    True,
    "Every row is kept, or left out for a reason that is counted.",
    _nothing_lost,
)
APART = Check("splits_do_not_cross", True, "Nothing is in two splits.", _splits_do_not_cross)
SOME = Check("enough", False, f"There are at least {ENOUGH} to train on.", _enough)

DEMONSTRATIONS = Stage(
    name="demonstrations",
    version="2",
    run=_demonstrations,
    description="Dialogues in which an assistant answers as it should.",
    checks=(NOTHING_LOST, SOME, APART),
    show=show,
    pin=_pin,
)
COMPARISONS = Stage(
    name="comparisons",
    version="2",
    run=_comparisons,
    description="Answers to one prompt, ranked by people.",
    checks=(NOTHING_LOST, SOME, APART),
    show=show,
    pin=_pin,
)
PROMPTS = Stage(
    name="prompts",
    version="2",
    run=_prompts,
    description="What PPO answers: prompts that are in neither demonstrations nor comparisons.",
    checks=(
        NOTHING_LOST,
        SOME,
        APART,
        Check(
            "disjoint", True, "No prompt is in the demonstrations or the comparisons.", _disjoint
        ),
    ),
    show=show,
    pin=_pin,
)
