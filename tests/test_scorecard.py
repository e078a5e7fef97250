"""The scorecard of the built recipe: what stands on the page, in its twin, in Dagster and on the
terminal, and that it stays true.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from conftest import BuiltStore

from assets.contract import Artifact, Built
from assets.report import loss_curve, provenance, scorecard
from assets.report.lineage_tree import sources_of
from assets.report.score import NotRun, Score, number
from assets.report.verdict import MIXTURE, statements
from assets.stage import PICTURE_LIMIT_BYTES
from assets.store.provenance import seconds_spent
from assets.store.store import Store
from gpt_model.evaluation.suites import ON_ANOTHER_SCALE


class Page(HTMLParser):
    """Tags with their attributes, and the cells of every table by row."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self._open = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._open = True
        elif tag == "code" and self._open and self.tables[-1][-1][-1]:
            self.tables[-1][-1][-1] += " "

    def handle_endtag(self, tag: str) -> None:
        self._open = self._open and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._open:
            self.tables[-1][-1][-1] += data.strip()


@dataclass
class Card:
    store: Store
    artifact: Artifact
    folder: Path

    @property
    def html(self) -> str:
        return (self.folder / "scorecard.html").read_text(encoding="utf-8")

    @property
    def markdown(self) -> str:
        return (self.folder / "scorecard.md").read_text(encoding="utf-8")

    @property
    def headline(self) -> dict[str, Any]:
        headline: dict[str, Any] = json.loads((self.folder / "headline.json").read_text())
        return headline

    @property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.artifact.path / "scorecard.json").read_text())
        return document

    def scores(self) -> dict[tuple[str, str], Score]:
        return {
            (score["asset"], score["name"]): Score(**score) for score in self.document["scores"]
        }

    def inputs(self) -> dict[str, Artifact]:
        return {
            name: self.store.resolve(entry["fingerprint"])
            for name, entry in self.document["built_from"].items()
        }

    def table(self, title: str) -> list[dict[str, str]]:
        """The Markdown table under a heading, a row a dict by column."""
        below = self.markdown.split(f"# {title}\n", 1)[1]
        lines = [line for line in below.split("\n#", 1)[0].splitlines() if line.startswith("|")]
        columns, _, *rows = [
            [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in lines
        ]
        return [dict(zip(columns, row, strict=True)) for row in rows]


@pytest.fixture(scope="module")
def card(built: BuiltStore) -> Card:
    store = Store(built.home)
    artifact = store.resolve("ci/scorecard")
    return Card(store, artifact, store.show(artifact))


def test_page_is_one_file_that_needs_no_other(card: Card) -> None:
    page = Page(card.html)
    assert {tag for tag, _ in page.tags}.isdisjoint({"link", "script", "iframe", "object", "base"})
    addresses = re.findall(r"url\(([^)]*)\)", card.html)
    assert all(address.startswith("#") for address in addresses)
    assert not [attributes for tag, attributes in page.tags if tag == "img"]  # all are drawings
    drawn = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in drawn)
    of_stages = sum(
        len(list(card.store.show(artifact).glob("*.png"))) for artifact in card.inputs().values()
    )
    assert len(drawn) == of_stages + 1  # and the loss curve
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    links = [attributes["href"] or "" for tag, attributes in page.tags if tag == "a"]
    assert links and all(link.startswith("#") and link[1:] in ids for link in links)


def test_twin_has_the_same_headline_and_its_pictures_beside_it(card: Card) -> None:
    headline = card.headline
    assert [list(row.values()) for row in card.table("Scores")] == headline["rows"] != []
    at_once, measured, *_ = Page(card.html).tables
    on_page = [row for row in at_once[1:] if len(row) > 1]
    labels = {"baselines": "beside", "measured on": "on"}
    shown = [
        headline["columns"].index(labels.get(label, label)) for label in at_once[0]
    ]  # and the artifact and its commands above its rows
    assert [[row[column] for column in shown] for row in headline["rows"]] == on_page
    below = [headline["columns"].index(label) for label in measured[0]]
    assert [[row[column] for column in below] for row in headline["rows"]] == measured[1:]
    assert {*shown, *below} == set(range(len(headline["columns"]) - 1))
    heads = list(
        dict.fromkeys(
            f"{row[0]}{row[-1]}".replace("`", "").replace(" ", "") for row in headline["rows"]
        )
    )
    assert [
        row[0].replace(" ", "") for row in at_once[1:] if len(row) == 1
    ] == heads  # an artifact and its commands, once
    assert all(
        f"{name}: {value}" in card.markdown and value.rpartition("`")[2] in card.html
        for name, value in headline["facts"].items()
    )
    links = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", card.markdown)
    assert len(links) == len(set(links)) == len(list((card.folder / "pictures").iterdir()))
    assert all((card.folder / link).read_bytes().startswith(b"\x89PNG") for link in links)


