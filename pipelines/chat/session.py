"""Talking with a model: who answers, by which settings, and how much of the talk it can read.
Terminal, page and server are beside this.

Two models answer the same dialogue, and it goes on with one answer: so a vote compares answers to
one prompt.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets.store.store import SHORT, Store
from gpt_model.errors import UserError
from pipelines.models import model_folder

if TYPE_CHECKING:
    from gpt_model import GPT
    from gpt_model.rlhf.chat_template import Layout
    from gpt_model.rlhf.dialogue import Dialogue

LEARNING = "gpt-lineage run chat-tiny-votes"  # what makes of votes comparisons
ROOM = 4  # an answer may have a quarter of the context at least


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn."""

    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    max_new_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UserError for a number out of its bounds."""
        bounds = {
            "temperature": self.temperature >= 0,
            "top_p": 0 < self.top_p <= 1,
            "top_k": self.top_k >= 0,
        }
        bounds |= {"max_new_tokens": self.max_new_tokens >= 1, "seed": self.seed >= 0}
        wanted = {
            "temperature": "0 or more",
            "top_p": "above 0, at most 1",
            "top_k": "0 (all) or more",
            "max_new_tokens": "1 or more",
        }
        for name, holds in bounds.items():
            if not holds:
                raise UserError(
                    f"{name} is {getattr(self, name)}, and should be {wanted.get(name, '0 or more')}."
                )

    def with_words(self, words: list[str]) -> Sampling:
        """Changed as `temperature=0.7 top_p=0.9` says. Raises UserError."""
        kinds = {field.name: float if field.type == "float" else int for field in fields(self)}
        changed: dict[str, Any] = {}
        for word in words:
            name, _, value = word.partition("=")
            if name not in kinds:
                raise UserError(
                    f"There is no setting {name!r}: there are {', '.join(kinds)}. Write /settings temperature=0.7 top_p=0.9"
                )
            try:
                changed[name] = kinds[name](value)
            except ValueError:
                raise UserError(f"{name} is a number, and {value!r} is none.") from None
        return replace(self, **changed)

    def __str__(self) -> str:
        return "  ".join(f"{name}={value}" for name, value in asdict(self).items())


@dataclass(frozen=True)
class Partner:
    """A model to talk with: the artifact's name, its fingerprint and its folder."""

    ref: str
    fingerprint: str
    folder: Path
    layout: Layout = field(compare=False, repr=False)

    @property
    def label(self) -> str:
        short = self.fingerprint[:SHORT]
        return short if self.ref == short else f"{self.ref} {short}"

    @cached_property
    def context(self) -> int:
        from gpt_model import convert

        return convert.shape(self.folder).context

    @cached_property
    def model(self) -> GPT:
        import torch

        from gpt_model import convert

        return convert.load(self.folder).to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def answer(self, prompt: list[int], sampling: Sampling, said: Callable[[str], None]) -> str:
        """The answer, as text; `said` is told each new part of it as it is written."""
        from gpt_model.generation import generate

        tokenizer = self.layout.tokenizer
        tokens: list[int] = []
        shown = ""

        def on_token(_: int, token: int) -> None:
            nonlocal shown
            tokens.append(token)
            text = tokenizer.decode(tokens).lstrip()
            if (
                token != self.layout.end and text.startswith(shown) and not text.endswith("\ufffd")
            ):  # not half a character
                said(text[len(shown) :])
                shown = text

        (written,) = generate(
            self.model,
            [prompt],
            room(self, prompt, sampling),
            temperature=sampling.temperature,
            top_k=sampling.top_k or None,
            top_p=sampling.top_p if sampling.top_p < 1 else None,
            seed=sampling.seed,
            stop=[self.layout.end],
            on_token=on_token,
        )
        text = tokenizer.decode(written).strip()
        said(text[len(shown) :] if text.startswith(shown) else "")
        return text


