"""Dialogues: which turns are one, and that they are laid out in tokens as `transformers` lays them
out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt_model import GPT, ModelConfig, convert
from gpt_model.errors import UserError
from gpt_model.rlhf.chat_template import JINJA, ROLE_TOKENS, ChatTemplate, chat_tokenizer
from gpt_model.rlhf.dialogue import Dialogue, NoDialogue, dialogue, messages
from gpt_model.tokenizer import Tokenizer
from gpt_model.transformer import with_rows

TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "  Who sees the sailor? "},
    {"role": "assistant", "content": "The king does."},
    {"role": "user", "content": "And the old tree?\nAnyone?"},
    {"role": "assistant", "content": "No one <|user|> sees it."},
]


@pytest.fixture(scope="module", params=["gpt2", "gpt1"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    texts = [
        "the king sees the sailor and no one sees the old tree, be kind. who? and anyone does!\n"
    ] * 50 + ["<|user|> " * 9]
    return chat_tokenizer(
        Tokenizer.train(
            texts, vocab_size=290 if request.param == "gpt2" else 80, style=request.param
        )
    )


@pytest.fixture(scope="module")
def theirs(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return AutoTokenizer.from_pretrained(folder)


def turns(talk: list[dict[str, str]]) -> Dialogue:
    return dialogue(talk, ends_with=("user", "assistant"))


def test_transformers_lays_a_dialogue_out_alike_and_knows_which_tokens_are_the_assistants(
    tokenizer, theirs
) -> None:  # type: ignore[no-untyped-def]
    plain = [
        *TALK[:-1],
        {"role": "assistant", "content": "No one sees it."},
    ]  # spelt-out markers are another test's
    encoded = ChatTemplate(tokenizer).encode(turns(plain))
    result = theirs.apply_chat_template(
        plain, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert result["input_ids"] == encoded.tokens
    assert [bool(flag) for flag in result["assistant_masks"]] == encoded.loss_mask


def test_a_prompt_is_what_transformers_has_before_an_answer(tokenizer, theirs) -> None:  # type: ignore[no-untyped-def]
    question = TALK[:2]
    assert theirs.apply_chat_template(question, tokenize=True, add_generation_prompt=True)[
        "input_ids"
    ] == ChatTemplate(tokenizer).encode_prompt(turns(question))


def test_opening_words_are_the_answers_first(tokenizer, theirs) -> None:  # type: ignore[no-untyped-def]
    opened = [*TALK[:1], TALK[1], {"role": "assistant", "content": "The king"}]
    prompt = ChatTemplate(tokenizer).encode_prompt(turns(opened))
    assert (
        prompt
        == theirs.apply_chat_template(opened, tokenize=True, continue_final_message=True)[
            "input_ids"
        ]
    )
    whole = (
        ChatTemplate(tokenizer)
        .encode(turns([*opened[:2], {"role": "assistant", "content": "The king does."}]))
        .tokens
    )
    assert prompt + ChatTemplate(tokenizer).encode_response(turns(opened), " does.") == whole


def test_a_marker_that_text_spells_out_is_text() -> None:
    tokenizer = chat_tokenizer(
        Tokenizer.train(["the king sees <|user|> the king"] * 9, vocab_size=270)
    )
    encoded = ChatTemplate(tokenizer).encode(turns(TALK))
    assert sum(token in tokenizer.markers.values() for token in encoded.tokens) == len(TALK)


def test_a_saved_tokenizer_loads_with_markers_and_template(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.markers == tokenizer.markers and list(loaded.markers) == list(ROLE_TOKENS)
    assert loaded.chat_template == JINJA
    assert (
        loaded.vocab_size
        == tokenizer.vocab_size
        == len(loaded.tokens())
        == len(loaded.byte_lengths())
    )
    assert not np.any(loaded.byte_lengths()[list(loaded.markers.values())])
    assert loaded.encode("the king") == tokenizer.encode("the king")
    assert loaded.decode([*loaded.encode("the king"), *loaded.markers.values()]) == loaded.decode(
        loaded.encode("the king")
    )


def test_a_tokenizer_without_markers_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"no token <\|system\|>.*only continues text.*supervised"):
        ChatTemplate(Tokenizer.train(["the king and the king"] * 9, vocab_size=260))


def test_new_rows_leave_the_model_as_it_was() -> None:
    gpt = GPT(ModelConfig(layers=2, width=32, heads=2, context=16, vocab_size=50), 1).eval()
    grown = with_rows(gpt, 3, dropout=0.2, seed=1).eval()
    tokens = torch.arange(10)[None]
    assert grown.config.vocab_size == 53 and grown.config.dropout == 0.2
    assert torch.allclose(grown(tokens)[..., :50], gpt(tokens), atol=1e-6)
    assert torch.equal(grown.wte.weight, with_rows(gpt, 3, 0.0, 1).wte.weight)  # of the seed alone


def test_a_model_with_its_markers_loads_in_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    tokenizer = chat_tokenizer(Tokenizer.train(["the king and the sailor"] * 9, vocab_size=265))
    gpt = GPT(
        ModelConfig(layers=1, width=16, heads=2, context=32, vocab_size=tokenizer.vocab_size), 1
    ).eval()
    convert.save(gpt, tmp_path, tokenizer.end_of_text)
    tokenizer.save(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    prompt = torch.tensor([ChatTemplate(tokenizer).encode_prompt(turns(TALK[:2]))])
    assert torch.allclose(theirs(prompt).logits, gpt(prompt), atol=1e-5)


@pytest.mark.parametrize(
    ("talk", "kind", "error_text"),
    [
        ([], "no turns", "no turns"),
        (
            [{"role": "user", "content": " "}, TALK[2]],
            "an empty turn",
            r"turn 1 \(user\) says nothing",
        ),
        ([{"role": "user"}], "an empty turn", "turn 1"),
        (
            [{"role": "narrator", "content": "Lo."}],
            "an unknown role",
            "'narrator'.*system, user, assistant",
        ),
        ([TALK[2], TALK[1]], "roles out of order", "turn 1 is of role 'assistant' where 'user'"),
        (
            [TALK[0], TALK[1], TALK[1]],
            "roles out of order",
            "turn 3 is of role 'user' where 'assistant'",
        ),
        ([TALK[1], TALK[0], TALK[2]], "roles out of order", "turn 2 is of role 'system'"),
        ([TALK[1], TALK[2], TALK[3]], "a wrong end", "ends with 'user'.*'assistant'"),
        ([TALK[0]], "a wrong end", "ends with 'system'"),
    ],
)
def test_what_is_no_dialogue_is_named(
    talk: list[dict[str, str]], kind: str, error_text: str
) -> None:
    with pytest.raises(NoDialogue, match=error_text) as result:
        dialogue(talk)
    assert result.value.kind == kind


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=6))
def test_a_dialogue_is_what_its_messages_say(texts: list[str]) -> None:
    talk = [
        {"role": ("user", "assistant")[index % 2], "content": text}
        for index, text in enumerate(texts)
    ]
    assert [message["content"] for message in messages(turns(talk))] == [
        text.strip() for text in texts
    ]
    assert turns(messages(turns(talk))) == turns(talk)
