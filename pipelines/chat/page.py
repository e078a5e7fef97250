"""The chat's page, by NiceGUI: one or two models beside each other, answers as they are written,
votes. The models are this process's engines, as the endpoint's are.

NiceGUI has its scripts, fonts and styles in its package, so the page needs no network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from nicegui import app, ui
from nicegui.storage import Storage

from assets.store.store import Store
from gpt_model.errors import UserError
from gpt_model.rlhf.votes import read
from pipelines.chat.ability import ability
from pipelines.chat.conversation import (
    EMPTY,
    NAMES,
    Answer,
    Choice,
    Conversation,
    Exchange,
    Settings,
)
from pipelines.chat.endpoint import serving
from pipelines.chat.engine import Engine, running
from pipelines.chat.session import Partner, Sampling
from pipelines.local_only import HOST, LocalOnly, check_free

# The colours of page, card, text, quiet text and buttons; Quasar's own are too pale in the dark.
STYLE = """
<style>
 :root { --page: #f6f7fb; --card: #fff; --ink: #1c2233; --quiet: #535d75; --accent: #3f51b5;
   --line: #c9cfdf; --alarm: #b3261e; --good: #2e7d32; color-scheme: light; }
 :root:has(body.body--dark) { --page: #12141c; --card: #1d212d; --ink: #e8ebf4; --quiet: #a9b3ca;
   --accent: #b4beff; --line: #3d4459; --alarm: #ffb4ab; --good: #81c784; color-scheme: dark; }
 body, body.body--dark { background: var(--page); color: var(--ink);
   --q-primary: var(--accent) !important; }
 .nicegui-content { padding: 0; }
 .surface { background: var(--card) !important; color: var(--ink) !important;
   border-color: var(--line) !important; }
 .answer, .question { white-space: pre-wrap; overflow-wrap: anywhere; }
 .answer { line-height: 1.55; font-size: 15px; min-height: 1.55em; }
 .question { background: #3f51b5; color: white; padding: 10px 16px;
   border-radius: 16px 16px 4px 16px; }
 .card { background: var(--card); border: 1px solid var(--line); border-radius: 14px; }
 .card { min-width: 0; }
 .label { font-size: 13px; color: var(--quiet); overflow-wrap: anywhere; }
 .mono { font-family: ui-monospace, monospace; font-size: 12px; }
 .failed { color: var(--alarm); }
 .better { outline: 2px solid var(--good); }
 .writing::after { content: "▍"; color: var(--accent); animation: blink 1s steps(2) infinite; }
 .q-btn:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
 .q-field__label, .q-field__native::placeholder { color: var(--quiet) !important; opacity: 1; }
 .spoken { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
 @keyframes blink { 50% { opacity: 0; } }
 @media (prefers-reduced-motion) { .writing::after { animation: none; } }
 .pair { flex-wrap: nowrap; }
 @media (max-width: 700px) { .pair { flex-direction: column; } .wide { display: none; } }
</style>
<script>
 addEventListener("keydown", event => { if (event.key === "Escape") emitEvent("escape"); });
</script>
"""
# NiceGUI reads no half of a character (a lone surrogate). As in a form, it becomes U+FFFD.
WHOLE_CHARACTERS = """
<script>
 addEventListener("input", ({target}) => {
  if (target.value?.isWellFormed?.() === false) target.value = target.value.toWellFormed();
 }, true);
</script>
"""
# Enter that ends the choice of a character of another script is not the message's end.
ENTER = "event => { if (!event.isComposing) { event.preventDefault(); emit(); } }"
SUGGESTED = (
    "What is a language model?",
    "Write a short review of a film.",
    "What can I do on a rainy day?",
)
Kind = Literal["info", "warning", "negative"]  # of a notice
TALK = "talk"  # the key of a tab's conversation


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
        store = Store(home)
        abilities = {
            engine: ability(
                store, store.resolve(engine.partner.fingerprint), engine.parameters, engine.context
            )
            for engine in engines
        }

        @ui.page("/")
        async def index() -> None:
            ui.add_head_html(STYLE + WHOLE_CHARACTERS)
            await ui.context.client.connected()  # only then is it known which tab this is
            if TALK not in app.storage.tab:
                settings = Settings(
                    system, sampling.temperature, sampling.top_p, sampling.max_new_tokens
                )
                app.storage.tab[TALK] = Conversation(home, engines, sampling, settings)
            Page(app.storage.tab[TALK], abilities).draw()

        print(f"Chat: http://{HOST}:{port}  Endpoint: {endpoint}  (Ctrl-C stops both)", flush=True)
        ui.run(
            host=HOST,
            port=port,
            title="gpt-lineage chat",
            favicon="💬",
            dark=None,  # as the system has it
            language="en-US",
            reload=False,
            show=False,
            show_welcome_message=False,
        )


class Page:
    """One window on a conversation."""

    def __init__(self, talk: Conversation, abilities: dict[Engine, str]) -> None:
        self.talk, self.abilities = talk, abilities
        self.editing: Exchange | None = None
        self.client = ui.context.client

    def draw(self) -> None:
        with ui.header().classes("surface items-center no-wrap shadow-sm px-4 py-3 gap-3"):
            ui.icon("forum", size="26px").classes("wide")
            _heading("gpt-lineage chat", 1).classes("text-lg font-semibold whitespace-nowrap")
            self.named = ui.label().classes("label mono wide")
            ui.space()
            ui.button("New talk", icon="restart_alt", on_click=self._reset).props("flat no-caps")
            _icon_button("tune", "Settings", lambda: self.drawer.toggle())
        self._draw_settings()
        with ui.column().classes("w-full max-w-6xl mx-auto px-4 py-6 gap-5"):
            self.ability = ui.label().classes("label whitespace-pre-line").mark("ability")
            self.area = ui.column().classes("w-full gap-5")
        ui.label().classes("spoken").props("role=status aria-live=polite").bind_text_from(
            self.talk, "announcement"
        )
        with (
            ui.footer().classes("surface px-4 py-4 shadow-md"),
            ui.row().classes("w-full max-w-6xl mx-auto items-center no-wrap gap-3"),
        ):
            self.input = ui.textarea(placeholder="Write a message: Enter sends it").classes("grow")
            self.input.props(
                'outlined autogrow dense autofocus rows=1 aria-label="Message" '
                'aria-keyshortcuts="Enter"'
            )
            self.input.on("keydown.enter.exact", self._send, js_handler=ENTER)
            ui.button(icon="send", color="indigo", on_click=self._send).props(
                'round unelevated aria-label="Send"'
            ).bind_visibility_from(self.talk, "busy", backward=lambda busy: not busy)
            ui.button(icon="stop", color="indigo", on_click=self._stop).props(
                'round unelevated aria-label="Stop" aria-keyshortcuts="Escape"'
            ).bind_visibility_from(self.talk, "busy")
        self.drawer.move(target_index=-1)  # Tab leads from the talk to the message, then to it
        ui.on("escape", self._escape)
        self.talk.views.add(self.refresh)
        self.client.on_delete(lambda: self.talk.views.discard(self.refresh))
        self.refresh()

    def _draw_settings(self) -> None:
        # It has no `value`, so it is open where the window has room for it. It reaches to the
        # bottom, so the message box ends beside it.
        settings, sampling = self.talk.settings, self.talk.sampling
        self.drawer = (
            ui.right_drawer(bordered=True, bottom_corner=True)
            .classes("surface px-5 py-6 gap-4")
            .props('width=290 role=complementary aria-label="Settings"')
        )
        with self.drawer:
            _heading("How it answers", 2).classes("text-base font-semibold")
            prompt = ui.textarea("System prompt").bind_value(settings, "system")
            prompt.props("outlined autogrow dense").classes("w-full")
            prompt.tooltip(
                "What the model is told before the talk; it holds from the next message on"
            )
            _slider("Temperature", 0.0, max(2.0, sampling.temperature), settings, "temperature")
            _slider("Top-p", min(0.05, sampling.top_p), 1.0, settings, "top_p")
            length = ui.number("New tokens at most", min=1, precision=0)
            length.bind_value(settings, "max_new_tokens")
            length.props("outlined dense").classes("w-full")
            if len(self.talk.engines) == 2:
                # Names that the page has shown are no secret: a blind talk begins anew.
                blind = ui.switch("Blind: names after the vote")
                blind.bind_value(settings, "blind").on_value_change(self._reset)
                self.votes = ui.label().classes("label")
            ui.label(
                "Enter sends, Shift+Enter begins a new line, Escape stops the answer."
            ).classes("label")

    def refresh(self) -> None:
        """Draw the talk as it stands."""
        self._name_models()
        self.area.clear()
        with self.area:
            for number, exchange in enumerate(self.talk.exchanges, start=1):
                self._draw_exchange(exchange, number)
            if not self.talk.exchanges:
                self._draw_welcome()
        if self.editing is None:
            self._scroll_down()

    def _name_models(self) -> None:
        """The models above the talk, without names where they are to be judged blindly."""
        engines = self.talk.engines
        hidden = len(engines) == 2 and self.talk.settings.blind
        self.named.text = "" if hidden else " · ".join(item.partner.label for item in engines)
        texts = sorted({self.abilities[engine] for engine in engines})
        if len(texts) == 1:
            self.ability.text = texts[0] if len(engines) == 1 else f"Both models: {texts[0]}"
        elif hidden:
            self.ability.text = "\n".join(texts)
        else:
            self.ability.text = "\n".join(
                f"{engine.partner.ref}: {self.abilities[engine]}" for engine in engines
            )
        if len(engines) == 2:
            try:
                self.votes.text = f"Votes in this store: {len(read(self.talk.home))}"
            except UserError as error:
                self.votes.text = str(error)

    def _draw_welcome(self) -> None:
        with ui.column().classes("w-full items-center py-10 gap-2 text-center"):
            ui.icon("chat_bubble_outline", size="44px").classes("label")
            _heading("Ask something", 2).classes("text-xl")
            ui.label(
                "Both models answer the same talk; vote for the better answer, "
                "and it goes on with that one."
                if len(self.talk.engines) == 2
                else "Each answer names the artifact that gave it."
            ).classes("label")
            with ui.row().classes("justify-center gap-2 pt-4"):
                for text in SUGGESTED:
                    ui.button(text, on_click=lambda text=text: self._ask(text)).props(
                        "outline no-caps rounded"
                    )

    def _draw_exchange(self, exchange: Exchange, number: int) -> None:
        if exchange.drops_turns:
            ui.label(
                "The talk is longer than the context: the oldest turns are not read any more."
            ).classes("label self-center")
        if exchange is self.editing:
            self._draw_editor(exchange)
        else:
            with ui.column().classes("self-end items-end max-w-2xl gap-1"):
                ui.label(exchange.message).classes("question")
                if not self.talk.busy:
                    with ui.row().classes("gap-0"):
                        _icon_button("edit", f"Edit message {number}", lambda: self._edit(exchange))
                        _copy_button(f"Copy message {number}", exchange.message)
        with ui.row().classes("pair w-full items-stretch gap-4"):
            for name, answer in zip(NAMES, exchange.answers, strict=False):
                self._draw_answer(exchange, answer, name if len(exchange.answers) == 2 else "")
        last = exchange is self.talk.exchanges[-1]
        if exchange.choice is None and not self.talk.busy and (last or len(exchange.answers) == 2):
            with ui.row().classes("w-full justify-center items-center gap-2"):
                self._draw_actions(exchange)
        if exchange.note:
            ui.label(exchange.note).classes("note label self-center text-center")

    def _draw_answer(self, exchange: Exchange, answer: Answer, name: str) -> None:
        better = name and name == exchange.choice
        label = "" if exchange.is_hidden else answer.engine.partner.label
        card = ui.column().classes(f"card grow basis-0 p-5 gap-2 {'better' if better else ''}")
        spoken = f"Answer {name}".strip()
        with card.props(f'role=group aria-label="{spoken}"'):
            with ui.row().classes("items-center gap-2 no-wrap w-full"):
                title = " · ".join(part for part in (name, label) if part)
                _heading(title, 2).classes("label mono font-semibold grow").mark("artifact")
                if answer.text and answer.state != "writing":
                    _copy_button(f"Copy answer {name}".strip(), answer.text)
            text = ui.label().classes("answer").bind_text_from(answer, "text")
            if answer.state == "writing":
                text.classes("writing")
            elif not answer.text and answer.state == "complete":
                ui.label(EMPTY).classes("label")
            elif answer.state == "stopped":
                ui.label("Stopped.").classes("label")
            if answer.reason:
                ui.label(answer.reason).classes("failed text-sm")

    def _draw_actions(self, exchange: Exchange) -> None:
        """What can be done about answers that have no vote yet: a vote stands for just these."""
        if exchange.can_be_voted_on:
            for choice, text in (("A", "A is better"), ("tie", "Tie"), ("B", "B is better")):
                ui.button(text, on_click=lambda choice=choice: self._vote(exchange, choice)).props(
                    "outline no-caps rounded"
                )
        elif len(exchange.answers) == 2:
            ui.label("Only two whole answers can be voted on.").classes("label")
        if exchange is self.talk.exchanges[-1]:
            ui.button("Regenerate", icon="refresh", on_click=self._regenerate).props("flat no-caps")

    def _draw_editor(self, exchange: Exchange) -> None:
        with ui.column().classes("w-full max-w-2xl self-end gap-2"):
            box = ui.textarea("Edited message", value=exchange.message).classes("w-full")
            box.props("outlined autogrow dense autofocus")

            def send() -> None:
                self._ask(box.value or "", self.talk.exchanges.index(exchange))

            box.on("keydown.enter.exact", send, js_handler=ENTER)
            with ui.row().classes("items-center gap-2"):
                ui.button("Send again", on_click=send).props("outline no-caps")
                ui.button("Cancel", on_click=lambda: self._edit(None)).props("flat no-caps")
                ui.label("What follows the message is left out.").classes("label")

    def _send(self) -> None:
        if not self.talk.busy and self._ask(self.input.value or ""):
            self.input.value = ""

    def _ask(self, message: str, at: int | None = None) -> bool:
        """Whether the message is sent; a notice says why where it is not."""
        return self._try(lambda: self.talk.ask(message, at), "warning")

    def _regenerate(self) -> None:
        if self._try(self.talk.regenerate, "warning") and not self.talk.settings.temperature:
            self._notify("At temperature 0 the answer is the same again.", "info")

    def _vote(self, exchange: Exchange, choice: Choice) -> None:
        self._try(lambda: self.talk.vote(exchange, choice), "negative")

    def _try(self, action: Callable[[], None], kind: Kind) -> bool:
        editing, self.editing = self.editing, None
        try:
            action()
        except UserError as error:
            self.editing = editing
            self._notify(str(error), kind)
            return False
        self.input.run_method("focus")  # the button that was pressed is gone
        return True

    def _notify(self, text: str, kind: Kind) -> None:
        with self.client:  # the button that began this may be gone
            ui.notify(text, type=kind, multi_line=True, timeout=10_000)

    def _edit(self, exchange: Exchange | None) -> None:
        self.editing = exchange
        self.refresh()
        if exchange is None:
            self.input.run_method("focus")

    def _stop(self) -> None:
        self.talk.stop()
        self.input.run_method("focus")

    def _escape(self) -> None:
        if self.editing:
            self._edit(None)
        else:
            self.talk.stop()

    def _reset(self) -> None:
        self.editing = None
        self.talk.reset()
        self.input.run_method("focus")

    def _scroll_down(self) -> None:
        self.client.run_javascript(
            "setTimeout(() => window.scrollTo("
            "{top: document.body.scrollHeight, behavior: 'smooth'}), 80)"
        )


def _heading(text: str, level: int) -> ui.label:
    return ui.label(text).props(f"role=heading aria-level={level}")


def _icon_button(icon: str, label: str, on_click: Callable[[], object]) -> ui.button:
    button = ui.button(icon=icon, on_click=on_click).props(
        f'flat round dense size=sm aria-label="{label}"'
    )
    button.tooltip(label)
    return button


def _copy_button(label: str, text: str) -> None:
    def copy() -> None:
        ui.clipboard.write(text)
        ui.notify("Copied")

    _icon_button("content_copy", label, copy)


def _slider(name: str, low: float, high: float, settings: Settings, field: str) -> None:
    """A slider that shows its value."""
    with ui.row().classes("w-full justify-between"):
        ui.label(name).classes("text-sm")
        number = ui.label().classes("label mono")
    slider = ui.slider(min=low, max=high, step=0.05).props(f'aria-label="{name}"')
    slider.bind_value(settings, field)
    number.bind_text_from(slider, "value", lambda current: f"{current:.4g}")
