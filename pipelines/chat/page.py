"""The chat's page, by NiceGUI: one or two models beside each other, answers as they are written,
votes. It speaks with the endpoint only.

NiceGUI has its scripts, fonts and styles in its package, so the page needs no way out.
"""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from gpt_model.errors import UserError
from gpt_model.rlhf.dialogue import Dialogue, Turn, messages
from gpt_model.rlhf.votes import Answered, append, read, vote
from pipelines.chat.guard import LocalOnly
from pipelines.chat.server import HOST, check_free, name_of
from pipelines.chat.session import LEARNING, Partner, Sampling, fitted, room

STYLE = """
<style>
 body { background: #f6f7fb; }
 .nicegui-content { padding: 0; }
 .answer { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.55; font-size: 15px; min-height: 1.55em; }
 .asked { white-space: pre-wrap; overflow-wrap: anywhere; }
 .asked { background: #3f51b5; color: white; border-radius: 16px 16px 4px 16px; padding: 10px 16px; }
 .card { border-radius: 14px; box-shadow: 0 1px 3px rgb(20 24 60 / .12); background: white; }
 .label { font-family: ui-monospace, monospace; font-size: 12px; color: #5c6680; }
 .better { outline: 2px solid #43a047; }
 .writing::after { content: "▍"; color: #3f51b5; animation: blink 1s steps(2) infinite; }
 @keyframes blink { 50% { opacity: 0; } }
 .pair { flex-wrap: nowrap; }
 @media (max-width: 700px) { .pair { flex-direction: column; } .wide { display: none; } }
</style>
"""
BLIND = ("Model A", "Model B")
SUGGESTED = (
    "What is a language model?",
    "Write a short review of a film.",
    "What can I do on a rainy day?",
)


