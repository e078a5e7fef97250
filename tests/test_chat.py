"""The chat in a terminal, with its input piped in, and what the terminal and the page share."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_store import CONTEXT, QUESTION, SPELT_MARKERS, VOTES_COMMAND, answer_of, chat_store

from assets.contract import Artifact
from assets.store.manifest import Facts
from assets.store.store import Store
from gpt_model.errors import UserError
from gpt_model.rlhf import votes
from gpt_model.rlhf.dialogue import Dialogue, Turn, messages
from pipelines.chat.ability import ability
from pipelines.chat.engine import Engine, running
from pipelines.chat.session import Sampling, find_partner, find_partners, votes_recipe
from pipelines.local_only import HOST

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return chat_store(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def engines(store: Store) -> Iterator[list[Engine]]:
    with running(find_partners(store, ["tiny/supervised", "tiny/aligned"])) as engines:
        yield engines


def chat(
    store: Store, *arguments: str, stdin: str = "", **options: Any
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "chat", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"LINEAGE_HOME": str(store.home)},
        cwd=Path(__file__).parent.parent,
        **options,
    )


def answers(stdout: str, engine: Engine) -> list[str]:
    """What stands under the artifact's name in a terminal."""
    label = f"[{engine.partner.label}] "
    return [line.removeprefix(label) for line in stdout.splitlines() if line.startswith(label)]


def test_terminal_names_the_artifact_of_every_answer_and_reset_forgets_the_talk(
    store: Store, engines: list[Engine]
) -> None:
    lines = (
        "who sees the sailor?\nand the tree?\n/reset\nwho sees the sailor?\n\n/settings top_p=2\n"
    )
    options = ("--temperature", "0", "--max-new-tokens", "20")
    done = chat(store, "tiny/supervised", *options, stdin=f"{lines}/quit\n")
    assert done.returncode == 0, done.stderr
    written = answers(done.stdout, engines[0])
    assert len(written) == 3
    # the same talk again, so the same answer
    assert written[0] == written[2] and written[0].startswith("the king")
    talk = (*QUESTION, Turn("assistant", written[0]), Turn("user", "and the tree?"))
    sampling = Sampling(temperature=0, max_new_tokens=20)
    assert written[1] == answer_of(engines[0], talk, sampling)  # the first exchange is read
    assert "An empty message is not sent" in done.stdout
    assert "top_p is 2.0, and should be above 0" in done.stdout


def test_terminal_announces_once_that_the_oldest_turns_are_not_read_any_more(
    store: Store, engines: list[Engine]
) -> None:
    options = ("--temperature", "0", "--max-new-tokens", "20")
    # and the input's end ends it
    done = chat(store, "tiny/supervised", *options, stdin="who sees the sailor?\n" * 6)
    assert done.returncode == 0, done.stderr
    assert len(answers(done.stdout, engines[0])) == 6
    assert done.stdout.count("the oldest turns are not read any more") == 1


