"""The chat without a browser: votes on disk, the terminal with its input piped in, the endpoint with OpenAI's own client."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from chat_store import CONTEXT, chat_store, voted_comparisons

from assets.resources.store import Store
from gpt_model.alignment import votes
from gpt_model.alignment.dialogue import Dialogue, Turn, messages
from gpt_model.errors import CorruptFile, UserError
from pipelines.chat import Partner, Sampling, fitted, partner
from pipelines.chat_server import HOST, serving

ASKED: Dialogue = (Turn("user", "who sees the sailor?"),)
LEFT, RIGHT = votes.Answered("the king", "a" * 64, "tiny/supervised"), votes.Answered("no one", "b" * 64, "tiny/aligned")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return chat_store(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def partners(store: Store) -> list[Partner]:
    return [partner(store, store.resolve(ref)) for ref in ("tiny/supervised", "tiny/aligned")]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def chat(store: Store, *arguments: str, said: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "chat", *arguments], input=said, capture_output=True, text=True, timeout=120,
        env=os.environ | {"LINEAGE_HOME": str(store.home)}, cwd=Path(__file__).parent.parent,
    )  # fmt: skip


def answered(told: str, partner: Partner) -> list[str]:
    """What stands under the artifact's name in a terminal."""
    label = f"[{partner.ref} {partner.fingerprint[:12]}] "
    return [line.removeprefix(label) for line in told.splitlines() if line.startswith(label)]


# -- votes -----------------------------------------------------------------------------------------------------------------------------


def test_a_vote_is_read_back_as_it_was_cast(tmp_path: Path) -> None:
    cast = votes.vote(ASKED, RIGHT, LEFT, {"temperature": 0.5})
    votes.append(tmp_path, cast)
    assert votes.read(tmp_path) == [cast]
    assert (cast.chosen, cast.artifacts["rejected"], cast.refs["chosen"]) == ("no one", "a" * 64, "tiny/aligned")


def test_votes_cast_at_once_are_all_kept(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: votes.append(tmp_path, votes.vote(ASKED, LEFT, RIGHT, {"seed": n})), range(64)))
    assert sorted(one.sampling["seed"] for one in votes.read(tmp_path)) == list(range(64))


def test_half_a_line_of_a_killed_writer_is_replaced_and_a_whole_line_that_is_no_vote_is_named(tmp_path: Path) -> None:
    path = votes.append(tmp_path, votes.vote(ASKED, LEFT, RIGHT, {}))
    with path.open("a") as file:
        file.write('{"time": "2026')
    votes.append(tmp_path, votes.vote(ASKED, RIGHT, LEFT, {}, tie=True))
    assert [one.tie for one in votes.read(tmp_path)] == [False, True]
    with path.open("a") as file:
        file.write("{}\n")
    with pytest.raises(CorruptFile, match="line 3 is no vote"):
        votes.read(tmp_path)


def test_votes_are_read_as_comparisons_by_the_stage(tmp_path: Path) -> None:
    votes.append(tmp_path, votes.vote(ASKED, RIGHT, LEFT, {}))
    votes.append(tmp_path, votes.vote((Turn("user", "and the tree?"),), LEFT, RIGHT, {}, tie=True))
    better, tie = sorted(voted_comparisons(tmp_path, tmp_path / "built"), key=lambda one: one.prompt != ASKED)
    assert (better.prompt, [(one.text, one.rank) for one in better.responses]) == (ASKED, [("no one", 0), ("the king", 1)])
    assert better.pairs() == [(0, 1)] and tie.pairs() == []


# -- terminal --------------------------------------------------------------------------------------------------------------------------


def test_terminal_names_the_artifact_of_every_answer_and_reset_forgets_the_talk(store: Store, partners: list[Partner]) -> None:
    said = "who sees the sailor?\nand the tree?\n/reset\nwho sees the sailor?\n\n/settings top_p=2\n/quit\n"
    done = chat(store, "tiny/supervised", "--temperature", "0", "--max-new-tokens", "20", said=said)
    assert done.returncode == 0, done.stderr
    answers = answered(done.stdout, partners[0])
    assert len(answers) == 3
    assert answers[0] == answers[2] and answers[0].startswith("the king")  # the same talk again, so the same answer
    sampling = Sampling(temperature=0, max_new_tokens=20)
    talk = (*ASKED, Turn("assistant", answers[0]), Turn("user", "and the tree?"))
    assert answers[1] == partners[0].answer(fitted(partners[0], talk, sampling)[1], sampling, lambda _: None)  # what was said is read
    assert "An empty message is not sent" in done.stdout and "top_p is 2.0, and should be above 0" in done.stdout


def test_terminal_says_once_that_the_oldest_turns_are_not_read_any_more(store: Store, partners: list[Partner]) -> None:
    arguments = ("tiny/supervised", "--temperature", "0", "--max-new-tokens", "20")
    done = chat(store, *arguments, said="who sees the sailor?\n" * 6)  # and the input's end ends it
    assert done.returncode == 0, done.stderr
    assert len(answered(done.stdout, partners[0])) == 6
    assert done.stdout.count("the oldest turns are not read any more") == 1