def test_every_score_has_its_interval_its_baseline_its_size_and_the_way_back(card: Card) -> None:
    scores = card.scores()
    for (asset, name), score in scores.items():
        assert (
            score.low is not None
            and score.high is not None
            and score.low <= score.value <= score.high
        ), (asset, name)
        assert (
            score.examples
            and score.fingerprint
            == card.document["built_from"][asset.removeprefix("ci/")]["fingerprint"]
        )
        assert (score.baseline and score.against is not None) or name.endswith("perplexity"), (
            asset,
            name,
        )
    rows = {(row["artifact"], row["score"].removesuffix(" ↓")): row for row in card.table("Scores")}
    assert rows.keys() == {key for key in scores if not key[1].endswith(ON_ANOTHER_SCALE)}
    for key, row in rows.items():
        fingerprint = scores[key].fingerprint
        assert (
            row["trace and rebuild it"]
            == f"`gpt-lineage trace {fingerprint[:12]}` `gpt-lineage reproduce {fingerprint[:12]}`"
        )
        assert card.store.resolve(fingerprint[:12]).fingerprint == fingerprint
        assert (
            row["verdict"] == scores[key].verdict
            and row["on"].split()[0] == f"{scores[key].examples:,}"
        )


def test_a_score_is_better_or_worse_only_with_its_whole_interval() -> None:
    score = Score("ci/a", "f" * 64, "accuracy", 0.7, 0.6, 0.8, "majority 0.500", 0.5)
    assert [replace(score, against=against).verdict for against in (0.5, 0.65, 0.9, None)] == [
        "better",
        "undecided",
        "worse",
        "",
    ]
    lower = replace(score, lower_is_better=True)
    assert [replace(lower, against=against).verdict for against in (0.5, 0.65, 0.9)] == [
        "worse",
        "undecided",
        "better",
    ]


def test_verdict_is_three_sentences_counted_from_the_scores(card: Card) -> None:
    document = json.loads((card.folder / "verdict.json").read_text(encoding="utf-8"))
    verdict = document["statements"]
    assert [statement["about"] for statement in verdict] == ["text", "fine-tuning", "zero-shot"]
    scores = card.scores()
    first_of_task: dict[str, str] = {}
    for (asset, _), score in scores.items():
        if "/finetuned/" in asset:
            first_of_task.setdefault(asset.rpartition("/")[2], score.verdict)
    expected = [
        {MIXTURE: scores["ci/pretrained", MIXTURE].verdict},
        first_of_task,
        {
            name: score.verdict
            for (asset, name), score in scores.items()
            if asset == "ci/zero_shot" and score.verdict and not name.endswith("bits_per_byte")
        },
    ]
    for statement, verdicts in zip(verdict, expected, strict=True):
        for word in ("better", "worse", "undecided"):
            names = [name for name, verdict in verdicts.items() if verdict == word]
            assert sorted(statement[word]) == sorted(names), statement["about"]
        assert f"- {statement['sentence']}" in card.markdown
    assert f"{len(verdict[1]['better']) or 'none'} of 4 tasks" in verdict[1]["sentence"]
    assert document["rows"] == [[entry["about"], entry["sentence"]] for entry in verdict]


def test_a_verdict_has_what_the_recipe_has(card: Card) -> None:
    suite = Score("ci/zero_shot", "f" * 64, "piqa acc", 0.4, 0.3, 0.45, "chance 0.500", 0.5)
    wins = replace(suite, asset="ci/preferences", name="dpo over policy init, win rate", examples=9)
    missing = [NotRun("ci/zero_shot", "f" * 64, "mc1", "no hub")]
    alone = statements([suite], missing, {}, "today")
    assert [statement.about for statement in alone] == ["zero-shot", "build"]
    assert alone[0].worse == ["piqa acc"] and "1 score could not" in alone[1].sentence
    aligned = statements([*card.scores().values(), wins], [], card.inputs(), "today")
    assert [statement.about for statement in aligned] == ["text", "alignment", "fine-tuning"]


