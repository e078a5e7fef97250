"""Token shards, the sampler and the held-out windows keep their promises."""

from __future__ import annotations

import itertools
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from gpt_model.data.documents import SPLITS
from gpt_model.data.sampler import Sampler, _permuted, _random_numbers
from gpt_model.data.shards import Shards, SourceTexts, TokenData, held_out_windows, join, write
from gpt_model.errors import CorruptFile, UserError
from gpt_model.tokenizer import END_OF_TEXT, ByteLevelTokenizer, Tokenizer
from gpt_model.training.schedules import BatchSchedule

CONTEXT = 16
WEIGHTS = {"plays": 0.5, "verses": 0.3, "pages": 0.2}


def sentences(source: str, count: int) -> list[str]:
    words = ["the", "king", "and", "sea", "répond", "星", "in", "1599", "!"]
    numbers = _random_numbers(source)
    return [
        " ".join(
            words[(int(numbers[i % 8]) >> (i % 40) + k) % len(words)] for k in range(5 + i % 23)
        )
        + f"\n{i}"
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(sentences("plays", 400), vocab_size=300)


TEXTS = {
    name: {
        "training": sentences(name, count),
        "held_out": [*sentences(name + "2", 7), "", f"spelt out {END_OF_TEXT} here"],
    }
    for name, count in {"plays": 300, "verses": 90, "pages": 200}.items()
}


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens")
    write(
        path,
        {name: SourceTexts(WEIGHTS[name], texts) for name, texts in TEXTS.items()},
        tokenizer,
        shard_tokens=1000,
    )
    return path


@pytest.fixture(scope="module")
def data(folder: Path) -> TokenData:
    return TokenData(folder)


# --- on disk ---


def test_every_document_comes_back_as_its_text(data: TokenData, tokenizer: Tokenizer) -> None:
    for name, texts in TEXTS.items():
        for split, documents in texts.items():
            shards = data.tokens(name, split)
            assert data.documents(name, split) == len(documents)
            assert [
                tokenizer.decode(shards.document(number).tolist())
                for number in range(len(documents))
            ] == documents


def test_end_of_text_stands_after_each_document_and_nowhere_else(
    data: TokenData, tokenizer: Tokenizer
) -> None:
    shards = data.tokens("plays", "held_out")
    assert (
        np.flatnonzero(np.asarray(shards) == tokenizer.end_of_text).tolist()
        == (shards.ends - 1).tolist()
    )


def test_shards_are_bounded_and_read_as_one_row(folder: Path, data: TokenData) -> None:
    files = sorted((folder / "plays").glob("training-*.bin"))
    assert len(files) > 2
    assert {file.stat().st_size for file in files[:-1]} == {2 * 1000}
    whole = np.concatenate([np.fromfile(file, dtype="<u2") for file in files])
    shards = data.tokens("plays", "training")
    assert len(shards) == len(whole)
    for start, count in [
        (0, 1),
        (999, 1),
        (1000, 1),
        (990, 2005),
        (len(whole) - 3, 3),
        (0, len(whole)),
        (17, 0),
        (len(whole), 0),
    ]:
        assert shards.read(start, count).tolist() == whole[start : start + count].tolist()
    assert shards[1990:].tolist() == whole[1990:].tolist()
    assert shards[:-5].tolist() == whole[:-5].tolist()


@contextmanager
def descriptors(count: int) -> Iterator[None]:
    """Within, this process may open so many files more than it has open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (psutil.Process().num_fds() + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_six_thousand_shards_are_read_with_150_descriptors(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """350 billion tokens are 5,300 shards, and many machines allow a process 1,024 open files."""
    texts = {"training": sentences("plays", 2000), "held_out": []}
    write(tmp_path, {"plays": SourceTexts(1.0, texts)}, tokenizer, shard_tokens=5)
    assert len(list((tmp_path / "plays").glob("*.bin"))) > 6000
    with descriptors(150):
        tokens = TokenData(tmp_path).tokens("plays", "training")
        backwards = [tokens.read(start, 7) for start in range(len(tokens) - 7, 0, -7)]
    forwards = np.concatenate(backwards[::-1])
    assert forwards.tolist() == np.asarray(tokens)[-len(forwards) :].tolist()


def test_a_mixture_of_twenty_sources_is_sampled_with_150_descriptors(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    sources = {
        f"source{n}": SourceTexts(1.0, {split: sentences(f"{n} {split}", 40) for split in SPLITS})
        for n in range(20)
    }
    batches = BatchSchedule(400 * CONTEXT)
    for folder, shard_tokens in ((tmp_path / "few", 10_000), (tmp_path / "many", 50)):
        write(folder, sources, tokenizer, shard_tokens=shard_tokens)
    assert len(list((tmp_path / "many").glob("*/training-*.bin"))) > 200
    with descriptors(150):
        data = TokenData(tmp_path / "many")
        many = Sampler(data, CONTEXT, batches, seed=1).batch(0)
        documents = [data.tokens(name, "held_out").document(3).tolist() for name in sources]
    assert len(np.unique(many[2])) == 20
    few = Sampler(TokenData(tmp_path / "few"), CONTEXT, batches, seed=1).batch(0)
    assert all(np.array_equal(*parts) for parts in zip(many, few, strict=True))
    assert documents == [
        tokenizer.encode(source.documents["held_out"][3]) for source in sources.values()
    ]


def test_sixteen_parts_are_joined_with_150_descriptors(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    for rank in range(16):
        sources = {
            name: SourceTexts(1.0, {split: sentences(f"{rank} {split}", 8) for split in SPLITS})
            for name in ("plays", "verses")
        }
        write(tmp_path / str(rank), sources, tokenizer, shard_tokens=10)
    parts = [tmp_path / str(rank) for rank in range(16)]
    assert len(list(tmp_path.glob("*/plays/*.bin"))) > 256
    with descriptors(150):
        join(parts, tmp_path / "whole", shard_tokens=1000)
    whole = TokenData(tmp_path / "whole")
    for name, split in itertools.product(("plays", "verses"), SPLITS):
        ids = [np.asarray(Shards(part, name, split)) for part in parts]
        assert whole.tokens(name, split)[:].tolist() == np.concatenate(ids).tolist()
        assert whole.documents(name, split) == 16 * 8


def test_maps_end_with_the_tokens_that_they_are_of(folder: Path) -> None:
    """The folder of a part may be removed, and its room on the disk be free."""
    before = psutil.Process().num_fds()
    data = TokenData(folder)
    assert (
        len(data.tokens("plays", "training").document(200)) and psutil.Process().num_fds() > before
    )
    del data
    assert psutil.Process().num_fds() == before


def test_bytes_are_those_of_the_text_for_the_whole_and_for_any_beginning(
    data: TokenData, tokenizer: Tokenizer
) -> None:
    for name, texts in TEXTS.items():
        for split, documents in texts.items():
            total = sum(len(document.encode()) for document in documents)
            assert (
                data.bytes(name, split)
                == total
                == data.byte_lengths[data.tokens(name, split)[:]].sum()
            )
    first = data.tokens("plays", "held_out").document(0)
    assert data.byte_lengths[data.tokens("plays", "held_out")[: len(first) + 1]].sum() == len(
        TEXTS["plays"]["held_out"][0].encode()
    )


def test_same_text_gives_the_same_bytes_on_disk_whatever_stood_there(
    folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "plays").mkdir()
    (tmp_path / "plays" / "training-00099.bin").write_bytes(b"left by a killed attempt")
    write(
        tmp_path,
        {name: SourceTexts(WEIGHTS[name], texts) for name, texts in TEXTS.items()},
        tokenizer,
        shard_tokens=1000,
    )
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert files == sorted(
        path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()
    )
    assert all((folder / file).read_bytes() == (tmp_path / file).read_bytes() for file in files)


def test_more_than_65536_ids_are_written_in_four_bytes(tmp_path: Path) -> None:
    pairs = [(chr(a), chr(b)) for a in range(0x100, 0x100 + 300) for b in range(0x21, 0x21 + 220)]
    letters = sorted(
        {letter for pair in pairs for letter in pair} | {chr(c) for c in range(0x21, 0x21 + 94)}
    )
    vocabulary = {
        token: i
        for i, token in enumerate([*letters, *("".join(pair) for pair in pairs), END_OF_TEXT])
    }
    wide = ByteLevelTokenizer(vocabulary, pairs)
    assert wide.vocab_size > 65_536
    write(tmp_path, {"one": SourceTexts(1.0, {"training": ["ab"], "held_out": []})}, wide)
    shards = TokenData(tmp_path).tokens("one", "training")
    assert (shards.dtype, len(shards), int(shards[-1:][0])) == (
        np.dtype("<u4"),
        3,
        wide.end_of_text,
    )
    assert len(TokenData(tmp_path).tokens("one", "held_out")) == 0


def test_shortened_shard_is_named(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    write(tmp_path, {"plays": SourceTexts(1.0, TEXTS["plays"])}, tokenizer)
    shard = tmp_path / "plays" / "training-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(
        CorruptFile, match=r"training-00000\.bin has \d+ bytes, and index\.json says \d+"
    ):
        TokenData(tmp_path)
    with pytest.raises(UserError, match=r"index\.json is missing"):
        TokenData(tmp_path / "plays")


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    script = Path(__file__).parent.parent / "benchmarks" / "tokenize_memory.py"

    def peaks(megabytes: int, documents: str) -> tuple[float, float]:
        command = [
            sys.executable,
            str(script),
            "--megabytes",
            str(megabytes),
            "--documents",
            documents,
            "--folder",
            str(tmp_path / "out"),
        ]
        one_arena = os.environ | {"MALLOC_ARENA_MAX": "1"}  # or each thread's arena may grow
        output = subprocess.run(
            command, capture_output=True, text=True, check=True, env=one_arena
        ).stdout
        search = re.search(
            r"peak (\d+) MB resident .*; after the first quarter of the text (\d+) MB", output
        )
        assert search, output
        return float(search[1]), float(search[2])

    peak, at_first_quarter = peaks(32, "many")
    assert peak < at_first_quarter + 14  # 24 MB more of text, 8 million tokens of two bytes
    peak, before = peaks(
        4, "one"
    )  # the library needs some 60 bytes a character: this document is not tokenized whole
    assert peak < before + 150


# --- the sampler ---


def whole_batch(sampler: Sampler, step: int, world_size: int) -> tuple[np.ndarray, ...]:
    parts = [sampler.batch(step, rank, world_size) for rank in range(world_size)]
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def test_same_global_batch_at_any_world_size_and_after_any_resume(data: TokenData) -> None:
    undisturbed = Sampler(data, CONTEXT, BatchSchedule(12 * CONTEXT), seed=3)
    history = [undisturbed.batch(step) for step in range(60)]
    for step in (0, 1, 37, 59):
        resumed = Sampler(data, CONTEXT, BatchSchedule(12 * CONTEXT), seed=3)
        for world_size in (1, 2, 4):
            for result, expected in zip(
                whole_batch(resumed, step, world_size), history[step], strict=True
            ):
                assert result.dtype == np.int64
                assert np.array_equal(result, expected)


def test_targets_are_the_inputs_moved_by_one_and_stand_so_in_the_source(data: TokenData) -> None:
    sampler = Sampler(data, CONTEXT, BatchSchedule(32 * CONTEXT), seed=1)
    inputs, targets, sources = sampler.batch(5)
    assert inputs.shape == targets.shape == (32, CONTEXT)
    assert np.array_equal(inputs[:, 1:], targets[:, :-1])
    for row in range(32):
        tokens = np.asarray(data.tokens(sampler.sources[sources[row]], "training")).tolist()
        ring = tokens + tokens[:CONTEXT]
        wanted = [*inputs[row].tolist(), int(targets[row, -1])]
        assert any(ring[start : start + CONTEXT + 1] == wanted for start in range(len(tokens)))


def draws(sampler: Sampler, step: int) -> dict[str, int]:
    """How many windows of each source were drawn before `step`."""
    sequences = np.array([sampler.batches.tokens_before(step) // sampler.context])
    return {
        name: int(sampler._draws(number, sequences)[0])
        for number, name in enumerate(sampler.sources)
    }


@pytest.mark.parametrize("steps", [10, 1000, 20_000])
def test_mixture_weights_are_kept_within_one_percent(data: TokenData, steps: int) -> None:
    sampler = Sampler(data, CONTEXT, BatchSchedule(32 * CONTEXT), seed=1)
    drawn = draws(sampler, steps)
    assert sum(drawn.values()) == 32 * steps
    for name, weight in WEIGHTS.items():
        assert drawn[name] / (32 * steps) == pytest.approx(weight, abs=0.01)


def test_counted_draws_are_the_draws_that_happen(data: TokenData) -> None:
    sampler = Sampler(data, CONTEXT, BatchSchedule(8 * CONTEXT), seed=9)
    counted = np.zeros(3)
    for step in range(50):
        assert list(draws(sampler, step).values()) == counted.tolist()
        counted += np.bincount(sampler.batch(step)[2], minlength=3)


def test_each_window_comes_once_an_epoch_and_every_token_is_predicted(data: TokenData) -> None:
    sampler = Sampler(data, CONTEXT, BatchSchedule(1 * CONTEXT), seed=4)
    orders = []
    for number, name in enumerate(sampler.sources):
        tokens, windows = len(data.tokens(name, "training")), sampler.windows[number]
        for epoch in (0, 1, 7):
            starts = sampler._starts(number, np.arange(epoch * windows, (epoch + 1) * windows))
            orders.append(tuple(starts))
            assert len(set(starts.tolist())) == windows
            predicted = np.bincount(
                ((starts[:, None] + 1 + np.arange(CONTEXT)) % tokens).ravel(), minlength=tokens
            )
            assert predicted.min() == 1
            assert (predicted == 2).sum() == windows * CONTEXT - tokens < CONTEXT
    assert len(set(orders)) == len(orders)  # no two epochs go through a source in the same order


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 1000, 4097, 65_537])
def test_permutation_reaches_every_number_once_and_mixes(size: int) -> None:
    permuted = _permuted(np.arange(size), size, _random_numbers(f"key {size}")[:6])
    assert np.array_equal(np.sort(permuted), np.arange(size))
    if size >= 1000:
        assert abs(np.corrcoef(permuted, np.arange(size))[0, 1]) < 0.1
        assert (np.abs(np.diff(permuted)) == 1).mean() < 0.01


def test_permutation_of_a_corpus_too_large_for_a_table(data: TokenData) -> None:
    size = 2**41 + 7
    some = np.arange(size - 5000, size)
    permuted = _permuted(some, size, _random_numbers("large")[:6])
    assert len(set(permuted.tolist())) == 5000
    assert permuted.min() >= 0 and permuted.max() < size
    assert permuted.mean() / size == pytest.approx(0.5, abs=0.03)


def test_other_seeds_give_other_batches(data: TokenData) -> None:
    batches = [
        Sampler(data, CONTEXT, BatchSchedule(8 * CONTEXT), seed=seed).batch(0)[0]
        for seed in range(4)
    ]
    assert len({batch.tobytes() for batch in batches}) == 4


def test_weight_zero_is_never_drawn_and_a_tiny_weight_is(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    weights = {"plays": 1.0, "verses": 1e-9, "pages": 0.0}
    texts = TEXTS | {"pages": {"training": [], "held_out": []}}
    write(tmp_path, {name: SourceTexts(weights[name], texts[name]) for name in weights}, tokenizer)
    drawn = draws(Sampler(TokenData(tmp_path), CONTEXT, BatchSchedule(64 * CONTEXT), seed=0), 1024)
    assert drawn["pages"] == 0
    assert drawn["verses"] > 0


def test_context_longer_than_a_source_is_refused_by_name(data: TokenData) -> None:
    tokens = len(data.tokens("verses", "training"))
    assert Sampler(data, tokens - 1, BatchSchedule(4 * (tokens - 1)), seed=0).batch(0)[0].shape == (
        4,
        tokens - 1,
    )
    with pytest.raises(
        UserError,
        match=rf"'verses' has {tokens} training tokens.*`context` is {tokens}.*needs {tokens + 1}",
    ):
        Sampler(data, tokens, BatchSchedule(4 * tokens), seed=0)


# --- held-out windows ---


@pytest.mark.parametrize("limit", [None, 1, CONTEXT, 50])
@pytest.mark.parametrize("sequences", [1, 3, 100])
@pytest.mark.parametrize("stride", [CONTEXT, CONTEXT // 2, 5])
def test_every_held_out_token_is_predicted_once_from_those_before(
    data: TokenData, limit: int | None, stride: int, sequences: int
) -> None:
    tokens = np.asarray(data.tokens("pages", "held_out")).astype(np.int64)[:limit]
    predicted, given = [], []
    for inputs, targets in held_out_windows(data, "pages", CONTEXT, stride, limit, sequences):
        assert (
            inputs.shape == targets.shape
            and inputs.shape[0] <= sequences
            and inputs.shape[1] == CONTEXT
        )
        for row, wanted in zip(inputs, targets, strict=True):
            first, last = np.flatnonzero(wanted >= 0)[[0, -1]]
            at = sum(map(len, predicted))
            assert last - first < stride and first == min(at, CONTEXT - stride)
            assert np.array_equal(
                row[: last + 1],
                np.concatenate([[data.end_of_text], tokens])[at - first : at + last - first + 1],
            )
            predicted.append(wanted[wanted >= 0])
            given.append(row[wanted >= 0])
    assert np.array_equal(np.concatenate(predicted), tokens)
    assert np.array_equal(np.concatenate(given), np.concatenate([[data.end_of_text], tokens[:-1]]))


def test_one_split_can_be_opened_alone(folder: Path, data: TokenData) -> None:
    assert np.array_equal(
        np.asarray(Shards(folder, "plays", "held_out")),
        np.asarray(data.tokens("plays", "held_out")),
    )
