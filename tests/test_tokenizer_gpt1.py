"""GPT-1's tokenizer reads text as the released code did, and its bytes are those of the text so
read.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loky import get_reusable_executor

from assets.execution.tokenizer import NASTY
from assets.recipe.recipe import TokenizerSection
from gpt_model.data.shards import SourceTexts, TokenData, write
from gpt_model.errors import UserError
from gpt_model.rlhf.chat_template import ChatTemplate, chat_tokenizer
from gpt_model.rlhf.dialogue import Turn
from gpt_model.tokenizer import END_OF_TEXT, GPT1Tokenizer, Tokenizer, base, gpt1_normalisation
from gpt_model.tokenizer.base import Piece
from gpt_model.tokenizer.exported import complete
from gpt_model.tokenizer.gpt1_normalisation import normalised, standardise

quick = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)

ROOT = Path(__file__).parent.parent
LETTER = (
    "My dear Sir: I don't know what you'd have me say. \"Come home,\" he wrote, \"or we'll sell "
    'it!"',
    "Mrs. Dale's brothers (all three) weren't at home; they'd gone to St. Ives at 7pm, hadn't they?",
    "It cost him $5.00, or 12% of what he had... and he can't, won't, shouldn't pay – not now.",
    "“You’re late,” said the captain’s wife. ‘I’m never late,’ said he, “it’s you that’s early.”",
    "On Jan. 3, 1890 the U.S. ship left at 10:30 a.m.; I've a half-dozen letters from her crew, "
    "and/or friends.",
    "\tA naïve café\u00a0owner\r\n\r\n   gave us ﬁsh & chips\nfor what's-his-name",
)
PROSE = [line.replace("half", f"{number}") for number in range(40) for line in LETTER]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(PROSE, vocab_size=280, style="gpt1")


@pytest.fixture(scope="module")
def saved(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt1")
    tokenizer.save(folder)
    return folder


def words_of(text: str) -> list[str]:
    return re.findall(r"\n|[^ \n]+", normalised(Piece(text)))


# --- normalisation: PAPERS' four steps, each by what it alone does ---


@pytest.mark.parametrize(
    ("step", "text", "expected"),
    [
        ("ftfy mends what was decoded wrongly", "schÃ¶n", ["schön"]),
        ("ftfy straightens quotes", "“so” it’s", ['"', "so", '"', "it", "'s"]),
        ("ftfy reads entities", "1 &lt; 2", ["1", "<", "2"]),
        ("but not after markup", "<b>x &lt;", ["<", "b", ">", "x", "&", "lt", ";"]),
        ("ftfy mends line ends", "one\r\ntwo\u2028three", ["one", "\n", "two", "\n", "three"]),
        ("dashes", "a — b – c", ["a", "-", "b", "-", "c"]),
        ("dots", "well…", ["well", "..."]),
        (
            "runs of punctuation stand apart",
            "so--well!!what",
            ["so", "--", "well", "!", "!", "what"],
        ),
        ("a hyphen, too", "well-known", ["well", "-", "known"]),
        ("lines in one newline", " a \n\n\t\n b\n", ["a", "\n", "b"]),
        ("spaces in one", "a \t\u00a0 b", ["a", "b"]),
        ("spaCy's contractions", "don't cannot we'll", ["do", "n't", "can", "not", "we", "'ll"]),
        (
            "spaCy's abbreviations",
            "Mr. X. of the U.S. ran.",
            ["mr.", "x.", "of", "the", "u.s.", "ran", "."],
        ),
        (
            "lower case last: of a month's name in capitals only spaCy keeps the dot",
            "Jan. jan.",
            ["jan.", "jan", "."],
        ),
    ],
)
def test_each_step_of_the_normalisation(step: str, text: str, expected: list[str]) -> None:
    assert words_of(text) == expected, step


def test_standardise_is_the_released_codes() -> None:
    assert (
        standardise('  "Yes" —\n\n ok(1),[2]/{3}*_+=;')
        == '" Yes " - \n ok ( 1 ) , [ 2 ] / { 3 } * _ + = ;'
    )
    assert standardise("a``b ´tis #1 : 2.5 50%") == "a``b 'tis #1 : 2.5 50%"  # these stay


def test_normalised_text_is_words_each_with_a_space_after_it(tokenizer: Tokenizer) -> None:
    assert tokenizer.normalise("It's late,\n\nSIR!") == "it 's late , \n sir ! "
    assert tokenizer.normalise(" \n ") == ""
    assert (
        Tokenizer.train(PROSE, vocab_size=300).normalise("As IT is \n") == "As IT is \n"
    )  # of style gpt2


# --- ids ---


def published_bpe(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """The algorithm as published, on one word's characters with `</w>` on the last."""
    parts = [*word[:-1], word[-1] + "</w>"]
    while len(parts) > 1:
        best = min(pairwise(parts), key=lambda pair: ranks.get(pair, 1 << 30))
        if best not in ranks:
            break
        merged, i = [], 0
        while i < len(parts):
            joins = tuple(parts[i : i + 2]) == best
            merged.append("".join(parts[i : i + 1 + joins]))
            i += 1 + joins
        parts = merged
    return parts


