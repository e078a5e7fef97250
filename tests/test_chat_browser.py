"""The chat's page in a real browser: two models beside each other, streaming, votes, a model that
fails; and that page and endpoint end together.
"""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from chat_store import SPELT_MARKERS, chat_store, status, voted_comparisons
from conftest import free_port
from playwright.sync_api import Browser, Page, expect

from assets.store.store import Store
from docs.pictures import browser, chromium, say
from gpt_model.rlhf import votes
from pipelines.chat.session import VOTES_COMMAND
from pipelines.local_only import HOST

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(
        chromium() is None and "CI" not in os.environ,
        reason="no Chromium or Chrome on this machine",
    ),
]
MESSAGE = "who sees the sailor?"


# The command line, with models that fail where they read `FAILING`: nothing else makes one fail.
FAILING = "fail now"
SCRIPT = f"""
import sys
from pipelines.chat.engine import Engine
from pipelines.cli.main import app
run = Engine._run
def run_or_fail(self, batch):
    decode = self.partner.template.tokenizer.decode
    if any({FAILING!r} in decode(answer.request.prompt) for answer in batch):
        raise RuntimeError("out of memory")
    run(self, batch)
Engine._run = run_or_fail
app(sys.argv[1:])
"""


@dataclass(frozen=True)
class Chat:
    store: Store
    url: str
    endpoint: str
    process: subprocess.Popen[bytes]


def start(home: Path) -> Chat:
    """The page of two models, when it answers."""
    port, endpoint_port = free_port(), free_port()
    options = ["--temperature", "0", "--max-new-tokens", "40", "--seed", "7", "--top-p", "0.01"]
    options += ["--port", str(port), "--endpoint-port", str(endpoint_port)]
    command = [sys.executable, "-c", SCRIPT, "chat", "tiny/supervised", "tiny/aligned"]
    log = home / "page.log"
    # With this variable NiceGUI takes itself to be in a test of its local, and takes its port from
    # what its `screen` fixture sets.
    environment = {
        name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"
    }
    environment["LINEAGE_HOME"] = str(home)
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--browser", *options],
            env=environment,
            stdout=out,
            stderr=out,
            cwd=Path(__file__).parent.parent,
        )
    deadline = time.monotonic() + 120
    url = f"http://{HOST}:{port}"
    while True:
        with suppress(OSError), urllib.request.urlopen(url, timeout=2):
            break
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.3)
    return Chat(Store(home), url, f"http://{HOST}:{endpoint_port}/v1/models", process)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chat]:
    home = tmp_path_factory.mktemp("chat_page")
    chat_store(home)
    chat = start(home)
    yield chat
    assert status(chat.endpoint) == 200
    chat.process.send_signal(signal.SIGINT)
    chat.process.wait(timeout=30)
    assert_gone(chat)


def assert_gone(chat: Chat) -> None:
    """Nothing listens where page and endpoint were."""
    for url in (chat.url, chat.endpoint):
        with pytest.raises(OSError, match="refused"):
            status(url)


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    with browser() as started:
        yield started


def opened(chrome: Browser, chat: Chat) -> Page:
    page = chrome.new_page(viewport={"width": 1400, "height": 900})
    page.goto(chat.url)
    expect(page.get_by_text("Ask something")).to_be_visible(timeout=30_000)
    return page


def test_two_models_answer_as_they_write_and_the_vote_is_in_the_store(
    chat: Chat, chrome: Browser, tmp_path: Path
) -> None:
    page = chrome.new_page(viewport={"width": 1400, "height": 900})
    addresses: list[str] = []  # all that the page requests, with those of its websockets
    page.on("request", lambda request: addresses.append(request.url))
    page.on("websocket", lambda socket: addresses.append(socket.url))
    page.goto(chat.url)
    expect(page.get_by_text("Ask something")).to_be_visible(timeout=30_000)
    # every text that an answer has had on the page, so that nothing depends on when we look
    page.evaluate("""() => { window.seen = [];
      new MutationObserver(() => { const a = document.querySelector('.answer');
        if (a) window.seen.push(a.innerText.length); })
        .observe(document.body, {subtree: true, childList: true, characterData: true}); }""")
    say(page, MESSAGE)
    expect(page.get_by_role("button", name="Right is better")).to_be_visible(timeout=60_000)
    assert len(set(page.evaluate("window.seen"))) > 3  # it grew
    for ref in ("tiny/supervised", "tiny/aligned"):
        expect(
            page.locator(".card").get_by_text(f"{ref} {chat.store.resolve(ref).fingerprint[:12]}")
        ).to_be_visible()
    answers = page.locator(".answer").all_inner_texts()
    if shot := os.environ.get("CHAT_PICTURE"):
        page.screenshot(path=shot)
    page.get_by_role("button", name="Right is better").click()
    expect(page.get_by_text("Vote kept: tiny/aligned is better")).to_be_visible()
    expect(page.get_by_text(VOTES_COMMAND)).to_be_visible()
    (vote,) = votes.read(chat.store.home)
    assert (vote.messages, vote.tie) == ([{"role": "user", "content": MESSAGE}], False)
    assert [vote.rejected, vote.chosen] == [answer.strip() for answer in answers]
    assert vote.artifacts["chosen"] == chat.store.resolve("tiny/aligned").fingerprint
    (compared,) = voted_comparisons(chat.store.home, tmp_path / "comparisons")
    assert [response.text for response in compared.responses] == [
        vote.chosen,
        vote.rejected,
    ] and compared.pairs() == [(0, 1)]
    assert len(addresses) > 5 and {
        urlsplit(url).hostname for url in addresses if not url.startswith(("data:", "blob:"))
    } == {HOST}


