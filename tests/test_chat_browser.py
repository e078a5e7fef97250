"""The chat's page in a real browser: two models beside each other, streaming, votes, a model that
fails, what the keyboard and a screen reader do; and that page and endpoint end together.
"""

from __future__ import annotations

import http.client
import os
import re
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

import page_checks
import psutil
import pytest
from chat_store import SPELT_MARKERS, VOTES_COMMAND, chat_store, status, voted_comparisons
from conftest import free_port
from playwright.sync_api import Browser, Page, expect

from assets.store.store import Store
from docs.pictures import say
from gpt_model.rlhf import votes
from pipelines.chat.engine import numbered_seed
from pipelines.local_only import HOST

pytestmark = [pytest.mark.slow, pytest.mark.browser]
MESSAGE = "who sees the sailor?"


# The command line, with models that fail where they read `FAILING`, as nothing else makes one fail,
# and that take their time where they read `SLOWLY`.
FAILING = "fail now"
SLOWLY = "slowly now"
SCRIPT = f"""
import sys
import time
from pipelines.chat.engine import Engine, _Answer
from pipelines.cli.main import app
append = _Answer.append
def append_slowly(self, *token):
    if {SLOWLY!r} in self.tokenizer.decode(self.request.prompt):
        time.sleep(0.15)
    append(self, *token)
_Answer.append = append_slowly
run = Engine._run
def run_or_fail(self, batch):
    decode = self.partner.template.tokenizer.decode
    if any({FAILING!r} in decode(answer.request.prompt) for answer in batch):
        raise RuntimeError("out of memory")
    run(self, batch)
Engine._run = run_or_fail
app(sys.argv[1:])
"""


# What a screen reader calls the element that has the focus.
FOCUSED = """(element => element.ariaLabel || element.querySelector('.block')?.innerText
  || element.outerHTML)(document.activeElement)"""


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
    expect(page.get_by_role("button", name="B is better")).to_be_visible(timeout=60_000)
    assert len(set(page.evaluate("window.seen"))) > 3  # it grew
    for ref in ("tiny/supervised", "tiny/aligned"):
        expect(
            page.locator(".card").get_by_text(f"{ref} {chat.store.resolve(ref).fingerprint[:12]}")
        ).to_be_visible()
    answers = page.locator(".answer").all_inner_texts()
    if shot := os.environ.get("CHAT_PICTURE"):
        page.screenshot(path=shot)
    page.get_by_role("button", name="B is better").click()
    expect(page.locator(".note")).to_contain_text("Vote kept: B, tiny/aligned, is better")
    expect(page.locator(".note")).to_contain_text(VOTES_COMMAND)
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
    assert "tiny/" not in page.content()
    page.reload()
    expect(page.get_by_role("button", name="Tie")).to_be_visible(timeout=30_000)
    assert "tiny/" not in page.content()
    page.get_by_role("button", name="Tie").click()
    expect(page.locator(".card").get_by_text("tiny/aligned")).to_be_visible()
    assert votes.read(chat.store.home)[-1].tie