@quick
@given(
    text=st.text(
        st.sampled_from(" \nabcdehinorst.,'\"’—…!?-ÉNOT1é中") | st.characters(codec="utf-8"),
        max_size=60,
    )
)
def test_ids_are_those_of_the_published_algorithm(
    tokenizer: Tokenizer, saved: Path, text: str
) -> None:
    ids = json.loads((saved / "vocab.json").read_text(encoding="utf-8"))
    lines = (
        (saved / "merges.txt").read_text(encoding="utf-8").split("\n")[1:-1]
    )  # as the released code reads them
    ranks = {tuple(line.split()): rank for rank, line in enumerate(lines)}
    expected = [ids.get(part, 0) for word in words_of(text) for part in published_bpe(word, ranks)]  # type: ignore[arg-type]
    assert tokenizer.encode(text) == expected


def test_vocabulary_is_laid_out_as_the_released_one(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.tokens()
    count = (tokenizer.first_merge - 1) // 2
    assert (
        tokens[0] == "<unk>"
        and tokens[-1] == "\n</w>"
        and tokenizer.end_of_text == len(tokens) - 1 == 279
    )
    assert tokens[1 : 1 + count] == [
        token.removesuffix("</w>") for token in tokens[1 + count : 1 + 2 * count]
    ]
    assert tokens[1] == "e" and {len(token) for token in tokens[1 : 1 + count]} == {1}
    assert all(len(token.removesuffix("</w>")) > 1 for token in tokens[tokenizer.first_merge : -1])
    assert 1 + 2 * 238 + 40_000 + 1 == 40_478


def test_end_of_word_unknown_and_newline(tokenizer: Tokenizer) -> None:
    spelt = [tokenizer.tokens()[index] for index in tokenizer.encode("中t t中 中\nT")]
    assert spelt == ["<unk>", "t</w>", "t", "<unk>", "<unk>", "\n</w>", "t</w>"]
    assert tokenizer.decode(tokenizer.encode("中t 中 it\nit")) == "\ufffdt \ufffdit \n it "
    assert tokenizer.encode("\n\n") == []


def test_characters_that_stand_once_and_the_rarest_beyond_238_are_unknown() -> None:
    many = "".join(chr(0x4E00 + number) for number in range(300))
    tokenizer = Tokenizer.train([*many, *many, "ab ab"], vocab_size=2 * 238 + 2, style="gpt1")
    assert (tokenizer.first_merge, tokenizer.tokens()[1:3]) == (477, ["a", "b"])
    assert tokenizer.encode(chr(0x4E00 + 299)) == [tokenizer.unknown] == [0]


def test_released_files_give_their_ids(saved: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    vocabulary = {
        "<unk>": 0,
        "t": 1,
        "h": 2,
        "e": 3,
        "t</w>": 4,
        "h</w>": 5,
        "e</w>": 6,
        "th": 7,
        "the</w>": 8,
        "\n</w>": 9,
    }
    (tmp_path / "encoder_bpe_40000.json").write_text(json.dumps(vocabulary))
    (tmp_path / "vocab_40000.bpe").write_text("#version: 0.2\nt h\nth e</w>\n")
    small = Tokenizer.from_gpt1_files(
        tmp_path / "encoder_bpe_40000.json", tmp_path / "vocab_40000.bpe"
    )
    assert small.encode("The\nteeth, THE") == [8, 9, 1, 3, 3, 1, 5, 0, 8]
    assert (small.vocab_size, small.end_of_text, small.first_merge) == (10, 9, 7)
    again = Tokenizer.from_gpt1_files(saved / "vocab.json", saved / "merges.txt")
    assert [again.encode(text) for text in LETTER] == [tokenizer.encode(text) for text in LETTER]
    with pytest.raises(UserError, match=r"are not the vocabulary .* of GPT-1's kind"):
        Tokenizer.from_gpt1_files(tmp_path / "vocab_40000.bpe", saved / "merges.txt")


# --- any text ---


@pytest.mark.slow
@quick
@given(text=st.text(max_size=120) | st.sampled_from(NASTY))
def test_any_text_comes_back_normalised_and_its_bytes_add_up(
    tokenizer: Tokenizer, text: str
) -> None:
    ids = tokenizer.encode(text)
    normal = tokenizer.normalise(text)
    assert tokenizer.decode(ids) == normal
    assert int(tokenizer.byte_lengths()[ids].sum()) == len(normal.encode())


LINES = st.sampled_from(
    [
        "",
        " ",
        "One line.",
        "two &amp; <b>",
        "&lt;3",
        "\u00a0",
        "\ufeff",
        "it's — ",
        "schÃ¶n\r",
        "a\u2028b",
        "\x00",
        "‘no’",
        "&#10;",
    ]
)


@quick
@given(lines=st.lists(LINES, max_size=12), size=st.integers(1, 12))
def test_documents_in_pieces_give_the_ids_and_bytes_of_the_whole(
    tokenizer: Tokenizer, lines: list[str], size: int
) -> None:
    documents = ["\n".join(lines), "and another\n", "\n".join(reversed(lines))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpt_model.tokenizer.gpt1.PIECE", size)
        patch.setattr(base, "BATCH", 3 * size)
        parts = [piece for batch in tokenizer.encode_documents(documents) for piece in batch]
    ids: list[list[int]] = [[]]
    for part in parts:
        ids[-1] += part.ids.tolist()
        if part.last:
            ids.append([])
    assert ids == [*(tokenizer.encode(text) for text in documents), []]
    assert sum(part.bytes for part in parts) == sum(
        len(tokenizer.normalise(text).encode()) for text in documents
    )
    assert sum(part.read for part in parts) == sum(len(text.encode()) for text in documents)


@pytest.mark.slow
def test_helper_processes_give_the_words_that_one_process_does(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer
) -> None:
    texts = [*NASTY, *PROSE[:60]]
    alone = tokenizer.encode_batch(texts)
    results = []

    def executor(**options: Any) -> Any:
        results.append(options["max_workers"])
        return get_reusable_executor(**options)

    monkeypatch.setattr(gpt1_normalisation, "HELPED_FROM", 0)
    monkeypatch.setattr("loky.get_reusable_executor", executor)
    monkeypatch.setenv("RAYON_NUM_THREADS", "2")
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    assert tokenizer.encode_batch(texts) == alone
    assert [part.ids.tolist() for part in next(tokenizer.encode_documents(texts))] == alone
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert tokenizer.encode_batch(texts) == alone
    assert results == [2, 2]


@pytest.mark.slow
def test_helpers_of_a_killed_process_are_gone_soon() -> None:
    script = (
        "import time; from gpt_model.tokenizer import gpt1_normalisation as words; "
        "from gpt_model.tokenizer.base import Piece; words.HELPED_FROM = 0; "
        "print(words.normalised_all([Piece('It is')] * 2), flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "RAYON_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "true"}
    command = [sys.executable, "-c", script]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"['it is ', 'it is ']\n"
        helpers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert len(helpers) >= 2
    assert psutil.wait_procs(helpers, timeout=20)[1] == []


def test_a_long_line_is_cut_at_spaces_and_its_ids_do_not_show_it(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\n".join(" ".join(PROSE[n : n + 9]) for n in range(0, 90, 9))
    whole, normal = tokenizer.encode(text), tokenizer.normalise(text)
    word = "acgt" * 50
    monkeypatch.setattr("gpt_model.tokenizer.gpt1.PIECE", 50)
    monkeypatch.setattr("gpt_model.tokenizer.gpt1.LONG_LINE", 150)
    assert len(list(tokenizer._pieces(text))) > 20
    assert (tokenizer.encode(text), tokenizer.normalise(text)) == (whole, normal)
    ((first, last),) = tokenizer.encode_documents([f"one {word} two"])
    assert first.read == 150 and not first.last and last.last
    assert tokenizer.normalise(word) == f"{word[:150]} {word[150:]} "


@pytest.mark.parametrize("roles", [False, True])
def test_spelt_out_unknown_token_is_text_in_an_export_too(
    tokenizer: Tokenizer, tmp_path: Path, roles: bool
) -> None:
    from transformers import AutoTokenizer  # two seconds, for this test alone

    if roles:
        tokenizer = chat_tokenizer(tokenizer)
    tokenizer.save(tmp_path)
    complete(tmp_path, context=64, padding="left")
    exported = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("the <unk> said", "a<unk>b", "<unk>"):
        assert len(ids := tokenizer.encode(text)) >= len("<unk>")
        assert exported(text)["input_ids"] == ids
    assert exported("the 中")["input_ids"] == tokenizer.encode("the 中")
    if roles:
        turns = [{"role": "user", "content": "the <unk> said"}]
        expected = ChatTemplate(tokenizer).encode((Turn("user", "the <unk> said"),)).tokens
        assert exported.apply_chat_template(turns)["input_ids"] == expected
    assert exported(["one", "one two three"], padding=True)["input_ids"][0][0] == (
        tokenizer.end_of_text
    )


def test_spelt_out_end_of_text_is_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.end_of_text not in tokenizer.encode(f"one{END_OF_TEXT} two")


def test_bytes_of_tokens_on_disk_are_those_of_the_normalised_text(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    texts = {"training": list(LETTER), "held_out": ["", "Two\nlines", "中"]}
    write(tmp_path, {"letters": SourceTexts(1.0, texts)}, tokenizer)
    data = TokenData(tmp_path)
    for split, documents in texts.items():
        tokens = data.tokens("letters", split)
        spelt = "".join(
            f"{tokenizer.normalise(text)}\n " for text in documents
        )  # each document is a line's end at its end
        assert tokenizer.decode(tokens[:].tolist()) == spelt
        assert (
            data.bytes("letters", split)
            == len(spelt.encode())
            == int(data.byte_lengths[tokens[:]].sum())
        )
        assert [
            tokenizer.decode(tokens_of)
            for tokens_of in (tokens.document(number).tolist() for number in range(len(documents)))
        ] == [tokenizer.normalise(text) for text in documents]


# --- in transformers ---


@pytest.fixture(scope="module")
def in_transformers(saved: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(saved)


def test_transformers_gives_the_same_ids_on_ordinary_text(
    tokenizer: Tokenizer, in_transformers: Any
) -> None:
    for text in (*LETTER, "\n\n".join(LETTER), *PROSE[6:12]):
        ids = in_transformers(text)["input_ids"]
        assert ids == tokenizer.encode(text), text
        assert in_transformers.decode(ids) == tokenizer.decode(ids).removesuffix(" ")
    assert (in_transformers.eos_token_id, in_transformers.unk_token_id, len(in_transformers)) == (
        279,
        0,
        280,
    )


@pytest.mark.parametrize(
    ("what", "text", "ours", "theirs"),
    [
        ("wrong encodings are not mended", "schÃ¶n", "schön ", "schã¶n "),
        ("entities are not read", "a &amp; b", "a & b ", "a & amp ; b "),
        ("case is lost first", "he came.The end", "he came . the end ", "he came.the end "),
    ],
)
def test_where_transformers_differs(
    in_transformers: Any, what: str, text: str, ours: str, theirs: str
) -> None:
    rust = in_transformers.backend_tokenizer
    pre_tokenize_str = rust.pre_tokenizer.pre_tokenize_str(rust.normalizer.normalize_str(text))
    assert (normalised(Piece(text)), "".join(f"{word} " for word, _ in pre_tokenize_str)) == (
        ours,
        theirs,
    ), what


def test_a_models_folder_loads_with_our_words_and_not_with_berts(
    saved: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Where config.json says openai-gpt, transformers has a class of its own, which would split
    "don't" otherwise.
    """
    from transformers import AutoTokenizer, OpenAIGPTConfig, OpenAIGPTTokenizer

    tokenizer.save(tmp_path)
    OpenAIGPTConfig(vocab_size=280, n_layer=1, n_head=1, n_embd=8).save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)(LETTER[0])["input_ids"] == tokenizer.encode(
        LETTER[0]
    )
    as_bert = OpenAIGPTTokenizer(vocab=str(saved / "vocab.json"), merges=str(saved / "merges.txt"))
    assert as_bert("I don't.")["input_ids"] != tokenizer.encode("I don't.")


# --- made, saved, loaded ---


@pytest.mark.slow
def test_same_text_gives_the_same_bytes_on_disk_whatever_the_threads_and_hashes(
    saved: Path, tmp_path: Path
) -> None:
    script = (
        "import json, sys; from pathlib import Path; from gpt_model.tokenizer import Tokenizer;"
        "Tokenizer.train(json.load(sys.stdin), vocab_size=280, "
        "style='gpt1').save(Path(sys.argv[1]))"
    )
    environment = {**os.environ, "RAYON_NUM_THREADS": "3", "PYTHONHASHSEED": "3"}
    command = [sys.executable, "-c", script, str(tmp_path)]
    subprocess.run(
        command, input=json.dumps(PROSE), text=True, check=True, env=environment, cwd=ROOT
    )
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    ]
    assert all((tmp_path / name).read_bytes() == (saved / name).read_bytes() for name in files)


def test_loading_gives_the_tokenizer_that_was_saved(saved: Path, tokenizer: Tokenizer) -> None:
    loaded = Tokenizer.load(saved)
    assert isinstance(loaded, GPT1Tokenizer)
    assert loaded.tokens() == tokenizer.tokens()
    assert loaded.encode_batch(PROSE[:12]) == tokenizer.encode_batch(PROSE[:12])


def test_importing_loads_neither_torch_nor_spacy() -> None:
    script = (
        "import sys, gpt_model.tokenizer as t; t.Tokenizer.of('gpt1'); "
        "print(sorted({'torch', "
        "'spacy', 'ftfy', 'loky'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert result.stdout.strip() == "[]"


def test_vocabulary_that_does_not_fit_the_text_is_refused_with_both_sizes() -> None:
    text = ["abc abc"]
    with pytest.raises(
        UserError,
        match=r"`vocab_size` is 90, but the training text supports only 10: .* at least 8 and at "
        r"most 10",
    ):
        Tokenizer.train(text, vocab_size=90, style="gpt1")
    with pytest.raises(UserError, match=r"needs at least 8: <unk>, 3 characters twice"):
        Tokenizer.train(text, vocab_size=7, style="gpt1")
    assert Tokenizer.train(text, vocab_size=8, style="gpt1").encode("abc") == [1, 2, 6]
    with pytest.raises(UserError, match=r"`style` is 'gpt4'; there are 'gpt2' .* and 'gpt1'"):
        Tokenizer.train(text, vocab_size=300, style="gpt4")


def test_recipe_knows_both_styles_and_their_least_vocabularies() -> None:
    assert TokenizerSection(style="gpt1", vocab_size=100).vocab_size == 100
    with pytest.raises(ValueError, match="100 is too small: style gpt2 has 256 bytes"):
        TokenizerSection(style="gpt2", vocab_size=100)


def test_only_normalised_bits_per_byte_carry_a_caveat() -> None:
    assert Tokenizer.of("gpt2").caveat == ""
    assert "not comparable with those of GPT-2's tokenizer" in Tokenizer.of("gpt1").caveat