def test_a_verdict_says_whether_examples_in_the_prompt_help() -> None:
    def of(task: str, shots: str, low: float, value: float, high: float) -> Score:
        name = f"{task}_{shots} acc"
        return Score(
            "g/zero_shot", "f" * 64, name, value, low, high, "chance 0.5", 0.5, shots=shots
        )

    scores = [
        *(of("piqa", "zero", 0.1, 0.2, 0.3), of("piqa", "one", 0.2, 0.3, 0.4)),
        *(of("piqa", "few", 0.35, 0.4, 0.5), of("lambada", "zero", 0.1, 0.2, 0.3)),
        *(of("lambada", "one", 0.2, 0.3, 0.4), of("sums", "zero", 0.4, 0.5, 0.6)),
        *(of("sums", "few", 0.1, 0.2, 0.3), of("alone", "few", 0.1, 0.2, 0.3)),
    ]
    _, few, _ = statements(scores, [], {}, "today")
    assert few.about == "few-shot" and "1 of 3 scores" in few.sentence
    assert (few.better, few.worse, few.undecided) == (["piqa acc"], ["sums acc"], ["lambada acc"])


def test_loss_curve_stands_beside_xz_and_a_uniform_guess(card: Card, tmp_path: Path) -> None:
    mixture, metrics = card.scores()["ci/pretrained", MIXTURE], card.inputs()["pretrained"].metrics
    curve = loss_curve.loss_curve(card.inputs(), mixture)
    assert curve is not None
    assert curve.levels == {"uniform guess": metrics["uniform_bpb"], "xz -9e": mixture.against}
    assert curve.final == (metrics["tokens"], mixture.value)
    training, held_out = curve.lines.values()
    assert len(training) == metrics["steps"] and len(held_out) >= 3
    assert [tokens for tokens, _ in training] == sorted({tokens for tokens, _ in training})
    # Random weights know nothing, and the last sample is of the text that the final figure is of.
    assert training[0][1] == pytest.approx(metrics["uniform_bpb"], rel=0.15)
    assert held_out[-1][1] == pytest.approx(mixture.value, rel=0.1)
    assert held_out[-1][1] < held_out[0][1] < metrics["uniform_bpb"]
    unlogged = replace(card.inputs()["pretrained"], path=tmp_path / "files")
    assert loss_curve.loss_curve({**card.inputs(), "pretrained": unlogged}, mixture) is None


def test_equal_inputs_give_equal_bytes(card: Card, tmp_path: Path) -> None:
    artifact = card.artifact
    inputs = card.inputs()
    in_order = {entry["name"]: inputs[entry["name"]] for entry in artifact.manifest["inputs"]}
    built = Built(artifact.config, in_order, artifact.path, artifact.metrics, {}, [])
    scorecard.show(built, tmp_path)
    again = {path.relative_to(tmp_path): path for path in tmp_path.rglob("*") if path.is_file()}
    first = {path.relative_to(card.folder) for path in card.folder.rglob("*") if path.is_file()}
    assert again.keys() == first and len(first) > 5
    for name, path in again.items():
        assert path.read_bytes() == (card.folder / name).read_bytes(), name


def test_bits_per_byte_by_mixture_stand_beside_xz_in_the_same_mixture(card: Card) -> None:
    corpus, scores = card.inputs()["corpus"], card.scores()
    weights = {source["name"]: source["weight"] for source in corpus.config["sources"]}
    expected = sum(
        weight * corpus.metrics[f"xz/{name}/bpb"] for name, weight in weights.items()
    ) / sum(weights.values())
    mixture = scores["ci/pretrained", "bits per byte, by mixture"]
    assert (
        mixture.against == pytest.approx(expected)
        and f"xz -9e {expected:.3f}, uniform " in mixture.baseline
    )
    sources = [scores["ci/pretrained", f"bits per byte, {name}"] for name in weights]
    assert mixture.high is not None and 0 < mixture.high - mixture.value < max(
        (s.high or 0) - s.value for s in sources
    )
    assert mixture.examples == sum(source.examples or 0 for source in sources)


