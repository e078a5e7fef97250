"""Runs the stages `demonstrations`, `comparisons` and `prompts`, and their checks: reads the
sources, splits their rows, and writes the splits with the report.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

from assets.contract import Built, Config, Inputs, Metrics, Progress, Verdict
from assets.stages.human_data import ENOUGH, SPLITS
from assets.store.home import downloads_folder, store_home
from gpt_model.data.splits import normalised
from gpt_model.errors import about
from gpt_model.io import dump_json, read_json_lines
from gpt_model.rlhf import records, splits
from gpt_model.rlhf.readers.parsed import ParsedRow, RowReport
from gpt_model.rlhf.readers.record_readers import no_usable_rows, read_source
from gpt_model.rlhf.readers.source import HumanSource, Purpose
from gpt_model.rlhf.splits import SeenTexts

# a source, its records by split, and what became of its rows
SplitSource = tuple[HumanSource, dict[str, list[Any]], RowReport]


def run_demonstrations(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    if progress.rank:
        return {}
    shares = {"held_out": config["held_out"]}
    sources = [
        (source, splits.demonstrations(source.name, rows, shares, config["seed"]), report)
        for source, rows, report in _read(config, "demonstrations", progress)
    ]
    return _write(output, sources, "demonstrations")


def run_comparisons(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    if progress.rank:
        return {}
    shares = {"held_out": config["held_out"], "judge": config["judge"]}
    known: set[str] = set()
    sources: list[SplitSource] = []
    for source, rows, report in _read(config, "comparisons", progress):
        rankings = splits.rankings(
            source.name, rows, shares, config["seed"], source.ranked, known, report
        )
        sources.append((source, rankings, report))
    metrics = _write(output, sources, "comparisons")
    training = [ranking for _, by_split, _ in sources for ranking in by_split["training"]]
    metrics["training_pairs"] = float(sum(len(ranking.pairs()) for ranking in training))
    metrics["training_ties"] = float(sum(ranking.ties() for ranking in training))
    return metrics


def run_prompts(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    if progress.rank:
        return {}
    seen, shares = _seen_texts(inputs), {"held_out": config["held_out"]}
    known: set[str] = set()
    sources: list[SplitSource] = []
    for source, rows, report in _read(config, "prompts", progress):
        prompts = splits.prompts(source.name, rows, shares, config["seed"], seen, known, report)
        sources.append((source, prompts, report))
    return _write(output, sources, "prompts")


def _read(
    config: Config, purpose: Purpose, progress: Progress
) -> list[tuple[HumanSource, list[ParsedRow], RowReport]]:
    sources = []
    for number, given in enumerate(config["sources"]):
        progress.advance(number, len(config["sources"]), "sources")
        with about(f"sources[{number}]"):
            source = HumanSource.model_validate(given)
            rows, report = read_source(
                source,
                purpose,
                downloads_folder(),
                store_home(),
                progress,
                config.get("split_seed", config["seed"]),
            )
            sources.append((source, rows, report))
    return sources


def _write(output: Path, sources: Sequence[SplitSource], purpose: Purpose) -> Metrics:
    """The splits and report.json, in which `kept` counts a source's rows that are in the files."""
    metrics = Metrics()
    for split in SPLITS[purpose]:
        members = [record for _, by_split, _ in sources for record in by_split[split]]
        records.write(members, output / f"{split}.jsonl")
        metrics[split] = float(len(members))
    reports = {}
    for source, by_split, report in sources:
        report.kept = sum(
            _row_count(record, source) for members in by_split.values() for record in members
        )
        if not (report.kept or source.votes):
            raise no_usable_rows(source, purpose, report)
        reports[source.name] = {
            **asdict(report),
            "licence": source.licence,
            "show_text": source.show_text,
        }
        metrics[f"{source.name}/kept"] = float(report.kept)
        metrics[f"{source.name}/left_out"] = float(report.left_out.total())
    dump_json(output / "report.json", {"sources": reports}, indent=1, ensure_ascii=False)
    return metrics


def _row_count(record: Any, source: HumanSource) -> int:
    """How many rows of the source a record is made of."""
    if not isinstance(record, records.Ranking):
        return 1
    return len(record.responses) if source.form == "rated" else len(record.orders())


def _seen_texts(inputs: Inputs) -> SeenTexts:
    """The texts of demonstrations and comparisons."""
    seen = SeenTexts()
    for split in SPLITS["demonstrations"]:
        for demonstration in records.read_demonstrations(inputs["demonstrations"].path, split):
            seen.add(demonstration.turns)
    for split in SPLITS["comparisons"] if "comparisons" in inputs else ():
        for ranking in records.read_comparisons(inputs["comparisons"].path, split):
            seen.add(ranking.prompt, [response.text for response in ranking.responses])
    return seen


def nothing_lost(built: Built) -> Verdict:
    """Rows read against rows used and rows left out."""
    reports = json.loads((built.output / "report.json").read_text(encoding="utf-8"))["sources"]
    left_out = {
        name: sum(entry["count"] for entry in report["left_out"].values())
        for name, report in reports.items()
    }
    lost = {
        name: report["rows"] - report["kept"] - left_out[name] for name, report in reports.items()
    }
    rows = sum(report["rows"] for report in reports.values())
    used = sum(report["kept"] for report in reports.values())
    left = sum(left_out.values())
    losses = "; ".join(f"{count} of {name}" for name, count in lost.items() if count)
    summary = f"Of {rows} rows {used} are kept and {left} left out, each with its reason"
    summary += f"; lost: {losses}." if losses else "."
    return Verdict(not losses, summary, {"rows": rows, "kept": used, "left_out": left})


def splits_do_not_cross(built: Built) -> Verdict:
    """Identities of the records of every two splits."""
    form = {source["name"]: source.get("form") for source in built.config["sources"]}
    identities: dict[str, set[str]] = {}
    for path in sorted(built.output.glob("*.jsonl")):
        identities[path.stem] = {
            normalised(text)
            for row in read_json_lines(path)
            for text in _identities(row, form[row["source"]])
        }
    crossing = sum(len(a & b) for a, b in combinations(identities.values(), 2))
    sizes = ", ".join(f"{len(texts)} in {name}" for name, texts in identities.items())
    summary = f"{crossing} are in more than one split ({sizes})."
    return Verdict(crossing == 0, summary, {"crossing": crossing})


def _identities(row: Mapping[str, Any], form: str | None) -> list[str]:
    """What of a row may be in one split only: the user's first turn, or, where that is always the
    same, the texts.
    """
    messages = row["messages"]
    if form == "rated":
        return [response["text"] for response in row["responses"]]
    if form == "text":
        return [messages[-1]["content"] + row.get("rest", "")]
    return [next(message["content"] for message in messages if message["role"] == "user")]


def enough(built: Built) -> Verdict:
    count = built.metrics["training"]
    return Verdict(count >= ENOUGH, f"There are {count:.0f} to train on.", {"training": count})


def disjoint(built: Built) -> Verdict:
    """Prompts against the texts of demonstrations and comparisons."""
    seen = _seen_texts(built.inputs)
    prompts = [
        prompt
        for split in SPLITS["prompts"]
        for prompt in records.read_prompts(built.output, split)
    ]
    shared = sum(seen.has(prompt.turns, prompt.rest) for prompt in prompts)
    return Verdict(
        shared == 0,
        f"{shared} of {len(prompts)} prompts are in demonstrations or comparisons.",
        {"shared": shared},
    )