def serve_page(
    home: Path, partners: list[Partner], endpoint: str, port: int, sampling: Sampling, system: str
) -> None:
    """The page, until Ctrl-C."""
    check_free(port, "--port")
    os.environ["NICEGUI_STORAGE_PATH"] = str(home / "chat" / "page")
    from nicegui import app, ui

    app.add_middleware(LocalOnly)

    @ui.page("/")
    def index() -> None:
        Page(home, partners, endpoint, sampling, system).draw()

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
    """One visitor's talk."""

    def __init__(
        self, home: Path, partners: list[Partner], endpoint: str, sampling: Sampling, system: str
    ) -> None:
        from openai import AsyncOpenAI

        self.home, self.partners, self.sampling, self.system = home, partners, sampling, system
        self.client = AsyncOpenAI(base_url=endpoint, api_key="none", max_retries=0)
        self.turns: Dialogue = ()
        self.busy = False
        self.told_of_dropping = False
        self.order = list(partners)

    # --- what is on it ---

    def draw(self) -> None:
        from nicegui import ui

        ui.add_head_html(STYLE)
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
        from nicegui import ui

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
            if len(self.partners) == 2:
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
        from nicegui import ui

        self.turns, self.told_of_dropping = (), False
        self.order = list(self.partners)
        hidden = len(self.partners) == 2 and self.blind.value
        self.named.text = (
            "" if hidden else "   ·   ".join(partner.label for partner in self.partners)
        )
        self.talk.clear()
        with self.talk, ui.column().classes("w-full items-center py-16 gap-2 text-center"):
            ui.icon("chat_bubble_outline", size="44px").classes("text-gray-400")
            ui.label("Ask something").classes("text-xl text-gray-700")
            told = "Both models answer the same talk; vote for the better answer, and it goes on with that one."
            ui.label(
                told if len(self.partners) == 2 else "Each answer names the artifact that gave it."
            ).classes("text-gray-500")
            with ui.row().classes("justify-center gap-2 pt-4"):
                for text in SUGGESTED:
                    ui.button(text, on_click=lambda text=text: self.send(text)).props(
                        "outline no-caps rounded"
                    )

    # --- what can be done ---

    def reset(self) -> None:
        from nicegui import ui

        if self.busy:
            ui.notify("An answer is being written: wait for its end.")
        else:
            self._begin()

    def _settings(self) -> Sampling:
        """How the next answers are drawn, each exchange by a seed of its own."""
        length = self.length.value
        if length is None:
            raise UserError("New tokens at most is empty: write a number from 1 on.")
        return Sampling(
            self.temperature.value,
            self.top_p.value,
            0,
            int(length),
            self.sampling.seed + len(self.turns),
        )

    async def send(self, text: str = "") -> None:
        """`text`, or the message in the box, to every model, unless there is none or an answer is
        still being written.
        """
        from nicegui import ui

        text = text or (self.input.value or "").strip()
        if self.busy:
            return
        if not text:
            ui.notify("An empty message is not sent: write something.", type="warning")
            return
        turns = (*self.turns, Turn("user", text))
        try:
            sampling = self._settings()
            asked = {
                partner: fitted(partner, self._with_system(turns), sampling)
                for partner in self.partners
            }
        except UserError as error:
            ui.notify(str(error), type="warning", multi_line=True, timeout=10_000)
            return
        self.busy, self.input.value = True, ""
        self.button.disable()
        try:
            await self._exchange(turns, asked, sampling)
        finally:
            self.busy = False
            self.button.enable()

    def _with_system(self, turns: Dialogue) -> Dialogue:
        told = (self.prompt.value or "").strip()
        return (Turn("system", told), *turns) if told else turns

    async def _exchange(
        self,
        turns: Dialogue,
        asked: dict[Partner, tuple[Dialogue, list[int], int]],
        sampling: Sampling,
    ) -> None:
        from nicegui import ui

        prompt = self._with_system(turns)
        blind = len(self.partners) == 2 and self.blind.value
        if blind:
            random.shuffle(self.order)
        if not self.turns:
            self.talk.clear()
        with self.talk:
            if any(dropped for _, _, dropped in asked.values()) and not self.told_of_dropping:
                self.told_of_dropping = True
                ui.label(
                    "The talk is longer than the context: the oldest turns are not read any more."
                ).classes("label self-center")
            ui.label(turns[-1].text).classes("asked self-end max-w-2xl")
            with ui.row().classes("pair w-full items-stretch gap-4"):
                cards = [
                    Card(partner.label, BLIND[place] if blind else "")
                    for place, partner in enumerate(self.order)
                ]
            below = ui.row().classes("w-full justify-center gap-2")
        self._to_the_end()
        writing = [
            self._stream(partner, card, asked[partner], sampling)
            for partner, card in zip(self.order, cards, strict=True)
        ]
        answers = await asyncio.gather(*writing)
        whole = [
            Answered(text, partner.fingerprint, partner.ref)
            for text, partner in zip(answers, self.order, strict=True)
            if text
        ]
        if whole:
            self.turns = (*turns, Turn("assistant", whole[0].text))
        if len(whole) == 2:
            self._offer(below, turns, prompt, whole, cards, sampling)
        else:
            for card in cards:
                card.reveal()
        self._to_the_end()

    def _to_the_end(self) -> None:
        # By the page's client: the button that began this may be gone with the welcome.
        self.talk.client.run_javascript(
            "setTimeout(() => window.scrollTo({top: document.body.scrollHeight, behavior: 'smooth'}), 80)"
        )

    async def _stream(
        self,
        partner: Partner,
        card: Card,
        asked: tuple[Dialogue, list[int], int],
        sampling: Sampling,
    ) -> str | None:
        """The answer, or None where there is none whole; the card then says why."""
        kept, prompt, _ = asked
        text = ""
        try:
            stream = await self.client.chat.completions.create(
                model=name_of(partner),
                messages=cast(Any, messages(kept)),
                stream=True,
                seed=sampling.seed,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=room(partner, prompt, sampling),
            )
            ended = False
            async for chunk in stream:
                ended = ended or bool(chunk.choices and chunk.choices[0].finish_reason)
                text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
                card.show(text.lstrip())
            if not ended:
                raise ConnectionError("it ended in the middle")
        except (
            Exception
        ) as error:  # of the client, or of the connection below it: all mean that no answer came
            card.failed(
                f"The endpoint gave no whole answer ({error}). Is it still running? Stop the chat and start it again."
            )
            return None
        card.done(text.strip())
        return text.strip() or None

    # --- votes ---

    def _offer(
        self,
        below: Any,
        turns: Dialogue,
        prompt: Dialogue,
        answers: list[Answered],
        cards: list[Card],
        sampling: Sampling,
    ) -> None:
        from nicegui import ui

        def vote_for(better: int, tie: bool = False) -> None:
            try:
                append(
                    self.home,
                    vote(prompt, answers[better], answers[1 - better], asdict(sampling), tie=tie),
                )
            except UserError as error:
                ui.notify(str(error), type="negative", multi_line=True, timeout=10_000)
                return
            if self.turns == (
                *turns,
                Turn("assistant", answers[0].text),
            ):  # still the last exchange
                self.turns = (*turns, Turn("assistant", answers[better].text))
            below.clear()
            for place, card in enumerate(cards):
                card.reveal(better=not tie and place == better)
            with below:
                ui.label(
                    "Vote kept: a tie" if tie else f"Vote kept: {answers[better].ref} is better"
                ).classes("label")
                ui.label(f"A recipe that takes it in: {LEARNING}").classes("label")
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
        from nicegui import ui

        self.label = label
        with ui.column().classes("card grow basis-0 p-5 gap-2") as self.card:
            with ui.row().classes("items-center gap-2"):
                ui.icon("smart_toy", size="18px").classes("text-primary")
                self.name = ui.label(hidden or label).classes("label").mark("artifact")
            self.text = ui.label().classes("answer writing")

    def show(self, text: str) -> None:
        self.text.text = text

    def done(self, text: str) -> None:
        self.text.text = text or "(it ended without a word)"
        self.text.classes(remove="writing")

    def failed(self, why: str) -> None:
        self.text.classes(remove="writing")
        from nicegui import ui

        with self.card:
            ui.label(why).classes("text-red-700 text-sm")

    def reveal(self, better: bool = False) -> None:
        self.name.text = self.label
        if better:
            self.card.classes("better")


def _slider(name: str, low: float, high: float, step: float, value: float):  # type: ignore[no-untyped-def]
    """A slider that shows its value."""
    from nicegui import ui

    with ui.row().classes("w-full justify-between"):
        ui.label(name).classes("text-sm text-gray-700")
        shown = ui.label().classes("label")
    slider = ui.slider(min=low, max=high, step=step, value=value).props(f'aria-label="{name}"')
    shown.bind_text_from(slider, "value", lambda found: f"{found:.4g}")
    return slider