def test_tasks_show_what_their_field_reports_beside_majority_and_random_weights(card: Card) -> None:
    by_task: dict[str, list[Score]] = {}
    for (asset, _), score in card.scores().items():
        by_task.setdefault(asset.removeprefix("ci/finetuned/"), []).append(score)
    names = {task: [score.name for score in scores] for task, scores in by_task.items()}
    assert names["sentiment"] == ["accuracy", "F1", "Pearson with the ratings", "transfer"]
    assert (
        names["factual_summary"] == ["accuracy", "F1", "transfer"]
        and names["boolq"] == ["accuracy", "transfer"] == names["piqa"]
    )
    m = card.inputs()["finetuned/sentiment"].metrics

    assert (
        by_task["sentiment"][1].baseline
        == f"one answer {m['constant_f1']:.3f}, bag of words {m['bag_of_words/f1']:.3f}, "
        f"random {m['random_f1']:.3f}"
    )
    assert (
        by_task["sentiment"][0].baseline
        == f"majority {m['majority']:.3f}, bag of words {m['bag_of_words/accuracy']:.3f}, "
        f"random {m['random_accuracy']:.3f}"
    )
    pearson = by_task["sentiment"][2]
    assert (pearson.value, pearson.low, pearson.high) == (
        m["pearson"],
        m["pearson_low"],
        m["pearson_high"],
    )
    assert (
        pearson.against == max(m["random_pearson"], m["bag_of_words/pearson"])
        and {"random_pearson_low", "random_f1_high", "random_matthews_low"} <= m.keys()
    )
    assert m["constant_f1"] > 0.6  # of always "positive", about half of them


def test_seeded_subsets_are_said(card: Card) -> None:
    rows = {(row["artifact"], row["score"]): row for row in card.table("Scores")}
    m = card.inputs()["finetuned/sentiment"].metrics
    available = f"{int(m['training_examples_available']):,}"
    assert (
        f"trained on 320 of {available} (seeded subset)"
        in rows["ci/finetuned/sentiment", "accuracy"]["protocol"]
    )
    assert re.fullmatch(
        r"500 of [\d,]+ examples, test(; \d+ of 500 cut, by \d+ tokens? at most)?",
        rows["ci/finetuned/sentiment", "accuracy"]["on"],
    )
    assert re.fullmatch(r"24 of [\d,]+ examples, held out", rows["ci/zero_shot", "cloze acc"]["on"])


def test_protocol_says_nothing_that_another_column_says(card: Card) -> None:
    for row in card.table("Scores"):
        if row["artifact"] == "ci/zero_shot":
            assert (
                not re.search(r"of [\d,]+ examples|-shot|8-grams|13 words", row["protocol"])
                and len(row["protocol"]) < 120
            ), row


def test_every_licence_is_there_of_sources_tasks_and_suites(card: Card) -> None:
    rows = card.table("Data and licences")
    known = {
        (f"ci/{name}", source["name"], source["licence"])
        for name, a in card.inputs().items()
        for source in sources_of(a)
    }
    assert {(row["read by"], row["data"], row["licence"]) for row in rows} == known
    read = {(reader, name) for reader, name, _ in known}
    assert {
        ("ci/corpus", "plays"),
        ("ci/finetuned/sentiment", "sentiment"),
        ("ci/zero_shot", "multiple_choice/openbookqa"),
    } <= read
    assert ("ci/zero_shot", "boolq/boolq") in read and all(
        len(row["sha256 or revision"]) == 12 for row in rows
    )


def test_lineage_is_a_tree_down_to_packages_files_and_checksums(card: Card) -> None:
    tree = card.markdown.split("## Lineage tree")[1].split("```")[1].splitlines()
    lines = {
        name: next(
            i
            for i, line in enumerate(tree)
            if f"ci/{name} {a.fingerprint[:12]} digest {a.digest[:12]}" in line
        )
        for name, a in card.inputs().items()
    }
    depth = {
        name: len(tree[line]) - len(tree[line].lstrip("│├└─ \xa0")) for name, line in lines.items()
    }
    assert (
        depth["finetuned/sentiment"]
        == depth["zero_shot"]
        < depth["pretrained"]
        < depth["tokens"]
        < depth["tokenizer"]
        < depth["corpus"]
    )
    for name, artifact in card.inputs().items():
        below = "\n".join(tree[lines[name] :])
        for source in sources_of(artifact):
            assert f"{source['name']} {source['package']}, {source['files']}" in below
            assert f"sha256 {source['sha256']}" in below and f"licence {source['licence']}" in below
    assert card.html.count("├──") == card.markdown.count("├──") > 5