def test_terminal_goes_on_after_half_a_character(
    store: Store, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")  # as in any locale but C
    options = ("tiny/supervised", "--temperature", "0", "--max-new-tokens", "20")
    lines = "who\ud800 sees\n/\ud800\nwho sees the sailor?\n/quit\n"
    done = chat(store, *options, stdin=lines, errors="surrogatepass")
    assert done.returncode == 0, done.stderr
    assert "half a character (a lone surrogate) after 'who'" in done.stdout
    assert len(answers(done.stdout, engines[0])) == 1


def test_terminal_keeps_a_vote_between_two_models(store: Store) -> None:
    before = len(votes.read(store.home))
    options = ("tiny/supervised", "tiny/aligned", "--max-new-tokens", "12", "--temperature", "0")
    done = chat(store, *options, stdin="who sees the sailor?\nleft\n2\n/quit\n")
    assert done.returncode == 0, done.stderr
    assert "'left' is no vote." in done.stdout and VOTES_COMMAND in done.stdout
    assert [
        (vote.refs["chosen"], vote.refs["rejected"], vote.messages)
        for vote in votes.read(store.home)[before:]
    ] == [("tiny/aligned", "tiny/supervised", messages(QUESTION))]
    assert f"Votes: {before + 1}, of which ties: 0" in chat(store, "--votes").stdout


def test_terminal_goes_on_where_the_disk_has_no_room_for_a_vote(
    store: Store, engines: list[Engine]
) -> None:
    left, right = votes.Answered("a", "a" * 64, "x"), votes.Answered("b", "b" * 64, "y")
    votes.append(store.home, votes.vote(QUESTION, left, right, {}))
    before = (store.home / votes.FILE).read_bytes()

    def fill_disk() -> None:
        # no file may grow beyond these bytes; output goes to a pipe
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 40, resource.RLIM_INFINITY))

    done = chat(
        store,
        *("tiny/supervised", "tiny/aligned", "--max-new-tokens", "12", "--temperature", "0"),
        stdin="who sees the sailor?\n2\nand the tree?\n1\n/quit\n",
        preexec_fn=fill_disk,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("The vote is not kept") == 2
    assert "The talk goes on with tiny/aligned's answer." in done.stdout
    assert len(answers(done.stdout, engines[1])) == 2 and "Traceback" not in done.stderr
    assert (store.home / votes.FILE).read_bytes() == before


def test_the_same_seed_gives_the_same_answer_in_the_terminal_as_in_a_batch(
    store: Store, engines: list[Engine]
) -> None:
    options = ("--temperature", "2", "--max-new-tokens", "20", "--seed", "5", "--top-k", "40")
    done = chat(store, "tiny/supervised", *options, stdin="who sees the sailor?\n")
    sampling = Sampling(temperature=2, max_new_tokens=20, seed=5, top_k=40)
    written = answer_of(engines[0], QUESTION, sampling)
    assert written.splitlines()[0] == answers(done.stdout, engines[0])[0]


def test_one_model_twice_is_refused(store: Store) -> None:
    fingerprint = store.resolve("tiny/supervised").fingerprint
    done = chat(store, "tiny/supervised", fingerprint[:12], stdin="hello\n")
    assert done.returncode == 1 and "is both models: give two different ones" in done.stderr


def test_a_model_has_the_name_that_it_was_requested_by(store: Store) -> None:
    """Another recipe may have the same artifact."""
    fingerprint = store.resolve("tiny/supervised").fingerprint
    store.set_ref("mine", "supervised", fingerprint)
    try:
        for name in ("tiny/supervised", "mine/supervised"):
            assert find_partner(store, name).ref == name
        assert find_partner(store, fingerprint[:16]).ref == "mine/supervised"
    finally:
        (store.home / "refs" / "mine" / "supervised").unlink()


def test_a_marker_in_a_message_is_text_and_not_the_token(engines: list[Engine]) -> None:
    template = engines[0].partner.template
    turns: Dialogue = (Turn("system", SPELT_MARKERS), Turn("user", SPELT_MARKERS))
    tokens = list(engines[0].fit(turns, 8).tokens)
    special = [
        token
        for token in tokens
        if token in {template.end_of_text, *template.tokenizer.markers.values()}
    ]
    system, user, assistant = (
        template.role_token(role) for role in ("system", "user", "assistant")
    )
    assert special == [system, template.end_of_text, user, template.end_of_text, assistant]
    text = template.tokenizer.encode(SPELT_MARKERS)
    assert tokens == [
        system,
        *text,
        template.end_of_text,
        user,
        *text,
        template.end_of_text,
        assistant,
    ]


def test_a_model_that_only_continues_text_is_turned_away_with_what_to_take(store: Store) -> None:
    done = chat(store, "tiny/pretrained", stdin="hello\n")
    assert done.returncode == 1
    assert "only continues text" in done.stderr and "Traceback" not in done.stderr


def test_the_oldest_exchanges_are_left_out_and_a_message_longer_than_the_context_is_refused(
    engines: list[Engine],
) -> None:
    long: Dialogue = (
        Turn("system", "be kind."),
        *(*QUESTION, Turn("assistant", "the king does")) * 9,
        *QUESTION,
    )
    prompt, template = engines[0].fit(long, 16), engines[0].partner.template
    dropped = prompt.dropped_turns
    assert dropped % 2 == 0 < dropped
    assert list(prompt.tokens) == template.encode_prompt((long[0], *long[1 + dropped :]))
    assert len(prompt.tokens) + 16 <= CONTEXT
    # one exchange more would not have fitted
    assert len(template.encode_prompt((long[0], *long[1 + dropped - 2 :]))) + 16 > CONTEXT
    with pytest.raises(UserError, match="too long for tiny/supervised"):
        engines[0].fit((Turn("user", "tree " * 200),), 16)


def test_a_port_that_is_taken_is_named_with_the_option(store: Store) -> None:
    with socket.socket() as holder:
        holder.bind((HOST, 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        for option in ("--port", "--endpoint-port"):
            done = chat(store, "tiny/supervised", "--browser", option, port)
            assert done.returncode == 1
            assert f"Port {port} of {HOST} is taken" in done.stderr and option in done.stderr


def test_a_vote_names_the_nearest_recipe_that_trains_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "mine.yaml").write_text("extends: chat-tiny-votes\nname: mine\n")
    (folder / "broken.yaml").write_text("extends: nothing\n")
    for ref, command in {
        "mine/aligned": "gpt-lineage run mine",
        "chat_tiny_votes/aligned": "gpt-lineage run chat-tiny-votes",
        "chat_tiny/aligned": "gpt-lineage run chat-tiny-votes",
        "other/aligned": "gpt-lineage run chat-tiny-votes",
    }.items():
        assert votes_recipe([ref]).endswith(command)
    (folder / "mine.yaml").unlink()
    monkeypatch.setattr("pipelines.chat.session.RECIPES", folder)
    assert "No recipe here trains on votes" in votes_recipe(["mine/aligned"])


def test_what_to_expect_of_a_model_follows_from_its_size_and_its_pretraining(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path)

    def publish(stage: str, inputs: dict[str, Artifact], **metrics: float) -> Artifact:
        digests = {name: artifact.digest for name, artifact in inputs.items()}
        building = store.building(store.fingerprint(stage, "1", metrics, digests))
        (building.files / "data").write_text(stage)
        return store.publish(building, Facts(stage, "1", metrics, inputs, metrics), {})

    metrics = {"tokens": 1_398_784.0, "held_out/bpb": 1.9851}
    start = publish("policy_init", {"pretrained": publish("pretrained", {}, **metrics)})
    aligned = publish("aligned", {"policy_init": start})
    assert ability(store, aligned, 5_034_000, 256) == (
        "5.0 million parameters, pretrained on 1.4 million tokens to 1.99 bits per byte of "
        "held-out text; it reads the last 256 tokens of a talk. Expect short sentences in the "
        "style of its training text; it knows next to no facts and cannot reason."
    )
    # a large network that has read as little expects no more of itself
    assert "Expect short sentences" in ability(store, aligned, 1_500_000_000, 1024)
    imported = publish("supervised", {})
    assert ability(store, imported, 1_500_000_000, 1024) == (
        "1.5 billion parameters; it reads the last 1,024 tokens of a talk. Expect coherent "
        "paragraphs and simple instructions followed; facts and sums are often wrong."
    )