def test_a_vote_that_the_disk_has_no_room_for_is_said_and_can_be_cast_again(
    chat: Chat, chrome: Browser
) -> None:
    page = opened(chrome, chat)
    for number, message in enumerate((MESSAGE, "and the tree?"), start=1):
        say(page, message)
        expect(page.get_by_role("button", name="A is better")).to_have_count(
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
        page.get_by_role("button", name="A is better").last.click()
        expect(page.get_by_text("The vote is not kept")).to_be_visible()
    finally:
        process.rlimit(psutil.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    page.get_by_role("button", name="A is better").last.click()
    expect(page.locator(".note")).to_contain_text("Vote kept: A, tiny/supervised, is better")
    vote = votes.read(chat.store.home)[-1]
    # as the second answers were drawn: after two turns, and within the nucleus asked for at the
    # start, below the slider's usual end
    assert (len(vote.messages), vote.sampling["seed"], vote.sampling["top_p"]) == (3, 7 + 2, 0.01)


def test_a_talk_is_stopped_regenerated_edited_and_copied_and_outlives_a_reload(
    chat: Chat, chrome: Browser
) -> None:
    context = chrome.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto(chat.url)
    message, spoken = page.get_by_label("Message", exact=True), page.get_by_role("status")
    answer = page.get_by_role("group", name="Answer A").locator(".answer")
    say(page, SLOWLY)
    expect(spoken).to_have_text("The answer is being written.")
    expect(answer).to_have_text(re.compile(r"\w"), timeout=30_000)
    page.reload()  # while it is written
    expect(page.get_by_role("button", name="Stop")).to_be_visible(timeout=30_000)
    before = answer.inner_text()
    expect(answer).not_to_have_text(before)  # it goes on
    message.press("Escape")
    expect(page.get_by_text("Stopped.", exact=True)).to_have_count(2)
    expect(spoken).to_contain_text("Stopped. B:")
    stopped = answer.inner_text()
    expect(page.get_by_role("button", name="A is better")).to_have_count(0)

    page.get_by_role("button", name="Regenerate").click()
    expect(page.get_by_text("At temperature 0 the answer is the same again.")).to_be_visible()
    expect(message).to_be_focused()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Stopped.", exact=True)).to_have_count(2)

    page.get_by_role("button", name="Edit message 1").click()
    box = page.get_by_label("Edited message")
    expect(box).to_be_focused()
    expect(box).to_have_value(SLOWLY)
    page.keyboard.press("Escape")
    expect(box).to_have_count(0)
    page.get_by_role("button", name="Edit message 1").click()
    box.fill(MESSAGE)
    box.press("Enter")
    expect(page.get_by_role("button", name="B is better")).to_be_visible(timeout=60_000)
    assert answer.inner_text() != stopped
    page.get_by_role("button", name="Copy answer B").click()
    expect(page.get_by_text("Copied")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.get_by_role("group", name="Answer B").locator(".answer").inner_text()
    page.get_by_role("button", name="B is better").click()
    expect(spoken).to_contain_text("Vote kept: B, tiny/aligned, is better")
    (vote,) = votes.read(chat.store.home)[-1:]
    assert vote.messages == [{"role": "user", "content": MESSAGE}] and vote.chosen == copied
    assert vote.sampling["seed"] == numbered_seed(7, 2)  # the third try

    files = [path for path in chat.store.home.rglob("*") if path.is_file()]
    assert not [path for path in files if SLOWLY.encode() in path.read_bytes()]

    page.reload()
    expect(page.locator(".better .answer")).to_have_text(copied, timeout=30_000)
    expect(page.locator(".note")).to_contain_text(VOTES_COMMAND)
    say(page, SLOWLY)
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    page.get_by_role("button", name="New talk").click()  # which ends the answers, too
    expect(page.get_by_text("Ask something")).to_be_visible()
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    other = context.new_page()
    other.goto(chat.url)
    expect(other.get_by_text("Ask something")).to_be_visible(timeout=30_000)
    context.close()


def test_the_keyboard_is_enough(chat: Chat, chrome: Browser) -> None:
    page = opened(chrome, chat)
    message = page.get_by_label("Message", exact=True)
    expect(message).to_be_focused()
    page.keyboard.type("who sees")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("the sailor?")
    expect(message).to_have_value("who sees\nthe sailor?")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="B is better")).to_be_visible(timeout=60_000)
    expect(page.locator(".question")).to_have_text("who sees\nthe sailor?")
    order = []
    for _ in range(7):
        page.keyboard.press("Shift+Tab")
        order.append(page.evaluate(FOCUSED))
    assert order == [
        *("Regenerate", "B is better", "Tie", "A is better", "Copy answer B", "Copy answer A"),
        "Copy message 1",
    ]


@pytest.mark.parametrize("view", page_checks.VIEWS, ids=str)
def test_every_state_of_the_page_can_be_read(
    chat: Chat, chrome: Browser, view: page_checks.View
) -> None:
    with page_checks.opened(chrome, chat.url, view) as opened:
        page = opened.page
        expect(page.get_by_text("Ask something")).to_be_visible(timeout=30_000)
        expect(page.get_by_text("Expect short sentences")).to_be_visible()
        assert page_checks.faults(opened) == []
        say(page, FAILING)
        expect(page.locator(".failed")).to_have_count(2, timeout=30_000)
        say(page, MESSAGE)
        expect(page.get_by_role("button", name="Tie")).to_be_visible(timeout=60_000)
        page.get_by_role("button", name="Edit message 1").click()
        expect(page.get_by_role("button", name="Send again")).to_be_visible()
        assert page_checks.faults(opened) == []
        answers = [
            page.get_by_role("group", name=f"Answer {name}").last.element_handle() for name in "AB"
        ]
        stacked = page.evaluate(  # both at once: the page may be scrolling
            "([a, b]) => b.getBoundingClientRect().top >= a.getBoundingClientRect().bottom", answers
        )
        assert stacked == (view.width == 400)
        if view.width == 400:  # where there is room they are open
            page.get_by_role("button", name="Settings").click()
            drawer = page.get_by_role("complementary", name="Settings")
            expect(drawer).to_be_in_viewport(ratio=1, timeout=30_000)  # it slides in
            expect(page.get_by_text("How it answers")).to_be_visible()
            assert page_checks.faults(opened) == []


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
    box = page.get_by_label("Message", exact=True)
    box.evaluate("""box => { box.value = "who\\ud800 sees";
      box.dispatchEvent(new Event("input")); }""")
    box.press("Enter")
    expect(page.locator(".question")).to_have_text("who\ufffd sees")
    expect(page.get_by_role("button", name="Tie")).to_be_visible(timeout=60_000)
    assert "Traceback" not in log.read_text()[before:]


def test_a_message_that_spells_markers_is_sent_as_text(chat: Chat, chrome: Browser) -> None:
    page = opened(chrome, chat)
    say(page, SPELT_MARKERS)
    expect(page.locator(".question")).to_have_text(SPELT_MARKERS)
    expect(page.get_by_role("button", name="Tie")).to_be_visible(timeout=60_000)


def test_a_model_that_fails_is_reported_on_the_page_and_answers_again(
    chat: Chat, chrome: Browser
) -> None:
    page = opened(chrome, chat)
    say(page, FAILING)
    message = "The model gave no whole answer (RuntimeError: out of memory)"
    expect(page.locator(".failed").get_by_text(message)).to_have_count(2, timeout=30_000)
    say(page, MESSAGE)
    expect(page.get_by_role("button", name="Tie")).to_be_visible(timeout=60_000)


def test_page_and_endpoint_end_with_a_killed_process(chat: Chat) -> None:
    killed = start(chat.store.home)
    assert status(killed.url) == status(killed.endpoint) == 200
    assert not psutil.Process(killed.process.pid).children(recursive=True)
    killed.process.kill()
    killed.process.wait(timeout=30)
    assert_gone(killed)