def test_cost_is_of_all_attempts_and_adds_up(card: Card) -> None:
    *stages, whole = card.table("Cost by stage")
    inputs = card.inputs()
    assert [row["stage"] for row in stages] == [
        entry["name"] for entry in card.artifact.manifest["inputs"]
    ] and whole["stage"] == "all"
    spent = {name: seconds_spent(a.manifest["provenance"]) for name, a in inputs.items()}
    assert all(
        row["seconds"] == f"{spent[row['stage']]:.1f}" and row["attempts"] == "1" for row in stages
    )
    made = inputs["pretrained"].manifest["provenance"]
    built_on = {row["stage"]: (row["profile"], row["ranks"]) for row in stages}
    assert built_on["pretrained"] == ("cpu", f"{made['ranks']} × {made['threads']}")
    hours = {row["stage"]: float(row["core hours"]) for row in stages}
    assert hours["pretrained"] == pytest.approx(
        spent["pretrained"] * made["ranks"] * made["threads"] / 3600, abs=6e-5
    )
    assert float(whole["seconds"]) == pytest.approx(sum(spent.values()), abs=0.06)
    assert float(whole["core hours"]) == pytest.approx(sum(hours.values()), abs=6e-4)
    assert float(whole["size MB"]) == pytest.approx(
        sum(a.size for a in inputs.values()) / 1e6, abs=0.06
    )
    assert whole["peak MB"] == max(
        (row["peak MB"] for row in stages), key=lambda peak: int(peak.replace(",", ""))
    )


def test_estimates_stand_beside_the_actual_figures(card: Card) -> None:
    rows = card.table("Estimated before each build, and actual")
    inputs = card.inputs()
    assert {(row["stage"], row["quantity"]) for row in rows} == {
        *((name, unit) for name in inputs for unit in ("seconds", "MB")),
        ("pretrained", "bits per byte"),
    }
    (loss,) = (row for row in rows if row["quantity"] == "bits per byte")
    assert loss["estimated"] == "cannot be said from here" and float(loss["actual"]) > 1
    record = inputs["pretrained"].manifest["provenance"]
    by_quantity = {row["quantity"]: row for row in rows if row["stage"] == "pretrained"}
    seconds, size = by_quantity["seconds"], by_quantity["MB"]
    assert seconds["estimated"] == f"{record['forecast']['seconds']['expected']:,.3g}"
    assert size["actual"] == f"{inputs['pretrained'].size / 1e6:,.3g}"
    assert (seconds["interval"], seconds["inside"]) == ("", "")  # a default has no interval


def test_an_interval_of_a_manifest_is_held_against_what_was_reached(card: Card) -> None:
    inputs = card.inputs()
    pretrained = inputs["pretrained"]
    loss = pretrained.metrics["held_out/bpb"]
    for low, high, inside in ((0.9 * loss, 1.1 * loss, "yes"), (1.1 * loss, 1.2 * loss, "no")):
        forecast = {"loss": {"low": low, "expected": (low + high) / 2, "high": high}}
        record = pretrained.manifest["provenance"] | {"forecast": forecast}
        older = replace(pretrained, manifest={**pretrained.manifest, "provenance": record})
        assert provenance.estimates({"pretrained": older}).cells() == [
            [
                "pretrained",
                "bits per byte",
                f"{(low + high) / 2:.3g}",
                f"{low:.3g} – {high:.3g}",
                f"{loss:.3g}",
                inside,
            ]
        ]


def test_seconds_of_a_resumed_build_are_not_held_against_its_estimate(card: Card) -> None:
    inputs = card.inputs()
    record = inputs["tokens"].manifest["provenance"] | {"attempts": 3, "seconds": 5000.0}
    manifest = {**inputs["tokens"].manifest, "provenance": record}
    resumed = replace(inputs["tokens"], manifest=manifest)
    rows = {
        (row[0], row[1]): row for row in provenance.estimates({**inputs, "tokens": resumed}).cells()
    }
    assert rows["tokens", "seconds"][-2:] == ["5e+03", "resumed, 3 attempts"]
    cost = {row[0]: row for row in provenance.cost({**inputs, "tokens": resumed}).cells()}
    assert cost["tokens"][3:5] == ["3", "5000.0"] and float(cost["all"][4]) > 5000


def test_curves_samples_and_checks_of_the_stages_are_there(card: Card) -> None:
    for name in (
        "pretrained_training",
        "finetuned_sentiment_fine_tuning",
        "zero_shot_zero_shot",
        "corpus_sources",
    ):
        picture = f"pictures/ci_{name}.png"
        assert f"]({picture})" in card.markdown and (card.folder / picture).stat().st_size > 5000
    sample = (card.store.show(card.inputs()["pretrained"]) / "samples.md").read_text()
    assert sample.strip() in card.markdown and "[" in sample
    verdicts = {
        (row["artifact"], row["check"]): row["verdict"]
        for row in card.table("Every check of every artifact")
    }
    for name, artifact in card.inputs().items():
        for check, verdict in card.store.gate(artifact).items():
            assert verdicts[f"ci/{name}", check] == ("passed" if verdict.passed else "warning")