def partner(store: Store, name: str) -> Partner:
    """The artifact called `name`, by that name; by its first one where `name` is the start of a
    fingerprint.

    Raises UserError for an artifact without a model, or whose model is not one to talk with.
    """
    from gpt_model.rlhf.chat_template import Layout
    from gpt_model.tokenizer import Tokenizer

    artifact = store.resolve(name)
    folder = model_folder(store, artifact)
    names = [
        ref for ref, fingerprint in store.refs().items() if fingerprint == artifact.fingerprint
    ]
    asked = name.strip().strip("/")
    ref = asked if asked in names else next(iter(names), artifact.fingerprint[:SHORT])
    try:
        return Partner(ref, artifact.fingerprint, folder, Layout(Tokenizer.load(folder)))
    except UserError as error:
        raise UserError(f"{ref}: {error}") from None


def room(partner: Partner, prompt: list[int], sampling: Sampling) -> int:
    """How many tokens the answer may have: what is asked for, within the context."""
    return max(1, min(sampling.max_new_tokens, partner.context - len(prompt)))


def fitted(
    partner: Partner, turns: Dialogue, sampling: Sampling
) -> tuple[Dialogue, list[int], int]:
    """(the turns the model can read, what system says among them; their tokens; how many older ones
    are left out).

    Raises UserError where the last message alone is too long, or one spells a token out that is no
    text.
    """
    from gpt_model.rlhf.chat_template import check_spells_none

    check_spells_none(turns, partner.layout.reserved)
    system = turns[:1] if turns[0].role == "system" else ()
    said = turns[len(system) :]
    limit = partner.context - min(sampling.max_new_tokens, max(1, partner.context // ROOM))
    for dropped in range(0, len(said), 2):  # a question goes with its answer
        kept = (*system, *said[dropped:])
        if len(tokens := partner.layout.prompt(kept)) <= limit:
            return kept, tokens, dropped
    raise UserError(
        f"The message is too long for {partner.ref}: {len(tokens):,} tokens with its markers, and it reads {partner.context:,}, "
        f"of which {partner.context - limit:,} are for the answer. Shorten it."
    )


def votes_told(home: Path) -> str:
    from gpt_model.rlhf import votes

    cast = votes.read(home)
    told = f"Votes: {len(cast)}, of which ties: {sum(one.tie for one in cast)}. They are in {home / votes.FILE}"
    return f"{told}\nA recipe that takes them in: {LEARNING}" if cast else told


def _check_apart(partners: list[Partner]) -> None:
    if len(partners) == 2 and partners[0].fingerprint == partners[1].fingerprint:
        raise UserError(
            f"{partners[0].label} is both models: give two different ones to vote between, or one."
        )


def in_terminal(store: Store, partners: list[Partner], sampling: Sampling, system: str) -> None:
    """Until /quit. Raises UserError where both models are one."""
    from pipelines.chat.terminal import Terminal

    _check_apart(partners)
    Terminal(store.home, partners, sampling, system).talk()


def in_browser(
    store: Store,
    partners: list[Partner],
    sampling: Sampling,
    system: str,
    port: int,
    endpoint_port: int,
) -> None:
    """Endpoint and page, until Ctrl-C. Raises UserError where what they need is not installed, or
    both models are one.
    """
    if missing := [
        name for name in ("nicegui", "openai", "uvicorn") if importlib.util.find_spec(name) is None
    ]:
        raise UserError(
            f"The page needs {', '.join(missing)}, not installed here: pip install 'gpt-lineage[chat]' -c constraints.txt"
        )
    _check_apart(partners)
    if sampling.top_k:
        raise UserError(
            "The endpoint's protocol has no top-k: leave --top-k out with --browser, or talk in the terminal."
        )
    from pipelines.chat.page import serve_page
    from pipelines.chat.server import check_free, serving

    check_free(port, "--port")
    with serving(store, partners, endpoint_port) as endpoint:
        serve_page(store.home, partners, endpoint, port, sampling, system)
