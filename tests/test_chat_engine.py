"""The engine: answers in batches, text as it is written, readers that leave, failures."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from chat_store import CONTEXT, QUESTION, chat_store

from gpt_model.errors import UserError
from gpt_model.rlhf.dialogue import Turn
from pipelines.chat import engine as engine_module
from pipelines.chat.engine import AnswerRequest, Delta, Engine, EngineFailed, numbered_seed
from pipelines.chat.session import Sampling, find_partner

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    store = chat_store(tmp_path_factory.mktemp("engine"))
    with Engine(find_partner(store, "tiny/supervised")) as engine:
        yield engine


def request(engine: Engine, text: str = "who sees the sailor?", **options: Any) -> AnswerRequest:
    """A request for an answer of 30 tokens, sampled at temperature 2."""
    stop, top = options.pop("stop", ()), options.pop("top_logprobs", None)
    sampling = Sampling(**{"temperature": 2.0, "max_new_tokens": 30, "seed": 3} | options)
    return engine.request(engine.fit((Turn("user", text),), 30).tokens, sampling, stop, top)


def answers(engine: Engine, *requests: AnswerRequest) -> list[list[Delta]]:
    """The parts of each answer, all requested at once."""

    async def read() -> list[list[Delta]]:
        parts: list[list[Delta]] = [[] for _ in requests]
        async for delta in engine.stream(requests):
            parts[delta.index].append(delta)
        return parts

    return asyncio.run(read())


def text(parts: Sequence[Delta]) -> str:
    return "".join(part.text for part in parts)


class Calls:
    """Every call of `generate`, which the first one makes wait until `first` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.prompts: list[int] = []
        self.temperatures: list[float] = []
        self.tokens = 0
        self.first, self.begun = threading.Event(), threading.Event()
        generate = engine_module.generate

        def counted(model: Any, prompts: Any, length: int, **options: Any) -> Any:
            self.prompts.append(len(prompts))
            self.temperatures.append(options["temperature"])
            self.begun.set()
            assert self.first.wait(30)
            on_choice = options.pop("on_choice")

            def count(*columns: Any) -> None:
                self.tokens += 1
                on_choice(*columns)

            return generate(model, prompts, length, on_choice=count, **options)

        monkeypatch.setattr(engine_module, "generate", counted)


def scripted(monkeypatch: pytest.MonkeyPatch, tokens: Sequence[int], vocabulary: int) -> None:
    """Every answer is these tokens, however they are sampled."""

    def generate(
        _: Any, prompts: Any, length: int, *, on_choice: Callable[..., None], **__: Any
    ) -> None:
        for token in tokens[:length]:
            rows = torch.arange(len(prompts))
            on_choice(
                rows, None, torch.zeros(len(prompts), vocabulary), torch.full_like(rows, token)
            )

    monkeypatch.setattr(engine_module, "generate", generate)


def test_requests_that_wait_share_a_call_and_each_answer_is_the_one_it_is_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["who sees the sailor?", "and the tree?", "be kind", "the king and the old tree does"]
    requests = [request(engine, text, seed=seed) for seed, text in enumerate(texts * 2)]
    others = [request(engine, text, temperature=0.0) for text in texts[:3]]
    alone = [text(answers(engine, each)[0]) for each in (*requests, *others)]
    assert len(set(alone)) > 5

    calls, together = Calls(monkeypatch), {}

    def read(number: int, each: AnswerRequest) -> None:
        together[number] = text(answers(engine, each)[0])

    threads = [
        threading.Thread(target=read, args=numbered) for numbered in enumerate((*requests, *others))
    ]
    threads[0].start()
    assert calls.begun.wait(30)
    for thread in threads[1:]:  # these wait for the first
        thread.start()
    while len(engine._waiting) < len(threads) - 1:
        pass
    calls.first.set()
    for thread in threads:
        thread.join(60)
    assert [together[number] for number in range(len(alone))] == alone
    assert sorted(zip(calls.prompts, calls.temperatures, strict=True)) == [
        (1, 2.0),
        (3, 0.0),
        (7, 2.0),
    ]


def test_requests_that_are_equal_share_a_row(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch)
    calls.first.set()
    whole, short, _ = answers(
        engine, request(engine), request(engine, max_new_tokens=3), request(engine, seed=4)
    )
    assert calls.prompts == [2]
    assert text(whole).startswith(text(short)) and short[-1].completion_tokens == 3
    assert text(whole) == text(answers(engine, request(engine))[0])


def test_a_batch_has_no_more_rows_than_the_bound(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch)
    calls.first.set()
    seeds = [numbered_seed(3, number) for number in range(20)]
    several = answers(engine, *(request(engine, seed=seed) for seed in seeds))
    assert seeds[0] == 3 and calls.prompts == [engine_module.MAX_ROWS, 4]
    assert len({text(parts) for parts in several}) > 15


