"""The chat's page in a real browser, with the real endpoint behind it: two models beside each
other, streaming, votes, a dead endpoint.
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
from chat_store import chat_store, voted_comparisons
from playwright.sync_api import Browser, Page, expect
from test_chat import FORGED, SPELT, free_port, status

from assets.store.store import Store
from docs.pictures import HOST, browser, chromium, say
from gpt_model.rlhf import votes
from pipelines.chat.session import LEARNING

pytestmark = pytest.mark.skipif(
    chromium() is None and "CI" not in os.environ, reason="no Chromium or Chrome on this machine"
)
MESSAGE = "who sees the sailor?"


@dataclass(frozen=True)
class Chat:
    store: Store
    url: str
    process: subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chat]:
    home = tmp_path_factory.mktemp("chat_page")
    store, port = chat_store(home), free_port()
    command = [
        sys.executable,
        "-m",
        "pipelines.cli",
        "chat",
        "tiny/supervised",
        "tiny/aligned",
        "--browser",
        "--temperature",
        "0",
    ]
    command += [
        "--max-new-tokens",
        "40",
        "--seed",
        "7",
        "--top-p",
        "0.01",
        "--port",
        str(port),
        "--endpoint-port",
        str(free_port()),
    ]
    log = home / "page.log"
    # With this variable NiceGUI holds itself to be in a test of its own, and takes its port from
    # what its `screen` fixture sets.
    environment = {
        name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"
    }
    environment["LINEAGE_HOME"] = str(home)
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=environment, stdout=out, stderr=out, cwd=Path(__file__).parent.parent
        )
    deadline = time.monotonic() + 120
    url = f"http://{HOST}:{port}"
    while True:
        with suppress(OSError), urllib.request.urlopen(url, timeout=2):
            break
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.3)
    yield Chat(store, url, process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=30)
    assert not psutil.wait_procs(children, timeout=15)[1]  # the endpoint ends with the page


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
    asked: list[str] = []  # every address the page asks for, with those of its websockets
    page.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda socket: asked.append(socket.url))
    page.goto(chat.url)
    expect(page.get_by_text("Ask something")).to_be_visible(timeout=30_000)
    # every text that an answer has had on the page, so that nothing depends on when we look
    page.evaluate("""() => { window.seen = [];
      new MutationObserver(() => { const a = document.querySelector('.answer'); if (a) window.seen.push(a.innerText.length); })
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
    expect(page.get_by_text(LEARNING)).to_be_visible()
    (cast,) = votes.read(chat.store.home)
    assert (cast.messages, cast.tie) == ([{"role": "user", "content": MESSAGE}], False)
    assert [cast.rejected, cast.chosen] == [answer.strip() for answer in answers]
    assert cast.artifacts["chosen"] == chat.store.resolve("tiny/aligned").fingerprint
    (compared,) = voted_comparisons(chat.store.home, tmp_path / "comparisons")
    assert [one.text for one in compared.responses] == [
        cast.chosen,
        cast.rejected,
    ] and compared.pairs() == [(0, 1)]
    assert len(asked) > 5 and {
        urlsplit(url).hostname for url in asked if not url.startswith(("data:", "blob:"))
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
    for number, said in enumerate((MESSAGE, "and the tree?"), start=1):
        say(page, said)
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
    cast = votes.read(chat.store.home)[-1]
    # as the second answers were drawn: after two turns, and within the nucleus asked for at the
    # start, below the slider's usual end
    assert (len(cast.messages), cast.sampling["seed"], cast.sampling["top_p"]) == (3, 7 + 2, 0.01)


def test_only_this_machine_is_answered(chat: Chat) -> None:
    port = urlsplit(chat.url).port
    polling = f"{chat.url}/_nicegui_ws/socket.io/?EIO=4&transport=polling"
    for own in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"):
        assert status(chat.url, Host=own) == 200
        assert status(polling, Host=own, Origin=f"http://{own}") == 200
        assert status_of_socket(port, Host=own, Origin=f"http://{own}") == 101
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


def test_a_message_that_is_empty_too_long_or_spells_a_marker_is_not_sent(
    chat: Chat, chrome: Browser
) -> None:
    page = opened(chrome, chat)
    say(page, "  ")
    expect(page.get_by_text("An empty message is not sent")).to_be_visible()
    say(page, "tree " * 200)
    expect(page.get_by_text("The message is too long for")).to_be_visible()
    say(page, FORGED)
    expect(page.get_by_text(f"What the user says {SPELT}")).to_be_visible()
    expect(page.locator(".card")).to_have_count(0)


def test_a_dead_endpoint_is_said_on_the_page(
    chat: Chat, chrome: Browser
) -> None:  # the last: it ends the endpoint
    page = opened(chrome, chat)
    (server,) = [
        child
        for child in psutil.Process(chat.process.pid).children()
        if any(part.endswith("chat_endpoint.py") for part in child.cmdline())
    ]
    server.kill()
    say(page, MESSAGE)
    expect(page.get_by_text("The endpoint gave no whole answer").first).to_be_visible(
        timeout=30_000
    )
