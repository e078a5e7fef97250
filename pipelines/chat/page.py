"""The chat's page, by NiceGUI: one or two models beside each other, answers as they are written,
votes. The models are this process's engines, as the endpoint's are.

NiceGUI has its scripts, fonts and styles in its package, so the page needs no network.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nicegui import app, ui
from nicegui.storage import Storage

from gpt_model.errors import UserError
from gpt_model.rlhf.dialogue import Dialogue, Turn
from gpt_model.rlhf.votes import Answered, append, read, vote
from pipelines.chat.endpoint import serving
from pipelines.chat.engine import Engine, EngineFailed, Prompt, running
from pipelines.chat.session import VOTES_COMMAND, Partner, Sampling
from pipelines.local_only import HOST, LocalOnly, check_free

STYLE = """
<style>
 body { background: #f6f7fb; }
 .nicegui-content { padding: 0; }
 .answer, .question { white-space: pre-wrap; overflow-wrap: anywhere; }
 .answer { line-height: 1.55; font-size: 15px; min-height: 1.55em; }
 .question { background: #3f51b5; color: white; padding: 10px 16px; }
 .question { border-radius: 16px 16px 4px 16px; }
 .card { border-radius: 14px; box-shadow: 0 1px 3px rgb(20 24 60 / .12); background: white; }
 .label { font-family: ui-monospace, monospace; font-size: 12px; color: #5c6680; }
 .better { outline: 2px solid #43a047; }
 .writing::after { content: "▍"; color: #3f51b5; animation: blink 1s steps(2) infinite; }
 @keyframes blink { 50% { opacity: 0; } }
 .pair { flex-wrap: nowrap; }
 @media (max-width: 700px) { .pair { flex-direction: column; } .wide { display: none; } }
</style>
"""
# NiceGUI reads no half of a character (a lone surrogate). As in a form, it becomes U+FFFD.
WHOLE_CHARACTERS = """
<script>
 addEventListener("input", ({target}) => {
  if (target.value?.isWellFormed?.() === false) target.value = target.value.toWellFormed();
 }, true);
</script>
"""
BLIND = ("Model A", "Model B")
SUGGESTED = (
    "What is a language model?",
    "Write a short review of a film.",
    "What can I do on a rainy day?",
)


def talk(
    home: Path,
    partners: Sequence[Partner],
    sampling: Sampling,
    system: str,
    port: int,
    endpoint_port: int,
) -> None:
    """The page and the endpoint, until Ctrl-C. Raises UserError where a port is taken."""
    check_free(port, "--port")
    check_free(endpoint_port, "--endpoint-port")
    Storage.path = home / "chat" / "page"
    app.add_middleware(LocalOnly)
    with running(partners) as engines, serving(engines, endpoint_port) as endpoint:

        @ui.page("/")
        def index() -> None:
            Page(home, engines, sampling, system).draw()

        print(f"Chat: http://{HOST}:{port}  Endpoint: {endpoint}  (Ctrl-C stops both)", flush=True)
        ui.run(
            host=HOST,
            port=port,
            title="gpt-lineage chat",
            favicon="💬",
            reload=False,
            show=False,
            show_welcome_message=False,
        )


class Page:
    """One visitor's conversation."""

    def __init__(
        self, home: Path, engines: Sequence[Engine], sampling: Sampling, system: str
    ) -> None:
        self.home, self.engines, self.sampling, self.system = home, engines, sampling, system
        self.turns: Dialogue = ()
        self.busy = False
        self.dropping_announced = False
        self.order = list(engines)  # from left to right

    def draw(self) -> None:
        ui.add_head_html(STYLE + WHOLE_CHARACTERS)
        ui.colors(primary="#3f51b5")
        with ui.header().classes("items-center bg-white text-gray-900 shadow-sm px-6 py-3"):
            ui.icon("forum", size="26px").classes("text-primary")
            ui.label("gpt-lineage chat").classes("text-lg font-semibold")
            self.named = ui.label().classes("label wide")
            ui.space()
            ui.button("New talk", icon="restart_alt", on_click=self.reset).props(
                "flat no-caps"
            ).mark("reset")
            ui.button(icon="tune", on_click=lambda: self.drawer.toggle()).props(
                'flat round aria-label="Settings"'
            )
        self._draw_settings()
        with ui.column().classes("w-full max-w-6xl mx-auto px-6 pt-6 pb-32 gap-5"):
            self.talk = ui.column().classes("w-full gap-5")
        with (
            ui.footer().classes("bg-white px-6 py-4 shadow-md"),
            ui.row().classes("w-full max-w-6xl mx-auto items-center no-wrap gap-3"),
        ):
            self.input = ui.textarea(placeholder="Write a message: Enter sends it").classes("grow")
            self.input.props('outlined autogrow dense autofocus rows=1 aria-label="Message"')
            self.input.on("keydown.enter.exact.prevent", lambda: self.send())
            self.button = ui.button(icon="send", on_click=lambda: self.send()).props(
                'round unelevated aria-label="Send"'
            )
        self._begin()

    def _draw_settings(self) -> None:
        # It has no `value`, so it is open where the window has room for it. It reaches to the
        # bottom, so the message box ends beside it.
        self.drawer = (
            ui.right_drawer(bordered=True, bottom_corner=True)
            .classes("bg-white px-5 py-6 gap-4")
            .props("width=290")
        )
        with self.drawer:
            ui.label("How it answers").classes("text-base font-semibold")
            self.prompt = (
                ui.textarea("System prompt", value=self.system)
                .props("outlined autogrow dense")
                .classes("w-full")
            )
            self.prompt.tooltip(
                "What the model is told before the talk; it holds from the next message on"
            )
            self.temperature = _slider(
                "Temperature",
                0.0,
                max(2.0, self.sampling.temperature),
                0.05,
                self.sampling.temperature,
            )
            self.top_p = _slider(
                "Top-p", min(0.05, self.sampling.top_p), 1.0, 0.05, self.sampling.top_p
            )
            self.length = ui.number(
                "New tokens at most", value=self.sampling.max_new_tokens, min=1, precision=0
            )
            self.length.props("outlined dense").classes("w-full")
            if len(self.engines) == 2:
                self.blind = ui.switch(
                    "Blind: names after the vote", value=False, on_change=self.reset
                )
                self.votes = ui.label().classes("label")
                self._count()

    def _count(self) -> None:
        try:
            self.votes.text = f"Votes in this store: {len(read(self.home))}"
        except UserError as error:
            self.votes.text = str(error)

    def _begin(self) -> None:
        self.turns, self.dropping_announced = (), False
        self.order = list(self.engines)
        hidden = len(self.engines) == 2 and self.blind.value
        self.named.text = (
            "" if hidden else "   ·   ".join(engine.partner.label for engine in self.engines)
        )
        self.talk.clear()
        with self.talk, ui.column().classes("w-full items-center py-16 gap-2 text-center"):
            ui.icon("chat_bubble_outline", size="44px").classes("text-gray-400")
            ui.label("Ask something").classes("text-xl text-gray-700")
            ui.label(
                "Both models answer the same talk; vote for the better answer, "
                "and it goes on with that one."
                if len(self.engines) == 2
                else "Each answer names the artifact that gave it."
            ).classes("text-gray-500")
            with ui.row().classes("justify-center gap-2 pt-4"):
                for text in SUGGESTED:
                    ui.button(text, on_click=lambda text=text: self.send(text)).props(
                        "outline no-caps rounded"
                    )

    def reset(self) -> None:
        if self.busy:
            ui.notify("An answer is being written: wait for its end.")
        else:
            self._begin()

    def _settings(self) -> Sampling:
        """How the next answers are sampled: every exchange has another seed."""
        length = self.length.value
        if length is None:
            raise UserError("New tokens at most is empty: write a number from 1 on.")
        return Sampling(
            self.temperature.value,
            self.top_p.value,
            self.sampling.top_k,
            int(length),
            self.sampling.seed + len(self.turns),
        )

    async def send(self, text: str = "") -> None:
        """`text`, or the message in the box, to every model, unless there is none or an answer is
        still being written.
        """
        text = text or (self.input.value or "").strip()
        if self.busy:
            return
        if not text:
            ui.notify("An empty message is not sent: write something.", type="warning")
            return
        turns = (*self.turns, Turn("user", text))
        try:
            sampling = self._settings()
            dialogue = self._with_system(turns)
            prompts = {
                engine: engine.fit(dialogue, sampling.max_new_tokens) for engine in self.engines
            }
        except UserError as error:
            ui.notify(str(error), type="warning", multi_line=True, timeout=10_000)
            return
        self.busy, self.input.value = True, ""
        self.button.disable()
        try:
            await self._exchange(turns, dialogue, prompts, sampling)
        finally:
            self.busy = False
            self.button.enable()

    def _with_system(self, turns: Dialogue) -> Dialogue:
        system = (self.prompt.value or "").strip()
        return (Turn("system", system), *turns) if system else turns

    async def _exchange(
        self, turns: Dialogue, dialogue: Dialogue, prompts: dict[Engine, Prompt], sampling: Sampling
    ) -> None:
        """The message in `turns`, and every model's answer to `dialogue`, on the page."""
        blind = len(self.engines) == 2 and self.blind.value
        if blind:
            random.shuffle(self.order)
        if not self.turns:
            self.talk.clear()
        with self.talk:
            drops = any(prompt.dropped_turns for prompt in prompts.values())
            if drops and not self.dropping_announced:
                self.dropping_announced = True
                ui.label(
                    "The talk is longer than the context: the oldest turns are not read any more."
                ).classes("label self-center")
            ui.label(turns[-1].text).classes("question self-end max-w-2xl")
            with ui.row().classes("pair w-full items-stretch gap-4"):
                cards = [
                    Card(engine.partner.label, BLIND[index] if blind else "")
                    for index, engine in enumerate(self.order)
                ]
            below = ui.row().classes("w-full justify-center gap-2")
        self._scroll_down()
        texts = await asyncio.gather(
            *(
                _write(engine, card, prompts[engine], sampling)
                for engine, card in zip(self.order, cards, strict=True)
            )
        )
        answers = [
            Answered(text, engine.partner.fingerprint, engine.partner.ref)
            for text, engine in zip(texts, self.order, strict=True)
            if text
        ]
        if answers:
            self.turns = (*turns, Turn("assistant", answers[0].text))
        if len(answers) == 2:
            self._offer_vote(below, turns, dialogue, answers, cards, sampling)
        else:
            for card in cards:
                card.reveal()
        self._scroll_down()

    def _scroll_down(self) -> None:
        # By the page's client: the button that began this may be gone with the welcome.
        self.talk.client.run_javascript(
            "setTimeout(() => window.scrollTo("
            "{top: document.body.scrollHeight, behavior: 'smooth'}), 80)"
        )

    def _offer_vote(
        self,
        below: Any,
        turns: Dialogue,
        dialogue: Dialogue,
        answers: list[Answered],
        cards: list[Card],
        sampling: Sampling,
    ) -> None:
        def vote_for(better: int, tie: bool = False) -> None:
            try:
                append(
                    self.home,
                    vote(dialogue, answers[better], answers[1 - better], asdict(sampling), tie=tie),
                )
            except UserError as error:
                ui.notify(str(error), type="negative", multi_line=True, timeout=10_000)
                return
            # Unless another exchange has followed:
            if self.turns == (*turns, Turn("assistant", answers[0].text)):
                self.turns = (*turns, Turn("assistant", answers[better].text))
            below.clear()
            for index, card in enumerate(cards):
                card.reveal(better=not tie and index == better)
            with below:
                ui.label(
                    "Vote kept: a tie" if tie else f"Vote kept: {answers[better].ref} is better"
                ).classes("label")
                ui.label(f"A recipe that takes it in: {VOTES_COMMAND}").classes("label")
            self._count()

        with below:
            ui.button("Left is better", icon="arrow_back", on_click=lambda: vote_for(0)).props(
                "outline no-caps rounded"
            )
            ui.button("Tie", on_click=lambda: vote_for(0, tie=True)).props(
                "outline no-caps rounded"
            )
            ui.button("Right is better", on_click=lambda: vote_for(1)).props(
                "outline no-caps rounded icon-right=arrow_forward"
            )


class Card:
    """One answer on the page, under the name of its artifact; or under `hidden` until it is
    revealed.
    """

    def __init__(self, label: str, hidden: str) -> None:
        self.label = label
        with ui.column().classes("card grow basis-0 p-5 gap-2") as self.card:
            with ui.row().classes("items-center gap-2"):
                ui.icon("smart_toy", size="18px").classes("text-primary")
                self.name = ui.label(hidden or label).classes("label").mark("artifact")
            self.text = ui.label().classes("answer writing")

    def show(self, text: str) -> None:
        self.text.text = text

    def finish(self, text: str) -> None:
        self.text.text = text or "(it ended without a word)"
        self.text.classes(remove="writing")

    def fail(self, reason: str) -> None:
        self.text.classes(remove="writing")
        with self.card:
            ui.label(reason).classes("text-red-700 text-sm")

    def reveal(self, better: bool = False) -> None:
        self.name.text = self.label
        if better:
            self.card.classes("better")


async def _write(engine: Engine, card: Card, prompt: Prompt, sampling: Sampling) -> str | None:
    """The answer, shown on the card as it is written. None where the model failed; the card then
    says why.
    """
    text = ""
    try:
        async for delta in engine.stream([engine.request(prompt.tokens, sampling)]):
            text += delta.text
            card.show(text.lstrip())
    except EngineFailed as error:
        card.fail(f"The model gave no whole answer ({error}). The terminal of the chat says more.")
        return None
    card.finish(text.strip())
    return text.strip() or None


def _slider(name: str, low: float, high: float, step: float, value: float) -> ui.slider:
    """A slider that shows its value."""
    with ui.row().classes("w-full justify-between"):
        ui.label(name).classes("text-sm text-gray-700")
        number = ui.label().classes("label")
    slider = ui.slider(min=low, max=high, step=step, value=value).props(f'aria-label="{name}"')
    number.bind_text_from(slider, "value", lambda current: f"{current:.4g}")
    return slider