def test_an_answer_ends_at_its_length_at_the_context_or_at_the_models_end(engine: Engine) -> None:
    prompt = engine.fit(QUESTION, 30).tokens
    long = request(engine, temperature=50.0, max_new_tokens=5000)
    end, rest, by_itself = answers(
        engine, request(engine, max_new_tokens=2), long, request(engine, temperature=0.0)
    )
    assert (end[-1].completion_tokens, end[-1].finish_reason) == (2, "length")
    assert rest[-1].finish_reason in ("length", "stop")
    assert rest[-1].completion_tokens <= CONTEXT - len(prompt) == long.sampling.max_new_tokens
    assert by_itself[-1].finish_reason == "length"
    with pytest.raises(UserError, match=f"the model reads {CONTEXT}, its answer included"):
        engine.request([1] * CONTEXT, Sampling())


def test_nothing_of_a_stop_string_is_sent_even_where_it_spans_tokens(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = engine.partner.template.tokenizer
    tokens = [token for letter in "so kings sing" for token in tokenizer.encode(letter)]
    scripted(monkeypatch, [*tokens, tokenizer.end_of_text], tokenizer.vocab_size)
    (stopped, unmet, whole) = answers(
        engine,
        request(engine, stop=["ing", "kings s", "sx"]),
        request(engine, stop=["single"]),
        request(engine),
    )
    assert (text(stopped), stopped[-1].finish_reason) == ("so k", "stop")
    assert [part.text for part in stopped if part.text] == ["so", " ", "k"]  # an s may begin sx
    assert text(unmet) == text(whole) == "so kings sing"
    assert unmet[-1].text == "sing" and whole[-1].finish_reason == "stop"
    assert len(whole) == len("so kings sing") + 1  # a part a token, and the end


def test_half_a_character_is_not_sent(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = engine.partner.template.tokenizer
    tokens = tokenizer.encode("a€b")
    assert len(tokens) == 5
    scripted(monkeypatch, [*tokens, tokens[1]], tokenizer.vocab_size)
    (parts,) = answers(engine, request(engine, max_new_tokens=6, top_logprobs=0))
    assert [part.text for part in parts] == ["a", "€", "b", "\ufffd"]  # the last is all there is
    assert [len(part.logprobs) for part in parts] == [1, 3, 1, 1]


def test_logprobs_are_the_models_own_and_stand_with_the_text(engine: Engine) -> None:
    sampled = request(engine, top_logprobs=4, temperature=3.0, top_k=20, seed=8)
    (parts,) = answers(engine, sampled)
    entries = [entry for part in parts for entry in part.logprobs]
    assert len(entries) == parts[-1].completion_tokens
    sequence = [*sampled.prompt, *(entry.token for entry in entries)]
    with torch.no_grad():
        logprobs = engine._model(torch.tensor([sequence]))[0].log_softmax(-1)
    for position, entry in enumerate(entries, start=len(sampled.prompt) - 1):
        assert entry.logprob == pytest.approx(float(logprobs[position, entry.token]), abs=1e-4)
        best = logprobs[position].topk(4)
        assert [token for token, _ in entry.top] == best.indices.tolist()
        assert [logprob for _, logprob in entry.top] == pytest.approx(
            best.values.tolist(), abs=1e-4
        )


def test_a_reader_that_leaves_frees_the_model(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = 0

    def endless(_: Any, prompts: Any, *__: Any, on_choice: Any, **___: Any) -> None:
        nonlocal chosen
        while True:
            chosen += 1
            on_choice(torch.arange(1), None, torch.zeros(1, 1), torch.tensor([40]))

    monkeypatch.setattr(engine_module, "generate", endless)
    unbounded = AnswerRequest(request(engine).prompt, Sampling(max_new_tokens=10**9))

    async def leave() -> str:
        async for delta in engine.stream([unbounded]):
            return delta.text
        return ""

    assert asyncio.run(leave()) == engine.partner.template.tokenizer.decode([40])
    monkeypatch.undo()
    assert text(answers(engine, request(engine))[0])  # by the same thread
    assert chosen


def test_a_failure_reaches_its_readers_and_the_next_request_is_answered(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(engine_module, "generate", fail)
    with pytest.raises(EngineFailed, match="OutOfMemoryError: no memory left"):
        answers(engine, request(engine), request(engine, seed=9))
    monkeypatch.undo()
    assert text(answers(engine, request(engine))[0])


def test_a_closed_engine_ends_the_answers_that_are_being_written(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch)
    with Engine(engine.partner) as other:
        failures: list[str] = []

        def read(seed: int, temperature: float) -> None:
            try:
                answers(other, request(other, seed=seed, temperature=temperature))
            except EngineFailed as error:
                failures.append(str(error))

        threads = [
            threading.Thread(target=read, args=(1, 1.0)),
            threading.Thread(target=read, args=(2, 2.0)),
        ]
        threads[0].start()
        assert calls.begun.wait(30)
        threads[1].start()
        while not other._waiting:
            pass
        other._closed = True  # as leaving the context does, which then waits for the batch
        calls.first.set()
    for thread in threads:
        thread.join(30)
    assert failures == ["the chat has ended"] * 2
    with pytest.raises(EngineFailed, match="the chat has ended"):
        answers(other, request(other))