def test_blind_names_are_shown_after_the_vote_only(chat: Chat, chrome: Browser) -> None:
    page = opened(chrome, chat)
    page.get_by_text("Blind: names after the vote").click()
    page.get_by_role("button", name="What is a language model?").click()
    expect(page.get_by_role("button", name="Tie")).to_be_visible(timeout=60_000)
    expect(page.get_by_text("Model A")).to_be_visible()
    assert "tiny/" not in page.inner_text("body")
    page.get_by_role("button", name="Tie").click()
    expect(page.locator(".card").get_by_text("tiny/aligned")).to_be_visible()
    assert votes.read(chat.store.home)[-1].tie


def test_a_vote_that_the_disk_has_no_room_for_is_said_and_can_be_cast_again(
    chat: Chat, chrome: Browser
) -> None:
    page = opened(chrome, chat)
    for number, message in enumerate((MESSAGE, "and the tree?"), start=1):
        say(page, message)
        expect(page.get_by_role("button", name="Left is better")).to_have_count(
            number, timeout=60_000
        )  # both have answered
    path = votes.append(
        chat.store.home,
        votes.vote((), votes.Answered("a", "a" * 64, "x"), votes.Answered("b", "b" * 64, "y"), {}),
    )
    before = path.read_bytes()
    process = psutil.Process(chat.process.pid)
    limits = process.rlimit(psutil.RLIMIT_FSIZE)
    process.rlimit(psutil.RLIMIT_FSIZE, (len(before) + 40, limits[1]))
    try:
        page.get_by_role("button", name="Left is better").last.click()
        expect(page.get_by_text("The vote is not kept")).to_be_visible()
    finally:
        process.rlimit(psutil.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    page.get_by_role("button", name="Left is better").last.click()
    expect(page.get_by_text("Vote kept: tiny/supervised is better")).to_be_visible()
    vote = votes.read(chat.store.home)[-1]
    # as the second answers were drawn: after two turns, and within the nucleus asked for at the
    # start, below the slider's usual end
    assert (len(vote.messages), vote.sampling["seed"], vote.sampling["top_p"]) == (3, 7 + 2, 0.01)


def test_only_this_machine_is_answered(chat: Chat) -> None:
    port = urlsplit(chat.url).port
    polling = f"{chat.url}/_nicegui_ws/socket.io/?EIO=4&transport=polling"
    for local in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"):
        assert status(chat.url, Host=local) == 200
        assert status(polling, Host=local, Origin=f"http://{local}") == 200
        assert status_of_socket(port, Host=local, Origin=f"http://{local}") == 101
    for foreign in ({"Host": f"rebound.example:{port}"}, {"Origin": "https://elsewhere.example"}):
        assert status(chat.url, **foreign) == status(chat.url, b"{}", **foreign) == 403
        assert status(polling, **foreign) == status_of_socket(port, **foreign) == 403


def status_of_socket(port: int | None, **headers: str) -> int:
    """What a request to go on as a websocket is answered with."""
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    upgrade["Sec-WebSocket-Key"] = "MDEyMzQ1Njc4OWFiY2RlZg=="
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    try:
        connection.request(
            "GET",
            "/_nicegui_ws/socket.io/?EIO=4&transport=websocket",
            headers={**upgrade, **headers},
        )
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_message_that_is_empty_or_too_long_is_not_sent(chat: Chat, chrome: Browser) -> None:
    page = opened(chrome, chat)
    say(page, "  ")
    expect(page.get_by_text("An empty message is not sent")).to_be_visible()
    say(page, "tree " * 200)
    expect(page.get_by_text("The message is too long for")).to_be_visible()
    expect(page.locator(".card")).to_have_count(0)


def test_half_a_character_is_sent_as_the_sign_for_it(chat: Chat, chrome: Browser) -> None:
    page, log = opened(chrome, chat), chat.store.home / "page.log"
    before = len(log.read_text())
    box = page.get_by_label("Message")
    box.evaluate("""box => { box.value = "who\\ud800 sees";
      box.dispatchEvent(new Event("input")); }""")
    box.press("Enter")
    expect(page.locator(".question")).to_have_text("who\ufffd sees")
    expect(page.get_by_role("button", name="Tie")).to_be_visible(timeout=60_000)
    assert "Traceback" not in log.read_text()[before:]


def test_a_message_that_spells_markers_is_sent_as_text(chat: Chat, chrome: Browser) -> None:
    page = opened(chrome, chat)
    say(page, SPELT_MARKERS)
    expect(page.get_by_text(SPELT_MARKERS)).to_be_visible()
    expect(page.get_by_role("button", name="Tie")).to_be_visible(timeout=60_000)


def test_a_model_that_fails_is_reported_on_the_page_and_answers_again(
    chat: Chat, chrome: Browser
) -> None:
    page = opened(chrome, chat)
    say(page, FAILING)
    message = "The model gave no whole answer (RuntimeError: out of memory)"
    expect(page.get_by_text(message)).to_have_count(2, timeout=30_000)
    say(page, MESSAGE)
    expect(page.get_by_role("button", name="Tie")).to_be_visible(timeout=60_000)


def test_page_and_endpoint_end_with_a_killed_process(chat: Chat) -> None:
    killed = start(chat.store.home)
    assert status(killed.url) == status(killed.endpoint) == 200
    assert not psutil.Process(killed.process.pid).children(recursive=True)
    killed.process.kill()
    killed.process.wait(timeout=30)
    assert_gone(killed)