def test_terminal_keeps_a_vote_between_two_models(store: Store) -> None:
    before = len(votes.read(store.home))
    arguments = ("tiny/supervised", "tiny/aligned", "--max-new-tokens", "12", "--temperature", "0")
    done = chat(store, *arguments, said="who sees the sailor?\n2\n/quit\n")
    assert done.returncode == 0, done.stderr
    cast = votes.read(store.home)[before:]
    assert [(one.refs["chosen"], one.refs["rejected"], one.messages) for one in cast] == [
        ("tiny/aligned", "tiny/supervised", messages(ASKED))
    ]
    assert f"Votes: {before + 1}, of which ties: 0" in chat(store, "--votes").stdout


def test_a_model_that_only_continues_text_is_turned_away_with_what_to_take(store: Store) -> None:
    done = chat(store, "tiny/pretrained", said="hello\n")
    assert done.returncode == 1
    assert "only continues text" in done.stderr and "Traceback" not in done.stderr


def test_the_oldest_turns_are_left_out_whole_and_a_message_longer_than_the_context_is_named(partners: list[Partner]) -> None:
    sampling = Sampling(max_new_tokens=16)
    long: Dialogue = (Turn("system", "be kind."), *(*ASKED, Turn("assistant", "the king does")) * 9, *ASKED)
    kept, tokens, dropped = fitted(partners[0], long, sampling)
    assert kept == (long[0], *long[1 + dropped :]) and dropped % 2 == 0 < dropped
    assert len(tokens) + 16 <= CONTEXT
    assert len(partners[0].layout.prompt((long[0], *long[1 + dropped - 2 :]))) + 16 > CONTEXT  # one exchange more would not have fitted
    with pytest.raises(UserError, match="too long for tiny/supervised"):
        fitted(partners[0], (Turn("user", "tree " * 200),), sampling)


# -- endpoint --------------------------------------------------------------------------------------------------------------------------


def test_openais_client_is_answered_by_the_artifacts_name_whole_and_in_parts(store: Store, partners: list[Partner]) -> None:
    asked = {"model": "tiny/supervised", "messages": messages(ASKED), "temperature": 0, "max_tokens": 40}
    with serving(store, partners, free_port()) as address:
        client = openai.OpenAI(base_url=address, api_key="none", max_retries=0)
        assert {model.id for model in client.models.list()} == {"tiny/supervised", "tiny/aligned"}
        whole = client.chat.completions.create(**asked)  # type: ignore[call-overload]
        ours = partners[0].answer(fitted(partners[0], ASKED, Sampling())[1], Sampling(temperature=0, max_new_tokens=40), lambda _: None)
        assert whole.choices[0].message.content.strip() == ours  # template and weights are ours
        parts = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**asked, stream=True)]  # type: ignore[call-overload]
        assert sum(map(bool, parts)) > 3 and "".join(parts).strip() == ours
        short = client.chat.completions.create(**asked | {"max_tokens": 3})
        assert (short.usage.completion_tokens, short.choices[0].finish_reason) == (3, "length")
        assert client.chat.completions.create(**asked, stop=["sailor"]).choices[0].message.content.rstrip().endswith("sailor")  # type: ignore[call-overload]
        drawn = [client.chat.completions.create(**asked | {"temperature": 5.0, "seed": seed}) for seed in (1, 2, 3)]
        assert len({one.choices[0].message.content for one in drawn}) > 1  # tokens are drawn
        cut = client.chat.completions.create(**asked | {"temperature": 5.0, "top_p": 1e-6})
        assert cut.choices[0].message.content.strip() == ours  # a nucleus of one token
        check_that_nothing_goes_beyond_the_context(client, partners[0])
        assert client.chat.completions.create(**asked).choices[0].message.content.strip() == ours  # it serves on after what was refused


def check_that_nothing_goes_beyond_the_context(client: openai.OpenAI, partner: Partner) -> None:
    unending = {"model": partner.ref, "messages": messages(ASKED), "temperature": 0, "logit_bias": {str(partner.layout.end): -1000.0}}
    prompt = len(partner.layout.prompt(ASKED))
    for asked in (unending, unending | {"max_tokens": 5000}):
        long = client.chat.completions.create(**asked)  # type: ignore[call-overload]
        assert (long.usage.prompt_tokens, long.usage.completion_tokens) == (prompt, CONTEXT - prompt)
        assert long.choices[0].finish_reason == "length"
    for stream in (False, True):
        too_long = unending | {"messages": [{"role": "user", "content": "tree " * 200}], "stream": stream}
        with pytest.raises(openai.BadRequestError, match=f"the model reads {CONTEXT}"):
            client.chat.completions.create(**too_long)  # type: ignore[call-overload]


def test_a_port_that_is_taken_is_named_with_the_option(store: Store) -> None:
    with socket.socket() as holder:
        holder.bind((HOST, 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        done = chat(store, "tiny/supervised", "--browser", "--port", port)
    assert done.returncode == 1
    assert f"Port {port} of {HOST} is taken" in done.stderr and "--port" in done.stderr