@pytest.fixture
def materializations(
    built: BuiltStore, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, dict[str, Any]]]:
    """Each asset's metadata as Dagster keeps it, by the stage's name."""
    monkeypatch.setenv("DAGSTER_HOME", str(built.home / "dagster"))
    with dg.DagsterInstance.get() as instance:
        metadata = {}
        for ref in (ref for ref in Store(built.home).refs() if ref.startswith("ci/")):
            event = instance.get_latest_materialization_event(dg.AssetKey(ref.split("/")))
            assert event is not None and event.asset_materialization is not None
            metadata[ref.removeprefix("ci/")] = {
                name: value if isinstance(value, dg.TableMetadataValue) else value.value
                for name, value in event.asset_materialization.metadata.items()
            }
        yield metadata


def test_dagster_has_every_table_text_and_picture_and_every_number_of_every_stage(
    card: Card, materializations: dict[str, dict[str, Any]]
) -> None:
    assert {
        "corpus",
        "tokenizer",
        "tokens",
        "pretrained",
        "finetuned/sentiment",
        "zero_shot",
        "scorecard",
    } <= materializations.keys()
    for name, shown in materializations.items():
        artifact = card.store.resolve(f"ci/{name}")
        files = [path for path in card.store.show(artifact).iterdir() if path.is_file()]
        assert files, name
        for path in files:
            if path.suffix == ".png":
                assert (
                    shown[path.name].startswith(f"![{path.stem}](data:image/png;base64,")
                    or path.stat().st_size > PICTURE_LIMIT_BYTES
                )
            elif path.suffix == ".md" and name != "scorecard":
                assert shown[path.name] == path.read_text(encoding="utf-8")
            elif path.suffix == ".html":
                assert shown[path.name] == str(path)
        assert shown["duration (s)"] == pytest.approx(
            seconds_spent(artifact.manifest["provenance"]), abs=0.01
        )
        assert all(
            shown[metric] == pytest.approx(value) for metric, value in artifact.metrics.items()
        )
        assert shown["trace"] == f"gpt-lineage trace {artifact.fingerprint[:12]}"


def test_dagster_s_scorecard_shows_the_headline_and_the_curves_and_gives_the_page(
    card: Card, materializations: dict[str, dict[str, Any]]
) -> None:
    shown = materializations["scorecard"]
    page = shown["scorecard.md"]
    assert "](pictures/" not in page
    assert page.count("](data:image/png;base64,") == len(list((card.folder / "pictures").iterdir()))
    assert all(line in page for line in card.markdown.splitlines() if line.startswith("| ci/"))
    table = [
        record.data for record in shown["headline.json"].records
    ]  # what Dagster shows without a click
    rows = [dict(zip(card.headline["columns"], row, strict=True)) for row in card.headline["rows"]]
    assert table == [
        {name: row[name] for name in ("artifact", "score", "value", "beside", "verdict")}
        for row in rows
    ]
    assert Path(shown["scorecard.html"]).read_text(encoding="utf-8").startswith("<!doctype html>")


def test_what_is_printed_fits_a_terminal_and_names_every_score(
    built: BuiltStore, card: Card
) -> None:
    """After the verdict, in 80 columns: value, interval and the best baseline of every score."""
    verdict = json.loads((card.folder / "verdict.json").read_text(encoding="utf-8"))
    first = verdict["statements"][0]["sentence"].partition("**")[0][:60]
    printed = built.printed[built.printed.index(first) :]
    lines = [line.rstrip() for line in printed.splitlines()]
    assert all(len(line) <= 80 for line in lines if str(card.folder) not in line)
    for score in card.document["scores"]:
        if score["name"].endswith(ON_ANOTHER_SCALE):
            continue
        name, value = score["name"].split()[0], f" {number(score['value'])}"
        matches = [line for line in lines if line.startswith(name) and value in line]
        assert matches, score["name"]
        if score["against"] is not None:  # the best of the baselines, and no other
            best = {float(line.split()[-2].replace(",", "")) for line in matches}
            assert any(abs(each - score["against"]) < 0.001 for each in best), score["name"]
        assert any(
            line.startswith(score["asset"]) and score["fingerprint"][:12] in line for line in lines
        )
    assert f"scorecard      {card.folder / 'scorecard.html'}" in lines
