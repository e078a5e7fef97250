"""The published numbers: that cells of every table are as printed, that none hides how sure it is,
and that what ours name is there.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from gpt_model import published
from gpt_model.config import PUBLISHED
from gpt_model.errors import UserError
from gpt_model.evaluation.aggregates import SUPERGLUE_PUBLISHED
from gpt_model.evaluation.suites import SUITES, suite_tasks
from gpt_model.finetuning.entry import CATALOGUE, TaskEntry
from gpt_model.published import Reference, every_reference, references

DOCS = Path(__file__).parents[1] / "docs"
G1, G2, G3 = (
    "GPT-1 (Radford et al. 2018)",
    "GPT-2 (Radford et al. 2019)",
    "GPT-3 (Brown et al. 2020)",
)
CELLS = [  # a few of each table: source, model, task, metric, shots, as it prints
    (f"{G1}, tables 2, 3 and 4", "gpt1", "MNLI-m", "accuracy", None, "82.1"),
    (f"{G1}, tables 2, 3 and 4", "gpt1", "CoLA", "matthews", None, "45.4"),
    (f"{G1}, tables 2, 3 and 4", "best before", "RACE-h", "accuracy", None, "50.3"),
    (f"{G1}, table 5", "gpt1 without pre-training", "STS-B", "pearson", None, "30.9"),
    (f"{G1}, table 5", "LSTM with the auxiliary objective", "RTE", "accuracy", None, "54.6"),
    (
        f"{G1}, figure 2 right",
        "gpt1",
        "sentiment heuristic",
        "relative",
        None,
        "~0.68 (read off a plot)",
    ),
    (
        f"{G1}, figure 2 left",
        "gpt1, 12 layers",
        "RACE by layers transferred",
        "accuracy",
        None,
        "~60 (read off a plot)",
    ),
    (f"{G2}, table 3", "gpt2-small", "LAMBADA", "perplexity", None, "35.13"),
    (f"{G2}, table 3", "gpt2-large", "1BW", "perplexity", None, "44.575"),
    (f"{G2}, table 3", "gpt2-xl", "CBT-CN", "acc", None, "93.30"),
    (f"{G2}, table 4", "first three sentences", "CNN/DM", "rougeL", None, "36.62"),
    (f"{G2}, section 3.4", "gpt2-xl", "Winograd", "acc", None, "70.70"),
    (f"{G2}, section 3.5", "gpt2-xl", "CoQA", "f1", None, "55"),
    (f"{G2}, section 3.7", "gpt2-xl", "Fr-En", "bleu", None, "11.5"),
    (f"{G2}, section 3.8", "gpt2-xl", "Natural Questions", "exact_match", None, "4.1"),
    (f"{G2}, table 6", "with its own training set", "1BW", "overlap", None, "13.19"),
    (f"{G3}, table H.1", "gpt3-175b", "LAMBADA", "acc", "few", "86.4"),
    (f"{G3}, table H.1", "gpt3-large", "LAMBADA", "acc", "one", "52.6 (unverified)"),
    (f"{G3}, table H.1", "gpt3-small", "LAMBADA", "perplexity", "zero", "18.6"),
    (
        f"{G3}, table H.1",
        "gpt3-13b",
        "Natural Questions",
        "exact_match",
        "zero",
        "7.84 (unverified)",
    ),
    (f"{G3}, table H.1", "gpt3-175b", "RACE-m", "acc", "few", "58.1 (unverified)"),
    (f"{G3}, table H.1", "gpt3-175b", "SuperGLUE", "score", "zero", "58.2"),
    (f"{G3}, table H.1, CoQA and DROP", "gpt3-small", "CoQA", "f1", "zero", "34.5 (unverified)"),
    (f"{G3}, table H.1, arithmetic by size", "gpt3-13b", "2D+", "acc", "few", "55.5"),
    (f"{G3}, table 3.9", "gpt3-175b", "1DC", "acc", "one", "14.3"),
    (f"{G3}, table 3.10", "gpt3-175b", "RW", "acc", "few", "0.44"),
    (f"{G3}, table 3.8", "gpt3-175b", "ReCoRD", "f1", None, "91.1"),
    (f"{G3}, appendix H, K by task", "gpt3", "StoryCloze", "k", None, "70"),
    (f"{G3}, table C.1", "gpt3-175b", "LAMBADA", "clean", None, "57"),
    (f"{G3}, figure 3.1", "gpt3", "scaling law", "exponent", None, "-0.048"),
    (f"{G3}, section 3.1.1", "gpt3-175b", "PTB", "perplexity", "zero", "20.50 (unverified)"),
    (
        "InstructGPT (Ouyang et al. 2022), table 14",
        "PPO-ptx 175B",
        "SQuADv2",
        "f1",
        "zero",
        "59.85",
    ),
    (
        "InstructGPT (Ouyang et al. 2022), section 4.1, reward model",
        "reward model 6B",
        "comparisons of held-out labellers",
        "acc",
        None,
        "69.6 ± 0.9",
    ),
    ("karpathy/nanoGPT, README", "nanoGPT 124M", "OpenWebText", "loss", None, "~2.85"),
    (
        "KellerJordan/modded-nanogpt, README and records, track 1",
        "record 89",
        "to 3.28 on FineWeb",
        "time",
        None,
        "1.23",
    ),
    (
        "karpathy/nanochat, README and dev/LEADERBOARD.md",
        "nanochat 6",
        "CORE",
        "score",
        None,
        "0.2626",
    ),
    (
        "karpathy/nanochat, dev/estimate_gpt3_core.ipynb",
        "gpt3-175b",
        "CORE",
        "score",
        None,
        ".427 (derived)",
    ),
    ("EleutherAI/pythia, evals/*.json", "Pythia-160M", "arc_challenge", "acc_norm", None, ".233"),
    (
        "microsoft/DeepSpeedExamples, training log opt-350m_globalBatchSize-64.log",
        "OPT-350M",
        "comparisons of DeepSpeed-Chat",
        "acc",
        None,
        "0.6995",
    ),
    (
        "karpathy/nanoGPT, transformer_sizing.ipynb",
        "nanoGPT 124M",
        "utilisation",
        "mfu",
        None,
        "37.14",
    ),
    (
        "EleutherAI/lm-evaluation-harness issue 2159",
        "gpt2-small",
        "lambada_openai",
        "perplexity",
        None,
        "40.0554 ± 1.48",
    ),
    (
        "lm_eval's scores as they circulate",
        "gpt2-medium",
        "wikitext",
        "word_perplexity",
        None,
        "26.75 (unverified)",
    ),
]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell[0]}-{cell[1]}-{cell[2]}")
def test_cells_print_as_their_tables_have_them(cell: tuple[str | None, ...]) -> None:
    results = [
        item.printed
        for item in every_reference()
        if (item.source, item.model, item.task, item.metric, item.shots) == cell[:5]
    ]
    assert results == [cell[5]]


def test_no_number_stands_twice_and_each_says_where_it_is_from_and_how_it_was_measured() -> None:
    keys = [
        (item.source, item.model, item.task, item.metric, item.shots) for item in every_reference()
    ]
    assert len(set(keys)) == len(keys) > 1000
    files = [
        path for path in published.FOLDER.glob("*.yaml") if "gpt" not in path.stem
    ]  # those of papers have the paper before it
    sources = [
        table["source"]
        for path in files
        for table in yaml.safe_load(path.read_text(encoding="utf-8"))["tables"]
    ]
    assert len(set(sources)) == len(sources) > 40  # a page has a table a source
    assert all(
        item.source
        and item.generations
        and (item.protocol or item.table_note or item.kind == "facts")
        for item in every_reference()
    )


def test_nothing_unverified_prints_without_the_word() -> None:
    words = {"memory": "unverified", "plot": "read off a plot", "derived": "derived"}
    results = [item for item in every_reference() if item.certainty != "verified"]
    assert all(f"({words[one.certainty]})" in one.printed for one in results)
    by_size = [
        reference
        for reference in references(generation="gpt3")
        if reference.source.endswith("table H.1") and reference.certainty == "memory"
    ]
    assert len(by_size) == 33 and all("transcription" in item.note for item in by_size)


def test_table_h1_has_every_size_and_shots_of_sixteen_rows() -> None:
    cells = [
        reference
        for reference in references(generation="gpt3")
        if reference.source.endswith("table H.1")
    ]
    assert len(cells) == 16 * 3 * 8 and {cell.model for cell in cells} == {
        name for name in PUBLISHED if name.startswith("gpt3")
    }


def test_counted_parameters_are_those_of_our_sizes_and_slips_are_told() -> None:
    counted = {
        reference.model: reference for reference in references(task="parameters", metric="counted")
    }
    assert {name: item.value for name, item in counted.items()} == {
        name: config.parameters() for name, config in PUBLISHED.items()
    }
    assert all(item.certainty == "derived" for item in counted.values())
    text = "".join(path.read_text(encoding="utf-8") for path in published.FOLDER.glob("*.yaml"))
    assert text.count("1.17B") == 1 and "a slip for 0.117B" in counted["gpt1"].table_note
    assert "24 heads of 128" in counted["gpt3-xl"].note and "5,140" in counted["gpt3-13b"].note


def test_references_are_found_by_task_metric_and_generation() -> None:
    assert {
        reference.model
        for reference in references(task="LAMBADA", metric="acc", generation="gpt2", role="paper")
    } >= {"gpt2-xl", "best before"}
    assert not {
        reference.model for reference in references(task="LAMBADA", metric="acc", generation="gpt3")
    } & {"gpt2-xl"}
    assert [
        reference.value for reference in references(task="SNLI") if reference.model == "gpt1"
    ] == [89.9]


def _file(
    folder: Path, table: str, head: str = "paper: P\nrole: paper\ngenerations: [gpt2]\n"
) -> list[Reference]:
    path = folder / "numbers.yaml"
    path.write_text(f"{head}tables:\n  - {table}\n", encoding="utf-8")
    return list(published.read(path))


GOOD = "{source: table 1, sure: verified, columns: [T / acc / %], rows: [[m, 1.50]]}"


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (GOOD.replace("source: table 1, ", ""), "`tables[0].source` is missing"),
        (GOOD.replace("table 1", '""'), "`tables[0].source` is ''"),
        (GOOD.replace("verified", "certain"), "`tables[0].sure` is 'certain'"),
        (
            GOOD.replace("1.50", "1.50 perhaps"),
            "table 1, m, T / acc / %: '1.50 perhaps' is no cell",
        ),
        (GOOD.replace("1.50", "1.50, 2"), "row 'm' has 2 cells and there are 1 columns"),
        (GOOD.replace("acc / %", "acc / % / five"), "shots are zero, one or few, not 'five'"),
    ],
)
def test_a_number_without_a_source_or_that_cannot_be_read_is_refused(
    tmp_path: Path, table: str, told: str
) -> None:
    with pytest.raises(UserError, match=re.escape(told)):
        _file(tmp_path, table)


def test_cells_keep_what_was_printed_and_may_say_how_sure_they_are(tmp_path: Path) -> None:
    (item,) = _file(tmp_path, GOOD)
    assert (item.printed, item.value, item.unit, item.source) == ("1.50", 1.5, "%", "P, table 1")
    (item,) = _file(tmp_path, GOOD.replace("1.50", "~2.85 ± 0.1 memory (of two runs)"))
    assert (item.printed, item.value, item.note) == (
        "~2.85 ± 0.1 (unverified)",
        2.85,
        "of two runs",
    )


def _named() -> list[tuple[str, str, str, str]]:
    """(file, task, metric, what differs) of every row that a suite or a task of the catalogue
    names.
    """
    named = []
    for path in SUITES.rglob("*.yaml"):
        for task in suite_tasks(path.stem, yaml.safe_load(path.read_text(encoding="utf-8"))):
            named += [
                (path.stem, row.task, row.metric, row.differs)
                for row in task.metadata.published.values()
            ]
    for path in CATALOGUE.glob("*.yaml"):
        if row := TaskEntry.model_validate(
            yaml.safe_load(path.read_text(encoding="utf-8"))
        ).published:
            named += [
                (path.stem, task, row.metric, row.differs or "")
                for task in (row.task, *row.parts.values())
            ]
    mean = SUPERGLUE_PUBLISHED
    return [*named, ("gpt3_superglue", mean["task"], mean["metric"], mean["differs"])]


def test_every_row_that_a_suite_or_a_task_names_is_published() -> None:
    known = {(item.task, item.metric) for item in every_reference()}
    assert _named() and [item for item in _named() if item[1:3] not in known] == []


def test_what_is_known_to_differ_from_the_paper_is_said_where_ours_stands() -> None:
    values = {(file, task): differs for file, task, _, differs in _named()}
    known = {  # a word of what each must say
        "not by a beam of 4": [
            "gpt3_questions",
            "gpt3_coqa",
            "gpt3_drop",
            "gpt3_arithmetic",
            "gpt3_scramble",
            "gpt3_superglue",
        ],
        "validation set": ["gpt3_piqa"],
        "test set": ["gpt3_openbookqa"],
        "tokenized": ["gpt3_lambada"],
        "BoolQ on a part": ["gpt3_superglue"],
        "not the test server": ["cola", "sst2", "stsb", "qqp", "mnli", "qnli", "rte"],
        "unverified": ["gpt2_cbt", "gpt2_winograd"],
        "not known here": ["gpt2_generation"],
        "last token": ["gpt2_lambada"],
        "windows": ["gpt2_language_modelling"],
    }
    for word, files in known.items():
        for file in files:
            texts = [differs for (name, _), differs in values.items() if name == file]
            assert texts and all(word in text for text in texts), (file, word)
    alike = {
        "gpt3_arc",
        "gpt3_hellaswag",
        "gpt3_race",
        "gpt3_storycloze",
        "gpt3_winograd",
        "gpt3_winogrande",
        "calibration",
        "mrpc",
        "race",
        "scitail",
        "snli",
        "storycloze",
    }
    assert {file for (file, _), differs in values.items() if not differs} == alike


def test_no_score_of_another_kind_stands_beside_a_number() -> None:
    """GPT-2's perplexity on LAMBADA is of the last token, that on WikiText-2 likely over tokens;
    ours are over words.
    """
    named = {(file, task, metric) for file, task, metric, _ in _named()}
    assert ("gpt2_lambada", "LAMBADA", "acc") in named and (
        "gpt2_language_modelling",
        "WikiText-103",
        "perplexity",
    ) in named
    assert not named & {
        ("gpt2_lambada", "LAMBADA", "perplexity"),
        ("gpt2_language_modelling", "WikiText-2", "perplexity"),
    }


def test_what_is_only_remembered_of_the_papers_is_called_unverified() -> None:
    """Each sentence on what was never published or released, in the documents, the suites and the
    modules, says so.
    """
    folder = SUITES.parent
    files = [
        *SUITES.glob("*.yaml"),
        folder / "lambada_stop_words.py",
        folder / "detokenizers.py",
        DOCS / "papers" / "evaluation.md",
        published.FOLDER / "gpt2.yaml",
    ]
    claims = 0
    for path in files:
        text = re.sub(r"\n\s*#?\s*", " ", path.read_text(encoding="utf-8"))
        for result in re.finditer(r"never (ever )?(published|released)|not released", text):
            claims += 1
            assert re.search(
                "unverified", text[max(0, result.start() - 150) : result.end() + 80], re.IGNORECASE
            ), (path.name, result)
    assert claims >= 10
    notes = [
        task.metadata.description
        for task in suite_tasks(
            "gpt2_lambada", yaml.safe_load((SUITES / "gpt2_lambada.yaml").read_text())
        )
    ]
    assert [("unverified" in note) for note in notes] == [
        False,
        True,
        False,
    ] and "not the paper's" in notes[0]
